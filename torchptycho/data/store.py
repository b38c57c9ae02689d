"""The store: a directory with every frame once, as a memory-mapped TensorDict, and tables of groups over them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex64
from tensordict import MemoryMappedTensor, TensorDict

from torchptycho.config import SUPPORTED_N_PX, ReadConfig, RunConfig, to_dict
from torchptycho.data.claim import claimed, draft_of, swept
from torchptycho.data.findings import Findings, findings_of, saturated_frames
from torchptycho.data.reopen import Request, config_parts, is_as_requested, keep_request, refuse_differences
from torchptycho.data.space import (
    SteadyWriter,
    bytes_needed,
    check_space,
    names_on_disk,
    on_disk,
    reserve,
    told_in_one_line,
)
from torchptycho.data.splits import no_groups, split_frames, table_of, training_groups, validation_groups
from torchptycho.errors import ConfigError, ScanError, StoreError
from torchptycho.grouping import Groups
from torchptycho.io import checked_chunks, read_probe
from torchptycho.io.checks import network_size_advice
from torchptycho.io.fingerprint import scan_parts
from torchptycho.io.near_field import refuse_near_field
from torchptycho.io.sources import unchanged
from torchptycho.physics.scaling import Scaling, frame_sums, measure_scaling, probe_factor
from torchptycho.scan import Scan

__all__ = ["SCHEMA", "ScanEntry", "Store", "prepare", "reopened"]

_log = logging.getLogger(__name__)

SCHEMA = 3
"""Version of the layout on disk; a store of another version is refused, not guessed at."""

_MANIFEST = "store.json"
# What stays in the cache of a core between the looks that are taken at it.
_CHUNK_BYTES = 2 << 20


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
        findings: frames that are in the store although something is odd about them, counted likewise.
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
    findings: Findings = dataclasses.field(default_factory=Findings)
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
    findings = Findings(**{name: tuple(frames) for name, frames in told.get("findings", {}).items()})
    nested = {"scaling": Scaling(**told["scaling"]), "left_out": left_out, "findings": findings}
    return ScanEntry(**{**told, **nested, "notes": tuple(told["notes"])})


def reopened(path: str | Path, request: Request | None) -> Store | None:
    """The store at `path` when it was made by this request, of files that have not changed since; nothing is read.

    None when that cannot be told without opening the scans: `prepare` them then.

    Raises:
        StoreError: it was made by such a request, and an option, the version or a file is another now.
    """
    return Store.open(path) if is_as_requested(Path(path), request) else None


def prepare(
    scans: Sequence[Scan],
    config: RunConfig,
    path: str | Path,
    *,
    val_scans: Sequence[Scan] = (),
    request: Request | None = None,
) -> Store:
    """Check scans and write them as a store; a store of the same scans and configuration is reopened as it is.

    Uses the sections `prepare` and `group`. Frames are streamed in their own dtype. The store appears under its name
    only when it is complete and would survive a power cut. Of several processes that prepare one store, one writes it
    and the others wait and use it.

    Arguments:
        scans: at least one, of one frame size, dtype family and domain. The calibrated probe of amplitudes follows
            `nphotons` when that differs from the scan's own dose.
        path: folder to make.
        val_scans: more scans, of which every frame is held out for validation.
        request: the files and options that the scans were read with, for `reopened` to know the store by.

    Raises:
        ConfigError: `domain` is set, and a scan holds something else.
        ScanError: a scan is unusable, or the scans do not fit together.
        GroupingError: the configured groups cannot be formed.
        StoreError: `path` is something else, or a store of other scans or of another configuration; the disk is full,
            or the folder cannot be written to.
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
        with unchanged(scan):
            refuse_near_field(scan)
    needed = bytes_needed(scans, config)
    with told_in_one_line(path, needed), _folder_for(path), claimed(path):
        if path.exists():
            # Another process was faster.
            return _reopen(path, fingerprint)
        check_space(path, needed)
        with draft_of(path) as draft:
            _write(draft, scans, config, fingerprint, n_trained)
            if request is not None:
                keep_request(draft, request, scans)
            on_disk(draft)
            os.replace(draft, path)
            names_on_disk(path.parent)
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
    parts = {"schema": str(SCHEMA), **config_parts(config)}
    for index, scan in enumerate(scans):
        held_out = "held-out " if index >= n_trained else ""
        parts |= {f"{held_out}scan {index} ({scan.source}) {key}": part for key, part in scan_parts(scan).items()}
    return parts


def _reopen(path: Path, fingerprint: dict[str, str]) -> Store:
    store = Store.open(path)
    refuse_differences(path, store.fingerprint, fingerprint)
    swept(path)
    _log.info("%s: is complete and up to date", path)
    return store


def _frames_per_chunk(scan: Scan) -> int:
    return max(1, _CHUNK_BYTES // (scan.n_px**2 * scan.frames.dtype.itemsize))


def _write(draft: Path, scans: Sequence[Scan], config: RunConfig, fingerprint: dict[str, str], n_trained: int) -> None:
    folder = draft / "tensors"
    folder.mkdir()
    first_frames = np.cumsum([0, *(scan.n_frames for scan in scans)])
    frames, sums, saturated = _write_frames(folder / "frames.memmap", scans, first_frames)
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
        rows = slice(int(first_frames[index]), int(first_frames[index + 1]))
        findings = findings_of(scan, sums[rows], saturated[rows])
        for sentence in findings.sentences():
            _log.warning("%s: %s", scan.source, sentence)
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
                findings=findings,
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
    reserve(tensors, folder)
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


def _write_frames(
    file: Path, scans: Sequence[Scan], first_frames: np.ndarray
) -> tuple[MemoryMappedTensor, np.ndarray, np.ndarray]:
    """Stream all frames into one file; also the intensity [M] of each over its good pixels, and which are saturated."""
    dtype = np.result_type(*(scan.frames.dtype for scan in scans))
    shape = (int(first_frames[-1]), *scans[0].frames.shape[1:])
    sums, saturated = np.empty(shape[0], np.float64), np.zeros(shape[0], bool)
    # Written, not mapped: a full disk is then an error, and not the end of the process.
    with file.open("xb", buffering=0) as stream, SteadyWriter(stream) as target:
        for scan, start in zip(scans, first_frames[:-1], strict=True):
            for chunk in checked_chunks(scan, _frames_per_chunk(scan)):
                stop = start + len(chunk)
                target.write(np.ascontiguousarray(chunk, dtype))
                sums[start:stop] = frame_sums(chunk, scan.domain)
                saturated[start:stop] = saturated_frames(chunk)
                start = stop
    torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    return MemoryMappedTensor.from_filename(file, dtype=torch_dtype, shape=torch.Size(shape)), sums, saturated
