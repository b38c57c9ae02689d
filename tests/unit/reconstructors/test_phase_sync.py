"""Patches that each have a phase of their own: brought to one by their overlaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, seeds
from tolerances import relative_l2
from torch import Tensor

from torchptycho.physics.patches import extract, locate_corner
from torchptycho.reconstructors.phase_sync import (
    _compute_overlaps,
    _find_neighbours,
    _fit_phases,
    _remove_global_phase,
    synchronize_phases,
)

N = 16
FIELD = 96


def scan(seed: int, step_px: float = 5.0, group_of: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Patches of one object on a grid of positions, the positions, and the group of each patch."""
    k = torch.fft.fftfreq(FIELD, dtype=torch.float64)
    low_pass = torch.exp(-((k[:, None] ** 2 + k**2) / (2 * 0.05**2)))
    field = 1 + 3 * torch.fft.ifft2(torch.fft.fft2(normal((FIELD, FIELD), seed)) * low_pass)
    along = torch.arange(N, FIELD - N, step_px, dtype=torch.float64)
    positions_px = torch.stack(torch.meshgrid(along, along, indexing="ij"), -1).reshape(-1, 2)
    positions_px = positions_px + 0.3 * normal(positions_px.shape, seed + 1, torch.float64)
    patches = extract(field, locate_corner(positions_px, N), N).to(torch.complex64)
    # Numbered in no order: who comes first in a pair of frames need not be of the lower group.
    group = torch.arange(len(patches)) // group_of
    shuffled = torch.randperm(int(group.max()) + 1, generator=torch.Generator().manual_seed(seed))
    return patches, positions_px, shuffled[group]


