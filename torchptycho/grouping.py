"""Which frames go together: positions become groups of overlapping neighbours.

Everything here is a pure function of positions, configuration and seeds. Loops run over scans, never over frames.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.spatial import cKDTree

from torchptycho.config import GroupConfig
from torchptycho.errors import GroupingError

__all__ = ["Groups", "group", "partition"]

_log = logging.getLogger(__name__)

# Combinations that are written out for one seed before distinct ones are found by drawing again instead.
_MAX_ENUMERATED = 200_000
# Random keys held at a time while combinations are enumerated.
_KEYS_PER_CHUNK = 4_000_000
# Larger than any random key: what carries it is chosen last.
_NEVER = np.float32(2)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Groups:
    """G groups of C = gridsize^2 frames.

    Arguments:
        members: [G, C] frame indices.
        center_px: [G, 2] mean position (y, x) of the members.
        offset_px: [G, C, 2] position - center.
        frames_used: sorted indices of the frames that groups were formed from.
    """

    members: Int64[np.ndarray, "g c"]
    center_px: Float64[np.ndarray, "g 2"]
    offset_px: Float32[np.ndarray, "g c 2"]
    frames_used: Int64[np.ndarray, " used"]

    def __len__(self) -> int:
        return len(self.members)

    @property
    def gridsize(self) -> int:
        return math.isqrt(self.members.shape[1])

    def __repr__(self) -> str:
        reach = f"{np.abs(self.offset_px).max():.1f} px" if self.offset_px.size else "none"
        return (
            f"Groups({len(self)} groups of {self.gridsize}x{self.gridsize} from {len(self.frames_used)} frames, "
            f"largest offset {reach})"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Neighbours:
    """The K nearest frames [S, K] of each seed, nearest first, and what the constraints say about them."""

    index: np.ndarray
    allowed: np.ndarray
    quadrant: np.ndarray | None
    per_quadrant: int

    def rows(self, rows: np.ndarray) -> _Neighbours:
        quadrant = None if self.quadrant is None else self.quadrant[rows]
        return _Neighbours(self.index[rows], self.allowed[rows], quadrant, self.per_quadrant)

    def in_quadrants(self) -> np.ndarray:
        """Allowed neighbours in each quadrant, [S, 4]."""
        assert self.quadrant is not None
        return np.stack([(self.allowed & (self.quadrant == q)).sum(axis=1) for q in range(4)], axis=1)

    def usable(self) -> np.ndarray:
        """Most neighbours that one group can take, [S]."""
        if self.quadrant is None:
            return np.asarray(self.allowed.sum(axis=1))
        return np.asarray(np.minimum(self.in_quadrants(), self.per_quadrant).sum(axis=1))


def group(
    positions_px: Float64[np.ndarray, "m 2"],
    config: GroupConfig = GroupConfig(),  # noqa: B008 -- frozen
    *,
    scan_id: Int64[np.ndarray, " m"] | None = None,
    candidates: Int64[np.ndarray, " n"] | None = None,
    seeds: Int64[np.ndarray, " s"] | None = None,
) -> Groups:
    """Draw seeds, find their K nearest frames in the same scan, choose C - 1 of these for each.

    The seed is channel 0 of its group. The constraints act on the K nearest: what is too near, too far, or too many in
    one quadrant is passed over. Seeds with too few neighbours left are left out, so the number of groups follows from
    positions and configuration, not from `group_seed`.

    Arguments:
        positions_px: [M, 2] (y, x) in object pixels.
        config: see `GroupConfig`.
        scan_id: [M], groups do not mix scans; None for one scan.
        candidates: the only frames that may be used, as seeds or members; None for all.
        seeds: one group for each of these frames, in this order. `n_groups`, `sequential`, `oversample` and `bounds`
            choose seeds and then do not apply.

    Raises:
        GroupingError: the groups cannot be formed; the message has the numbers and the remedy.
    """
    scan_id = _checked(positions_px, scan_id)
    size = config.gridsize**2
    _check_options(config, size, explicit=seeds is not None)
    pool = _pool(len(positions_px), config, candidates)
    _, scan_sizes = np.unique(scan_id[pool], return_counts=True)
    if scan_sizes.max() < size:
        raise GroupingError(
            f"gridsize {config.gridsize} needs {size} frames of one scan; found at most {scan_sizes.max()} "
            f"({len(pool)} usable frames in {len(scan_sizes)} scan(s)). Use a smaller gridsize or more frames."
        )
    explicit = seeds is not None
    seeds = _within_bounds(positions_px, scan_id, pool, config) if seeds is None else _given(seeds, pool)
    rng = np.random.default_rng(config.group_seed)
    if size == 1:
        seeds = seeds if explicit else _draw_seeds(seeds, len(pool), config, rng)
        return _table(positions_px, seeds[:, None], pool)

    constrained = config.min_distance_px > 0 or config.max_distance_px is not None or config.quadrants
    if constrained:
        near = _neighbours(positions_px, scan_id, pool, seeds, config)
        usable = near.usable()
    else:
        # Only the size of the scan decides, so that the search is left to the seeds that are drawn.
        usable = np.minimum(_scan_size(scan_id, pool, seeds) - 1, config.neighbor_count)
    rows = _eligible(usable, config, size)
    surplus = not explicit and config.n_groups is not None and config.n_groups > len(rows)
    if not (explicit or (surplus and config.oversample)):
        rows = _draw_seeds(rows, len(pool), config, rng)
    seeds = seeds[rows]
    near = near.rows(rows) if constrained else _neighbours(positions_px, scan_id, pool, seeds, config)
    if surplus:
        assert config.n_groups is not None
        of_seed, columns = _oversampled(near, config.n_groups, size - 1, config.sequential, rng)
    else:
        of_seed, columns = np.arange(len(seeds)), _choose(near, size - 1, rng)
    members = np.empty((len(of_seed), size), np.int64)
    members[:, 0] = seeds[of_seed]
    members[:, 1:] = near.index[of_seed[:, None], columns]
    return _table(positions_px, members, pool)


def partition(
    positions_px: Float64[np.ndarray, "m 2"], gridsize: int, scan_id: Int64[np.ndarray, " m"] | None = None
) -> tuple[Groups, Bool[np.ndarray, "g c"]]:
    """Disjoint groups of nearby frames that cover every frame, for prediction.

    Each scan is halved again and again along its longer side. A last group that lacks frames borrows the nearest ones.

    Arguments:
        positions_px: [M, 2] (y, x) in object pixels.
        gridsize: groups hold gridsize^2 frames.
        scan_id: [M], groups do not mix scans; None for one scan.

    Returns:
        The groups, and a mask [G, C] that is False where a frame is borrowed: each frame is True exactly once.

    Raises:
        GroupingError: a scan has fewer frames than a group.
    """
    scan_id = _checked(positions_px, scan_id)
    if gridsize < 1:
        raise GroupingError(f"gridsize: expected at least 1; found {gridsize}.")
    size = gridsize**2
    blocks, masks = [], []
    for frames in _by_scan(scan_id, np.arange(len(positions_px))):
        if len(frames) < size:
            raise GroupingError(
                f"gridsize {gridsize} needs {size} frames of each scan; scan {scan_id[frames[0]]} has {len(frames)}. "
                "Use a model of a smaller gridsize, or leave this scan out."
            )
        order = frames if size == 1 else frames[_halved(positions_px[frames], size)]
        n_borrowed = -len(frames) % size
        if n_borrowed:
            last = order[len(order) - (size - n_borrowed) :]
            others = np.setdiff1d(frames, last, assume_unique=True)
            apart = ((positions_px[others] - positions_px[last].mean(axis=0)) ** 2).sum(axis=1)
            order = np.concatenate([order, others[np.argsort(apart, kind="stable")[:n_borrowed]]])
        fresh = np.arange(len(order)) < len(frames)
        blocks.append(order.reshape(-1, size))
        masks.append(fresh.reshape(-1, size))
    members = np.concatenate(blocks)
    return _table(positions_px, members, np.arange(len(positions_px))), np.concatenate(masks)


def _checked(positions_px: np.ndarray, scan_id: np.ndarray | None) -> np.ndarray:
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


def _check_options(config: GroupConfig, size: int, *, explicit: bool) -> None:
    if size == 1 and config.oversample and not explicit:
        raise GroupingError(
            "oversample with gridsize 1: a frame alone has no other combinations. "
            "Use gridsize 2 or more, or leave oversample out."
        )
    if size > 1 and config.neighbor_count < size:
        raise GroupingError(
            f"neighbor_count {config.neighbor_count} is less than the {size} frames of a group "
            f"(gridsize {config.gridsize}). Set neighbor_count to {size} or more."
        )


def _pool(n_frames: int, config: GroupConfig, candidates: np.ndarray | None) -> np.ndarray:
    """Sorted indices of the frames that may be used."""
    pool = np.arange(n_frames) if candidates is None else np.unique(candidates).astype(np.int64)
    if len(pool) == 0:
        raise GroupingError("candidates: expected at least one frame; found none.")
    if pool[0] < 0 or pool[-1] >= n_frames:
        raise GroupingError(f"candidates: expected indices 0 to {n_frames - 1}; found {pool[0]} to {pool[-1]}.")
    if config.n_subsample is None:
        return pool
    if config.n_subsample > len(pool):
        raise GroupingError(
            f"n_subsample {config.n_subsample} is more than the {len(pool)} frames there are. "
            f"Use {len(pool)} or fewer, or leave it out to keep all."
        )
    rng = np.random.default_rng(config.subsample_seed)
    return np.sort(rng.choice(pool, size=config.n_subsample, replace=False))


def _given(seeds: np.ndarray, pool: np.ndarray) -> np.ndarray:
    seeds = np.asarray(seeds, dtype=np.int64)
    outside = seeds[~np.isin(seeds, pool)]
    if len(seeds) == 0 or len(outside) or len(np.unique(seeds)) != len(seeds):
        what = f"{len(outside)} outside them (the first is {outside[0]})" if len(outside) else "duplicates or none"
        raise GroupingError(f"seeds: expected different frames among the {len(pool)} usable ones; found {what}.")
    return seeds


def _by_scan(scan_id: np.ndarray, frames: np.ndarray) -> list[np.ndarray]:
    """Frames of each scan, in their order."""
    of_frames = scan_id[frames]
    if (of_frames == of_frames[0]).all():
        return [frames]
    order = np.argsort(of_frames, kind="stable")
    return np.split(frames[order], np.flatnonzero(np.diff(of_frames[order])) + 1)


def _scan_size(scan_id: np.ndarray, pool: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """For each seed, the number of usable frames in its scan."""
    scans, counts = np.unique(scan_id[pool], return_counts=True)
    return np.asarray(counts[np.searchsorted(scans, scan_id[seeds])])


def _within_bounds(positions_px: np.ndarray, scan_id: np.ndarray, pool: np.ndarray, config: GroupConfig) -> np.ndarray:
    if config.bounds == (0.0, 1.0, 0.0, 1.0):
        return pool
    inside = np.zeros(len(positions_px), bool)
    start, stop = np.array(config.bounds[0::2]), np.array(config.bounds[1::2])
    for frames in _by_scan(scan_id, np.arange(len(positions_px))):
        from_low = positions_px[frames] - positions_px[frames].min(axis=0)
        extent = from_low.max(axis=0)
        inside[frames] = ((from_low >= start * extent) & (from_low <= stop * extent)).all(axis=1)
    seeds = pool[inside[pool]]
    if len(seeds) == 0:
        raise GroupingError(
            f"bounds {config.bounds} (y0, y1, x0, x1) contain none of the {len(pool)} usable frames. Widen them."
        )
    return np.asarray(seeds)


def _eligible(usable: np.ndarray, config: GroupConfig, size: int) -> np.ndarray:
    rows = np.flatnonzero(usable >= size - 1)
    if len(rows) == 0:
        raise GroupingError(
            f"none of {len(usable)} seeds has the {size - 1} neighbours that gridsize {config.gridsize} needs; the "
            f"best has {usable.max()} of its {config.neighbor_count} nearest "
            f"(min_distance_px {config.min_distance_px}, max_distance_px {config.max_distance_px}, "
            f"quadrants {config.quadrants}). "
            "Raise neighbor_count or relax the constraints."
        )
    if len(rows) < len(usable):
        _log.info(
            "%d of %d seeds are left out: they have fewer than %d neighbours",
            len(usable) - len(rows), len(usable), size - 1,
        )  # fmt: skip
    return rows


def _draw_seeds(seeds: np.ndarray, n_usable: int, config: GroupConfig, rng: np.random.Generator) -> np.ndarray:
    """As many seeds as groups are wanted, in the order of the scan."""
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


def _neighbours(
    positions_px: np.ndarray, scan_id: np.ndarray, pool: np.ndarray, seeds: np.ndarray, config: GroupConfig
) -> _Neighbours:
    k = config.neighbor_count
    index = np.empty((len(seeds), k), np.int64)
    distance_px = np.empty((len(seeds), k))
    for frames in _by_scan(scan_id, pool):
        rows = np.flatnonzero(scan_id[seeds] == scan_id[frames[0]])
        if len(rows) == 0:
            continue
        whole = len(rows) == len(seeds)
        found, apart = _nearest(positions_px, frames, seeds if whole else seeds[rows], k)
        if whole:
            index, distance_px = found, apart
            break
        index[rows], distance_px[rows] = found, apart
    allowed = np.isfinite(distance_px)
    if config.min_distance_px > 0:
        allowed &= distance_px >= config.min_distance_px
    if config.max_distance_px is not None:
        allowed &= distance_px <= config.max_distance_px
    quadrant = None
    if config.quadrants:
        dy, dx = np.moveaxis(positions_px[index] - positions_px[seeds][:, None], -1, 0)
        # Half-open by angle, so that on a raster the four nearest, which lie on the axes, fall into different ones.
        quadrant = np.floor(np.arctan2(dy, dx) / (np.pi / 2)).astype(np.int64) % 4
    return _Neighbours(index, allowed, quadrant, math.ceil((config.gridsize**2 - 1) / 4))


def _nearest(positions_px: np.ndarray, frames: np.ndarray, seeds: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k frames nearest to each seed, itself excluded; where there are fewer, at an infinite distance."""
    tree = cKDTree(positions_px[frames], balanced_tree=False, compact_nodes=False)
    own = np.searchsorted(frames, seeds)
    # Queries in the order of the tree's leaves find the same nodes in the cache: a third less time on unordered scans.
    row_of = np.full(len(frames), -1)
    row_of[own] = np.arange(len(seeds))
    visits = row_of[tree.indices]
    visits = visits[visits >= 0]
    index, distance_px = np.empty((len(seeds), k + 1), np.int64), np.empty((len(seeds), k + 1))
    distance_px[visits], index[visits] = tree.query(positions_px[seeds[visits]], k=k + 1, workers=-1)
    if (index[:, 0] == own).all():
        index, distance_px = index[:, 1:], distance_px[:, 1:]
    else:
        # Frames at one and the same position: the seed need not come first, nor be found at all.
        keep = index != own[:, None]
        keep[keep.all(axis=1), -1] = False
        index, distance_px = index[keep].reshape(-1, k), distance_px[keep].reshape(-1, k)
    # scipy marks a missing neighbour by the index len(frames).
    return frames[np.minimum(index, len(frames) - 1)], distance_px


