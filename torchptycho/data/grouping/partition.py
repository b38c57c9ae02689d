"""Groups for prediction: disjoint, compact, and together every frame."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64

from torchptycho.core.errors import GroupingError
from torchptycho.data.grouping.groups import Groups, build_groups
from torchptycho.data.grouping.scan_ids import split_by_scan, validate_scan_id

__all__ = ["partition"]


def partition(
    positions_px: Float64[np.ndarray, "m 2"], gridsize: int, scan_id: Int64[np.ndarray, " m"] | None = None
) -> tuple[Groups, Bool[np.ndarray, "g c"]]:
    """Divide the frames into groups of nearby frames, each frame in one group, for prediction.

    Each scan is bisected repeatedly along its longer side. A last, incomplete group borrows the nearest frames.

    Arguments:
        positions_px: [M, 2] (y, x) in object pixels.
        gridsize: groups hold gridsize^2 frames.
        scan_id: [M], groups do not mix scans; None for one scan.

    Returns:
        The groups, and a mask [G, C] that is False where a frame is borrowed: each frame is True exactly once.

    Raises:
        GroupingError: a scan has fewer frames than a group.
    """
    scan_id = validate_scan_id(positions_px, scan_id)
    if gridsize < 1:
        raise GroupingError(f"gridsize: expected at least 1; found {gridsize}.")
    size = gridsize**2
    blocks, masks = [], []
    for frames in split_by_scan(scan_id, np.arange(len(positions_px))):
        if len(frames) < size:
            raise GroupingError(
                f"gridsize {gridsize} needs {size} frames of each scan; scan {scan_id[frames[0]]} has {len(frames)}. "
                "Use a model of a smaller gridsize, or leave this scan out."
            )
        order = frames if size == 1 else frames[_bisect(positions_px[frames], size)]
        n_borrowed = -len(frames) % size
        if n_borrowed:
            last = order[len(order) - (size - n_borrowed) :]
            others = np.setdiff1d(frames, last, assume_unique=True)
            apart = ((positions_px[others] - positions_px[last].mean(axis=0)) ** 2).sum(axis=1)
            order = np.concatenate([order, others[np.argsort(apart, kind="stable")[:n_borrowed]]])
        is_first = np.arange(len(order)) < len(frames)
        blocks.append(order.reshape(-1, size))
        masks.append(is_first.reshape(-1, size))
    members = np.concatenate(blocks)
    return build_groups(positions_px, members, np.arange(len(positions_px))), np.concatenate(masks)


def _bisect(positions_px: np.ndarray, size: int) -> np.ndarray:
    """Order positions so that each run of `size` is compact: median splits, one level at a time for all parts."""
    n = len(positions_px)
    order = np.arange(n)
    # Boundaries of the parts, counted in groups; only the last part can end in an incomplete group.
    edges = np.array([0, -(-n // size)])
    while np.diff(edges).max() > 1:
        starts = edges[:-1] * size
        part = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, n)))
        here = positions_px[order]
        extent = np.maximum.reduceat(here, starts, axis=0) - np.minimum.reduceat(here, starts, axis=0)
        along = np.where((extent[:, 0] >= extent[:, 1])[part], here[:, 0], here[:, 1])
        order = order[np.lexsort((along, part))]
        edges = np.unique(np.concatenate([edges, edges[:-1] + np.diff(edges) // 2]))
    return order
