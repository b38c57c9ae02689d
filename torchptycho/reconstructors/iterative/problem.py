"""What is fixed while a scan is refined: its counts, its mask, and the canvas that its frames lie on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from torchptycho.core.scan import Scan
from torchptycho.io import iter_checked_chunks
from torchptycho.io.field import check_scan_field
from torchptycho.io.frames.npz_frames import count_frames_in
from torchptycho.io.near_field import refuse_near_field
from torchptycho.physics.propagation import FAR_FIELD, Propagator, build_propagator
from torchptycho.physics.scaling import Scaling, measure_scaling
from torchptycho.reconstructors.iterative.frame_source import (
    FrameOrder,
    FrameReader,
    FrameWriter,
    plan_frames,
    read_ahead,
)
from torchptycho.reconstructors.iterative.reducer import ONE_PROCESS, Reducer
from torchptycho.reconstructors.iterative.shares import assign_frames
from torchptycho.reconstructors.iterative.thick_object import build_scan_gap, compute_gap_depth

__all__ = ["Problem", "lay_out_canvas", "measure_variation", "open_problem"]

# Frames that are checked at once; sums over them take some ten times as much memory.
_CHECKED_BYTES = 2 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """The measured side. In the far field detector arrays have the zero frequency at [0, 0], where the FFT puts it.

    Arguments:
        frames: [M, N, N] in the detector's dtype or as floats: in memory, in a mapped file, on the device, or in the
            scan's own file.
        scaling: how they become photon counts.
        mask: [N, N], True where the pixel can be trusted.
        origin_px, shape: where the canvas begins, in object pixels, and its size.
        dtype: of the arithmetic: complex64 or complex128.
        propagator: from the sample to the detector and back.
        gap: from one slice of a thick object to the next; None for a thin one.
        slice_spacing_m: distance d between them.
        gap_depth: the same in units of p^2 / lambda, for an object pixel p.
        variation: how far the frames differ from their mean, in the measure of the residual of a fit; see
            `measure_variation`.
        order: draws the order of the frames in each pass; None takes all of them at random.
        reducer: adds what the processes have that share the frames.
        is_own: [M], True for the frames of this process, the only ones that it can load, or None for all.
    """

    frames: np.ndarray | Tensor | FrameReader
    scaling: Scaling
    mask: Bool[Tensor, "n n"]
    origin_px: tuple[int, int]
    shape: tuple[int, int]
    dtype: torch.dtype = torch.complex64
    propagator: Propagator = FAR_FIELD
    gap: Propagator | None = None
    slice_spacing_m: float | None = None
    gap_depth: float = 0.0
    variation: float = 0.0
    order: FrameOrder | None = None
    reducer: Reducer = ONE_PROCESS
    is_own: Bool[Tensor, " m"] | None = None

    @property
    def n_px(self) -> int:
        return int(self.frames.shape[-1])

    @property
    def n_frames(self) -> int:
        return int(self.frames.shape[0]) if self.is_own is None else len(self.is_own)

    @property
    def device(self) -> torch.device:
        return self.mask.device

    @functools.cached_property
    def n_good_pixels(self) -> int:
        return int(self.mask.sum())

    @functools.cached_property
    def _origin_px(self) -> Float64[Tensor, " 2"]:
        # Created once, because copying numbers to a GPU waits for its queued work.
        return torch.tensor(self.origin_px, dtype=torch.float64, device=self.device)

    @property
    def mask_or_none(self) -> Bool[Tensor, "n n"] | None:
        """None when every pixel can be trusted, which spares a pass over the frames."""
        return self.mask if self.n_good_pixels < self.n_px**2 else None

    def draw_order(self, generator: torch.Generator) -> Int64[Tensor, " m"]:
        """Draw the order of the frames in one pass."""
        order = torch.randperm(self.n_frames, generator=generator) if self.order is None else self.order.draw(generator)
        return order.to(self.device)

    def select_own(self, index: Int64[Tensor, " k"]) -> Int64[Tensor, " own"]:
        """Select those of some frames that are of this process."""
        return index if self.is_own is None else index[self.is_own[index]]

    def collect(self, values: Tensor, index: Int64[Tensor, " k"]) -> Tensor:
        """Return rows for these frames, of which each process has computed those of its own."""
        return values if self.is_own is None else self.reducer.collect(values, self.is_own[index])

    def load_counts(self, index: Int64[Tensor, " k"]) -> Float[Tensor, "k n n"]:
        """Load the photon counts of these frames, all of this process, to the device, 0 under the mask."""
        if self.is_own is not None and not isinstance(self.frames, FrameReader):
            index = self._row_held[index]
        if isinstance(self.frames, Tensor):
            return self._to_counts(self.frames[index])
        rows = index.cpu().numpy()
        return self._to_counts(self.frames.read(rows) if isinstance(self.frames, FrameReader) else self.frames[rows])

    def iterate_counts(
        self, batches: Sequence[Int64[Tensor, " _"]]
    ) -> Iterator[tuple[Int64[Tensor, " _"], Float[Tensor, "_ n n"]]]:
        """Iterate over these batches and their counts; from a file the next few are read meanwhile.

        Of the frames of each batch those of this process are given, perhaps none.
        """
        frames, batches = self.frames, [self.select_own(index) for index in batches]
        if not isinstance(frames, FrameReader | np.memmap) or not batches:
            for index in batches:
                yield index, self.load_counts(index)
            return
        # Together, because each copy from a GPU waits for its queued work.
        wanted = torch.cat(batches)
        if self.is_own is not None and not isinstance(frames, FrameReader):
            wanted = self._row_held[wanted]
        rows = np.split(wanted.cpu().numpy(), np.cumsum([len(index) for index in batches])[:-1])
        read = frames.iterate(rows) if isinstance(frames, FrameReader) else read_ahead(frames.__getitem__, rows)
        with contextlib.closing(read):
            for index, values in zip(batches, read, strict=True):
                yield index, self._to_counts(values)

    @functools.cached_property
    def _row_held(self) -> Int64[Tensor, " m"]:
        """Rows of the frames of this process in what it holds."""
        assert self.is_own is not None
        return self.is_own.cumsum(0) - 1

    def _to_counts(self, values: np.ndarray | Tensor) -> Float[Tensor, "k n n"]:
        if not isinstance(values, Tensor):
            values = torch.from_numpy(values)
            # From pinned memory, so that a GPU goes on with its queued work meanwhile.
            values = values.pin_memory() if self.device.type == "cuda" else values
            values = values.to(self.device, non_blocking=True)
        values = values.to(self.dtype.to_real())
        return values if self.scaling.domain == "counts" else values.square() * self.scaling.counts_per_intensity

    def compute_corners_px(self, positions_px: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
        """Compute where on the canvas the patches at these positions begin."""
        return positions_px - self._origin_px - self.n_px // 2


@contextlib.contextmanager
def open_problem(
    scan: Scan,
    *,
    margin_px: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.complex64,
    scratch: str | Path | None = None,
    reducer: Reducer = ONE_PROCESS,
    slice_spacing_m: float | None = None,
) -> Iterator[Problem]:
    """Read and check the frames of a scan, and lay out its canvas.

    Arguments:
        scan: what was measured.
        margin_px: room around the patches, for positions that move.
        scratch: folder for a temporary copy of frames that are too many for the memory and that their file cannot give
            in any order; None takes the system's.
        reducer: the processes that share the frames. Each checks all of them and keeps its own.
        slice_spacing_m: distance between the slices of a thick object, see `thick_object.choose_spacing_m`.

    Raises:
        ScanError: a frame holds what no detector counts, the frames of a far-field scan are near-field images, or a
            position lies so far away that the image would be empty.
    """
    device = torch.device(device)
    check_scan_field(scan)
    if scan.geometry.propagation == "far":
        refuse_near_field(scan)
    propagator = build_propagator(scan.geometry, scan.n_px, dtype=dtype, device=device)
    own = None if reducer.size == 1 else assign_frames(scan.positions_px, reducer.size) == reducer.rank
    order, plan = FrameOrder(scan.frames), plan_frames(scan, device, None if own is None else int(own.sum()))
    with FrameWriter(scan, plan, device, shift=propagator.zero_frequency_first, own=own, scratch=scratch) as writer:
        intensity, amplitude = _sum_frames(scan, writer)
        mean_intensity = float(intensity.sum()) / scan.n_frames
        scaling = measure_scaling(mean_intensity, scan.n_px, scan.domain, scan.photons_per_frame)
        origin_px, shape = lay_out_canvas(scan, margin_px)
        yield Problem(
            frames=writer.finish(order.blocks),
            scaling=scaling,
            mask=torch.from_numpy(np.fft.ifftshift(scan.mask) if propagator.zero_frequency_first else scan.mask).to(
                device
            ),
            origin_px=origin_px,
            shape=shape,
            variation=measure_variation(intensity, amplitude, scan.n_frames),
            dtype=dtype,
            propagator=propagator,
            gap=build_scan_gap(scan, slice_spacing_m, dtype=dtype, device=device),
            slice_spacing_m=slice_spacing_m,
            gap_depth=compute_gap_depth(scan, slice_spacing_m),
            order=order,
            reducer=reducer,
            is_own=None if own is None else torch.from_numpy(own).to(device),
        )


def lay_out_canvas(scan: Scan, margin_px: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return where the canvas of a scan begins, in object pixels, and its size.

    Arguments:
        margin_px: room around the patches, for positions that move.
    """
    low = np.floor(scan.positions_px.min(0)).astype(int) - scan.n_px // 2 - margin_px
    # With the arithmetic of `compute_corners_px`, because rounding could otherwise move an integer position off the
    # canvas.
    corners = scan.positions_px - low.astype(np.float64) - scan.n_px // 2
    moved = margin_px + 1 if margin_px else 0
    height, width = np.floor(corners.max(0)).astype(int) + moved + scan.n_px + 1
    return (int(low[0]), int(low[1])), (int(height), int(width))


