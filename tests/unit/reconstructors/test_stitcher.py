"""Patches that arrive in any order and grouping: the canvas is that of all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from strategies import normal
from torch import Tensor

from torchptycho.reconstructors.canvas import Canvas
from torchptycho.reconstructors.phase_sync import synchronize_phases
from torchptycho.reconstructors.stitcher import PatchStitcher

N = 8
COUNT = 24
WEIGHT = 0.1 + normal((N, N), 7, torch.float64).square().float()
POSITIONS_PX = 20 * torch.rand(COUNT, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
# Four patches a group, of neighbours and others.
GROUP = torch.arange(COUNT) // 4
ALL_NEW = torch.ones(2, 4, dtype=torch.bool)


def make_patches() -> Tensor:
    return 1 + 0.2 * normal((COUNT, N, N), 3, torch.complex64)


def turn_groups(patches: Tensor) -> Tensor:
    return patches * torch.polar(torch.ones(COUNT), 0.9 * GROUP.float())[:, None, None]


def place_directly(patches: Tensor, which: Tensor | None = None) -> Canvas:
    canvas = Canvas.for_positions(POSITIONS_PX, N)
    chosen = torch.arange(COUNT) if which is None else which
    canvas.add(patches[chosen], POSITIONS_PX[chosen], WEIGHT)
    return canvas


def add_in_turn(stitcher: PatchStitcher, patches: Tensor, *, order: tuple[int, ...] = (0, 1, 2)) -> None:
    """Add two groups at a time, in this order of the pairs."""
    members = torch.arange(COUNT).reshape(3, 2, 4)
    for pair in order:
        numbered = {} if order == (0, 1, 2) else {"first_group": 2 * pair}
        stitcher.add(patches[members[pair]], members[pair], ALL_NEW, **numbered)


def assert_same(found: Canvas, expected: Canvas) -> None:
    assert torch.equal(found.numerator, expected.numerator)
    assert torch.equal(found.weight, expected.weight)
    assert found.origin_px == expected.origin_px


@pytest.mark.contract("stitch.order")
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_patches_without_alignment_are_placed_as_they_come(order: tuple[int, ...]) -> None:
    patches = turn_groups(make_patches())
    stitcher = PatchStitcher(POSITIONS_PX, WEIGHT, agree_phases=False)
    add_in_turn(stitcher, patches, order=order[:2])
    assert stitcher.n_placed == 16
    add_in_turn(stitcher, patches, order=order[2:] if order == (2, 0, 1) else (2, 2)[:1])
    assert_same(stitcher.finish(), place_directly(patches))
    assert (stitcher.n_placed, stitcher.left_out) == (COUNT, [])


@pytest.mark.contract("stitch.order")
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_patches_with_alignment_are_placed_with_the_phases_of_their_groups(
    order: tuple[int, ...], tmp_path: Path
) -> None:
    patches = turn_groups(make_patches())
    stitcher = PatchStitcher(POSITIONS_PX, WEIGHT, scratch=tmp_path)
    add_in_turn(stitcher, patches, order=order)
    assert stitcher.n_placed == COUNT
    factors = synchronize_phases(patches, POSITIONS_PX, WEIGHT, GROUP)
    assert float((factors - 1).abs().max()) > 0.5
    assert_same(stitcher.finish(), place_directly(patches * factors[:, None, None]))
    assert (stitcher.n_placed, stitcher.left_out) == (COUNT, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.contract("stitch.finite")
@pytest.mark.parametrize("agree_phases", [True, False])
@pytest.mark.parametrize("bad", [complex(float("nan"), 0), complex(0, float("inf"))])
def test_a_patch_that_is_not_finite_is_left_out_and_spoils_no_other(agree_phases: bool, bad: complex) -> None:
    patches = make_patches()
    spoilt = patches.clone()
    spoilt[9, 2, 3] = bad
    stitcher = PatchStitcher(POSITIONS_PX, WEIGHT, agree_phases=agree_phases)
    add_in_turn(stitcher, spoilt)
    assert stitcher.n_placed == COUNT - 1
    factors = torch.ones(COUNT, dtype=torch.complex64)
    if agree_phases:
        zeroed = patches.clone()
        zeroed[9] = 0
        factors = synchronize_phases(zeroed, POSITIONS_PX, WEIGHT, GROUP)
    others = torch.arange(COUNT)[torch.arange(COUNT) != 9]
    assert_same(stitcher.finish(), place_directly(patches * factors[:, None, None], others))
    assert (stitcher.n_placed, stitcher.left_out) == (COUNT - 1, [9])


@pytest.mark.parametrize("agree_phases", [True, False])
def test_a_frame_in_two_groups_counts_once_and_in_the_first(agree_phases: bool) -> None:
    patches = make_patches()
    members = torch.arange(COUNT).reshape(6, 4)
    stitcher = PatchStitcher(POSITIONS_PX, WEIGHT, agree_phases=agree_phases)
    stitcher.add(patches[members], members, torch.ones(6, 4, dtype=torch.bool))
    again = torch.tensor([[3, 8]])
    stitcher.add(1e3 * patches[again], again, torch.zeros(1, 2, dtype=torch.bool))
    factors = torch.ones(COUNT, dtype=torch.complex64)
    if agree_phases:
        factors = synchronize_phases(patches, POSITIONS_PX, WEIGHT, GROUP)
    assert_same(stitcher.finish(), place_directly(patches * factors[:, None, None]))
    assert stitcher.n_placed == COUNT


def test_missing_patches_are_an_error_where_phases_have_to_agree() -> None:
    stitcher = PatchStitcher(POSITIONS_PX, WEIGHT)
    add_in_turn(stitcher, make_patches(), order=(1, 0))
    with pytest.raises(ValueError, match="expected 24 patches; 16 came"):
        stitcher.finish()
