"""What is fixed while a scan is refined: its counts, its mask, and the canvas that its frames lie on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from torchptycho.core.scan import Scan
from torchptycho.io import iter_checked_chunks
from torchptycho.io.field import check_scan_field
from torchptycho.io.near_field import refuse_near_field
from torchptycho.physics.propagation import FAR_FIELD, Propagator, build_propagator
from torchptycho.physics.scaling import Scaling, measure_scaling

__all__ = ["Problem", "measure_variation", "open_problem"]

# Larger stacks of frames are copied to a memory-mapped temporary file instead of memory.
_MAX_MEMORY_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """The measured side. In the far field detector arrays have the zero frequency at [0, 0], where the FFT puts it.

    Arguments:
        frames: [M, N, N] in the detector's dtype, in memory, in a mapped file, or on the device.
        scaling: how they become photon counts.
        mask: [N, N], True where the pixel can be trusted.
        origin_px, shape: where the canvas begins, in object pixels, and its size.
        dtype: of the arithmetic: complex64 or complex128.
        propagator: from the sample to the detector and back.
        variation: how far the frames differ from their mean, in the measure of the residual of a fit; see
            `measure_variation`.
    """

    frames: np.ndarray | Tensor
    scaling: Scaling
    mask: Bool[Tensor, "n n"]
    origin_px: tuple[int, int]
    shape: tuple[int, int]
    dtype: torch.dtype = torch.complex64
    propagator: Propagator = FAR_FIELD
    variation: float = 0.0

    @property
    def n_px(self) -> int:
        return int(self.frames.shape[-1])

    @property
    def n_frames(self) -> int:
        return int(self.frames.shape[0])

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

    def load_counts(self, index: Int64[Tensor, " k"]) -> Float[Tensor, "k n n"]:
        """Load the photon counts of these frames to the device, 0 under the mask."""
        if isinstance(self.frames, Tensor):
            values = self.frames[index]
        else:
            values = torch.from_numpy(self.frames[index.cpu().numpy()]).to(self.device)
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
) -> Iterator[Problem]:
    """Read and check the frames of a scan, and lay out its canvas.

    Arguments:
        scan: what was measured.
        margin_px: room around the patches, for positions that move.
        scratch: folder for a temporary copy of frames that are too many for the memory; None takes the system's.

    Raises:
        ScanError: a frame holds what no detector counts, the frames of a far-field scan are near-field images, or a
            position lies so far away that the image would be empty.
    """
    device = torch.device(device)
    check_scan_field(scan)
    if scan.geometry.propagation == "far":
        refuse_near_field(scan)
    propagator = build_propagator(scan.geometry, scan.n_px, dtype=dtype, device=device)
    with contextlib.ExitStack() as stack:
        size = math.prod(scan.frames.shape) * scan.frames.dtype.itemsize
        if size <= _MAX_MEMORY_BYTES:
            # As floats if memory allows, which saves a conversion per batch.
            roomy = math.prod(scan.frames.shape) * 4 <= _MAX_MEMORY_BYTES // 2
            frames = np.empty(scan.frames.shape, np.float32 if roomy else scan.frames.dtype)
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".torchptycho-", dir=scratch))
            frames = np.lib.format.open_memmap(Path(folder) / "frames.npy", "w+", scan.frames.dtype, scan.frames.shape)
        intensity, amplitude = _copy(scan, frames, shift=propagator.zero_frequency_first)
        mean_intensity = float(intensity.sum()) / scan.n_frames
        scaling = measure_scaling(mean_intensity, scan.n_px, scan.domain, scan.photons_per_frame)
        low = np.floor(scan.positions_px.min(0)).astype(int) - scan.n_px // 2 - margin_px
        # With the arithmetic of `compute_corners_px`, because rounding could otherwise move an integer position off the
        # canvas.
        corners = scan.positions_px - low.astype(np.float64) - scan.n_px // 2
        moved = margin_px + 1 if margin_px else 0
        high = low + np.floor(corners.max(0)).astype(int) + moved + scan.n_px + 1
        # Only floats, because torch cannot index unsigned integers on a GPU.
        on_device = device.type == "cuda" and frames.dtype == np.float32
        on_device = on_device and frames.nbytes < torch.cuda.mem_get_info(device)[0] // 2
        yield Problem(
            frames=torch.from_numpy(frames).to(device) if on_device else frames,
            scaling=scaling,
            mask=torch.from_numpy(np.fft.ifftshift(scan.mask) if propagator.zero_frequency_first else scan.mask).to(
                device
            ),
            origin_px=(int(low[0]), int(low[1])),
            shape=(int(high[0] - low[0]), int(high[1] - low[1])),
            variation=measure_variation(intensity, amplitude, scan.n_frames),
            dtype=dtype,
            propagator=propagator,
        )


def _copy(
    scan: Scan, frames: np.ndarray, *, shift: bool
) -> tuple[Float64[np.ndarray, "n n"], Float64[np.ndarray, "n n"]]:
    """Fill `frames`, their zero frequency first on request; return the sums of intensity and amplitude over the frames,
    in file units, 0 under the mask."""
    start = 0
    intensity, amplitude = np.zeros(scan.mask.shape), np.zeros(scan.mask.shape)
    for chunk in iter_checked_chunks(scan):
        if scan.domain == "counts":
            intensity += chunk.sum(0, dtype=np.float64)
            amplitude += np.sqrt(chunk, dtype=np.float32).sum(0, dtype=np.float64)
        else:
            intensity += np.square(chunk, dtype=np.float64).sum(0)
            amplitude += np.abs(chunk).sum(0, dtype=np.float64)
        frames[start : start + len(chunk)] = np.fft.ifftshift(chunk, axes=(-2, -1)) if shift else chunk
        start += len(chunk)
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
