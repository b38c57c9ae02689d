"""The live image: a reconstruction of the frames received so far."""

from __future__ import annotations

import contextlib
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Complex, Float, Float64, Int64, Shaped
from torch import Tensor

from torchptycho.core.config import ReconstructConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames
from torchptycho.data.inference_dataset import InferenceDataset
from torchptycho.live.scan_header import ScanLayout
from torchptycho.models.network import PtychoNetwork
from torchptycho.physics.patches import extract, locate_corner
from torchptycho.physics.scaling import Scaling, measure_scaling, sum_frames
from torchptycho.reconstructors.growing_canvas import GrowingCanvas
from torchptycho.reconstructors.inference import batch_size_for, iterate_predictions
from torchptycho.reconstructors.network_reconstruction import adapt_to_scan, check_fits, describe_dose
from torchptycho.reconstructors.phase_sync import synchronize_phases

__all__ = ["LivePreview", "require_frames"]

# The most patches of a chunk that are compared with the image to find the chunk's global phase.
_MAX_COMPARED_PATCHES = 64
# Frames before the dose is compared with that of training.
_MIN_MEASURED_FRAMES = 32


class LivePreview:
    """Stitches frames as they come. A context, in which the network is adapted to the scan.

    The global phase of each chunk of frames is aligned to the current image. The final image is made by `reconstruct`,
    which knows all frames and aligns the phase of each group with all of its neighbours.

    Arguments:
        network: trained on frames of this size and domain; it is restored when the context ends.
        config: the section `reconstruct`.
        layout: of the scan.
        source: named in errors.
        device: device to compute on.

    Raises:
        ScanError: the frames have another size or domain than the network's.
    """

    def __init__(
        self, network: PtychoNetwork, config: ReconstructConfig, layout: ScanLayout, source: str, device: torch.device
    ) -> None:
        check_fits(network, source, layout.n_px, layout.domain)
        self._network, self._config, self._layout, self._device = network, config, layout, device
        self._original_device = network.probe_parts.device
        self._canvas = GrowingCanvas(device, with_spread=False)
        self._weight = network.compute_stitch_weight(config.stitch_weight, config.training_scan).to(device)
        self._mask = torch.from_numpy(layout.mask)
        self._scaling: Scaling | None = None
        # Read here, because the network may be scaled to this scan.
        self._trained_scale = float(network.input_scale[config.training_scan])
        self._intensity_sum, self._n_measured = 0.0, 0
        self._groups_per_batch = 0
        self._context = contextlib.ExitStack()
        self.unfit: dict[int, str] = {}
        self.unplaced: dict[int, str] = {}
        self.doubt: str | None = None
        """Why the image may be poor, by the frames so far."""

    def __enter__(self) -> LivePreview:
        # Not in inference mode: the network's tensors would become inference tensors, read-only outside of that mode.
        self._network.to(self._device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.close()
        self._network.to(self._original_device)

    @torch.inference_mode()
    def add(
        self,
        frames: Shaped[np.ndarray, "k n n"],
        positions_px: Float64[np.ndarray, "k 2"],
        first: int,
        n_placed: int = 0,
    ) -> None:
        """Predict the patches of frames and add them to the image.

        Frames that no image can use are recorded in `unfit`. Frames that cannot be added to this image, which does not
        know all frames, are recorded in `unplaced`; the final image may use them.

        Arguments:
            frames: numbers `first`, `first` + 1, ...
            positions_px: (y, x) of each.
            n_placed: how many frames at the beginning were added before; they only complete a group.
        """
        masked = ~self._layout.mask
        if masked.any():
            frames = frames.copy()
            frames[:, masked] = 0
        numbers = np.arange(first, first + len(frames))
        for number, fault in zip(numbers, _find_faults(frames, positions_px), strict=True):
            if fault is not None:
                self.unfit[int(number)] = fault
        good = ~np.isin(numbers, [*self.unfit, *self.unplaced])
        frames, positions_px, numbers = frames[good], positions_px[good], numbers[good]
        if len(frames) < self._network.gridsize**2:
            return
        self._compare_dose(frames[numbers >= first + n_placed])
        stream = self._group_frames(np.ascontiguousarray(frames), positions_px)
        if not self._groups_per_batch:
            self._context.enter_context(adapt_to_scan(self._network, stream, self._config))
            self._groups_per_batch = batch_size_for(self._network, stream, self._config, self._device)
        self._network.expect_offsets(None)
        frame_patches = torch.zeros(len(frames), *frames.shape[1:], dtype=torch.complex64, device=self._device)
        group = torch.zeros(len(frames), dtype=torch.int64)
        cuts = [
            (start, min(start + self._groups_per_batch, len(stream)))
            for start in range(0, len(stream), self._groups_per_batch)
        ]
        predictions = iterate_predictions(self._network, stream, self._config, cuts, self._device)
        with contextlib.closing(predictions):
            for (start, _), (batch, _, patches) in zip(cuts, predictions, strict=True):
                rows, group_numbers = batch.members[batch.is_first], torch.arange(start, start + len(batch.members))
                frame_patches[rows.to(self._device)] = patches[batch.is_first.to(self._device)]
                group[rows] = group_numbers[:, None].expand(batch.members.shape)[batch.is_first]
        new = torch.from_numpy(numbers >= first + n_placed)
        self._place(frame_patches, stream.positions_px, group, new, numbers)

    def make_image(self) -> Reconstruction | None:
        """Return the image of the frames so far; None if it is empty."""
        if self._canvas.used_px is None:
            return None
        try:
            return self._canvas.finish(self._layout.geometry.with_object_pixel(self._layout.n_px).object_pixel_m)
        except ValueError:  # all weights are 0
            return None

    def _compare_dose(self, frames: np.ndarray) -> None:
        """Compare the frames so far with those of training, unless the network is scaled to each scan."""
        self._intensity_sum += float(sum_frames(frames, self._layout.domain).sum())
        self._n_measured += len(frames)
        # A few frames may lie on a thick part of the sample.
        if self._config.input_scale == "training" and self._n_measured >= _MIN_MEASURED_FRAMES:
            found = self._measure_scaling(self._intensity_sum / self._n_measured)
            self.doubt = describe_dose(self._trained_scale, found.input_scale)

    def _measure_scaling(self, mean_intensity: float) -> Scaling:
        return measure_scaling(
            mean_intensity or 1.0,
            self._layout.n_px,
            self._layout.domain,
            self._network.config.prepare.nphotons or self._layout.photons_per_frame,
        )

    def _group_frames(self, frames: np.ndarray, positions_px: np.ndarray) -> InferenceDataset:
        if self._scaling is None:
            # Measured on the first frames; used only by a network that is scaled to each scan.
            self._scaling = self._measure_scaling(float(sum_frames(frames, self._layout.domain).mean()))
        return InferenceDataset.from_frames(
            ArrayFrames(frames),
            positions_px,
            gridsize=self._network.gridsize,
            scaling=self._scaling,
            mask=self._mask,
            training_scan=self._config.training_scan,
        )

    def _place(
        self,
        patches: Complex[Tensor, "k n n"],
        positions_px: Float[Tensor, "k 2"],
        group: Int64[Tensor, " k"],
        new: Tensor,
        numbers: Int64[np.ndarray, " k"],
    ) -> None:
        finite = torch.view_as_real(patches).isfinite().flatten(1).all(-1)
        if self._config.agree_phases:
            patches = torch.where(finite[:, None, None], patches, 0)
            patches = patches * synchronize_phases(patches, positions_px, self._weight, group)[:, None, None]
            patches = patches * self._find_phase_factor(patches, positions_px)
        chosen = new.to(self._device) & finite
        positions_px = positions_px.to(self._device)
        placed = torch.zeros_like(finite)
        placed[chosen] = self._canvas.add(patches[chosen], positions_px[chosen], self._weight)
        for number in numbers[(new & ~finite.cpu()).numpy()].tolist():
            self.unplaced[number] = "the network's patch is not finite"
        for number in numbers[(chosen & ~placed).cpu().numpy()].tolist():
            self.unplaced[number] = "its position is too far from the others"

    def _find_phase_factor(self, patches: Tensor, positions_px: Tensor) -> Tensor:
        """Compute the phase factor that aligns a chunk with the current image, from a sample of its patches."""
        selection = slice(0, None, max(1, len(patches) // _MAX_COMPARED_PATCHES))
        compared, n_px = patches[selection], patches.shape[-1]
        if self._canvas.used_px is None:
            return compared.new_ones(())
        corners = locate_corner(positions_px[selection], n_px, self._canvas.origin_px).to(self._device)
        current = extract(self._canvas.numerator, corners, n_px)
        overlap = (current * compared.conj() * self._weight).sum()
        modulus = overlap.abs()
        return (overlap / modulus if float(modulus) > 0 else torch.ones_like(overlap)).to(patches.dtype)


def _find_faults(frames: np.ndarray, positions_px: np.ndarray) -> list[str | None]:
    """Find the reason for which each frame cannot be used; None for a usable frame."""
    placed = np.isfinite(positions_px).all(axis=1)
    finite = positive = np.ones(len(frames), bool)
    if frames.dtype.kind != "u" and len(frames):
        with np.errstate(invalid="ignore"):
            if not (frames.min() >= 0 and frames.max() < np.inf):
                finite = np.isfinite(frames).all(axis=(1, 2))
                positive = np.all(frames >= 0, axis=(1, 2))
    return [
        "its position is not a number"
        if not has_position
        else "NaN or infinity"
        if not is_finite
        else "negative values"
        if not is_positive
        else None
        for has_position, is_finite, is_positive in zip(placed, finite, positive, strict=True)
    ]


def require_frames(source: str, n: int, gridsize: int) -> None:
    """Raise an error if there are fewer frames than a group needs.

    Raises:
        ScanError: there are too few.
    """
    least = max(2, gridsize**2)
    if n < least:
        raise ScanError(
            source,
            None,
            expected=f"at least {least} frames that can be used",
            found=f"{n}",
            remedy="Wait for more, with a longer --idle-s.",
        )
