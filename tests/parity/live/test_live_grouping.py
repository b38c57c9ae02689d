"""Groups: the product can repeat the oracle's draws; its own sampler shares the neighbours and differs on purpose."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
from agreement import MISSING, assert_agree, assert_same_indices
from hypothesis import given
from hypothesis import strategies as st
from strategies import coordinates, scan_positions, seeds

from torchptycho.core.config import GroupConfig
from torchptycho.core.errors import GroupingError
from torchptycho.data.grouping import Groups, group
from torchptycho.data.grouping.groups import build_groups
from torchptycho.data.grouping.neighbours import find_neighbours
from torchptycho.interop import original_layouts

oracle = pytest.importorskip("tf_reference", reason=MISSING)


@dataclasses.dataclass(frozen=True)
class GroupingCase:
    positions_px: np.ndarray
    config: GroupConfig


@st.composite
def grouping_cases(draw: st.DrawFn, tied: bool = True, **fixed: Any) -> GroupingCase:
    """Positions, and what can be asked of them in any of the three modes."""
    gridsize = draw(st.sampled_from([1, 2, 2, 3])) if "gridsize" not in fixed else fixed["gridsize"]
    k = draw(st.integers(gridsize**2, gridsize**2 + 3))
    positions_px = draw(scan_positions(k + 1, 60, tied))
    m = len(positions_px)
    n_groups = draw(st.integers(1, m if gridsize == 1 else 3 * m) | st.just(m))
    options: dict[str, Any] = {
        "gridsize": gridsize,
        "neighbor_count": k,
        "n_groups": n_groups,
        "sequential": draw(st.booleans()),
        "oversample": n_groups > m,
        "group_seed": draw(seeds),
    }
    return GroupingCase(positions_px, GroupConfig(**{**options, **fixed}))


def oracle_indices(positions_px: np.ndarray, config: GroupConfig, **changes: Any) -> np.ndarray:
    options: dict[str, Any] = {
        "gridsize": config.gridsize,
        "K": config.neighbor_count,
        "nsamples": config.n_groups,
        "seed": config.group_seed,
        "sequential_sampling": config.sequential,
        "enable_oversampling": config.oversample,
    }
    y, x = positions_px.T
    indices: np.ndarray = oracle.group_indices(x, y, **{**options, **changes})
    return indices.astype(np.int64)


def assert_same_places(groups: Groups, positions_px: np.ndarray) -> None:
    """Centers and offsets are the oracle's. Compared beside the positions: a mean near zero keeps their rounding."""
    where = positions_px[groups.members]
    offsets, relative = oracle.get_relative_coords(original_layouts.coords_from_positions(where))
    operator = "parity.relative-coordinates"
    center_px, offset_px = (
        original_layouts.centers_from_offsets(offsets),
        original_layouts.offsets_from_relative(relative),
    )
    # And the way back, of the product's numbers.
    for found, expected in (
        (original_layouts.relative_from_offsets(groups.offset_px), relative),
        (original_layouts.offsets_from_centers(groups.center_px), offsets),
    ):
        both = (np.append(values.ravel(), where.ravel()) for values in (found, expected))
        assert_agree(*both, f"{operator}.single", "oracle_physics")
    pairs = (
        (groups.center_px, center_px, operator, "oracle_double"),
        (groups.offset_px, offset_px, f"{operator}.single", "oracle_physics"),
    )
    for found, expected, record, name in pairs:
        assert_agree(*(np.append(values.ravel(), where.ravel()) for values in (found, expected)), record, name)


@st.composite
def cases_of(draw: st.DrawFn, mode: str) -> GroupingCase:
    """Groups of several frames in one mode, whose seed is not the 0 that the oracle begins with by itself."""
    case = draw(grouping_cases(gridsize=draw(st.sampled_from([2, 3])), group_seed=draw(st.integers(1, 2**32 - 1))))
    m = len(case.positions_px)
    n_groups = draw(st.integers(m + 1, 3 * m) if "oversampling" in mode else st.integers(1, m))
    return dataclasses.replace(
        case,
        config=dataclasses.replace(
            case.config, n_groups=n_groups, oversample=n_groups > m, sequential="sequential" in mode
        ),
    )