def _sum_frames(scan: Scan, writer: FrameWriter) -> tuple[Float64[np.ndarray, "n n"], Float64[np.ndarray, "n n"]]:
    """Check the frames and pass them on; return the sums of their intensity and amplitude, in file units, 0 under the
    mask."""
    intensity, amplitude = np.zeros(scan.mask.shape), np.zeros(scan.mask.shape)
    for chunk in iter_checked_chunks(scan, count_frames_in(_CHECKED_BYTES, scan.frames)):
        if scan.domain == "counts":
            intensity += chunk.sum(0, dtype=np.float64)
            amplitude += np.sqrt(chunk, dtype=np.float32).sum(0, dtype=np.float64)
        else:
            intensity += np.square(chunk, dtype=np.float64).sum(0)
            amplitude += np.abs(chunk).sum(0, dtype=np.float64)
        writer.add(chunk)
    return intensity * scan.mask, amplitude * scan.mask


def measure_variation(
    intensity: Float64[np.ndarray, "n n"], amplitude: Float64[np.ndarray, "n n"], n_frames: int
) -> float:
    """Measure how far the frames differ from one another: sum (sqrt(y) - sqrt(mean y))^2 over sum y.

    It is the residual that a fit leaves which expects the mean pattern of every frame.

    Arguments:
        intensity, amplitude: sums of y and of sqrt(y) over the frames, 0 under the mask.
    """
    total = float(intensity.sum())
    squared = 2 * total - 2 * float((np.sqrt(intensity / n_frames) * amplitude).sum())
    return max(squared, 0.0) / max(total, 1e-300)
