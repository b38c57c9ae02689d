"""Groups of overlapping frames: what holds for any positions and any seed."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchptycho.core.config import GroupConfig
from torchptycho.data.grouping import Groups, group, partition

seeds = st.integers(0, 2**32 - 1)
gridsizes = st.sampled_from([2, 3])


def draw_scan(seed: int, *, n_scans: int = 1, tied: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Positions and scan ids in mixed order; `tied` positions lie on a coarse raster, several on one point."""
    rng = np.random.default_rng(seed)
    m = int(rng.integers(40, 120)) * n_scans
    positions_px = rng.uniform(-50, 90, (m, 2))
    if tied:
        positions_px = np.round(positions_px / 20) * 20
    return positions_px, rng.permutation(np.arange(m) % n_scans).astype(np.int64)


def config_of(gridsize: int, seed: int, **options: object) -> GroupConfig:
    return GroupConfig(gridsize=gridsize, neighbor_count=gridsize**2 + 3, group_seed=seed, **options)  # type: ignore[arg-type]


def seed_distances(positions_px: np.ndarray, groups: Groups) -> np.ndarray:
    where = positions_px[groups.members]
    return np.linalg.norm(where[:, 1:] - where[:, :1], axis=-1)


@pytest.mark.contract("grouping.members.distinct")
@pytest.mark.contract("grouping.members.scan")
@given(seeds, gridsizes, st.booleans())
def test_members_are_different_frames_of_one_scan(seed: int, gridsize: int, tied: bool) -> None:
    positions_px, scan_id = draw_scan(seed, n_scans=3, tied=tied)
    groups = group(positions_px, config_of(gridsize, seed), scan_id=scan_id)
    assert groups.members.shape == (len(positions_px), gridsize**2)
    assert groups.members.dtype == np.int64
    assert (np.diff(np.sort(groups.members, axis=1), axis=1) > 0).all()
    assert (scan_id[groups.members] == scan_id[groups.members[:, :1]]).all()
    assert groups.gridsize == gridsize
    assert f"{len(groups)} groups of {gridsize}x{gridsize}" in repr(groups)


@pytest.mark.contract("grouping.members.seed-first")
@pytest.mark.contract("grouping.members.nearest")
@given(seeds, gridsizes, st.booleans())
def test_members_are_the_seed_and_some_of_its_nearest_frames(seed: int, gridsize: int, tied: bool) -> None:
    positions_px, scan_id = draw_scan(seed, n_scans=2, tied=tied)
    config = config_of(gridsize, seed)
    groups = group(positions_px, config, scan_id=scan_id)
    np.testing.assert_array_equal(groups.members[:, 0], np.arange(len(positions_px)))
    apart = np.linalg.norm(positions_px[:, None] - positions_px, axis=-1)
    apart[scan_id[:, None] != scan_id] = np.inf
    np.fill_diagonal(apart, np.inf)
    kth = np.sort(apart, axis=1)[:, config.neighbor_count - 1]
    assert (seed_distances(positions_px, groups) <= kth[:, None] * (1 + 1e-12)).all()


@pytest.mark.contract("grouping.members.count")
@pytest.mark.parametrize(("gridsize", "k"), [(2, 7), (3, 12), (5, 28)])
def test_neighbours_considered_by_default_follow_the_gridsize(gridsize: int, k: int) -> None:
    positions_px, _ = draw_scan(0)
    by_default = group(positions_px, GroupConfig(gridsize=gridsize)).members
    asked, fewer = (group(positions_px, GroupConfig(gridsize=gridsize, neighbor_count=n)).members for n in (k, k - 1))
    np.testing.assert_array_equal(by_default, asked)
    assert not np.array_equal(by_default, fewer)


@pytest.mark.contract("grouping.offsets")
@given(seeds, gridsizes)
def test_offsets_lead_from_the_center_to_the_positions(seed: int, gridsize: int) -> None:
    positions_px, _ = draw_scan(seed)
    positions_px += 5000  # far from the origin, so that a float32 center would show
    groups = group(positions_px, config_of(gridsize, seed))
    assert (groups.center_px.dtype, groups.offset_px.dtype) == (np.float64, np.float32)
    there = groups.center_px[:, None] + groups.offset_px
    np.testing.assert_allclose(there, positions_px[groups.members], rtol=0, atol=1e-5)
    np.testing.assert_allclose(groups.offset_px.sum(axis=1, dtype=np.float64), 0, rtol=0, atol=1e-4)