@pytest.mark.contract("parity.grouping")
@pytest.mark.parametrize("mode", ["standard", "sequential", "oversampling", "sequential oversampling"])
@given(data=st.data())
def test_each_mode_gives_the_groups_of_the_oracle(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases_of(mode))
    members = group(case.positions_px, dataclasses.replace(case.config, sampler="oracle")).members
    assert_same_indices(members, oracle_indices(case.positions_px, case.config), "parity.grouping")


@pytest.mark.contract("parity.grouping")
@given(grouping_cases())
def test_a_seed_gives_the_groups_of_the_oracle(case: GroupingCase) -> None:
    groups = group(case.positions_px, dataclasses.replace(case.config, sampler="oracle"))
    assert_same_indices(groups.members, oracle_indices(case.positions_px, case.config), "parity.grouping")
    assert_same_places(groups, case.positions_px)


@pytest.mark.contract("parity.grouping")
@given(grouping_cases(gridsize=2, tied=False), st.integers(1, 6), seeds)
def test_an_explicit_pool_is_a_neighbor_count(case: GroupingCase, k: int, seed: int) -> None:
    """The oracle has another number of neighbours for oversampling; here it is `neighbor_count` in every mode."""
    n_groups = len(case.positions_px) + k
    config = dataclasses.replace(case.config, n_groups=n_groups, oversample=True, sampler="oracle")
    pooled = oracle_indices(case.positions_px, config, K=k, neighbor_pool_size=config.neighbor_count)
    assert_same_indices(group(case.positions_px, config).members, pooled, "parity.grouping")


@pytest.mark.contract("parity.relative-coordinates")
@given(st.integers(1, 5), st.sampled_from([1, 4, 9]), coordinates(-3000, 3000), seeds)
def test_places_in_groups(groups: int, members: int, far_px: float, seed: int) -> None:
    positions_px = far_px + np.random.default_rng(seed).normal(0, 20, (groups * members, 2))
    index = np.arange(groups * members).reshape(groups, members)
    assert_same_places(build_groups(positions_px, index, np.arange(len(positions_px))), positions_px)
    coords = original_layouts.coords_from_positions(positions_px[index])
    np.testing.assert_array_equal(original_layouts.positions_from_coords(coords), positions_px[index])
    np.testing.assert_array_equal(oracle.flatten_offsets(coords), positions_px[:, ::-1])


@pytest.mark.contract("parity.neighbours")
@given(grouping_cases(gridsize=2, tied=False))
def test_the_neighbours_of_a_seed(case: GroupingCase) -> None:
    """Scattered positions: among frames at equal distances any order would do."""
    frames = np.arange(len(case.positions_px))
    found = find_neighbours(case.positions_px, np.zeros_like(frames), frames, frames, case.config).index
    y, x = case.positions_px.T
    expected = oracle.get_neighbor_indices(x, y, case.config.neighbor_count)
    assert_same_indices(found, expected[:, 1:], "parity.neighbours")
    np.testing.assert_array_equal(expected[:, 0], frames)


@pytest.mark.contract("parity.neighbours")
@given(grouping_cases(tied=False))
def test_the_own_sampler_groups_a_seed_with_neighbours_that_the_oracle_knows(case: GroupingCase) -> None:
    members = group(case.positions_px, case.config).members
    y, x = case.positions_px.T
    near = oracle.get_neighbor_indices(x, y, case.config.neighbor_count)[members[:, 0]]
    assert (members[:, :, None] == near[:, None]).any(axis=2).all()
    assert len(members) == len(oracle_indices(case.positions_px, case.config))


@pytest.mark.contract("deviation.grouping-seed-left-out")
@given(grouping_cases(gridsize=2, tied=False, sequential=True), seeds)
def test_the_seed_is_a_member_here_and_not_there(case: GroupingCase, seed: int) -> None:
    m = len(case.positions_px)
    config = dataclasses.replace(case.config, n_groups=m, oversample=False)
    theirs, ours = oracle_indices(case.positions_px, config), group(case.positions_px, config).members
    np.testing.assert_array_equal(ours[:, 0], np.arange(m))
    assert not (theirs == np.arange(m)[:, None]).any()


