"""Priors on the object: their steps, when they act, and the strength that held-out counts choose."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import normal
from tolerances import relative_l2

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import ConfigError
from torchptycho.core.reconstruction import Reconstruction, describe_regularization
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative import held_out, refine
from torchptycho.reconstructors.iterative.held_out import find_best_strength
from torchptycho.reconstructors.iterative.initial_state import initialize_state
from torchptycho.reconstructors.iterative.problem import open_problem
from torchptycho.reconstructors.iterative.regularization import TotalVariation, denoise_total_variation

AUTO = RefineConfig(epochs=80, probe_update=False)


def scan_of(photons: float, **changes: Any) -> Scan:
    scan = simulate(SimulateConfig(n_px=32, object_px=72, n_frames=80, photons_per_frame=photons, simulation_seed=3))
    return dataclasses.replace(scan, **changes)


@pytest.fixture(scope="module")
def dim() -> Scan:
    return scan_of(1e4)


@pytest.fixture(scope="module")
def dim_image(dim: Scan) -> Reconstruction:
    return refine(dim, config=AUTO)


def project_gradients(image: np.ndarray, weight: np.ndarray, n_steps: int) -> np.ndarray:
    """Algorithm FGP of Beck and Teboulle (2009) with the matrix of the differences, and a weight for each pixel."""
    rows, columns = image.shape
    differences = np.zeros((2, image.size, image.size))
    for pixel, (row, column) in enumerate(np.ndindex(rows, columns)):
        for axis, neighbour in enumerate((pixel + columns, pixel + 1)):
            if (row + 1 < rows, column + 1 < columns)[axis]:
                differences[axis, pixel, [neighbour, pixel]] = 1, -1
    given, limit = image.ravel(), weight.ravel()
    dual = ahead = np.zeros((2, image.size), complex)
    pace = 1.0
    for _ in range(n_steps):
        left = given - np.einsum("apq,ap->q", differences, ahead)
        moved = ahead + np.einsum("apq,q->ap", differences, left) / 8
        length = np.sqrt(np.sum(np.abs(moved) ** 2, axis=0))
        projected = np.where(length > limit, moved * limit / np.maximum(length, limit), moved)
        next_pace = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        ahead = projected + (pace - 1) / next_pace * (projected - dual)
        dual, pace = projected, next_pace
    return (given - np.einsum("apq,ap->q", differences, dual)).reshape(image.shape)


class TestTotalVariation:
    @pytest.mark.contract("refine.regularise.proximal")
    def test_step_is_the_minimum_of_its_objective(self) -> None:
        given, weight = 1 + 0.3 * normal((12, 9), 0), 0.02 + 0.1 * torch.rand(12, 9, dtype=torch.float64)

        def objective(image: torch.Tensor) -> float:
            down, right = torch.zeros_like(image), torch.zeros_like(image)
            down[:-1], right[:, :-1] = image[1:] - image[:-1], image[:, 1:] - image[:, :-1]
            length = (down.abs().square() + right.abs().square()).sqrt()
            return float((image - given).abs().square().sum() / 2 + (weight * length).sum())

        found = denoise_total_variation(given, weight, n_steps=2000)
        least = objective(found)
        assert least < 0.9 * objective(given)
        for seed in range(20):
            for step in (1e-2, 1e-3):
                assert objective(found + step * normal((12, 9), seed)) > least

    @pytest.mark.contract("refine.regularise.proximal")
    @pytest.mark.parametrize("n_steps", [1, 2, 5, 10])
    def test_steps_are_those_of_the_fast_gradient_projection(self, n_steps: int) -> None:
        given, weight = 1 + 0.3 * normal((7, 5), 2), 0.02 + 0.1 * torch.rand(7, 5, dtype=torch.float64)
        found = denoise_total_variation(given, weight, n_steps=n_steps)
        expected = project_gradients(given.numpy(), weight.numpy(), n_steps)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)

    def test_ten_steps_are_the_default(self) -> None:
        given, weight = 1 + 0.3 * normal((7, 5), 2), torch.full((7, 5), 0.1, dtype=torch.float64)
        assert torch.equal(denoise_total_variation(given, weight), denoise_total_variation(given, weight, n_steps=10))

    @pytest.mark.contract("refine.regularise.proximal")
    def test_step_follows_the_noise_and_leaves_a_uniform_object(self) -> None:
        prior, photons = TotalVariation(alpha=0.1), torch.full((20, 20), 50.0)
        uniform = torch.full((20, 20), 0.8 + 0.3j)
        assert torch.allclose(prior.denoise(uniform, photons, 1.0), uniform)
        noisy = normal((20, 20), 1, torch.complex64)
        # Ten times the noise of a hundred times fewer photons.
        bright = prior.denoise(1 + 0.1 * noisy, photons, 0.2)
        dark = prior.denoise(1 + noisy, photons / 100, 0.2)
        assert relative_l2((dark - 1) / 10, bright - 1) < 1e-4

    @pytest.mark.contract("refine.regularise.methods")
    def test_penalty_has_the_fixed_point_of_the_step(self) -> None:
        y, x = torch.meshgrid(*[torch.arange(12, dtype=torch.float64)] * 2, indexing="ij")
        image = (torch.exp(0.3j * y) + 0.4 * x + 0.2j * x * y).requires_grad_()
        photons, prior, strength = torch.full((12, 12), 105.0, dtype=torch.float64), TotalVariation(0.1), 1e-3
        (slope,) = torch.autograd.grad(prior.compute_penalty(image, photons, strength), image)
        with torch.no_grad():
            step = image - prior.denoise(image, photons, strength)
        curvature = 4 * photons
        inside = (slice(1, -1), slice(1, -1))
        assert relative_l2(slope[inside], (curvature * step)[inside]) < 0.02

    @pytest.mark.contract("refine.regularise.methods")
    @pytest.mark.parametrize("method", ["rpie", "lsqml", "gradient"])
    def test_every_method_is_improved_as_much(self, dim: Scan, method: str) -> None:
        config = RefineConfig(
            method=method, epochs=60, probe_update=False, regularization="tv", regularization_strength=0.1
        )
        error = evaluate(refine(dim, config=config), dim.truth).complex_nrmse
        assert error < 0.15
        plain = refine(dim, config=dataclasses.replace(config, regularization="none", regularization_strength=None))
        assert error < 0.75 * evaluate(plain, dim.truth).complex_nrmse


class TestChoice:
    @pytest.mark.contract("refine.regularise.auto.default")
    @pytest.mark.contract("refine.regularise.auto")
    def test_lowers_the_error_at_a_low_dose_and_is_recorded(self, dim: Scan, dim_image: Reconstruction) -> None:
        assert AUTO.regularization == "auto"
        found = dim_image.provenance["regularization"]
        if found["kind"] == "tv":
            assert 0.02 < found["strength"] < 0.4
            assert found["held_out_gain"] == pytest.approx(max(found["gains"]) - found["gains"][0])
        else:
            assert found["held_out_gain"] == pytest.approx(found["learned_gain"] - found["gains"][0])
        assert found["held_out_gain"] > 0
        assert found["held_out"] == "photons"
        assert found["gains"][0] < max(found["gains"])
        strengths = dim_image.history["regularization_strength"]
        assert len(strengths) == len(dim_image.history["misfit"])
        assert set(strengths[:48]) == {0.0}
        assert set(strengths[48:]) == {found["strength"]}
        assert "of strength" in str(describe_regularization(dim_image))
        plain = refine(dim, config=dataclasses.replace(AUTO, regularization="none"))
        assert describe_regularization(plain) is None
        error, before = (evaluate(image, dim.truth).complex_nrmse for image in (dim_image, plain))
        assert error < 0.7 * before

    @pytest.mark.contract("refine.regularise.auto.kind")
    @pytest.mark.parametrize("kind", ["tv", "learned"])
    def test_prior_acts_that_makes_held_out_counts_likelier(
        self, dim: Scan, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original, factor = held_out._Trials._judge_learned, {"tv": 0.8, "learned": 1.25}[kind]
        monkeypatch.setattr(held_out._Trials, "_judge_learned", lambda *given: factor * original(*given))
        image = refine(dim, config=AUTO)
        found = image.provenance["regularization"]
        assert found["kind"] == kind
        assert (found["learned_gain"] > max(found["gains"])) == (kind == "learned")
        gains = image.history["held_out_gain"]
        assert len(gains) == len(image.history["misfit"])
        assert (gains[0], gains[-1]) == (0.0, found["held_out_gain"])
        assert f"by {gains[-1]:.2g} per count" in str(describe_regularization(image))

    @pytest.mark.contract("refine.regularise.auto.zero")
    def test_many_photons_are_refined_as_without(self) -> None:
        scan = scan_of(1e9)
        config = dataclasses.replace(AUTO, epochs=10)
        image, plain = (refine(scan, config=c) for c in (config, dataclasses.replace(config, regularization="none")))
        np.testing.assert_array_equal(image.object, plain.object)
        assert image.provenance["regularization"]["strength"] == 0
        assert describe_regularization(image) == "no prior (more photons than a prior improves)"

    @pytest.mark.contract("refine.regularise.auto.cost")
    def test_computes_at_most_half_as_many_frames_as_the_refinement(
        self, dim: Scan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        computed = []
        original = held_out.run_epoch

        def count(problem: Any, *args: Any, **options: Any) -> float:
            computed.append(problem.n_frames)
            return original(problem, *args, **options)

        monkeypatch.setattr(held_out, "run_epoch", count)
        refine(dim, config=AUTO)
        assert 0 < sum(computed) <= 0.5 * dim.n_frames * AUTO.epochs
        computed.clear()
        image = refine(dim, config=dataclasses.replace(AUTO, epochs=10))
        assert not computed
        assert "too few" in image.provenance["regularization"]["reason"]

    @pytest.mark.contract("refine.regularise.auto.seed")
    def test_same_seed_same_choice(self, dim: Scan) -> None:
        chosen = dataclasses.replace(AUTO, regularization="tv")
        first, again, other = (refine(dim, config=dataclasses.replace(chosen, refine_seed=seed)) for seed in (0, 0, 1))
        np.testing.assert_array_equal(again.object, first.object)
        strengths = [image.provenance["regularization"]["strength"] for image in (first, other)]
        assert strengths[0] != strengths[1]
        assert 0.4 < strengths[0] / strengths[1] < 2.5

    @pytest.mark.contract("refine.regularise.auto.frames")
    def test_roots_of_counts_are_counts_and_other_amplitudes_are_judged_by_frames(self, dim: Scan) -> None:
        counts = dim.frames[:].astype(np.float32)
        for unit, held in ((1.0, "photons"), (0.7, "frames")):
            photons = unit * float(counts.sum(dtype=np.float64) / len(counts))
            scan = dataclasses.replace(
                dim, frames=ArrayFrames(np.sqrt(counts)), domain="amplitude", metadata={"nphotons": photons}
            )
            assert refine(scan, config=AUTO).provenance["regularization"]["held_out"] == held

    @pytest.mark.contract("refine.regularise.resume")
    def test_resumed_after_the_choice_it_ends_alike(self, dim: Scan, dim_image: Reconstruction, tmp_path: Path) -> None:
        def stop(epoch: int, misfit: float) -> None:
            if epoch == 52:
                raise KeyboardInterrupt

        assert not refine(dim, config=AUTO, state_file=tmp_path / "s.npz", on_epoch=stop).provenance["complete"]
        resumed = refine(dim, config=AUTO, state_file=tmp_path / "s.npz", resume=True)
        np.testing.assert_array_equal(resumed.object, dim_image.object)
        assert resumed.provenance["regularization"]["strength"] == dim_image.provenance["regularization"]["strength"]

    @pytest.mark.contract("refine.regularise.auto.best")
    def test_peak_lies_between_the_strengths_and_noise_is_not_taken_for_gain(self) -> None:
        strengths = (0.0, 0.05, 0.1, 0.2)
        spread = torch.linspace(-1, 1, 20, dtype=torch.float64)
        rising = [spread * 0.01 + level for level in (0.0, 1.0, 2.0, 1.5)]
        strength, _ = find_best_strength(strengths, rising)
        assert 0.1 < strength < 0.2
        assert find_best_strength(strengths, [spread * 0 + level for level in (3.0, 2.0, 1.0, 0.0)])[0] == 0
        # A mean gain of 0.1 with a standard error of 0.14.
        assert find_best_strength(strengths, [0 * spread, spread + 0.1, spread, spread])[0] == 0
        assert find_best_strength(strengths, [0 * spread, 0 * spread + 1, spread, spread])[0] == 0.05


class TestOptions:
    @pytest.mark.contract("refine.regularise.by-hand")
    @pytest.mark.parametrize("weights", [{"tv_weight": 0.01}, {"smoothness_weight": 0.05}])
    def test_weights_by_hand_are_all_that_acts(self, dim: Scan, weights: dict[str, float]) -> None:
        images = [
            refine(dim, config=RefineConfig(epochs=60, probe_update=False, regularization=kind, **weights))
            for kind in ("auto", "none")
        ]
        np.testing.assert_array_equal(images[0].object, images[1].object)

    @pytest.mark.contract("refine.regularise.refused")
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"regularization": "auto", "regularization_strength": 0.1}, "regularization_strength: expected none"),
            ({"regularization": "none", "regularization_strength": 0.1}, "regularization_strength: expected none"),
            ({"regularization": "tv", "tv_weight": 0.1}, "regularization: expected none or auto with tv_weight"),
            ({"regularization": "tv", "polish": 0}, "regularization: expected none without polishing"),
        ],
    )
    def test_contradictions_are_refused(self, dim: Scan, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            refine(dim, config=RefineConfig(epochs=1, **options))


@pytest.mark.contract("refine.held-out.propagator")
def test_trials_propagate_as_the_scan_does(dim: Scan) -> None:
    with open_problem(dim) as problem:
        problem = dataclasses.replace(problem, propagator=copy.copy(problem.propagator))
        state = initialize_state(problem, dim, None, None, AUTO)
        trials = held_out._Trials(problem, state, AUTO, 32)
    assert trials._kept.propagator is trials._held.propagator is problem.propagator
