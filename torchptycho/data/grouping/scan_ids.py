"""Frames by scan: groups never mix scans, and positions are judged before they are used."""

from __future__ import annotations

import numpy as np

from torchptycho.core.errors import GroupingError

__all__ = ["count_scan_frames", "split_by_scan", "validate_scan_id"]


def validate_scan_id(positions_px: np.ndarray, scan_id: np.ndarray | None) -> np.ndarray:
    """Return the scan of each frame, zeros when there is one; refuse positions and ids that cannot be grouped."""
    if positions_px.ndim != 2 or positions_px.shape[1] != 2 or len(positions_px) == 0:
        raise GroupingError(f"positions_px: expected shape (M, 2) with M > 0; found {positions_px.shape}.")
    bad = np.flatnonzero(~np.isfinite(positions_px).all(axis=1))
    if len(bad):
        raise GroupingError(
            f"positions_px: expected finite numbers; {len(bad)} of {len(positions_px)} are not, the first is frame "
            f"{bad[0]}. Remove these frames."
        )
    if scan_id is None:
        return np.zeros(len(positions_px), np.int64)
    if scan_id.shape != (len(positions_px),):
        raise GroupingError(f"scan_id: expected shape ({len(positions_px)},) as positions; found {scan_id.shape}.")
    return scan_id


def split_by_scan(scan_id: np.ndarray, frames: np.ndarray) -> list[np.ndarray]:
    """Split frames by scan, in their order."""
    of_frames = scan_id[frames]
    if (of_frames == of_frames[0]).all():
        return [frames]
    order = np.argsort(of_frames, kind="stable")
    return np.split(frames[order], np.flatnonzero(np.diff(of_frames[order])) + 1)


def count_scan_frames(scan_id: np.ndarray, pool: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Count the usable frames in the scan of each seed."""
    scans, counts = np.unique(scan_id[pool], return_counts=True)
    return np.asarray(counts[np.searchsorted(scans, scan_id[seeds])])
