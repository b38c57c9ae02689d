"""What changes while a scan is refined, and how it is written down to go on later."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float, Float64, Int64
from torch import Tensor

from torchptycho.core.errors import StoreError
from torchptycho.io.storage.archive import NpzArchive, write_array
from torchptycho.io.storage.file_access import dump_json, replace_atomically
from torchptycho.physics.variable_probe import combine_probe
from torchptycho.reconstructors.iterative.probe_modes import compute_area_px, compute_power, find_center_of_mass
from torchptycho.reconstructors.iterative.reducer import Reducer

__all__ = ["RefinementState"]

_FORMAT, _FORMAT_VERSION = "torchptycho-refinement", 6
_TENSOR_FIELDS = (
    "object", "probe", "positions_px", "drift_px", "background", "velocity", "anchor", "probe_velocity", "probe_anchor",
    "opr_modes", "opr_weights", "frame_scale",
)  # fmt: skip
_VARIATION_FIELDS = ("opr_modes", "opr_weights", "frame_scale")
_FIGURES = ("misfit", "residual", "unexplained", "seconds")
# Keys of a state file that differ from the names of their fields.
_KEYS = {"momentum_backoffs": "damped", "probe_photons": "light"}


@dataclasses.dataclass(eq=False)
class RefinementState:
    """The estimate so far, on the device.

    Arguments:
        object: [H, W] on the problem's canvas; [S, H, W], the slices of a thick object.
        probe: [P, N, N] in sqrt(photons).
        positions_px: [M, 2] float64, (y, x) in object pixels.
        drift_px: [M, 2] what the positions last moved by, which is their momentum.
        background: [N, N] counts that do not come from the sample, zero frequency at [0, 0].
        velocity, anchor: momentum of the object, and the object when it was last used.
        probe_velocity, probe_anchor: the same of the probe.
        opr_modes, opr_weights, frame_scale: [V, N, N], [M, V], [M]: how the probe of each frame differs from `probe`,
            see `physics.variable_probe`; of no modes and no frames for a stable probe.
        probe_photons, center_px: photons in all modes of the probe that it began with, and their centre of mass (y, x),
            which the probe keeps.
        probe_area_px: pixels that the light of the probe filled when it began.
        epoch: finished passes over the frames.
        updates: updates since momentum was last used.
        polishing_since: epoch in which updates began to gather more frames, or None.
        momentum_backoffs: how often momentum was made slower because the fit became worse.
        regularization: the prior that acts, its strength and how it was chosen; None before it is decided.
        history: figures of each finished epoch.
        seconds: time spent, over all sessions.
    """

    object: Complex[Tensor, "*slices h w"]
    probe: Complex[Tensor, "p n n"]
    positions_px: Float64[Tensor, "m 2"]
    drift_px: Float64[Tensor, "m 2"]
    background: Float[Tensor, "n n"]
    velocity: Complex[Tensor, "*slices h w"]
    anchor: Complex[Tensor, "*slices h w"]
    probe_velocity: Complex[Tensor, "p n n"]
    probe_anchor: Complex[Tensor, "p n n"]
    opr_modes: Complex[Tensor, "v n n"]
    opr_weights: Float[Tensor, "frames v"]
    frame_scale: Float[Tensor, " frames"]
    probe_photons: float
    center_px: tuple[float, float]
    probe_area_px: float
    epoch: int = 0
    updates: int = 0
    polishing_since: int | None = None
    momentum_backoffs: int = 0
    regularization: dict[str, Any] | None = None
    history: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {name: [] for name in _FIGURES})
    seconds: float = 0.0

    @classmethod
    def begin(cls, object: Tensor, probe: Tensor, positions_px: Tensor) -> RefinementState:
        """Create a state without momentum and background. Object and probe are copied, as they change in place."""
        return cls(
            object=object.clone(memory_format=torch.contiguous_format),
            probe=probe.clone(memory_format=torch.contiguous_format),
            positions_px=positions_px,
            drift_px=torch.zeros_like(positions_px),
            background=probe.real.new_zeros(probe.shape[-2:]),
            velocity=torch.zeros_like(object, memory_format=torch.contiguous_format),
            anchor=object.clone(memory_format=torch.contiguous_format),
            probe_velocity=torch.zeros_like(probe, memory_format=torch.contiguous_format),
            probe_anchor=probe.clone(memory_format=torch.contiguous_format),
            opr_modes=torch.zeros_like(probe[:0]),
            opr_weights=probe.real.new_zeros(0, 0),
            frame_scale=probe.real.new_zeros(0),
            probe_photons=float(compute_power(probe)),
            probe_area_px=float(compute_area_px(probe)),
            center_px=find_center_of_mass(probe),
        )

    @property
    def slices(self) -> Complex[Tensor, "s h w"]:
        """The slices of the object, in the memory of `object`: one of a thin object."""
        return self.object.unsqueeze(0) if self.object.ndim == 2 else self.object

    @property
    def has_variable_probe(self) -> bool:
        """Whether the probe may differ from frame to frame."""
        return len(self.frame_scale) > 0

    def build_probe(self, index: Int64[Tensor, " k"]) -> Complex[Tensor, "*frames p n n"]:
        """Return the probe of these frames: one for all if it is stable, else [K, P, N, N]."""
        if not self.has_variable_probe:
            return self.probe
        return combine_probe(self.probe, self.opr_modes, self.opr_weights[index], self.frame_scale[index])

    def build_mean_probe(self) -> Complex[Tensor, "all_modes n n"]:
        """Return modes whose summed intensity is that of the mean frame's probe.

        Exact when the weights have mean 0 and are uncorrelated, as after each epoch.
        """
        if not self.has_variable_probe:
            return self.probe
        squared = self.frame_scale.square()
        spread = (squared[:, None] * self.opr_weights.square()).mean(0).sqrt()
        return torch.cat([self.probe * squared.mean().sqrt(), self.opr_modes * spread[:, None, None]])

    def copy(self) -> RefinementState:
        """Copy everything, so that epochs with the copy leave this as it is: object and probe change in place."""
        tensors = {name: getattr(self, name).clone() for name in _TENSOR_FIELDS}
        return dataclasses.replace(self, **tensors, history={name: list(row) for name, row in self.history.items()})

    def fix_gauge(self) -> None:
        """Bring the probe back to the power and, by whole pixels, to the place that it began with.

        No count depends on either as long as the object goes along, and without this they drift: a probe of unknown
        shape ends up to ten pixels away, and the image with it.
        """
        self.scale((self.probe_photons / compute_power(self.probe)).sqrt())
        centers = zip(find_center_of_mass(self.probe), self.center_px, strict=True)
        back = tuple(-round(now - before) for now, before in centers)
        if any(back):
            for name in ("probe", "probe_velocity", "probe_anchor", "opr_modes", "object", "velocity", "anchor"):
                setattr(self, name, torch.roll(getattr(self, name), back, (-2, -1)))

    def scale(self, factor: Float[Tensor, ""]) -> None:
        """Multiply the probe by a factor and divide the object by it, which no count depends on."""
        for name in ("probe", "probe_velocity", "probe_anchor", "opr_modes"):
            getattr(self, name).mul_(factor)
        # Of a thick object every slice takes the same part.
        of_slice = factor if self.object.ndim == 2 else factor ** (1 / len(self.object))
        for name in ("object", "velocity", "anchor"):
            getattr(self, name).mul_(1 / of_slice)

    def replace_modes(self, probe: Complex[Tensor, "p n n"]) -> None:
        """Take the same light in other modes; what momentum the old ones had means nothing to them."""
        self.probe = probe.contiguous()
        self.probe_velocity, self.probe_anchor = torch.zeros_like(self.probe), self.probe.clone()

    def reset_momentum(self) -> None:
        """Forget the momentum."""
        self.object, self.probe = self.object.contiguous(), self.probe.contiguous()
        self.velocity, self.anchor = torch.zeros_like(self.object), self.object.clone()
        self.probe_velocity, self.probe_anchor = torch.zeros_like(self.probe), self.probe.clone()
        self.updates = 0

    def copy_from_first(self, reducer: Reducer) -> None:
        """Take all tensors from the first of several processes."""
        fields = (getattr(self, name) for name in _TENSOR_FIELDS)
        reducer.copy_from_first(*(field for field in fields if field.numel()))

    def save(self, path: str | Path, fingerprint: dict[str, Any]) -> None:
        """Write everything, with what it belongs to; the file appears only when it is whole."""
        path = Path(path)
        numbers = {
            _KEYS.get(f.name, f.name): getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in _TENSOR_FIELDS
        }
        metadata = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "fingerprint": fingerprint, **numbers}
        with replace_atomically(path) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name in _TENSOR_FIELDS:
                if name in _VARIATION_FIELDS and not getattr(self, name).numel():
                    continue  # A stable probe has none.
                write_array(archive, name, getattr(self, name).cpu().numpy())
            write_array(archive, "_metadata", np.array(dump_json(metadata, path, "state")))

    @classmethod
    def load(cls, path: str | Path, fingerprint: dict[str, Any], device: torch.device) -> RefinementState:
        """Read what `save` wrote.

        Raises:
            StoreError: not such a file, or of another scan or configuration.
        """
        path = Path(path)
        if not path.is_file():
            raise StoreError(f"{path}: expected the state of an earlier refinement to resume; found no file.")
        archive = NpzArchive(path)
        metadata = archive.load_metadata()
        if metadata.get("format") != _FORMAT or metadata.get("format_version") != _FORMAT_VERSION:
            raise StoreError(f"{path}: expected a state written by this version of `refine`. Refine from the start.")
        before = metadata.get("fingerprint", {})
        differs = sorted(key for key in fingerprint.keys() | before if fingerprint.get(key) != before.get(key))
        if differs:
            raise StoreError(
                f"{path}: belongs to another refinement: {', '.join(differs)} differ. Use the same options "
                "and scan, or start again."
            )
        names = [field.name for field in dataclasses.fields(cls) if field.name not in _TENSOR_FIELDS]
        stored = [name for name in _TENSOR_FIELDS if name not in _VARIATION_FIELDS or name in archive]
        missing = [name for name in stored if name not in archive.keys] + [
            key for n in names if (key := _KEYS.get(n, n)) not in metadata
        ]
        if missing:
            raise StoreError(f"{path}: expected {', '.join(missing)} in the state; found none. Refine from the start.")
        tensors: dict[str, Any] = {name: torch.from_numpy(archive.load(name)).to(device) for name in stored}
        empty = {"opr_modes": tensors["probe"][:0].clone(), "frame_scale": tensors["background"].new_zeros(0)}
        tensors = empty | tensors
        tensors.setdefault("opr_weights", tensors["frame_scale"].new_zeros(len(tensors["frame_scale"]), 0))
        numbers = {name: metadata[_KEYS.get(name, name)] for name in names}
        numbers["center_px"] = tuple(numbers["center_px"])
        return cls(**tensors, **numbers)