def turned(patches: Tensor, group: Tensor, largest_rad: float, seed: int) -> Tensor:
    angles = (torch.rand(int(group.max()) + 1, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * largest_rad
    return patches * torch.polar(torch.ones_like(angles), angles)[group][:, None, None]


def apart(patches: Tensor, truth: Tensor) -> float:
    """Relative difference at the best common phase."""
    common = (truth * patches.conj()).sum()
    return relative_l2(patches * common / common.abs(), truth)


@pytest.mark.contract("phases.found")
@given(seed=seeds, group_of=st.sampled_from([1, 4, 9]), largest_rad=st.floats(0.1, 3.14))
def test_phases_of_groups_are_found_whatever_they_are(seed: int, group_of: int, largest_rad: float) -> None:
    patches, positions_px, group = scan(seed % 2**31, group_of=group_of)
    given_patches = turned(patches, group, largest_rad, seed % 2**31)
    turn = synchronize_phases(given_patches, positions_px, torch.ones(N, N), group)
    assert torch.allclose(turn.abs(), torch.ones(len(turn)), atol=1e-6)
    assert apart(given_patches * turn[:, None, None], patches) < 0.03


@pytest.mark.contract("phases.group")
def test_patches_of_a_group_are_turned_alike_and_patches_that_agree_stay() -> None:
    patches, positions_px, group = scan(3)
    turn = synchronize_phases(turned(patches, group, 2.0, 1), positions_px, torch.ones(N, N), group)
    for number in range(int(group.max()) + 1):
        assert float((turn[group == number] - turn[group == number][0]).abs().max()) == 0
    stay = synchronize_phases(patches, positions_px, torch.ones(N, N), group)
    assert float((stay - 1).abs().max()) < 0.05


@pytest.mark.contract("phases.parts")
def test_parts_that_do_not_touch_keep_their_mean_phase() -> None:
    patches, positions_px, group = scan(5)
    both = torch.cat([patches, 1j * patches])
    places = torch.cat([positions_px, positions_px + 1000])
    groups = torch.cat([group, group + int(group.max()) + 1])
    # Only neighbours are asked, so that the two parts may look at each other: they have nothing in common.
    turn = synchronize_phases(both, places, torch.ones(N, N), groups)
    assert float((turn - 1).abs().max()) < 0.05
    spoilt = turned(both, groups, 2.0, 4)
    turn = synchronize_phases(spoilt, places, torch.ones(N, N), groups)
    power = spoilt.abs().square().sum((1, 2))
    for part in (slice(None, len(group)), slice(len(group), None)):
        assert abs(float((power * turn)[part].sum().angle())) < 1e-3


@pytest.mark.contract("phases.weight")
def test_what_has_no_weight_has_no_say() -> None:
    patches, positions_px, group = scan(7)
    weight = torch.zeros(N, N)
    weight[4:12, 4:12] = 1
    spoilt = turned(patches, group, 2.0, 2)
    expected = synchronize_phases(spoilt, positions_px, weight, group)
    spoilt = torch.where(weight > 0, spoilt, 100 * normal(tuple(spoilt.shape), 9, torch.complex64))
    found = synchronize_phases(spoilt, positions_px, weight, group)
    # The phase that is left over is chosen by all pixels; the differences are not.
    difference = found * expected.conj()
    assert float((difference / difference[0] - 1).abs().max()) < 1e-3


@pytest.mark.contract("phases.weight")
def test_each_patch_may_have_a_weight_of_its_own() -> None:
    patches, positions_px, group = scan(7)
    spoilt = turned(patches, group, 2.0, 2)
    weight = 0.1 + normal((N, N), 4, torch.float64).square()
    shared = synchronize_phases(spoilt, positions_px, weight, group)
    each = synchronize_phases(spoilt, positions_px, weight.expand(len(patches), N, N).contiguous(), group)
    assert float((shared - each).abs().max()) < 1e-5
    # The weight goes with its own patch: noise outside it has no say.
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(len(patches), N, N, generator=generator) < 0.6
    noisy = torch.where(kept, spoilt, 100 * normal(tuple(spoilt.shape), 9, torch.complex64))
    found = synchronize_phases(noisy, positions_px, kept.double(), group)
    clean = synchronize_phases(spoilt, positions_px, kept.double(), group)
    difference = found * clean.conj()
    assert float((difference / difference[0] - 1).abs().max()) < 1e-3


@pytest.mark.parametrize("edge", [8, 64])
def test_overlaps_are_the_sums_over_the_common_pixels(edge: int) -> None:
    positions_px = torch.tensor([[0.0, 0.0], [3.0, -2.0], [2.6, 5.4], [edge - 1.0, 1.0], [0.0, edge]])
    patches, weight = normal((5, edge, edge), 1), 0.1 + normal((edge, edge), 2, torch.float64).square()
    first, second = (np.array(side) for side in ((0, 0, 1, 0, 0), (1, 2, 2, 3, 4)))
    found = _compute_overlaps(patches, positions_px, weight, first, second)
    # Every second pixel of the larger ones.
    sample = range(0, edge, max(1, edge // 32))
    weighted = patches * weight
    for a, b, value in zip(first, second, found, strict=True):
        dy, dx = (positions_px[b] - positions_px[a]).round().int().tolist()
        terms = [
            weighted[a, y + dy, x + dx] * weighted[b, y, x].conj()
            for y in sample
            for x in sample
            if 0 <= y + dy < edge and 0 <= x + dx < edge
        ]
        assert complex(value) == pytest.approx(complex(sum(terms)), rel=1e-9, abs=1e-12)


@pytest.mark.contract("phases.found")
def test_phases_are_the_weighted_least_squares_of_all_overlaps() -> None:
    # Three groups in a circle whose differences do not add up to 0: the weakest overlap gives way most.
    edges = np.array([[0, 0, 1], [1, 2, 2]])
    strength, angle = np.array([4.0, 1.0, 2.0]), np.array([0.3, -0.2, 0.1])
    phase = _fit_phases(edges, strength * np.exp(1j * angle), 3)
    left = phase[edges[0]] + angle - phase[edges[1]]
    slope = np.zeros(3)
    np.add.at(slope, edges[0], strength * left)
    np.add.at(slope, edges[1], -strength * left)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    np.testing.assert_allclose(strength * left, strength[0] * left[0] * np.array([1, -1, 1]), atol=1e-6)
    assert abs(left).max() > 0.05


@pytest.mark.contract("phases.found")
def test_phases_far_from_each_other_follow_the_strongest_overlaps() -> None:
    # Around the circle of three the wrong branch of a weak overlap would be off by a whole period.
    truth = np.array([0.0, 2.5, 5.0])
    edges = np.array([[0, 0, 1], [1, 2, 2]])
    angle = truth[edges[1]] - truth[edges[0]]
    overlap = np.array([3.0, 0.01, 2.0]) * np.exp(1j * (angle + np.array([0, 2.5, 0])))
    phase = _fit_phases(edges, overlap, 3)
    np.testing.assert_allclose(np.exp(1j * (phase - phase[0])), np.exp(1j * truth), atol=0.05)


def test_neighbours_are_pairs_of_different_groups_each_once() -> None:
    positions_px = np.random.default_rng(0).uniform(0, 50, (60, 2))
    group = np.arange(60) // 3
    first, second = _find_neighbours(positions_px, group)
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    distance = np.linalg.norm(positions_px[:, None] - positions_px, axis=2)
    nearest = np.argsort(distance, axis=1)[:, 1:11]
    expected = {(min(a, b), max(a, b)) for a in range(60) for b in nearest[a].tolist() if group[a] != group[b]}
    assert set(pairs) == expected


def test_each_connected_part_keeps_its_mean_phase() -> None:
    edges, phase, power = np.array([[0, 3], [1, 4]]), np.array([0.5, 1.5, 0.7, -2.0, -1.0]), np.array([1, 3, 2, 1, 1.0])
    found = _remove_global_phase(phase, edges, power)
    phasor = power * np.exp(1j * found)
    for part in ([0, 1], [2], [3, 4]):
        assert np.angle(phasor[part].sum()) == pytest.approx(0, abs=1e-12)
        np.testing.assert_allclose(np.diff(found[part]), np.diff(phase[part]))


@pytest.mark.contract("phases.alone")
def test_one_group_alone_is_left_as_it_is() -> None:
    patches, positions_px, _ = scan(1)
    turn = synchronize_phases(patches, positions_px, torch.ones(N, N), torch.zeros(len(patches), dtype=torch.int64))
    assert np.array_equal(turn.numpy(), np.ones(len(patches), np.complex64))