def _choose(near: _Neighbours, n: int, rng: np.random.Generator) -> np.ndarray:
    """For each seed, n of its allowed neighbours, as columns [S, n]: those with the smallest random keys."""
    keys = rng.random(near.allowed.shape, dtype=np.float32)
    if not near.allowed.all():
        keys[~near.allowed] = _NEVER
    if near.quadrant is not None:
        order = np.argsort(keys, axis=1)
        quadrant = np.take_along_axis(near.quadrant, order, axis=1)
        so_far = np.cumsum(quadrant[..., None] == np.arange(4), axis=1)
        rank = np.take_along_axis(so_far, quadrant[..., None], axis=2)[..., 0]
        crowded = np.empty(keys.shape, bool)
        np.put_along_axis(crowded, order, rank > near.per_quadrant, axis=1)
        keys[crowded] = _NEVER
    # On rows this short a full sort, which is vectorised, is quicker than a partition.
    return np.asarray(np.argsort(keys, axis=1)[:, :n])


def _n_combinations(near: _Neighbours, n: int, at_most: int) -> np.ndarray:
    """Different choices of n neighbours for each seed, [S], no more than `at_most`."""
    k = near.index.shape[1]
    binomial = np.array([[math.comb(a, b) for b in range(n + 1)] for a in range(k + 1)], dtype=np.float64)
    if near.quadrant is None:
        count = binomial[near.allowed.sum(axis=1), n]
    else:
        # Coefficient of t^n in the product over quadrants of sum_j binom(n_q, j) t^j, j up to the number allowed.
        ways = np.zeros((len(near.index), n + 1))
        ways[:, 0] = 1
        for in_quadrant in near.in_quadrants().T:
            more = np.zeros_like(ways)
            for j in range(min(near.per_quadrant, n) + 1):
                more[:, j:] += ways[:, : n + 1 - j] * binomial[in_quadrant, j][:, None]
            ways = more
        count = ways[:, n]
    return np.asarray(np.minimum(count, at_most).astype(np.int64))


