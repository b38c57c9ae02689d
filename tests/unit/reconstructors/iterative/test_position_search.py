"""Positions that are wrong by many pixels are found by what the frames show, before the first epoch."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import torch

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import ConfigError
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.iterative.frame_registration import (
    PairShifts,
    find_pairs,
    register_pairs,
    solve_positions,
)
from torchptycho.reconstructors.iterative.position_correction import MIN_TRIALS, plan_trials, random_search
from torchptycho.reconstructors.iterative.position_search import plan_search

SEARCH = RefineConfig(epochs=15, position_update="frames", position_search_px=24.0, patience=None)


def make_scan() -> Scan:
    """A structured probe of 28 px, in steps of 5 px."""
    rng = np.random.default_rng(1)
    along = np.arange(64) - 32
    low_pass = np.exp(-200 * np.add.outer(np.fft.fftfreq(64) ** 2, np.fft.fftfreq(64) ** 2))
    smooth = np.fft.ifft2(np.fft.fft2(rng.standard_normal((64, 64))) * low_pass)
    amplitude = 1 / (1 + np.exp(np.hypot(along[:, None], along) - 14))
    probe = (amplitude * np.exp(1.5j * smooth.real / smooth.real.std())).astype(np.complex64)[None]
    grid = 5.0 * np.stack(np.meshgrid(np.arange(7), np.arange(7), indexing="ij"), -1).reshape(-1, 2)
    places = grid + rng.uniform(-1, 1, grid.shape) + 40
    config = SimulateConfig(n_px=64, object_px=120, n_frames=49, photons_per_frame=1e6, simulation_seed=2)
    return simulate(config, probe=probe, positions_px=places)


def misplace(scan: Scan, rms_px: float) -> Scan:
    off = np.random.default_rng(3).normal(0, rms_px, scan.positions_px.shape)
    return dataclasses.replace(scan, positions_px=scan.positions_px + off)


def measure_rms_px(found: np.ndarray, scan: Scan) -> float:
    left = found - scan.positions_px
    return float(np.std(left - np.median(left, axis=0)))


@pytest.mark.contract("refine.position-search")
def test_large_errors_are_found() -> None:
    scan = make_scan()
    wrong = misplace(scan, 7.0)
    plain = refine(wrong, config=dataclasses.replace(SEARCH, position_search_px=0.0), device="cpu", judge=False)
    found = refine(wrong, config=SEARCH, device="cpu", judge=False)
    assert plain.positions_px is not None
    assert found.positions_px is not None
    assert measure_rms_px(plain.positions_px, scan) > 5
    assert measure_rms_px(found.positions_px, scan) < 1
    assert np.abs(found.positions_px - wrong.positions_px).max() <= 24


@pytest.mark.contract("refine.position-search.refused")
def test_nothing_is_moved_where_frames_do_not_fit_together(caplog: pytest.LogCaptureFixture) -> None:
    scan = make_scan()
    noise = np.random.default_rng(0).poisson(50, scan.frames.shape).astype(np.uint16)
    lost = dataclasses.replace(scan, frames=ArrayFrames(noise), truth=None)
    with caplog.at_level(logging.WARNING):
        image = refine(lost, config=dataclasses.replace(SEARCH, epochs=1), device="cpu", judge=False)
    assert "positions were not found" in caplog.text
    assert image.positions_px is not None
    np.testing.assert_allclose(image.positions_px, scan.positions_px)


@pytest.mark.contract("refine.position-search.refused")
@pytest.mark.parametrize("update", ["none", "affine"])
def test_search_needs_positions_that_may_move(update: Any) -> None:
    with pytest.raises(ConfigError, match="--position-update frames"):
        plan_search(dataclasses.replace(SEARCH, position_update=update))
    assert plan_search(RefineConfig(position_update=update)) == RefineConfig(position_update=update)
    assert plan_search(SEARCH).position_limit_px == 24
    assert plan_search(SEARCH).probe_start_epoch == 5


def test_pairs_are_those_that_are_near_each_other() -> None:
    places = np.array([[0.0, 0], [0, 3], [0, 6], [50, 50]])
    assert find_pairs(places, 4.0).tolist() == [[0, 1], [1, 2]]
    assert find_pairs(places[:1], 4.0).shape == (0, 2)
    many = np.random.default_rng(0).uniform(0, 1, (100, 2))
    assert len(find_pairs(many, 10.0)) < 100 * 33


@pytest.mark.parametrize("shift", [(3, -5), (0, 0), (-8, 2)])
def test_shift_of_two_images_is_found_whatever_their_phase(shift: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    field = torch.from_numpy(rng.normal(size=(64, 64)) + 1j * rng.normal(size=(64, 64))).to(torch.complex64) + 3
    y, x = shift
    first, second = field[20:40, 20:40], field[20 + y : 40 + y, 20 + x : 40 + x]
    images = torch.stack([first, second * np.exp(2j)])
    rows = torch.arange(20) - 9.5
    weight = (rows[:, None].square() + rows.square() < 90).float()
    found = register_pairs(images, weight, torch.tensor([[0, 1]]))
    np.testing.assert_allclose(found.shift_px[0], shift, atol=0.6)
    assert float(found.quality[0]) > 0.9


def test_positions_agree_with_most_distances() -> None:
    rng = np.random.default_rng(5)
    true = torch.from_numpy(rng.uniform(0, 30, (40, 2)))
    pairs = torch.from_numpy(find_pairs(true.numpy(), 15.0))
    shift = true[pairs[:, 1]] - true[pairs[:, 0]]
    wrong = torch.from_numpy(rng.random(len(shift)) < 0.5)
    shift[wrong] = torch.from_numpy(rng.uniform(-15, 15, (int(wrong.sum()), 2)))
    quality = torch.where(wrong, 0.5, 0.6).double()
    given = true + torch.from_numpy(rng.normal(0, 8, true.shape))
    found, support = solve_positions(
        PairShifts(first=pairs[:, 0], second=pairs[:, 1], shift_px=shift, quality=quality), given
    )
    left = found - true
    assert float((left - left.median(0).values).abs().max()) < 0.5
    assert float(support.min()) >= 3


@pytest.mark.contract("refine.position-search")
def test_few_lost_frames_are_tried_at_more_places() -> None:
    assert plan_trials(1, 100) == 50
    assert plan_trials(50, 100) == MIN_TRIALS
    assert plan_trials(1, 10**6) < 100


@pytest.mark.contract("refine.position-search")
@pytest.mark.parametrize("thorough", [True, False])
def test_a_frame_apart_from_all_others_is_tried_near_them(thorough: bool) -> None:
    grid = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij"), -1).reshape(-1, 2).double()
    true = 4 * grid
    positions = true.clone()
    positions[12] += torch.tensor([0.0, 20.0])

    def measure(index: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        # Alone on its part of the canvas it fits perfectly; so it does there at any other place.
        alone = places[..., 1] > 27
        return torch.where(alone, 0.0, (places - true[index]).norm(dim=-1) / 4)

    moved, places = random_search(
        measure, positions, positions, torch.full((25,), 1.0).double(), 24.0, torch.Generator().manual_seed(0),
        thorough=thorough,
    )  # fmt: skip
    assert moved.tolist() == ([12] if thorough else [])
    if thorough:
        assert float((places[0] - true[12]).norm()) < 12
