"""Which of its neighbours a seed is grouped with: one choice each, or several different ones when oversampling."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np

from torchptycho.data.grouping.neighbours import Neighbours

__all__ = ["choose_neighbours", "draw_oversampled"]

_log = logging.getLogger(__name__)

# Largest number of combinations to enumerate for one seed; beyond it, distinct ones are drawn by rejection.
_MAX_ENUMERATED = 200_000
# Random keys in memory at a time while combinations are enumerated.
_KEYS_PER_CHUNK = 4_000_000
# Larger than any random key, so that entries with it are chosen last.
_EXCLUDED_KEY = np.float32(2)


def choose_neighbours(near: Neighbours, n: int, rng: np.random.Generator) -> np.ndarray:
    """Choose n allowed neighbours for each seed, as columns [S, n]: those with the smallest random keys."""
    keys = rng.random(near.allowed.shape, dtype=np.float32)
    if not near.allowed.all():
        keys[~near.allowed] = _EXCLUDED_KEY
    if near.quadrant is not None:
        order = np.argsort(keys, axis=1)
        quadrant = np.take_along_axis(near.quadrant, order, axis=1)
        so_far = np.cumsum(quadrant[..., None] == np.arange(4), axis=1)
        rank = np.take_along_axis(so_far, quadrant[..., None], axis=2)[..., 0]
        crowded = np.empty(keys.shape, bool)
        np.put_along_axis(crowded, order, rank > near.max_per_quadrant, axis=1)
        keys[crowded] = _EXCLUDED_KEY
    # A vectorised full sort is faster than a partition on such short rows.
    return np.asarray(np.argsort(keys, axis=1)[:, :n])


def draw_oversampled(
    near: Neighbours, n_groups: int, n: int, sequential: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw several combinations for each seed: row of the seed [G], columns of its neighbours [G, n]."""
    available = _count_combinations(near, n, n_groups)
    passes, rest = divmod(n_groups, int(available.sum()))
    quota = _distribute_groups(available, rest, sequential, rng)
    of_seed, columns = _draw_distinct(near, quota, available, n, rng)
    if passes:
        if n_groups > available.sum():
            _log.warning(
                "%d groups requested of %d distinct combinations: combinations repeat; raise neighbor_count for more",
                n_groups,
                available.sum(),
            )
        every, every_columns = _draw_distinct(near, available, available, n, rng)
        of_seed = np.concatenate([np.tile(every, passes), of_seed])
        columns = np.concatenate([np.tile(every_columns, (passes, 1)), columns])
    order = np.argsort(of_seed, kind="stable")
    return of_seed[order], columns[order]


def _count_combinations(near: Neighbours, n: int, at_most: int) -> np.ndarray:
    """Count the different choices of n neighbours for each seed, [S], up to `at_most`."""
    k = near.index.shape[1]
    binomial = np.array([[math.comb(a, b) for b in range(n + 1)] for a in range(k + 1)], dtype=np.float64)
    if near.quadrant is None:
        count = binomial[near.allowed.sum(axis=1), n]
    else:
        # Coefficient of t^n in the product over quadrants of sum_j binom(n_q, j) t^j, j up to the number allowed.
        ways = np.zeros((len(near.index), n + 1))
        ways[:, 0] = 1
        for in_quadrant in near.count_per_quadrant().T:
            more = np.zeros_like(ways)
            for j in range(min(near.max_per_quadrant, n) + 1):
                more[:, j:] += ways[:, : n + 1 - j] * binomial[in_quadrant, j][:, None]
            ways = more
        count = ways[:, n]
    return np.asarray(np.minimum(count, at_most).astype(np.int64))


def _distribute_groups(available: np.ndarray, wanted: int, sequential: bool, rng: np.random.Generator) -> np.ndarray:
    """Distribute `wanted` groups over the seeds, as equally as the available combinations permit."""
    low, high = 0, int(available.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(available, middle).sum() <= wanted else (low, middle - 1)
    quota = np.minimum(available, low)
    left = wanted - int(quota.sum())
    more = np.flatnonzero(available > low)
    quota[more[:left] if sequential else rng.choice(more, size=left, replace=False)] += 1
    return np.asarray(quota)


def _draw_distinct(
    near: Neighbours, quota: np.ndarray, available: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `quota` different combinations for each seed; needs quota <= available."""
    n_allowed = near.allowed.sum(axis=1)
    total = np.array([math.comb(a, n) for a in range(near.index.shape[1] + 1)], dtype=np.float64)[n_allowed]
    # Rejection is fast while few combinations are used; near exhaustion they are enumerated instead.
    enumerated = (4 * quota > available) & (total <= _MAX_ENUMERATED)
    drawn = np.flatnonzero(~enumerated)
    parts = [_draw_by_rejection(near, drawn, quota[drawn], n, rng)]
    for a in np.unique(n_allowed[enumerated]):
        table = np.array(list(itertools.combinations(range(a), n)))
        rows = np.flatnonzero(enumerated & (n_allowed == a))
        step = max(1, _KEYS_PER_CHUNK // (len(table) * n))
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            parts.append(_draw_by_enumeration(near.select_rows(chunk), chunk, quota[chunk], table, rng))
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _draw_by_rejection(
    near: Neighbours, rows: np.ndarray, quota: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    of_seed = np.repeat(rows, quota)
    columns = np.empty((len(of_seed), n), np.int64)
    again = np.arange(len(of_seed))
    while len(again):
        columns[again] = np.sort(choose_neighbours(near.select_rows(of_seed[again]), n, rng), axis=1)
        order = np.lexsort((*columns.T, of_seed))
        same = (np.diff(of_seed[order]) == 0) & (np.diff(columns[order], axis=0) == 0).all(axis=1)
        again = order[1:][same]
    return of_seed, columns


def _draw_by_enumeration(
    near: Neighbours, rows: np.ndarray, quota: np.ndarray, table: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw as `_draw_by_rejection` does, for seeds that all have the number of allowed neighbours of `table` [T, n]."""
    columns = np.argsort(~near.allowed, axis=1, kind="stable")
    keys = rng.random((len(rows), len(table)), dtype=np.float32)
    if near.quadrant is not None:
        quadrant = np.take_along_axis(near.quadrant, columns, axis=1)[:, table]
        for q in range(4):
            keys[(quadrant == q).sum(axis=2) > near.max_per_quadrant] = _EXCLUDED_KEY
    order = np.argsort(keys, axis=1)
    row, place = np.nonzero(np.arange(len(table)) < quota[:, None])
    return rows[row], columns[row[:, None], table[order[row, place]]]
