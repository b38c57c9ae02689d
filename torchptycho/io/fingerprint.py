"""What a scan is, in a few numbers: whether a store or a state still belongs to it."""

from __future__ import annotations

import hashlib

import numpy as np

from torchptycho.core.scan import Scan
from torchptycho.io.frames.frame_stacks import find_backing_files
from torchptycho.io.frames.npz_frames import count_frames_in

__all__ = ["fingerprint_content", "fingerprint_fields", "fingerprint_scan"]

_CHUNK_BYTES = 16 << 20
_ARRAYS = ("positions_px", "probe", "mask", "scan_id", "truth", "truth_slices", "truth_patches")


def fingerprint_scan(scan: Scan) -> str:
    """Compute the SHA-256 of a scan; the frames of a file are represented by its size and modification time."""
    return hashlib.sha256(repr(sorted(fingerprint_fields(scan).items())).encode()).hexdigest()


def fingerprint_content(scan: Scan) -> str:
    """SHA-256 over all that the scan holds, whatever its files are called and when they were written; reads it all."""
    digest = hashlib.sha256()
    for name, part in sorted(fingerprint_fields(scan).items()):
        if name != "frames":
            digest.update(f"{name} {part}".encode())
    digest.update(repr((scan.frames.shape, str(scan.frames.dtype))).encode())
    for chunk in scan.frames.chunks(count_frames_in(_CHUNK_BYTES, scan.frames)):
        digest.update(np.ascontiguousarray(chunk).data)
    return digest.hexdigest()


def fingerprint_fields(scan: Scan) -> dict[str, str]:
    """Compute a fingerprint of each field of the scan, so that a difference has a name; absent fields are left out."""
    parts = {
        name: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
        for name in _ARRAYS
        if (array := getattr(scan, name)) is not None
    }
    parts |= {name: repr(getattr(scan, name)) for name in ("domain", "geometry", "probe_is_calibrated")}
    parts["metadata"] = hashlib.sha256(repr(scan.metadata).encode()).hexdigest()
    digest = hashlib.sha256(repr((scan.frames.shape, str(scan.frames.dtype))).encode())
    backing = find_backing_files(scan.frames)
    if backing is not None:
        files, part = backing
        for status in (file.stat() for file in files):
            digest.update(repr((status.st_size, status.st_mtime_ns)).encode())
        digest.update(part.encode())
    else:
        for chunk in scan.frames.chunks(count_frames_in(_CHUNK_BYTES, scan.frames)):
            digest.update(np.ascontiguousarray(chunk).data)
    parts["frames"] = digest.hexdigest()
    return parts
