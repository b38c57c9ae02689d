"""Which frames may be used, and which of them become seeds of groups."""

from __future__ import annotations

import logging

import numpy as np

from torchptycho.core.config import GroupConfig
from torchptycho.core.errors import GroupingError
from torchptycho.data.grouping.neighbours import neighbor_count
from torchptycho.data.grouping.scan_ids import split_by_scan

__all__ = ["draw_seeds", "select_eligible_seeds", "select_seeds_in_bounds", "select_usable_frames", "validate_seeds"]

_log = logging.getLogger(__name__)


def select_usable_frames(n_frames: int, config: GroupConfig, candidates: np.ndarray | None) -> np.ndarray:
    """Return sorted indices of the frames that may be used."""
    pool = np.arange(n_frames) if candidates is None else np.unique(candidates).astype(np.int64)
    if len(pool) == 0:
        raise GroupingError("candidates: expected at least one frame; found none.")
    if pool[0] < 0 or pool[-1] >= n_frames:
        raise GroupingError(f"candidates: expected indices 0 to {n_frames - 1}; found {pool[0]} to {pool[-1]}.")
    if config.n_subsample is None:
        return pool
    if config.n_subsample > len(pool):
        raise GroupingError(
            f"n_subsample {config.n_subsample} is more than the {len(pool)} frames available. "
            f"Use {len(pool)} or fewer, or leave it out to keep all."
        )
    rng = np.random.default_rng(config.subsample_seed)
    return np.sort(rng.choice(pool, size=config.n_subsample, replace=False))


def validate_seeds(seeds: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Return the given seeds when they are different frames of the pool."""
    seeds = np.asarray(seeds, dtype=np.int64)
    outside = seeds[~np.isin(seeds, pool)]
    if len(seeds) == 0 or len(outside) or len(np.unique(seeds)) != len(seeds):
        what = f"{len(outside)} outside them (the first is {outside[0]})" if len(outside) else "duplicates or none"
        raise GroupingError(f"seeds: expected different frames among the {len(pool)} usable ones; found {what}.")
    return seeds


def select_seeds_in_bounds(
    positions_px: np.ndarray, scan_id: np.ndarray, pool: np.ndarray, config: GroupConfig
) -> np.ndarray:
    """Select frames of the pool in the part of their own scan that seeds may come from."""
    if config.bounds == (0.0, 1.0, 0.0, 1.0):
        return pool
    inside = np.zeros(len(positions_px), bool)
    start, stop = np.array(config.bounds[0::2]), np.array(config.bounds[1::2])
    for frames in split_by_scan(scan_id, np.arange(len(positions_px))):
        from_low = positions_px[frames] - positions_px[frames].min(axis=0)
        extent = from_low.max(axis=0)
        inside[frames] = ((from_low >= start * extent) & (from_low <= stop * extent)).all(axis=1)
    seeds = pool[inside[pool]]
    if len(seeds) == 0:
        raise GroupingError(
            f"bounds {config.bounds} (y0, y1, x0, x1) contain none of the {len(pool)} usable frames. Widen them."
        )
    return np.asarray(seeds)


def select_eligible_seeds(usable: np.ndarray, config: GroupConfig, size: int) -> np.ndarray:
    """Select the seeds whose number of usable neighbours [S] is enough for a group of `size`."""
    rows = np.flatnonzero(usable >= size - 1)
    if len(rows) == 0:
        raise GroupingError(
            f"none of {len(usable)} seeds has the {size - 1} neighbours that gridsize {config.gridsize} needs; the "
            f"best has {usable.max()} of its {neighbor_count(config)} nearest "
            f"(min_distance_px {config.min_distance_px}, max_distance_px {config.max_distance_px}, "
            f"quadrants {config.quadrants}). "
            "Raise neighbor_count or relax the constraints."
        )
    if len(rows) < len(usable):
        _log.info(
            "%d of %d seed frames are left out: they have fewer than %d neighbours",
            len(usable) - len(rows),
            len(usable),
            size - 1,
        )
    return rows


def draw_seeds(seeds: np.ndarray, n_usable: int, config: GroupConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw a seed for each group, in the order of the scan."""
    wanted = len(seeds) if config.n_groups is None else config.n_groups
    if wanted > len(seeds):
        if config.gridsize == 1:
            remedy = f"Ask for {len(seeds)} or fewer."
        else:
            remedy = f"Ask for {len(seeds)} or fewer, or set oversample to use several combinations of neighbours."
        raise GroupingError(
            f"n_groups {wanted} is more than the {len(seeds)} frames that can be a seed ({n_usable} usable). {remedy}"
        )
    if config.sequential or wanted == len(seeds):
        return seeds[:wanted]
    return np.sort(rng.choice(seeds, size=wanted, replace=False))