@pytest.mark.contract("grouping.determinism")
@pytest.mark.contract("grouping.count")
@given(seeds)
def test_the_seed_decides_the_groups_but_not_their_number(seed: int) -> None:
    positions_px, scan_id = draw_scan(seed, n_scans=2)
    for options in ({}, {"n_groups": 20}, {"max_distance_px": 25.0}, {"n_groups": 500, "oversample": True}):
        first, same, other = (
            group(positions_px, config_of(2, s, **options), scan_id=scan_id) for s in (seed, seed, seed ^ 1)
        )
        np.testing.assert_array_equal(first.members, same.members)
        assert len(first) == len(other)
        assert not np.array_equal(first.members, other.members)
        assert len(first) == options.get("n_groups", len(first))


@pytest.mark.contract("grouping.members.constraints")
@pytest.mark.contract("grouping.seeds.too-few")
@given(seeds)
def test_neighbours_keep_their_distance_from_the_seed(seed: int) -> None:
    positions_px, _ = draw_scan(seed)
    config = config_of(2, seed, min_distance_px=4.0, max_distance_px=30.0)
    groups = group(positions_px, config)
    distance_px = seed_distances(positions_px, groups)
    assert distance_px.min() >= 4
    assert distance_px.max() <= 30
    apart = np.sort(np.linalg.norm(positions_px[:, None] - positions_px, axis=-1), axis=1)[
        :, 1 : config.neighbor_count + 1
    ]
    enough = ((apart >= 4) & (apart <= 30)).sum(axis=1) >= 3
    np.testing.assert_array_equal(groups.members[:, 0], np.flatnonzero(enough))


@pytest.mark.contract("grouping.members.quadrants")
@given(seeds, gridsizes, st.booleans())
def test_neighbours_are_spread_over_the_quadrants(seed: int, gridsize: int, oversample: bool) -> None:
    positions_px, _ = draw_scan(seed)
    more = {"oversample": True, "n_groups": 4 * len(positions_px)} if oversample else {}
    config = GroupConfig(gridsize=gridsize, neighbor_count=16, group_seed=seed, quadrants=True, **more)
    groups = group(positions_px, config)
    where = positions_px[groups.members]
    dy, dx = np.moveaxis(where[:, 1:] - where[:, :1], -1, 0)
    for up, right in itertools.product([True, False], repeat=2):
        assert (((dy > 0) == up) & ((dx > 0) == right)).sum(axis=1).max() <= math.ceil((gridsize**2 - 1) / 4)


@pytest.mark.contract("grouping.members.quadrants")
def test_the_four_nearest_of_a_raster_lie_in_four_quadrants() -> None:
    positions_px = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0), indexing="ij"), -1).reshape(-1, 2)
    config = GroupConfig(gridsize=2, neighbor_count=4, quadrants=True, max_distance_px=1.2)
    interior = np.flatnonzero(((positions_px > 0) & (positions_px < 8)).all(axis=1))
    assert set(interior) <= set(group(positions_px, config).members[:, 0])


@pytest.mark.contract("grouping.members.candidates")
@pytest.mark.contract("grouping.subsample")
@given(seeds)
def test_only_candidates_of_the_recorded_subsample_are_used(seed: int) -> None:
    positions_px, _ = draw_scan(seed)
    candidates = np.random.default_rng(seed).permutation(len(positions_px))[:35]
    config = config_of(2, seed, n_subsample=20, subsample_seed=3)
    groups = group(positions_px, config, candidates=candidates)
    assert len(groups.frames_used) == len(groups) == 20
    assert (np.diff(groups.frames_used) > 0).all()
    assert set(groups.members.ravel()) <= set(groups.frames_used) <= set(candidates)
    again = group(positions_px, config_of(2, seed ^ 1, n_subsample=20, subsample_seed=3), candidates=candidates)
    np.testing.assert_array_equal(again.frames_used, groups.frames_used)
    other = group(positions_px, config_of(2, seed, n_subsample=20, subsample_seed=4), candidates=candidates)
    assert not np.array_equal(other.frames_used, groups.frames_used)


