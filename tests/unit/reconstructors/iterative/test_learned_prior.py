"""The learnt prior as a regulariser: it removes noise, and invents nothing where nothing is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import relative_l2
from torch import Tensor

from torchptycho.physics.illumination import compute_illumination, compute_noise_level
from torchptycho.reconstructors.iterative.learned_prior import LearnedPrior, apply_last_step
from torchptycho.reconstructors.iterative.problem import Problem
from torchptycho.reconstructors.iterative.state import RefinementState


def add_noise(truth: Tensor, photons: float, seed: int = 0) -> Tensor:
    noise = torch.randn(*truth.shape, 2, generator=torch.Generator().manual_seed(seed))
    return truth + torch.view_as_complex(noise) / (2 * photons) ** 0.5


def draw_disc(edge_px: int = 96) -> Tensor:
    y, x = torch.meshgrid(*[torch.arange(edge_px) - edge_px / 2] * 2, indexing="ij")
    return torch.where(
        torch.hypot(y, x) < edge_px / 4, 0.7 * torch.exp(torch.tensor(0.9j)), torch.ones((), dtype=torch.cfloat)
    )


@pytest.mark.contract("prior.regularizer")
@pytest.mark.parametrize("photons", [5.0, 50.0, 500.0])
def test_noise_of_few_photons_is_removed(photons: float) -> None:
    truth = draw_disc()
    noisy = add_noise(truth, photons)
    found = LearnedPrior().denoise(noisy, torch.full(truth.shape, photons), 1.0)
    assert relative_l2(found, truth) < 0.75 * relative_l2(noisy, truth)


@pytest.mark.contract("prior.regularizer.off")
def test_no_strength_and_many_photons_change_nothing() -> None:
    noisy = add_noise(draw_disc(), 50.0)
    prior = LearnedPrior()
    assert torch.equal(prior.denoise(noisy, torch.full(noisy.shape, 50.0), 0.0), noisy)
    assert relative_l2(prior.denoise(noisy, torch.full(noisy.shape, 1e8), 1.0), noisy) < 1e-6


@pytest.mark.contract("prior.regularizer.flat")
@pytest.mark.parametrize("photons", [3.0, 30.0, 300.0])
def test_a_flat_object_stays_flat(photons: float) -> None:
    truth = torch.full((96, 96), 0.8 + 0.3j)
    sigma = (2 * photons) ** -0.5
    found = LearnedPrior().denoise(add_noise(truth, photons), torch.full(truth.shape, photons), 1.0)
    error = (found - truth).abs() / sigma
    # Noise itself reaches 4 sigma; what is left must be a small part of one and no structure of its own.
    assert float(error.square().mean().sqrt()) < 0.4
    assert float(error.max()) < 2.5


@pytest.mark.contract("prior.regularizer.near-empty")
def test_a_single_faint_speck_does_not_grow() -> None:
    truth = torch.ones(96, 96, dtype=torch.cfloat)
    truth[46:50, 46:50] = torch.exp(torch.tensor(0.4j))
    noisy = add_noise(truth, 50.0)
    found = LearnedPrior().denoise(noisy, torch.full(truth.shape, 50.0), 1.0)
    away = torch.ones(96, 96, dtype=torch.bool)
    away[40:56, 40:56] = False
    assert float((found - 1).abs()[away].max()) < 0.25
    assert relative_l2(found, truth) < 0.5 * relative_l2(noisy, truth)


@pytest.mark.contract("prior.regularizer.gaps")
def test_gaps_in_the_illumination_are_not_filled_from_nothing() -> None:
    truth = draw_disc()
    photons = torch.full(truth.shape, 50.0)
    photons[30:50, 20:60] = 0.0
    noisy = add_noise(truth, 50.0)
    noisy[30:50, 20:60] = 0
    found = LearnedPrior().denoise(noisy, photons, 1.0)
    assert torch.equal(found[30:50, 20:60], noisy[30:50, 20:60])
    known = photons > 0
    assert relative_l2(found[known], truth[known]) < 0.7 * relative_l2(noisy[known], truth[known])


@pytest.mark.contract("physics.illumination")
def test_illumination_counts_the_photons_of_all_frames() -> None:
    probe = torch.zeros(2, 4, 4, dtype=torch.cfloat)
    probe[0, 1:3, 1:3], probe[1, 2, 2] = 2j, 1.0
    corners_px = torch.tensor([[0.0, 0.0], [3.0, 2.0], [3.0, 2.5]], dtype=torch.float64)
    photons = compute_illumination(probe, corners_px, (9, 9))
    assert float(photons.sum()) == pytest.approx(3 * 17)
    assert float(photons[2, 2]) == pytest.approx(5)
    sigma = compute_noise_level(photons)
    assert float(sigma[2, 2]) == pytest.approx(10**-0.5)
    assert bool(torch.isinf(sigma[photons == 0]).all())
    assert np.isfinite(sigma[photons > 0].numpy()).all()


@pytest.mark.parametrize(
    ("before", "after_full", "step"),
    [
        # Fitted noise of 0.2 may come back one and a half times: up to 1.3.
        (0.8, 1.29, 1.0),
        (0.8, 1.31, 0.75),
        # Above 1 only a hundredth of noise is allowed for.
        (1.5, 1.51, 1.0),
        (1.5, 1.529, 0.5),
        (0.8, 5.0, 0.0),
    ],
)
def test_the_last_step_is_as_long_as_the_counts_allow(
    monkeypatch: pytest.MonkeyPatch, before: float, after_full: float, step: float
) -> None:
    start = torch.full((8, 8), 0.5 + 0j, dtype=torch.cfloat)
    state = RefinementState.begin(start, torch.ones(1, 4, 4, dtype=torch.cfloat), torch.zeros(1, 2).double())
    state.updates = 3
    asked: list[tuple[float, float]] = []

    def denoise(_: object, object: Tensor, photons_per_px: Tensor, strength: float) -> Tensor:
        asked.append((float(photons_per_px.mean()), strength))
        return object + 1

    def measure(_: object, state: RefinementState, object: Tensor) -> float:
        length = float((object - start).real.mean())
        return before + length * (after_full - before)

    monkeypatch.setattr("torchptycho.reconstructors.iterative.learned_prior._measure_photons", lambda *_: start.real)
    monkeypatch.setattr("torchptycho.reconstructors.iterative.learned_prior.measure_misfit", measure)
    monkeypatch.setattr(LearnedPrior, "denoise", denoise)
    found = apply_last_step(object.__new__(Problem), state, object.__new__(LearnedPrior), 0.7)
    assert asked == [(0.5, pytest.approx(0.7))]
    assert found == {
        "misfit_before": before,
        "misfit_after": pytest.approx(before + step * (after_full - before)),
        "step": step,
    }
    assert torch.equal(state.object, start + step)
    assert (state.updates, torch.equal(state.anchor, state.object)) == (0, True)