@pytest.mark.contract("deviation.grouping-seed-left-out")
@given(seeds)
def test_a_lonely_frame_is_used_here_and_not_there(seed: int) -> None:
    """It is nobody's neighbour: with one group per frame, that frame is never seen by the oracle's network."""
    positions_px = np.concatenate([np.random.default_rng(seed).uniform(0, 50, (30, 2)), [[400.0, 400.0]]])
    config = GroupConfig(gridsize=2, n_groups=31, neighbor_count=7, group_seed=seed)
    theirs, ours = oracle_indices(positions_px, config), group(positions_px, config).members
    assert 30 in ours
    assert 30 not in theirs
    assert set(ours.flat) == set(range(31))


@pytest.mark.contract("deviation.grouping-sequential-unseeded")
@given(grouping_cases(gridsize=2, tied=False, sequential=True), st.lists(seeds, min_size=2, max_size=2, unique=True))
def test_a_sequential_selection_ignores_the_seed_there_and_heeds_it_here(case: GroupingCase, both: list[int]) -> None:
    m = len(case.positions_px)
    config = dataclasses.replace(case.config, n_groups=m, oversample=False, neighbor_count=m - 1)
    configs = [dataclasses.replace(config, group_seed=seed) for seed in both]
    first, second = (oracle_indices(case.positions_px, c) for c in configs)
    np.testing.assert_array_equal(first, second)
    first, second = (group(case.positions_px, c).members for c in configs)
    np.testing.assert_array_equal(first[:, 0], second[:, 0])
    if m >= 12:
        assert not np.array_equal(first, second)


@pytest.mark.contract("deviation.grouping-capped")
@given(scan_positions(1, 30), st.integers(1, 40), seeds)
def test_more_single_frames_than_there_are_is_cut_there_and_refused_here(
    positions_px: np.ndarray, more: int, seed: int
) -> None:
    m = len(positions_px)
    config = GroupConfig(gridsize=1, n_groups=m + more, neighbor_count=4, group_seed=seed)
    np.testing.assert_array_equal(oracle_indices(positions_px, config), np.arange(m)[:, None])
    with pytest.raises(GroupingError, match=f"n_groups {m + more} is more than the {m}"):
        group(positions_px, config)


@pytest.mark.contract("deviation.grouping-oversampled-from-few")
@given(seeds, st.integers(60, 100), st.booleans())
def test_oversampling_takes_few_seeds_there_and_all_here(seed: int, m: int, sequential: bool) -> None:
    """Twice the groups wanted are listed, 35 of a seed: what is listed of m + 10 groups comes from some m/17 seeds."""
    positions_px = np.random.default_rng(seed).uniform(0, 200, (m, 2))
    config = GroupConfig(
        gridsize=2, n_groups=m + 10, neighbor_count=7, oversample=True, sequential=sequential, group_seed=seed
    )
    theirs, ours = oracle_indices(positions_px, config), group(positions_px, config).members
    few = -(-2 * (m + 10) // 35)
    assert len(np.unique(theirs)) <= 7 * few < m
    np.testing.assert_array_equal(np.unique(ours[:, 0]), np.arange(m))
    assert np.bincount(ours[:, 0]).max() - np.bincount(ours[:, 0]).min() <= 1


@pytest.mark.contract("deviation.grouping-repeats-early")
@given(seeds)
def test_combinations_repeat_there_before_all_are_used(seed: int) -> None:
    """Above the number of combinations the oracle draws each group from all of them; here each is used in turn."""
    positions_px = np.random.default_rng(seed).uniform(0, 200, (12, 2))
    config = GroupConfig(gridsize=2, n_groups=420, neighbor_count=7, oversample=True, group_seed=seed)
    all_of_them = 12 * 35
    assert config.n_groups == all_of_them
    ours = group(positions_px, config).members
    assert len(np.unique(np.sort(ours[:, 1:], axis=1) + 100 * ours[:, :1], axis=0)) == all_of_them
    more = dataclasses.replace(config, n_groups=all_of_them + 1)
    logging.disable(logging.WARNING)
    try:
        ours = group(positions_px, more).members
    finally:
        logging.disable(logging.NOTSET)
    assert len(np.unique(np.sort(ours[:, 1:], axis=1) + 100 * ours[:, :1], axis=0)) == all_of_them
    theirs = oracle_indices(positions_px, more)
    assert len(np.unique(theirs, axis=0)) < 0.75 * all_of_them
