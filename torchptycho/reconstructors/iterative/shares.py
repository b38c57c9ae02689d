"""Which process keeps which frames: compact tiles of the scan, of nearly equal numbers of frames."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

__all__ = ["MIN_FRAMES_PER_PROCESS", "assign_frames", "count_useful_processes"]

MIN_FRAMES_PER_PROCESS = 8
"""Frames of a batch below which another process takes longer to add its sums than it saves."""


def assign_frames(positions_px: Float64[np.ndarray, "m 2"], n_processes: int) -> Int64[np.ndarray, " m"]:
    """Return the process of each frame: parts of parts along the longer axis, in proportion to their processes."""
    owner = np.zeros(len(positions_px), np.int64)

    def split(rows: np.ndarray, first: int, count: int) -> None:
        if count == 1:
            owner[rows] = first
            return
        longer = int(np.ptp(positions_px[rows], axis=0).argmax()) if len(rows) else 0
        in_order = rows[np.argsort(positions_px[rows, longer], kind="stable")]
        left = count // 2
        cut = round(len(rows) * left / count)
        split(in_order[:cut], first, left)
        split(in_order[cut:], first + left, count - left)

    split(np.arange(len(positions_px)), 0, n_processes)
    return owner


def count_useful_processes(asked: int, batch_size: int) -> int:
    """Return how many of these processes a batch of this size keeps busy."""
    return max(1, min(asked, batch_size // MIN_FRAMES_PER_PROCESS))
