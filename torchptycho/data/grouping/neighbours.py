"""The K nearest frames of each seed, and which of them the constraints allow."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.spatial import cKDTree

from torchptycho.core.config import GroupConfig
from torchptycho.data.grouping.scan_ids import split_by_scan

__all__ = ["Neighbours", "find_neighbours", "neighbor_count"]

_DEFAULT_NEIGHBOURS, _EXTRA_NEIGHBOURS = 7, 3


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """The K nearest frames [S, K] of each seed, nearest first, and whether the constraints allow them."""

    index: np.ndarray
    allowed: np.ndarray
    quadrant: np.ndarray | None
    max_per_quadrant: int

    def select_rows(self, rows: np.ndarray) -> Neighbours:
        quadrant = None if self.quadrant is None else self.quadrant[rows]
        return Neighbours(self.index[rows], self.allowed[rows], quadrant, self.max_per_quadrant)

    def count_per_quadrant(self) -> np.ndarray:
        """Count allowed neighbours in each quadrant, [S, 4]."""
        assert self.quadrant is not None
        return np.stack([(self.allowed & (self.quadrant == q)).sum(axis=1) for q in range(4)], axis=1)

    def count_usable(self) -> np.ndarray:
        """Count the neighbours that one group can use at most, [S]."""
        if self.quadrant is None:
            return np.asarray(self.allowed.sum(axis=1))
        return np.asarray(np.minimum(self.count_per_quadrant(), self.max_per_quadrant).sum(axis=1))


def neighbor_count(config: GroupConfig) -> int:
    """Return K: as configured, else 7, or C + 3 if larger, so that any gridsize has neighbours to choose from."""
    if config.neighbor_count is not None:
        return config.neighbor_count
    return max(_DEFAULT_NEIGHBOURS, config.gridsize**2 + _EXTRA_NEIGHBOURS)


def find_neighbours(
    positions_px: np.ndarray, scan_id: np.ndarray, pool: np.ndarray, seeds: np.ndarray, config: GroupConfig
) -> Neighbours:
    """Find the K nearest usable frames of each seed in its own scan, within the distances and quadrants of `config`."""
    k = neighbor_count(config)
    index = np.empty((len(seeds), k), np.int64)
    allowed = np.empty((len(seeds), k), bool)
    for frames in split_by_scan(scan_id, pool):
        rows = np.flatnonzero(scan_id[seeds] == scan_id[frames[0]])
        if len(rows) == 0:
            continue
        whole = len(rows) == len(seeds)
        nearest, is_allowed = _find_nearest(positions_px, frames, seeds if whole else seeds[rows], k, config)
        if whole:
            index, allowed = nearest, is_allowed
            break
        index[rows], allowed[rows] = nearest, is_allowed
    quadrant = None
    if config.quadrants:
        dy, dx = np.moveaxis(positions_px[index] - positions_px[seeds][:, None], -1, 0)
        # Quadrants are half-open in angle, so that on a raster the four nearest neighbours, which lie on the axes, are
        # in different ones.
        quadrant = np.floor(np.arctan2(dy, dx) / (np.pi / 2)).astype(np.int64) % 4
    return Neighbours(index, allowed, quadrant, math.ceil((config.gridsize**2 - 1) / 4))


def _find_nearest(
    positions_px: np.ndarray, frames: np.ndarray, seeds: np.ndarray, k: int, config: GroupConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k frames nearest to each seed, itself excluded, and which exist and are within the distances of
    `config`."""
    tree = cKDTree(positions_px[frames], balanced_tree=False, compact_nodes=False)
    # Queries in the order of the tree's leaves use the cache better: a third less time on unordered scans.
    seed_rows = np.searchsorted(frames, seeds)
    row_of = np.full(len(frames), -1)
    row_of[seed_rows] = np.arange(len(seeds))
    visits = row_of[tree.indices]
    visits = visits[visits >= 0]
    distance_px, nearest = tree.query(positions_px[seeds[visits]], k=k + 1, workers=-1)
    seed_row = seed_rows[visits, None]
    if (nearest[:, :1] == seed_row).all():
        nearest, distance_px = nearest[:, 1:], distance_px[:, 1:]
    else:
        # If several frames share a position, the seed may not be the first hit, or not be found at all.
        keep = nearest != seed_row
        keep[keep.all(axis=1), -1] = False
        nearest, distance_px = nearest[keep].reshape(-1, k), distance_px[keep].reshape(-1, k)
    is_allowed = np.isfinite(distance_px)
    if not is_allowed.all():
        # scipy marks a missing neighbour by the index len(frames) at an infinite distance.
        nearest = np.minimum(nearest, len(frames) - 1)
    if config.min_distance_px > 0:
        is_allowed &= distance_px >= config.min_distance_px
    if config.max_distance_px is not None:
        is_allowed &= distance_px <= config.max_distance_px
    # Frames are in ascending order: those of the whole scan are their own indices.
    if frames[0] != 0 or frames[-1] != len(frames) - 1:
        nearest = frames[nearest]
    # Restore the order of the seeds.
    index, allowed = np.empty(nearest.shape, np.int64), np.empty(nearest.shape, bool)
    index[visits], allowed[visits] = nearest, is_allowed
    return index, allowed
