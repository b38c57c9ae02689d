"""The one place where a store is written: folders of scans, tables over them, and last of all the manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import MemoryMappedTensor, TensorDict

from torchptycho.core.config import RunConfig, to_dict
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.disk import BackgroundWriter, reserve_space, sync_folder
from torchptycho.data.locking import exclusive_writer
from torchptycho.data.quality import FrameFindings, collect_findings, find_saturated_frames
from torchptycho.data.splits import groups_to_tensors, make_empty_groups, split_and_group
from torchptycho.data.store import MANIFEST, SCHEMA, ScanEntry, Store, open_memory_mapped
from torchptycho.io import iter_checked_chunks
from torchptycho.io.storage.file_access import replace_atomically
from torchptycho.physics.scaling import compute_probe_factor, measure_scaling, sum_frames

__all__ = ["StoredScan", "load_stored_scans", "open_for_update", "write_scan", "write_tables"]

_log = logging.getLogger(__name__)

# Chunk size that stays in a core's cache between the passes over it.
_CHUNK_BYTES = 2 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StoredScan:
    """A scan whose folder is written.

    Arguments:
        folder: its name.
        scan: the scan; of its frames only shape and dtype are still needed.
        intensity: of each frame over its good pixels, f64 [M].
        fingerprint: its sources and options, by name.
        findings: frames that something is odd about.
        held_out: whether none of its frames is trained on.
    """

    folder: str
    scan: Scan
    intensity: np.ndarray
    fingerprint: dict[str, str]
    findings: FrameFindings
    held_out: bool


def write_scan(root: Path, scan: Scan, fingerprint: dict[str, str], *, held_out: bool) -> StoredScan:
    """Stream a scan into its own folder below `root`/scans, which is not yet part of a store.

    Raises:
        ScanError: its frames are unusable.
        OSError: the disk is full.
    """
    name = secrets.token_hex(6)
    folder = root / "scans" / name
    folder.mkdir(parents=True)
    frames, intensity, saturated = _write_frames(folder / "frames.memmap", scan)
    findings = collect_findings(scan, intensity, saturated)
    for sentence in findings.describe():
        _log.warning("%s: %s", scan.source, sentence)
    arrays = {
        "positions_px": scan.positions_px,
        "scan_id": scan.scan_id,
        "probe": scan.probe,
        "mask": scan.mask,
        "intensity": intensity,
        "truth": scan.truth,
        "truth_patches": scan.truth_patches if scan.truth is None else None,
    }
    known = {key: torch.from_numpy(array) for key, array in arrays.items() if array is not None}
    _write_tensors(TensorDict({"frames": frames, **known}, batch_size=[]), folder)
    return StoredScan(
        folder=name, scan=scan, intensity=intensity, fingerprint=fingerprint, findings=findings, held_out=held_out
    )


def load_stored_scans(store: Store) -> list[StoredScan]:
    """Load the scans of a store, as `write_tables` takes them; their frames are not read."""
    stored = []
    for entry in store.scans:
        part = open_memory_mapped(store.path / "scans" / entry.folder)
        scan = Scan(
            frames=ArrayFrames(part["frames"].numpy()),
            domain=entry.scaling.domain,
            positions_px=part["positions_px"].numpy(),
            probe=part["probe"].numpy(),
            mask=part["mask"].numpy(),
            scan_id=part["scan_id"].numpy(),
            geometry=Geometry(object_pixel_m=entry.object_pixel_m),
            source=entry.source,
            metadata={} if entry.stated_photons is None else {"nphotons": entry.stated_photons},
            probe_is_calibrated=entry.probe_is_calibrated,
            notes=entry.notes,
            left_out=entry.left_out,
        )
        stored.append(
            StoredScan(
                folder=entry.folder,
                scan=scan,
                intensity=part["intensity"].numpy(),
                fingerprint=entry.fingerprint,
                findings=entry.findings,
                held_out=entry.held_out,
            )
        )
    return stored


def write_tables(root: Path, stored: Sequence[StoredScan], config: RunConfig, fingerprint: dict[str, str]) -> None:
    """Write the tables over these scans and then, atomically, the manifest of the store.

    Raises:
        GroupingError: the configured groups cannot be formed; the store is unchanged.
        OSError: the disk is full; the store is unchanged.
    """
    scans = [one.scan for one in stored]
    first_frames = np.cumsum([0, *(scan.n_frames for scan in scans)])
    intensity = np.concatenate([one.intensity for one in stored])
    division = split_and_group(scans, [one.held_out for one in stored], config)
    frame_scan, split, train, val = division.frame_scan, division.split, division.train, division.val
    entries, probes = [], []
    modes = max(scan.probe.shape[0] for scan in scans)
    for index, (one, scan) in enumerate(zip(stored, scans, strict=True)):
        # The scale of a held-out scan is measured on its own frames, as in a reconstruction.
        of_training = split.held_out if one.held_out else split.training
        of_training = of_training[frame_scan[of_training] == index]
        if not one.held_out and not (frame_scan[train.members[:, 0]] == index).any():
            _log.warning("%s: no training group has a frame of this scan as its seed", scan.source)
        scaling = measure_scaling(
            float(intensity[of_training].mean()),
            scan.n_px,
            scan.domain,
            config.prepare.nphotons or scan.photons_per_frame,
        )
        probe, factor = torch.from_numpy(scan.probe), compute_probe_factor(scan, scaling)
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
                findings=one.findings,
                held_out=one.held_out,
                folder=one.folder,
                fingerprint=one.fingerprint,
                probe_is_calibrated=scan.probe_is_calibrated,
                stated_photons=scan.photons_per_frame,
            )
        )
    tensors = TensorDict(
        {
            "positions_px": torch.from_numpy(division.positions_px),
            "frame_scan": torch.from_numpy(frame_scan),
            "separate": torch.from_numpy(division.unique_scan_id),
            "probes": torch.stack(probes),
            "masks": torch.from_numpy(np.stack([scan.mask for scan in scans])),
            "train": groups_to_tensors(train),
            "val": groups_to_tensors(make_empty_groups(train) if val is None else val),
        },
        batch_size=[],
    )
    name = secrets.token_hex(6)
    _write_tensors(tensors, root / "tables" / name)
    folders = [root / "tables" / name, *(root / "scans" / one.folder for one in stored)]
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
    manifest = {
        "schema": SCHEMA,
        "gridsize": config.group.gridsize,
        "tables": name,
        "scans": [dataclasses.asdict(entry) for entry in entries],
        "config": {section: to_dict(getattr(config, section)) for section in ("prepare", "group")},
        "fingerprint": fingerprint,
        "bytes": {str(file.relative_to(root)): file.stat().st_size for file in files},
    }
    with replace_atomically(root / MANIFEST) as stream:
        stream.write(json.dumps(manifest, indent=1).encode())


@contextlib.contextmanager
def open_for_update(path: Path) -> Iterator[Store]:
    """Open the store at `path` for one process at a time; remove files that no manifest names before and after.

    Raises:
        StoreError: there is no store.
    """
    Store.open(path)
    with exclusive_writer(path):
        _remove_unreferenced(path)
        try:
            yield Store.open(path)
        finally:
            with contextlib.suppress(OSError, ValueError, KeyError):
                _remove_unreferenced(path)


def _remove_unreferenced(path: Path) -> None:
    """Remove the folders that the manifest does not list: remains of an interrupted change, and dropped scans."""
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    named = {"tables": {manifest["tables"]}, "scans": {entry["folder"] for entry in manifest["scans"]}}
    for file in path.glob(f".{MANIFEST}.*.tmp"):
        file.unlink(missing_ok=True)
    for kind, names in named.items():
        for folder in (path / kind).iterdir():
            if folder.name not in names:
                shutil.rmtree(folder, ignore_errors=True)


def _write_tensors(tensors: TensorDict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    reserve_space(tensors, folder)
    tensors.memmap(folder)
    sync_folder(folder)


def _write_frames(file: Path, scan: Scan) -> tuple[MemoryMappedTensor, np.ndarray, np.ndarray]:
    """Stream the frames into a file; also the intensity [M] of each over its good pixels, and which are saturated."""
    sums, saturated = np.empty(scan.n_frames, np.float64), np.zeros(scan.n_frames, bool)
    start = 0
    # Written instead of mapped: a full disk is then an error, and does not kill the process.
    with file.open("xb", buffering=0) as stream, BackgroundWriter(stream) as target:
        for chunk in iter_checked_chunks(scan, max(1, _CHUNK_BYTES // (scan.n_px**2 * scan.frames.dtype.itemsize))):
            stop = start + len(chunk)
            target.write(np.ascontiguousarray(chunk))
            sums[start:stop] = sum_frames(chunk, scan.domain)
            saturated[start:stop] = find_saturated_frames(chunk)
            start = stop
    dtype = torch.from_numpy(np.empty(0, scan.frames.dtype)).dtype
    return MemoryMappedTensor.from_filename(file, dtype=dtype, shape=torch.Size(scan.frames.shape)), sums, saturated
