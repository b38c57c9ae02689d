"""The store: a directory with every frame once, as memory-mapped TensorDicts, and tables of groups over them.

    store.json        the manifest: which of the folders below belong to the store, and what they are
    scans/NAME/       one scan: frames, positions_px, scan_id, probe, mask, intensity, truth or truth_patches
    tables/NAME/      over all scans: positions_px, frame_scan, separate, probes, masks, train, val

Existing folders are never changed; a store changes when its manifest is replaced.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Complex64, Float64
from tensordict import TensorDict

from torchptycho.core.errors import StoreError
from torchptycho.core.inputs import as_path
from torchptycho.data.frame_stack import FrameStack
from torchptycho.data.grouping import Groups
from torchptycho.data.quality import FrameFindings
from torchptycho.physics.scaling import Scaling, to_intensity

__all__ = ["MANIFEST", "SCHEMA", "ScanEntry", "Store", "open_memory_mapped"]

SCHEMA = 4
"""Version of the layout on disk; a store of another version is refused, not guessed at."""

MANIFEST = "store.json"
_TRUTH_KEYS = ("truth", "truth_patches")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanEntry:
    """One scan of a store.

    Arguments:
        source: file or origin.
        first_frame, n_frames: its rows in the store's frames.
        scaling: how its frames become counts and network input.
        probe_factor: factor of the file's probe to reach the counts gauge, 1 for a calibrated one unless
            the configuration states another dose than its file; divide to undo.
        object_pixel_m: edge of an object pixel, or None.
        notes: how the file was interpreted and its frames were processed.
        left_out: frames of the file, counted from 0, that are not in the store, and why.
        findings: frames that are in the store although something is odd about them, counted likewise.
        held_out: whether none of its frames is trained on.
        folder: name of its folder in the store.
        fingerprint: its sources and options, by name.
        probe_is_calibrated: whether the power of the file's probe is known.
        stated_photons: photons per frame that the file states, or None.
    """

    source: str
    first_frame: int
    n_frames: int
    scaling: Scaling
    probe_factor: float
    object_pixel_m: float | None
    notes: tuple[str, ...] = ()
    left_out: dict[int, str] = dataclasses.field(default_factory=dict)
    findings: FrameFindings = dataclasses.field(default_factory=FrameFindings)
    held_out: bool = False
    folder: str
    fingerprint: dict[str, str]
    probe_is_calibrated: bool
    stated_photons: float | None


# Number of frames for the mean frame, and 1 / the fraction of its pixels that are the darkest.
_FLOOR_FRAMES, _FLOOR_FRACTION = 256, 64


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """An opened store, which does not change when scans are added or dropped later.

    `frames` are read as one stack [M, N, N] of all scans. `tensors` holds: positions_px f64 [M, 2], frame_scan i64 [M],
    probes c64 [S, P, N, N], masks bool [S, N, N], group tables `train` and `val` (members, center_px, offset_px) and,
    for simulated scans, `truth` with one c64 [H, W] per scan, or `truth_patches` with one c64 [M_s, N, N] per scan that
    has only these.
    """

    path: Path
    frames: FrameStack
    tensors: TensorDict
    scans: tuple[ScanEntry, ...]
    gridsize: int
    config: dict[str, Any]
    fingerprint: dict[str, str]

    @property
    def n_px(self) -> int:
        return self.frames.shape[-1]

    @property
    def n_frames(self) -> int:
        return self.frames.shape[0]

    @property
    def has_truth(self) -> bool:
        """Whether the object is known under every frame, from a scan's `truth` or from its patches."""
        known = {*self.tensors["truth"].keys(), *self.tensors["truth_patches"].keys()}
        return len(known) == len(self.scans)

    def groups(self, split: str) -> Groups:
        """Return the table of groups of "train" or "val"."""
        table = self.tensors[split]
        return Groups(
            members=table["members"].numpy(),
            center_px=table["center_px"].numpy(),
            offset_px=table["offset_px"].numpy(),
            frames_used=table["frames_used"].numpy(),
        )

    def has_patches(self, scan: int) -> bool:
        """Return whether the truth of this scan is known as patches only."""
        return str(scan) in set(self.tensors["truth_patches"].keys())

    def truth_phase_factors(self) -> Complex64[torch.Tensor, " s"]:
        """Return phase factors that bring the mean of each scan's truth, where it was scanned, to phase 0.

        The phase of an object is known up to a constant; this convention makes the labels of several scans consistent.
        """
        turns = []
        for index, entry in enumerate(self.scans):
            if self.has_patches(index):
                central = slice(self.n_px // 4, self.n_px - self.n_px // 4)
                mean = self.tensors["truth_patches"][str(index)][:, central, central].sum()
            else:
                rows = slice(entry.first_frame, entry.first_frame + entry.n_frames)
                positions_px = self.tensors["positions_px"][rows]
                low = positions_px.amin(0).floor().long().clamp_min(0)
                high = positions_px.amax(0).ceil().long() + 1
                mean = self.tensors["truth"][str(index)][low[0] : high[0], low[1] : high[1]].sum()
            turns.append(mean.conj() / mean.abs() if mean.abs() > 0 else torch.ones_like(mean))
        return torch.stack(turns).to(torch.complex64)

    def estimate_floor_counts(self) -> Float64[torch.Tensor, " s"]:
        """Estimate the photons in the darkest good pixels of each scan's mean frame, a bound of the background."""
        floors = []
        for entry, part, mask in zip(self.scans, self.frames.parts, self.tensors["masks"], strict=True):
            rows = torch.linspace(0, len(part) - 1, min(len(part), _FLOOR_FRAMES)).long()
            mean = to_intensity(part.index_select(0, rows), entry.scaling.domain).mean(0, dtype=torch.float64)[mask]
            darkest = mean.sort().values[: max(1, len(mean) // _FLOOR_FRACTION)].mean()
            floors.append(darkest * entry.scaling.counts_per_intensity)
        return torch.stack(floors)

    @property
    def max_offset_px(self) -> float:
        """Largest distance of a frame from its group's centre, along an axis."""
        tables = (self.tensors[split]["offset_px"] for split in ("train", "val"))
        return max(float(offsets.abs().max()) for offsets in tables if offsets.numel())

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store read-only.

        Raises:
            StoreError: not a store, of another version, or incomplete.
            ConfigError: no path.
        """
        path = as_path(path, "path", "the folder of a store")
        while True:
            manifest = _read_manifest(path)
            try:
                store = cls._read(path, manifest)
            except (StoreError, OSError, RuntimeError):  # the last one by torch, for a file that is not there
                if _read_manifest(path) == manifest:
                    raise
                continue
            # Folders are removed only after a new manifest is written: if the manifest is the same as before, the store
            # is complete.
            if _read_manifest(path) == manifest:
                return store

    @classmethod
    def _read(cls, path: Path, manifest: dict[str, Any]) -> Store:
        try:
            for name, size in manifest["bytes"].items():
                n_bytes = (path / name).stat().st_size if (path / name).is_file() else 0
                if n_bytes != size:
                    raise StoreError(f"{path / name}: expected {size} bytes; found {n_bytes}. Prepare the store again.")
            scans = tuple(_parse_entry(entry) for entry in manifest["scans"])
            folder = path / "tables" / manifest["tables"]
            fields = {name: manifest[name] for name in ("gridsize", "config", "fingerprint")}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StoreError(f"{path / MANIFEST}: incomplete ({error!r}). Prepare the store again.") from None
        parts = [open_memory_mapped(path / "scans" / entry.folder) for entry in scans]
        truths = {
            kind: {str(index): part[kind] for index, part in enumerate(parts) if kind in part.keys()}  # noqa: SIM118
            for kind in _TRUTH_KEYS
        }
        tensors = TensorDict({**open_memory_mapped(folder), **truths}, batch_size=[])
        return cls(path, FrameStack(tuple(part["frames"] for part in parts)), tensors, scans, **fields)


def open_memory_mapped(folder: Path) -> TensorDict:
    """Open the tensors of a folder as memory maps that nothing can be written through."""
    # mode "r": runs share the store, and torch would otherwise map it writable.
    tensors = TensorDict.load_memmap(folder, mode="r", allow_pickle=False)
    assert isinstance(tensors, TensorDict)
    return tensors


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        raise StoreError(f"{path}: expected a store (a folder with {MANIFEST}); make one with `torchptycho prepare`.")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{file}: expected JSON; {error}. Prepare the store again.") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise StoreError(
            f"{file}: 'schema': expected {SCHEMA}; found {schema}. "
            "It was written by another version: prepare the store again."
        )
    assert isinstance(manifest, dict)
    return manifest


def _parse_entry(entry: dict[str, Any]) -> ScanEntry:
    """Parse an entry of the manifest; JSON has lists for tuples and texts for the numbers of frames."""
    left_out = {int(frame): str(why) for frame, why in entry["left_out"].items()}
    findings = FrameFindings(**{name: tuple(frames) for name, frames in entry["findings"].items()})
    nested = {"scaling": Scaling(**entry["scaling"]), "left_out": left_out, "findings": findings}
    return ScanEntry(**{**entry, **nested, "notes": tuple(entry["notes"])})