def _oversampled(
    near: _Neighbours, n_groups: int, n: int, sequential: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Several combinations for each seed: row of the seed [G], columns of its neighbours [G, n]."""
    available = _n_combinations(near, n, n_groups)
    passes, rest = divmod(n_groups, int(available.sum()))
    quota = _shares(available, rest, sequential, rng)
    of_seed, columns = _distinct(near, quota, available, n, rng)
    if passes:
        if n_groups > available.sum():
            _log.warning(
                "%d groups wanted of %d distinct combinations: combinations repeat; raise neighbor_count for more",
                n_groups, available.sum(),
            )  # fmt: skip
        every, every_columns = _distinct(near, available, available, n, rng)
        of_seed = np.concatenate([np.tile(every, passes), of_seed])
        columns = np.concatenate([np.tile(every_columns, (passes, 1)), columns])
    order = np.argsort(of_seed, kind="stable")
    return of_seed[order], columns[order]


def _shares(available: np.ndarray, wanted: int, sequential: bool, rng: np.random.Generator) -> np.ndarray:
    """Groups per seed, as equal as the available combinations permit, `wanted` in all."""
    low, high = 0, int(available.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(available, middle).sum() <= wanted else (low, middle - 1)
    quota = np.minimum(available, low)
    left = wanted - int(quota.sum())
    more = np.flatnonzero(available > low)
    quota[more[:left] if sequential else rng.choice(more, size=left, replace=False)] += 1
    return np.asarray(quota)


def _distinct(
    near: _Neighbours, quota: np.ndarray, available: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`quota` different combinations for each seed; needs quota <= available."""
    n_allowed = near.allowed.sum(axis=1)
    total = np.array([math.comb(a, n) for a in range(near.index.shape[1] + 1)], dtype=np.float64)[n_allowed]
    # Drawing again is quick while few combinations are taken; near exhaustion they are enumerated instead.
    enumerated = (4 * quota > available) & (total <= _MAX_ENUMERATED)
    drawn = np.flatnonzero(~enumerated)
    parts = [_redrawn(near, drawn, quota[drawn], n, rng)]
    for a in np.unique(n_allowed[enumerated]):
        table = np.array(list(itertools.combinations(range(a), n)))
        rows = np.flatnonzero(enumerated & (n_allowed == a))
        step = max(1, _KEYS_PER_CHUNK // (len(table) * n))
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            parts.append(_enumerated(near.rows(chunk), chunk, quota[chunk], table, rng))
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _redrawn(
    near: _Neighbours, rows: np.ndarray, quota: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    of_seed = np.repeat(rows, quota)
    columns = np.empty((len(of_seed), n), np.int64)
    again = np.arange(len(of_seed))
    while len(again):
        columns[again] = np.sort(_choose(near.rows(of_seed[again]), n, rng), axis=1)
        order = np.lexsort((*columns.T, of_seed))
        same = (np.diff(of_seed[order]) == 0) & (np.diff(columns[order], axis=0) == 0).all(axis=1)
        again = order[1:][same]
    return of_seed, columns


def _enumerated(
    near: _Neighbours, rows: np.ndarray, quota: np.ndarray, table: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """As `_redrawn`, for seeds that all have the number of allowed neighbours that `table` [T, n] is written for."""
    columns = np.argsort(~near.allowed, axis=1, kind="stable")
    keys = rng.random((len(rows), len(table)), dtype=np.float32)
    if near.quadrant is not None:
        quadrant = np.take_along_axis(near.quadrant, columns, axis=1)[:, table]
        for q in range(4):
            keys[(quadrant == q).sum(axis=2) > near.per_quadrant] = _NEVER
    order = np.argsort(keys, axis=1)
    row, place = np.nonzero(np.arange(len(table)) < quota[:, None])
    return rows[row], columns[row[:, None], table[order[row, place]]]


def _halved(positions_px: np.ndarray, size: int) -> np.ndarray:
    """An order in which each run of `size` positions is compact: median splits, one level at a time for all parts."""
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


def _table(positions_px: np.ndarray, members: np.ndarray, frames_used: np.ndarray) -> Groups:
    where = positions_px.take(members, axis=0)
    # einsum sums over an axis this short many times faster than mean does.
    center_px = np.einsum("gcd->gd", where) / members.shape[1]
    where -= center_px[:, None]
    return Groups(
        members=members.astype(np.int64, copy=False),
        center_px=center_px,
        offset_px=where.astype(np.float32),
        frames_used=frames_used,
    )