@pytest.mark.contract("grouping.seeds.given")
@given(seeds, st.sampled_from([1, 2]))
def test_each_given_seed_becomes_one_group(seed: int, gridsize: int) -> None:
    positions_px, scan_id = draw_scan(seed, n_scans=2)
    wanted = np.random.default_rng(seed).permutation(len(positions_px))[:11]
    groups = group(positions_px, config_of(gridsize, seed), scan_id=scan_id, seeds=wanted)
    np.testing.assert_array_equal(groups.members[:, 0], wanted)
    np.testing.assert_array_equal(groups.frames_used, np.arange(len(positions_px)))


@pytest.mark.contract("grouping.seeds.sequential")
@given(seeds, st.sampled_from([1, 2]))
def test_sequential_seeds_are_the_first_frames(seed: int, gridsize: int) -> None:
    positions_px, _ = draw_scan(seed)
    groups = group(positions_px, config_of(gridsize, seed, n_groups=9, sequential=True))
    np.testing.assert_array_equal(groups.members[:, 0], np.arange(9))
    drawn = group(positions_px, config_of(gridsize, seed, n_groups=9))
    assert len(set(drawn.members[:, 0])) == 9
    assert drawn.members[:, 0].max() > 8


@pytest.mark.contract("grouping.single")
@given(seeds)
def test_single_frames_are_their_own_groups(seed: int) -> None:
    positions_px, _ = draw_scan(seed)
    groups = group(positions_px, GroupConfig(gridsize=1))
    np.testing.assert_array_equal(groups.members, np.arange(len(positions_px))[:, None])
    np.testing.assert_array_equal(groups.center_px, positions_px)
    assert not groups.offset_px.any()


@pytest.mark.contract("grouping.seeds.bounds")
@given(seeds)
def test_seeds_lie_within_the_bounds_of_their_own_scan(seed: int) -> None:
    positions_px, scan_id = draw_scan(seed, n_scans=2)
    positions_px[scan_id == 1] += 1000
    groups = group(positions_px, config_of(2, seed, bounds=(0.0, 0.5, 0.25, 1.0)), scan_id=scan_id)
    expected = []
    for scan in (0, 1):
        here = positions_px[scan_id == scan]
        fraction = (positions_px - here.min(axis=0)) / np.ptp(here, axis=0)
        expected.append((scan_id == scan) & (fraction[:, 0] <= 0.5) & (fraction[:, 1] >= 0.25))
    np.testing.assert_array_equal(groups.members[:, 0], np.flatnonzero(expected[0] | expected[1]))
    assert not set(groups.members.ravel()) <= set(groups.members[:, 0])


@pytest.mark.contract("grouping.oversample.distinct")
@pytest.mark.contract("grouping.oversample.even")
@given(seeds, st.sampled_from([1.5, 3.0, 30.0]), st.sampled_from([2, 3]))
def test_oversampling_takes_different_combinations_evenly(seed: int, factor: float, gridsize: int) -> None:
    positions_px, _ = draw_scan(seed)
    n_groups = int(factor * len(positions_px))
    groups = group(positions_px, config_of(gridsize, seed, n_groups=n_groups, oversample=True))
    assert len(groups) == n_groups
    neighbours = np.sort(groups.members[:, 1:], axis=1)
    assert len(np.unique(np.column_stack([groups.members[:, 0], neighbours]), axis=0)) == n_groups
    assert (np.diff(np.sort(groups.members, axis=1), axis=1) > 0).all()
    assert np.ptp(np.bincount(groups.members[:, 0], minlength=len(positions_px))) <= 1


