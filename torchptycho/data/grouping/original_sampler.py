"""The original PtychoPINN's own sequence of random draws: the same seed gives the groups that it gave.

A frame around which a group is gathered is not itself a member, and neighbours are drawn one group at a time, so this
is slower than the default and sees fewer frames. It is there to repeat a run of the original.
"""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
from scipy.spatial import cKDTree

from torchptycho.core.config import GroupConfig
from torchptycho.core.errors import GroupingError
from torchptycho.data.grouping.neighbours import neighbor_count

__all__ = ["draw_original_groups"]

_log = logging.getLogger(__name__)

# The original does not seed the generator for a sequential selection; its state is then that after the import.
_UNSEEDED = 0


def draw_original_groups(positions_px: np.ndarray, config: GroupConfig) -> np.ndarray:
    """Draw members [G, C] as indices into the M given positions, in the order in which they were drawn.

    Raises:
        GroupingError: a constraint is set that the original did not know, the seed is beyond 2^32 - 1, or the groups
            cannot be formed.
    """
    _check_supported(len(positions_px), config)
    m, size = len(positions_px), config.gridsize**2
    wanted = m if config.n_groups is None else config.n_groups
    rng = np.random.RandomState(config.group_seed)
    if size == 1:
        if wanted > m:
            _log.warning("n_groups %d is more than the %d frames: %d groups are made.", wanted, m, m)
        return _draw_seeds(rng, m, min(wanted, m), config.sequential)[:, None]
    if wanted > m:
        return _draw_from_combinations(positions_px, wanted, config, rng)
    if config.sequential:
        rng = np.random.RandomState(_UNSEEDED)
    nearest = _find_nearest(positions_px, config)
    seeds = _draw_seeds(rng, m, wanted, config.sequential)
    return np.stack([rng.choice(nearest[seed], size, replace=False) for seed in seeds])


def _draw_from_combinations(
    positions_px: np.ndarray, wanted: int, config: GroupConfig, rng: np.random.RandomState
) -> np.ndarray:
    """Draw more groups than frames, from all combinations of the neighbours of as many seeds as necessary."""
    m, size, k = len(positions_px), config.gridsize**2, neighbor_count(config)
    per_seed = math.comb(k, size)
    listed = min(2 * wanted, m * per_seed)
    seeds = _draw_seeds(rng, m, min(math.ceil(listed / per_seed), m), config.sequential)
    columns = np.array(list(itertools.combinations(range(k), size)))
    combinations = _find_nearest(positions_px, config)[seeds][:, columns].reshape(-1, size)[:listed]
    if wanted > listed:
        _log.warning(
            "%d groups requested of %d combinations: combinations repeat; raise neighbor_count for more", wanted, listed
        )
    return np.asarray(combinations[rng.choice(listed, wanted, replace=wanted > listed)])


def _draw_seeds(rng: np.random.RandomState, m: int, wanted: int, sequential: bool) -> np.ndarray:
    if sequential or wanted == m:
        return np.arange(wanted)
    return np.asarray(rng.choice(m, wanted, replace=False))


def _find_nearest(positions_px: np.ndarray, config: GroupConfig) -> np.ndarray:
    """Find the K nearest frames of each frame, [M, K], without the first hit, even if that is not the frame itself."""
    _, index = cKDTree(positions_px[:, ::-1]).query(positions_px[:, ::-1], k=neighbor_count(config) + 1)
    return np.asarray(index[:, 1:])


def _check_supported(m: int, config: GroupConfig) -> None:
    default = GroupConfig()
    for name in ("min_distance_px", "max_distance_px", "quadrants", "bounds"):
        if getattr(config, name) != getattr(default, name):
            raise GroupingError(
                f'{name}: expected {getattr(default, name)} with sampler "oracle", which does not support it; '
                f'found {getattr(config, name)}. Omit it, or use sampler "fast".'
            )
    if not 0 <= config.group_seed < 2**32:
        raise GroupingError(
            f'group_seed: expected 0 to {2**32 - 1} with sampler "oracle"; found {config.group_seed}. '
            "Choose a smaller one."
        )
    if config.gridsize == 1:
        return
    if neighbor_count(config) > m - 1:
        raise GroupingError(
            f'neighbor_count: expected at most the {m - 1} other frames with sampler "oracle"; '
            f"found {neighbor_count(config)}. Lower neighbor_count."
        )
    if config.n_groups is not None and config.n_groups > m and not config.oversample:
        raise GroupingError(
            f"n_groups {config.n_groups} is more than the {m} frames available. "
            f"Request {m} or fewer, or set oversample to use several combinations of neighbours."
        )
