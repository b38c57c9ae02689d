"""What cannot be grouped is refused with the numbers and a remedy."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from torchptycho.core.config import GroupConfig
from torchptycho.core.errors import GroupingError
from torchptycho.data.grouping import group, partition
from torchptycho.data.grouping.scan_ids import validate_scan_id

POSITIONS_PX = np.random.default_rng(0).uniform(0, 100, (30, 2))
FAR_APART_PX = np.stack([np.arange(30) * 50.0, np.zeros(30)], 1)


@pytest.mark.contract("grouping.errors")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gridsize": 3, "neighbor_count": 8}, r"neighbor_count 8 is less than the 9 frames .* neighbor_count to 9"),
        ({"gridsize": 2, "n_groups": 31}, r"n_groups 31 .* 30 frames .* set oversample"),
        ({"gridsize": 1, "n_groups": 31}, r"n_groups 31 .* 30 frames .* Ask for 30 or fewer\.$"),
        ({"gridsize": 1, "n_groups": 31, "oversample": True}, r"oversample with gridsize 1.*Use gridsize 2"),
        ({"n_subsample": 31}, r"n_subsample 31 is more than the 30 frames .* 30 or fewer"),
        ({"gridsize": 2, "n_subsample": 3}, r"needs 4 frames .* at most 3 .* smaller gridsize"),
        ({"gridsize": 2, "max_distance_px": 1e-6}, r"none of 30 seeds has the 3 .* best has 0 of its 7 .* relax"),
        ({"gridsize": 2, "n_groups": 20, "bounds": (0.0, 0.3, 0.0, 1.0)}, r"n_groups 20 .* \d+ frames that can be"),
        ({"sampler": "oracle", "n_groups": 31}, r"n_groups 31 is more than the 30 frames .* set oversample"),
        ({"sampler": "oracle", "neighbor_count": 30}, r"at most the 29 other frames.*found 30.* Lower"),
        ({"sampler": "oracle", "quadrants": True}, r"quadrants: expected False .* found True. Omit it"),
        ({"sampler": "oracle", "group_seed": 2**32}, r"group_seed: expected 0 to 4294967295"),
    ],
)
def test_impossible_groups_are_refused_with_the_numbers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GroupingError, match=message):
        group(POSITIONS_PX, GroupConfig(**options))


@pytest.mark.contract("grouping.errors")
def test_bounds_without_frames_are_refused() -> None:
    corners = np.array([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 9.0], [9.0, 8.0]])
    with pytest.raises(GroupingError, match=r"bounds \(0.4, 0.6, 0.4, 0.6\).* none of the 5 usable frames. Widen"):
        group(corners, GroupConfig(gridsize=2, bounds=(0.4, 0.6, 0.4, 0.6)))


@pytest.mark.contract("grouping.errors")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": np.array([3, 30])}, r"seeds: .* 1 outside .* first is 30"),
        ({"seeds": np.array([3, 3])}, r"seeds: .* duplicates"),
        ({"seeds": np.array([0, 9]), "candidates": np.arange(1, 30)}, r"29 usable .* first is 0"),
        ({"candidates": np.array([-1, 4])}, r"candidates: expected indices 0 to 29; found -1 to 4"),
        ({"candidates": np.array([], np.int64)}, r"candidates: expected at least one"),
        ({"scan_id": np.arange(30)}, r"needs 4 frames of one scan; found at most 1 \(30 usable frames in 30 scan"),
    ],
)
def test_indices_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GroupingError, match=message):
        group(POSITIONS_PX, GroupConfig(gridsize=2), **arguments)


@pytest.mark.contract("grouping.errors")
def test_positions_that_are_not_finite_are_refused() -> None:
    broken = POSITIONS_PX.copy()
    broken[[4, 7], 1] = np.nan
    for call in (lambda: group(broken), lambda: partition(broken, 2)):
        with pytest.raises(GroupingError, match="2 of 30 are not, the first is frame 4"):
            call()


@pytest.mark.contract("grouping.errors")
def test_arrays_of_another_shape_are_refused() -> None:
    # Below the signatures of `group` and `partition`, which refuse these already when types are checked at run time.
    with pytest.raises(GroupingError, match=r"positions_px: expected shape \(M, 2\).*found \(2, 30\)"):
        validate_scan_id(POSITIONS_PX.T, None)
    with pytest.raises(GroupingError, match=r"scan_id: expected shape \(30,\).*found \(29,\)"):
        validate_scan_id(POSITIONS_PX, np.zeros(29, np.int64))


@pytest.mark.contract("grouping.errors")
def test_a_partition_of_too_few_frames_is_refused() -> None:
    with pytest.raises(GroupingError, match="needs 9 frames of each scan; scan 5 has 2"):
        partition(POSITIONS_PX, 3, np.repeat([1, 5], [28, 2]))


@pytest.mark.contract("grouping.seeds.too-few")
def test_seeds_without_neighbours_are_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="torchptycho.data.grouping"):
        groups = group(FAR_APART_PX, GroupConfig(gridsize=2, max_distance_px=110.0))
    # At each end of the line two frames have fewer than three others within two steps.
    assert len(groups) == 28
    assert "2 of 30 seed frames are left out" in caplog.text


@pytest.mark.contract("grouping.seeds.too-few")
def test_a_scan_smaller_than_a_group_is_left_out() -> None:
    scan_id = np.repeat([0, 1], [27, 3])
    groups = group(POSITIONS_PX, GroupConfig(gridsize=2), scan_id=scan_id)
    np.testing.assert_array_equal(groups.members[:, 0], np.arange(27))


@pytest.mark.contract("grouping.members.distinct")
def test_frames_at_one_position_are_grouped_without_repeats() -> None:
    groups = group(np.zeros((40, 2)), GroupConfig(gridsize=2))
    assert (np.diff(np.sort(groups.members, axis=1), axis=1) > 0).all()
    np.testing.assert_array_equal(groups.members[:, 0], np.arange(40))


@pytest.mark.contract("grouping.oversample.distinct")
def test_oversampling_of_many_neighbours_repeats_nothing() -> None:
    config = GroupConfig(gridsize=5, neighbor_count=29, n_groups=3000, oversample=True)
    groups = group(POSITIONS_PX, config)
    rows = np.column_stack([groups.members[:, 0], np.sort(groups.members[:, 1:], axis=1)])
    assert len(np.unique(rows, axis=0)) == 3000


@pytest.mark.contract("grouping.errors")
def test_the_original_draws_do_not_mix_scans() -> None:
    with pytest.raises(GroupingError, match=r"expected one scan; found 2"):
        group(POSITIONS_PX, GroupConfig(sampler="oracle"), scan_id=np.arange(30) // 15)


@pytest.mark.contract("grouping.sampler.oracle")
@pytest.mark.parametrize("options", [{}, {"sequential": True, "n_groups": 5}, {"oversample": True, "n_groups": 70}])
def test_the_original_draws_repeat_and_stay_among_the_candidates(options: dict[str, Any]) -> None:
    candidates = np.arange(2, 28)
    config = GroupConfig(sampler="oracle", **options)
    first, again = (group(POSITIONS_PX, config, candidates=candidates) for _ in range(2))
    np.testing.assert_array_equal(first.members, again.members)
    assert np.isin(first.members, candidates).all()
    assert len(first) == options.get("n_groups", len(candidates))