@pytest.mark.contract("grouping.oversample.distinct")
@given(seeds, st.booleans())
def test_oversampling_can_use_every_combination_under_constraints(seed: int, quadrants: bool) -> None:
    positions_px, _ = draw_scan(seed)
    options = {"neighbor_count": 7, "max_distance_px": 30.0, "quadrants": quadrants, "oversample": True}
    possible = set()
    apart = np.linalg.norm(positions_px[:, None] - positions_px, axis=-1)
    for s, row in enumerate(apart):
        near = [i for i in np.argsort(row)[1:8] if row[i] <= 30]
        angle = np.arctan2(*(positions_px - positions_px[s]).T) % (2 * np.pi)
        for chosen in itertools.combinations(near, 3):
            if not quadrants or len({int(angle[i] // (np.pi / 2)) for i in chosen}) == 3:
                possible.add((s, *sorted(chosen)))
    groups = group(positions_px, GroupConfig(gridsize=2, n_groups=len(possible), group_seed=seed, **options))  # type: ignore[arg-type]
    assert {(s, *sorted(rest)) for s, *rest in groups.members.tolist()} == possible


@pytest.mark.contract("grouping.oversample.exhausted")
@given(seeds)
def test_exhausted_combinations_repeat_evenly_with_a_warning(seed: int) -> None:
    positions_px = np.random.default_rng(seed).uniform(0, 10, (5, 2))
    config = GroupConfig(gridsize=2, neighbor_count=4, n_groups=50, oversample=True, group_seed=seed)
    logger = logging.getLogger("torchptycho.data.grouping")
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        groups = group(positions_px, config)
    finally:
        logger.removeHandler(handler)
    # 5 seeds with 4 combinations each
    assert [r.levelname for r in records] == ["WARNING"]
    assert "50 groups requested of 20 distinct" in records[0].getMessage()
    rows = np.column_stack([groups.members[:, 0], np.sort(groups.members[:, 1:], axis=1)])
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert sorted(counts) == [2] * 10 + [3] * 10


@pytest.mark.contract("grouping.choice.uniform")
@pytest.mark.parametrize("n_groups", [None, 800, 40_000], ids=["one each", "drawn again", "enumerated"])
def test_neighbours_are_equally_likely(n_groups: int | None) -> None:
    # Far-apart copies of one cluster of 8: each seed's 7 neighbours are the rest of its cluster.
    cluster = np.random.default_rng(0).uniform(0, 1, (8, 2))
    positions_px = (cluster + 100.0 * np.arange(400)[:, None, None]).reshape(-1, 2)
    config = GroupConfig(gridsize=2, n_groups=n_groups, oversample=n_groups is not None)
    members = group(positions_px, config).members
    distance_px = np.linalg.norm(positions_px[members[:, 1:]] - positions_px[members[:, :1]], axis=-1)
    assert distance_px.max() < 2
    step = (members[:, 1:] - members[:, :1]) % 8
    counts = np.bincount(step.ravel(), minlength=8)[1:]
    expected = step.size / 7
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.contract("grouping.partition.once")
@given(seeds, st.sampled_from([1, 2, 3, 5]), st.booleans())
def test_a_partition_holds_each_frame_fresh_once(seed: int, gridsize: int, tied: bool) -> None:
    positions_px, scan_id = draw_scan(seed, n_scans=3, tied=tied)
    scan_id *= 7
    groups, is_first = partition(positions_px, gridsize, scan_id)
    size = gridsize**2
    np.testing.assert_array_equal(np.sort(groups.members[is_first]), np.arange(len(positions_px)))
    assert (np.diff(np.sort(groups.members, axis=1), axis=1) > 0).all()
    assert (scan_id[groups.members] == scan_id[groups.members[:, :1]]).all()
    assert len(groups) == sum(-(-int(count) // size) for count in np.unique(scan_id, return_counts=True)[1])
    there = groups.center_px[:, None] + groups.offset_px
    np.testing.assert_allclose(there, positions_px[groups.members], rtol=0, atol=1e-5)


@pytest.mark.contract("grouping.partition.compact")
@given(seeds, gridsizes)
def test_a_partition_keeps_neighbours_together(seed: int, gridsize: int) -> None:
    rng = np.random.default_rng(seed)
    raster = np.stack(np.meshgrid(np.arange(31.0), np.arange(37.0), indexing="ij"), -1).reshape(-1, 2)
    positions_px = rng.permutation(raster + rng.uniform(-0.3, 0.3, raster.shape))
    groups, _ = partition(positions_px, gridsize)
    assert np.abs(groups.offset_px).max() < 2.5 * gridsize
    assert np.median(np.linalg.norm(groups.offset_px, axis=-1)) < gridsize
