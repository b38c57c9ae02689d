"""The store: a directory with every frame once, as a memory-mapped TensorDict, and tables of groups over them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex64
from tensordict import MemoryMappedTensor, TensorDict

from torchptycho.config import SUPPORTED_N_PX, ReadConfig, RunConfig, to_dict
from torchptycho.data.splits import no_groups, split_frames, table_of, training_groups, validation_groups
from torchptycho.errors import ConfigError, ScanError, StoreError
from torchptycho.grouping import Groups
from torchptycho.io import checked_chunks, read_probe
from torchptycho.io.checks import network_size_advice
from torchptycho.io.fingerprint import scan_fingerprint
from torchptycho.io.near_field import refuse_near_field
from torchptycho.physics.scaling import Scaling, frame_sums, measure_scaling, probe_factor
from torchptycho.scan import Scan

__all__ = ["SCHEMA", "ScanEntry", "Store", "prepare"]

_log = logging.getLogger(__name__)

SCHEMA = 3
"""Version of the layout on disk; a store of another version is refused, not guessed at."""

_MANIFEST = "store.json"
_CHUNK_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanEntry:
    """One scan of a store.

    Arguments:
        source: file or origin.
        first_frame, n_frames: its rows in the store's frames.
        scaling: how its frames become counts and network input.
        probe_factor: what the file's probe was multiplied by to reach the counts gauge, 1 for a calibrated one unless
            the configuration states another dose than its file; divide to undo.
        object_pixel_m: edge of an object pixel, or None.
        notes: how the file was understood and what was done to its frames.
        left_out: frames of the file, counted from 0, that are not in the store, and why.
        held_out: whether none of its frames is trained on.
    """

    source: str
    first_frame: int
    n_frames: int
    scaling: Scaling
    probe_factor: float
    object_pixel_m: float | None
    notes: tuple[str, ...] = ()
    left_out: dict[int, str] = dataclasses.field(default_factory=dict)
    held_out: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """An opened store.

    `tensors` holds: frames [M, N, N], positions_px f64 [M, 2], frame_scan i64 [M], probes c64 [S, P, N, N],
    masks bool [S, N, N], group tables `train` and `val` (members, center_px, offset_px) and, for simulated scans,
    `truth` with one c64 [H, W] per scan, or `truth_patches` with one c64 [M_s, N, N] per scan that has only these.
    """

    path: Path
    tensors: TensorDict
    scans: tuple[ScanEntry, ...]
    gridsize: int
    config: dict[str, Any]
    fingerprint: dict[str, str]

    @property
    def n_px(self) -> int:
        return int(self.tensors["frames"].shape[-1])

    @property
    def n_frames(self) -> int:
        return int(self.tensors["frames"].shape[0])

    @property
    def has_truth(self) -> bool:
        """Whether the object is known under every frame, from a scan's `truth` or from its patches."""
        known = {*self.tensors["truth"].keys(), *self.tensors["truth_patches"].keys()}
        return len(known) == len(self.scans)

    def groups(self, split: str) -> Groups:
        """The table of groups of "train" or "val"."""
        table = self.tensors[split]
        return Groups(
            members=table["members"].numpy(),
            center_px=table["center_px"].numpy(),
            offset_px=table["offset_px"].numpy(),
            frames_used=table["frames_used"].numpy(),
        )

    def has_patches(self, scan: int) -> bool:
        """Whether the truth of this scan is known as patches only."""
        return str(scan) in set(self.tensors["truth_patches"].keys())

    def truth_turns(self) -> Complex64[torch.Tensor, " s"]:
        """Numbers of modulus 1 that bring the mean of each scan's truth, where it was scanned, to phase 0.

        The phase of an object is known up to a constant. With it a network learns from several scans alike.
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
        """
        path = Path(path)
        manifest_path = path / _MANIFEST
        if not manifest_path.is_file():
            raise StoreError(
                f"{path}: expected a store (a folder with {_MANIFEST}); make one with `torchptycho prepare`."
            )
        try:
            manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise StoreError(f"{manifest_path}: expected JSON; {error}. Prepare the store again.") from None
        schema = manifest.get("schema") if isinstance(manifest, dict) else None
        if schema != SCHEMA:
            raise StoreError(
                f"{manifest_path}: 'schema': expected {SCHEMA}; found {schema}. "
                "It was written by another version: prepare the store again."
            )
        try:
            for name, size in manifest["bytes"].items():
                found = (path / name).stat().st_size if (path / name).is_file() else 0
                if found != size:
                    raise StoreError(f"{path / name}: expected {size} bytes; found {found}. Prepare the store again.")
            scans = tuple(_entry(told) for told in manifest["scans"])
            told = {name: manifest[name] for name in ("gridsize", "config", "fingerprint")}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StoreError(f"{manifest_path}: incomplete ({error!r}). Prepare the store again.") from None
        # mode "r": the store is shared by runs, and a memory map is otherwise writable in place.
        tensors = TensorDict.load_memmap(path / "tensors", mode="r", allow_pickle=False)
        return cls(path, tensors, scans, **told)


