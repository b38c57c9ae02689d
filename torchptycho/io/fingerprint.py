"""What a scan is, in one number: whether a store or a state still belongs to it."""

from __future__ import annotations

import hashlib

import numpy as np

from torchptycho.io.frames import backing_files, frames_in
from torchptycho.scan import Scan

__all__ = ["scan_fingerprint"]

_CHUNK_BYTES = 16 << 20


def scan_fingerprint(scan: Scan) -> str:
    """SHA-256 over everything but the frames of a file, which its size and time of change stand for."""
    digest = hashlib.sha256()
    for array in (scan.positions_px, scan.probe, scan.mask, scan.scan_id, scan.truth):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    told = (scan.domain, scan.frames.shape, str(scan.frames.dtype), scan.metadata, scan.geometry)
    digest.update(repr((*told, scan.probe_is_calibrated)).encode())
    backing = backing_files(scan.frames)
    if backing is not None:
        files, part = backing
        for status in (file.stat() for file in files):
            digest.update(repr((status.st_size, status.st_mtime_ns)).encode())
        digest.update(part.encode())
    else:
        for chunk in scan.frames.chunks(frames_in(_CHUNK_BYTES, scan.frames)):
            digest.update(np.ascontiguousarray(chunk).tobytes())
    return digest.hexdigest()
