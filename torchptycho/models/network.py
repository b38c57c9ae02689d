"""The network with the physics around it, without its training: frames to patches, patches to counts."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from torchptycho.core.config import RunConfig, from_dict, to_dict
from torchptycho.core.config.base import Domain
from torchptycho.core.errors import StoreError
from torchptycho.models.generators import Generator, GroupInput, build_generator
from torchptycho.models.measurement import MeasurementModel
from torchptycho.physics.diffraction import expected_counts
from torchptycho.physics.group_patches import GATHER_SCATTER, PatchOperators
from torchptycho.physics.overlap import central_weight, merge, merge_canvas_px, probe_weight
from torchptycho.physics.scaling import counts_per_squared_amplitude, to_intensity

__all__ = ["CHECKPOINT_FORMAT", "TRAINING_ARGUMENTS", "FrameBatch", "PtychoNetwork"]

CHECKPOINT_FORMAT = 1
"""Version of what a checkpoint holds."""
TRAINING_ARGUMENTS = ("has_validation", "started_from")
"""Arguments of a module that its network does not have."""


@runtime_checkable
class FrameBatch(Protocol):
    """B groups of C frames, as `data.batch.GroupBatch` describes them; only what a forward pass needs."""

    @property
    def frames(self) -> Tensor: ...
    @property
    def offset_px(self) -> Tensor: ...
    @property
    def scan(self) -> Tensor: ...
    @property
    def members(self) -> Tensor: ...
    @property
    def is_first(self) -> Tensor: ...


class PtychoNetwork(nn.Module):
    """A generator with its normalisation, the probe and the model of the experiment.

    Prediction needs no more than this and torch; `model.PtychoPINN` adds the training.

    Arguments:
        config: a `RunConfig` as a dict.
        n_px: frame edge N.
        n_scans, n_modes: scans and incoherent probe modes that it was made for.
        domain: content of the frames.
        max_offset_px: largest distance of a frame from its group's centre in training.

    `checkpoint` is the file that it was loaded from, if any, and `checkpoint_sha256` its checksum then.
    """

    def __init__(
        self,
        config: dict[str, Any],
        n_px: int,
        n_scans: int = 1,
        n_modes: int = 1,
        domain: Domain = "counts",
        max_offset_px: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = from_dict(RunConfig, config, source="checkpoint")
        self.checkpoint: Path | None = None
        self.checkpoint_sha256: str | None = None
        self.gridsize = self.config.group.gridsize
        self.n_px = n_px
        self.domain: Domain = domain
        self.generator = self._build_generator()
        # Channels-last memory makes convolutions up to 1.3 times as fast on a CPU, and on a GPU in half precision.
        nn.Module.to(self.generator, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.experiment = MeasurementModel(self.config.experiment, n_px, n_scans)
        self._canvas_px = merge_canvas_px(n_px, max_offset_px)
        self._inference_canvas_px: int | None = None
        # Stored as real and imaginary part, because DDP, GradScaler and fused optimisers do not support complex
        # parameters.
        self.probe_parts = nn.Parameter(
            torch.zeros(n_scans, n_modes, n_px, n_px, 2), requires_grad=self.config.model.probe_trainable
        )
        # NaN until statistics are set or a checkpoint is loaded, so that a module without them cannot be used.
        self.register_buffer("input_scale", torch.full((n_scans,), math.nan, dtype=torch.float64))
        self.register_buffer("photons_per_frame", torch.full((n_scans,), math.nan, dtype=torch.float64))
        self.register_buffer("masks", torch.ones(n_scans, n_px, n_px, dtype=torch.bool))
        self.input_scale: Tensor
        self.photons_per_frame: Tensor
        self.masks: Tensor

    def _build_generator(self) -> Generator:
        return build_generator(self.config.model, self.n_px, self.gridsize)

    @classmethod
    def from_network(cls, other: PtychoNetwork) -> PtychoNetwork:
        """Copy a network, without additions of a derived class, for prediction."""
        scans, modes = other.probe_parts.shape[:2]
        copy = cls(to_dict(other.config), other.n_px, scans, modes, other.domain)
        weights = other.state_dict()
        copy.load_state_dict({name: weights[name].cpu() for name in copy.state_dict()})
        copy.checkpoint, copy._canvas_px = other.checkpoint, other._canvas_px
        copy._inference_canvas_px = other._inference_canvas_px
        return copy.eval()

    @property
    def probe(self) -> Complex[Tensor, "s p n n"]:
        """Probe modes of each scan in sqrt(photons)."""
        return self.experiment.constrain_probe(torch.view_as_complex(self.probe_parts))

    def record_checkpoint(self, path: Path) -> None:
        """Remember the file and its checksum, by which images name it; the file itself may go."""
        with path.open("rb") as file:
            self.checkpoint, self.checkpoint_sha256 = path, hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def canvas_px(self) -> int:
        """Edge of the canvas of a group in training, which holds its patches."""
        return self._canvas_px

    def require_statistics(self) -> None:
        """Raise StoreError when neither a store nor a checkpoint has given the module its statistics."""
        if bool(self.input_scale.isnan().any()):
            raise StoreError(
                "this module has no statistics (input scale, photons per frame, probe): "
                "build it with PtychoPINN.for_store or load a checkpoint."
            )

    def expect_offsets(self, max_offset_px: float | None) -> None:
        """Predict with one canvas for all batches, which holds these offsets; None goes back to one for each batch.

        The output of a network depends slightly on the margin around a group.
        """
        canvas_px = None if max_offset_px is None else merge_canvas_px(self.n_px, max_offset_px)
        self._inference_canvas_px = None if canvas_px is None else max(self._canvas_px, canvas_px)

    def forward(
        self, batch: FrameBatch, patch_operators: PatchOperators = GATHER_SCATTER
    ) -> Complex[Tensor, "b c n n"]:
        """Predict the object patches of the frames of each group, before any merging."""
        amplitude = self._compute_intensity(batch).sqrt() * self._expand_per_group(self.input_scale, batch)
        intensity_per_count = self._intensity_per_count[batch.scan].float()
        background = self.experiment.background
        return self.generator(  # type: ignore[no-any-return]
            GroupInput(
                amplitude=amplitude,
                probe=self._scale_probe_to_input(batch),
                offset_px=batch.offset_px,
                mask=self._select_mask(batch),
                intensity_per_count=intensity_per_count,
                background=intensity_per_count
                * (background[batch.scan] if isinstance(background, Tensor) else background),
                canvas_px=self._choose_canvas_px(batch),
                patch_operators=patch_operators,
            )
        )

    def compute_expected_counts(
        self, patches: Complex[Tensor, "b c n n"], batch: FrameBatch, *, background: bool = True
    ) -> Float[Tensor, "b c n n"]:
        """Compute the expected photon counts from the merged object of each group."""
        probe = self.select_probe(batch)
        with torch.autocast(device_type=self.probe_parts.device.type, enabled=False):
            if self.gridsize > 1 and not self.generator.patches_agree:
                if self.config.model.merge_weight == "probe":
                    weight = probe_weight(probe.detach())
                else:
                    weight = central_weight(self.n_px, patches)
                patches = merge(patches, batch.offset_px, weight, self._choose_canvas_px(batch))
            counts = expected_counts(patches, probe[:, None])
            return self.experiment.apply_to_counts(counts, batch.scan, background=background)

    def _choose_canvas_px(self, batch: FrameBatch) -> int:
        # In training the largest offset of the store is known.
        if torch.is_grad_enabled():
            return self._canvas_px
        if self._inference_canvas_px is not None:
            return self._inference_canvas_px
        return max(self._canvas_px, merge_canvas_px(self.n_px, float(batch.offset_px.abs().max())))

    def compute_measured_counts(self, batch: FrameBatch) -> Float[Tensor, "b c n n"]:
        """Convert the frames to photon counts, 0 under the mask."""
        counts = self._compute_intensity(batch)
        if self.domain == "counts":
            return counts
        factor = counts_per_squared_amplitude(self.photons_per_frame, self.input_scale, self.n_px)
        return counts * self._expand_per_group(factor, batch)

    def _compute_intensity(self, batch: FrameBatch) -> Float[Tensor, "b c n n"]:
        # `where` instead of a product, because masked pixels may be NaN.
        return torch.where(self._select_mask(batch), to_intensity(batch.frames, self.domain), 0.0)

    def _expand_per_group(self, values: Tensor, batch: FrameBatch) -> Float[Tensor, "b 1 1 1"]:
        return values[batch.scan].float()[:, None, None, None]

    def select_probe(self, batch: FrameBatch) -> Complex[Tensor, "probe_b p n n"]:
        """Select the probe of each group, or one when all groups share it."""
        probe = self.probe
        return probe if len(probe) == 1 else probe[batch.scan]

    def _scale_probe_to_input(self, batch: FrameBatch) -> Complex[Tensor, "probe_b p n n"]:
        """Scale the probe to the units of the network's input; the network does not train it."""
        # Scaled by the scan's photons, not by the probe's own power, a part of which may fall on masked pixels.
        factor = self.n_px / 2 / self.photons_per_frame.sqrt()
        if self.experiment.scale is not None:
            factor = factor * self.experiment.scale.sqrt()
        probe = self.select_probe(batch).detach()
        return probe * (factor if len(self.probe_parts) == 1 else factor[batch.scan]).float()[:, None, None, None]

    @property
    def _intensity_per_count(self) -> Float[Tensor, " s"]:
        """Compute the squared input amplitude of one count, also where the input is scaled to this scan."""
        if self.domain == "counts":
            return self.input_scale.square()
        return (self.n_px / 2) ** 2 / self.photons_per_frame

    def compute_mean_count(self, batch: FrameBatch) -> Float[Tensor, " b"]:
        """Compute the photons per good pixel in a mean frame of each group's scan."""
        good = self.masks.sum(dim=(-2, -1))
        return (self.photons_per_frame / good)[batch.scan].float()

    def _select_mask(self, batch: FrameBatch) -> Bool[Tensor, "b 1 n n"]:
        return self.masks[batch.scan][:, None]

    def compute_stitch_weight(self, kind: Literal["probe", "central"], scan: int = 0) -> Float[Tensor, "n n"]:
        """Compute the weight of the pixels of a patch in stitching: |P|^2 of a training scan, or the central half."""
        if kind == "probe":
            return probe_weight(self.probe[scan].detach())
        return central_weight(self.n_px, self.probe_parts)