def _entry(told: dict[str, Any]) -> ScanEntry:
    """An entry of the manifest; JSON has lists for tuples and texts for the numbers of frames."""
    left_out = {int(frame): str(why) for frame, why in told["left_out"].items()}
    return ScanEntry(
        **{**told, "scaling": Scaling(**told["scaling"]), "notes": tuple(told["notes"]), "left_out": left_out}
    )


def prepare(scans: Sequence[Scan], config: RunConfig, path: str | Path, *, val_scans: Sequence[Scan] = ()) -> Store:
    """Check scans and write them as a store; a store of the same scans and configuration is reopened as it is.

    Uses the sections `prepare` and `group`. Frames are streamed in their own dtype. The store appears under its name
    only when it is complete.

    Arguments:
        scans: at least one, of one frame size, dtype family and domain. The calibrated probe of amplitudes follows
            `nphotons` when that differs from the scan's own dose.
        path: folder to make.
        val_scans: more scans, of which every frame is held out for validation.

    Raises:
        ConfigError: `domain` is set, and a scan holds something else.
        ScanError: a scan is unusable, or the scans do not fit together.
        GroupingError: the configured groups cannot be formed.
        StoreError: `path` is something else, or a store of other scans or of another configuration.
    """
    path = Path(path)
    n_trained = len(scans)
    scans = [_with_probe(scan, config) for scan in (*scans, *val_scans)]
    if not n_trained:
        raise StoreError("expected at least one scan; found none.")
    _check_together(scans, config)
    fingerprint = _fingerprint(scans, config, n_trained)
    if path.exists():
        return _reopen(path, fingerprint)
    for scan in scans:
        refuse_near_field(scan)
    with _folder_for(path):
        # Named by hand rather than by tempfile, so that the umask decides who may read the store.
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        draft.mkdir()
        try:
            _write(draft, scans, config, fingerprint, n_trained)
            os.replace(draft, path)
        except OSError:
            # Another process was faster; any other failure is its own.
            if not (path / _MANIFEST).is_file():
                raise
            return _reopen(path, fingerprint)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return Store.open(path)


@contextlib.contextmanager
def _folder_for(path: Path) -> Iterator[None]:
    """The folders above `path`; those that had to be made are gone again when the block fails."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _with_probe(scan: Scan, config: RunConfig) -> Scan:
    if config.prepare.probe in (None, scan.reading.probe):
        return scan
    probe = read_probe(config.prepare.probe, scan.n_px)
    return dataclasses.replace(scan, probe=probe, probe_is_calibrated=False)


def _check_together(scans: Sequence[Scan], config: RunConfig) -> None:
    first = scans[0]
    for scan in scans:
        if config.prepare.domain not in (None, scan.domain):
            raise ConfigError(
                f"domain: expected '{scan.domain}', which the frames of {scan.source} hold; found "
                f"'{config.prepare.domain}'. Leave it out, or read the scan with domain='{config.prepare.domain}'."
            )
        _check_read_so(scan, config)
        advice = network_size_advice(scan.n_px)
        if advice is not None:
            raise ScanError(
                scan.source, "diffraction",
                expected=f"frames of N = {', '.join(map(str, SUPPORTED_N_PX))} px",
                found=f"N = {scan.n_px}",
                remedy=advice,
            )  # fmt: skip
        if (scan.n_px, scan.domain) != (first.n_px, first.domain):
            raise ScanError(
                scan.source, "diffraction",
                expected=f"N = {first.n_px} and {first.domain} as in {first.source}",
                found=f"N = {scan.n_px} and {scan.domain}",
                remedy="Prepare scans of another size or domain into a store of their own.",
            )  # fmt: skip


def _check_read_so(scan: Scan, config: RunConfig) -> None:
    """The options of reading act when a file is opened: a scan that was opened otherwise does not follow them."""
    default = ReadConfig()
    for field in dataclasses.fields(ReadConfig):
        wanted, was = getattr(config.prepare, field.name), getattr(scan.reading, field.name)
        if field.name not in ("domain", "probe") and wanted not in (getattr(default, field.name), was):
            raise ConfigError(
                f"{field.name}: {scan.source} was read with {was!r}; found {wanted!r}. "
                "Give the file, or read it with read_scan(path, config.prepare)."
            )


def _fingerprint(scans: Sequence[Scan], config: RunConfig, n_trained: int) -> dict[str, str]:
    """What the store depends on, in parts, so that a difference can be named."""
    parts = {"schema": str(SCHEMA)}
    for index, scan in enumerate(scans):
        held_out = "held-out " if index >= n_trained else ""
        parts[f"{held_out}scan {index} ({scan.source})"] = scan_fingerprint(scan)
    for section in ("prepare", "group"):
        for key, value in to_dict(getattr(config, section)).items():
            parts[f"{section}.{key}"] = json.dumps(value)
    return parts


def _reopen(path: Path, fingerprint: dict[str, str]) -> Store:
    store = Store.open(path)
    differs = [
        key for key in fingerprint.keys() | store.fingerprint if fingerprint.get(key) != store.fingerprint.get(key)
    ]
    if differs:
        raise StoreError(
            f"{path}: is a store of something else: {', '.join(sorted(differs))} differ. "
            "Choose another folder, or remove this one."
        )
    _log.info("%s: is complete and up to date", path)
    return store


def _frames_per_chunk(scan: Scan) -> int:
    return max(1, _CHUNK_BYTES // (scan.n_px**2 * scan.frames.dtype.itemsize))


def _write(draft: Path, scans: Sequence[Scan], config: RunConfig, fingerprint: dict[str, str], n_trained: int) -> None:
    folder = draft / "tensors"
    folder.mkdir()
    first_frames = np.cumsum([0, *(scan.n_frames for scan in scans)])
    frames, sums = _write_frames(folder / "frames.memmap", scans, first_frames)
    positions = np.concatenate([scan.positions_px for scan in scans])
    frame_scan = np.concatenate([np.full(scan.n_frames, i, np.int64) for i, scan in enumerate(scans)])
    # Groups mix neither files nor the scans within a file.
    kind = np.concatenate([scan.scan_id for scan in scans])
    _, separate = np.unique(np.stack([frame_scan, kind], 1), axis=0, return_inverse=True)
    separate = separate.reshape(-1).astype(np.int64)
    training, held_out = split_frames(
        frame_scan, config.prepare.val_fraction, config.prepare.split_seed, config.group.gridsize, n_trained
    )
    train = training_groups(positions, separate, training, config)
    val = validation_groups(positions, separate, held_out, config)

    entries, probes = [], []
    modes = max(scan.probe.shape[0] for scan in scans)
    for index, scan in enumerate(scans):
        # A scan that is held out as a whole is scaled by itself, as one that comes to be reconstructed is.
        of_training = training if index < n_trained else held_out
        of_training = of_training[frame_scan[of_training] == index]
        scaling = measure_scaling(
            float(sums[of_training].mean()), scan.n_px, scan.domain, config.prepare.nphotons or scan.photons_per_frame
        )
        probe = torch.from_numpy(scan.probe)
        factor = probe_factor(scan, scaling)
        probes.append(torch.nn.functional.pad(probe * factor, (0, 0, 0, 0, 0, modes - len(probe))))
        entries.append(
            ScanEntry(
                source=scan.source,
                first_frame=int(first_frames[index]),
                n_frames=scan.n_frames,
                scaling=scaling,
                probe_factor=factor,
                object_pixel_m=scan.geometry.with_object_pixel(scan.n_px).object_pixel_m,
                notes=scan.notes,
                left_out=scan.left_out,
                held_out=index >= n_trained,
            )
        )
    truths = {str(i): torch.from_numpy(scan.truth) for i, scan in enumerate(scans) if scan.truth is not None}
    patches = {
        str(i): torch.from_numpy(scan.truth_patches)
        for i, scan in enumerate(scans)
        if scan.truth is None and scan.truth_patches is not None
    }
    tensors = TensorDict(
        {
            "frames": frames,
            "positions_px": torch.from_numpy(positions),
            "frame_scan": torch.from_numpy(frame_scan),
            "separate": torch.from_numpy(separate),
            "probes": torch.stack(probes),
            "masks": torch.from_numpy(np.stack([scan.mask for scan in scans])),
            "train": table_of(train),
            "val": table_of(no_groups(train) if val is None else val),
            "truth": truths,
            "truth_patches": patches,
        },
        batch_size=[],
    )
    tensors.memmap(folder)
    manifest = {
        "schema": SCHEMA,
        "gridsize": config.group.gridsize,
        "scans": [dataclasses.asdict(entry) for entry in entries],
        "config": {section: to_dict(getattr(config, section)) for section in ("prepare", "group")},
        "fingerprint": fingerprint,
        "bytes": {str(f.relative_to(draft)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()},
    }
    (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _write_frames(file: Path, scans: Sequence[Scan], first_frames: np.ndarray) -> tuple[MemoryMappedTensor, np.ndarray]:
    """Stream all frames into one file; also the intensity of each frame over its good pixels, in float64."""
    dtype = np.result_type(*(scan.frames.dtype for scan in scans))
    shape = (int(first_frames[-1]), *scans[0].frames.shape[1:])
    target = np.memmap(file, dtype=dtype, mode="w+", shape=shape)
    sums = np.empty(shape[0], np.float64)
    for scan, start in zip(scans, first_frames[:-1], strict=True):
        for chunk in checked_chunks(scan, _frames_per_chunk(scan)):
            stop = start + len(chunk)
            target[start:stop] = chunk
            sums[start:stop] = frame_sums(chunk, scan.domain)
            start = stop
    target.flush()
    del target
    torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    return MemoryMappedTensor.from_filename(file, dtype=torch_dtype, shape=torch.Size(shape)), sums
