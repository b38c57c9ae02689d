"""Photon noise: the drawn counts, and the likelihood of measured ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import normal
from tolerances import assert_close, tolerance
from torch import Tensor

from torchptycho.physics.noise import poisson_deviance, poisson_log_ratio, poisson_nll, poisson_sample


def some_counts(seed: int, mean: float = 5.0, shape: tuple[int, ...] = (3, 8, 8)) -> Tensor:
    return poisson_sample(torch.full(shape, mean, dtype=torch.float64), torch.Generator().manual_seed(seed))


def some_means(seed: int, shape: tuple[int, ...] = (3, 8, 8)) -> Tensor:
    return 0.5 + normal(shape, seed, torch.float64).square()


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    (result,) = torch.autograd.grad(function(leaf), leaf)
    return result


class TestDrawnCounts:
    @pytest.mark.contract("physics.noise.poisson")
    @pytest.mark.parametrize("mean", [0.3, 4.0, 900.0])
    def test_mean_and_variance_are_the_expected_counts(self, mean: float) -> None:
        counts = some_counts(1, mean, (200_000,))
        # Mean: standard error sqrt(mean / n).
        assert abs(float(counts.mean()) - mean) <= 5 * (mean / 200_000) ** 0.5
        assert float(counts.var()) == pytest.approx(mean, rel=tolerance("two_percent"))
        assert torch.equal(counts, counts.round())

    @pytest.mark.contract("physics.noise.poisson")
    def test_nothing_is_counted_where_nothing_is_expected(self) -> None:
        counts = poisson_sample(torch.zeros(50, 50), torch.Generator().manual_seed(0))
        assert counts.dtype == torch.float32
        assert not bool(counts.any())

    @pytest.mark.contract("physics.noise.seed")
    def test_counts_follow_the_seed_and_leave_the_global_generator_alone(self) -> None:
        state = torch.random.get_rng_state()
        assert torch.equal(some_counts(7), some_counts(7))
        assert not torch.equal(some_counts(7), some_counts(8))
        assert torch.equal(torch.random.get_rng_state(), state)


class TestLikelihood:
    @pytest.mark.contract("physics.nll.minimum")
    def test_likelihood_is_largest_where_expected_equals_counts(self) -> None:
        counts = 1 + some_counts(2)
        assert_close(gradient(lambda e: poisson_nll(e, counts), counts), torch.zeros_like(counts), "double")
        best = poisson_nll(counts, counts)
        for factor in (0.9, 0.99, 1.01, 1.1):
            assert poisson_nll(factor * counts, counts) > best

    @pytest.mark.contract("physics.nll.formula")
    def test_likelihood_differs_from_that_of_the_distribution_by_the_constant_only(self) -> None:
        counts, a, b = some_counts(3), some_means(4), some_means(5)
        exact = [-torch.distributions.Poisson(means).log_prob(counts).mean() for means in (a, b)]
        assert_close(poisson_nll(a, counts) - poisson_nll(b, counts), exact[0] - exact[1], "double")

    @pytest.mark.contract("physics.nll.dark")
    def test_likelihood_is_finite_where_nothing_was_expected(self) -> None:
        counts, dark = torch.tensor([[0.0, 3.0], [1.0, 0.0]]), torch.zeros(2, 2)
        assert bool(poisson_nll(dark, counts).isfinite())
        assert float(poisson_nll(dark, counts)) > float(poisson_nll(counts, counts))

    @pytest.mark.contract("physics.noise.mask")
    @pytest.mark.parametrize("likelihood", [poisson_nll, poisson_deviance])
    def test_masked_pixels_count_neither_above_nor_below_the_line(self, likelihood: Callable[..., Any]) -> None:
        counts, expected = some_counts(6), some_means(7)
        mask = torch.ones(8, 8, dtype=torch.bool)
        mask[2:5, 1] = mask[0, 7] = False
        spoiled = torch.where(mask, counts, counts + 1e5)
        good = torch.stack(
            [
                likelihood(e[None, None], c[None, None])
                for e, c in zip(expected[:, mask].ravel(), counts[:, mask].ravel(), strict=False)
            ]
        ).mean()
        assert_close(likelihood(expected, spoiled, mask), good, "double")
        pull = gradient(lambda e: likelihood(e, spoiled, mask), expected)
        assert not bool(pull[:, ~mask].any())
        assert bool(pull[:, mask].all())


class TestDeviance:
    @pytest.mark.contract("physics.deviance.zero")
    @pytest.mark.parametrize("offset", [0.0, 0.5])
    def test_deviance_is_zero_at_the_fit_and_positive_elsewhere(self, offset: float) -> None:
        counts = some_counts(8, mean=2.0)
        assert bool((counts == 0).any())
        assert float(poisson_deviance(counts, counts, offset=offset)) == 0
        for seed in range(20):
            assert float(poisson_deviance(some_means(seed), counts, offset=offset)) > 0

    @pytest.mark.contract("physics.deviance.zero")
    def test_deviance_per_pixel_of_the_true_means_is_one_at_many_counts(self) -> None:
        counts = some_counts(9, 1e4, (1, 400, 400))
        deviance = poisson_deviance(torch.full_like(counts, 1e4), counts)
        assert float(deviance) == pytest.approx(1, rel=tolerance("two_percent"))

    @pytest.mark.contract("physics.deviance.gradient")
    def test_deviance_without_offset_has_twice_the_gradient_of_the_likelihood(self) -> None:
        counts, expected = 1 + some_counts(10), some_means(11)
        deviance = gradient(lambda e: poisson_deviance(e, counts, offset=0.0), expected)
        assert_close(deviance, 2 * gradient(lambda e: poisson_nll(e, counts), expected), "double")

    @pytest.mark.contract("physics.deviance.gradient")
    def test_gradient_without_offset_is_finite_where_nothing_was_counted(self) -> None:
        counts, expected = some_counts(10, mean=0.5), some_means(11)
        deviance = gradient(lambda e: poisson_deviance(e, counts, offset=0.0), expected)
        assert_close(deviance, 2 * gradient(lambda e: poisson_nll(e, counts), expected), "double")

    @pytest.mark.contract("physics.deviance.unit")
    @pytest.mark.parametrize("unit", [1e-3, 7.0, 1e6])
    def test_deviance_scales_with_the_unit_of_counts_and_offset(self, unit: float) -> None:
        counts, expected = some_counts(12), some_means(13)
        scaled = poisson_deviance(unit * expected, unit * counts, offset=unit * 0.5)
        assert_close(scaled, unit * poisson_deviance(expected, counts), "double")


class TestLogRatio:
    @pytest.mark.contract("physics.log-ratio")
    def test_is_the_difference_of_the_likelihoods(self) -> None:
        counts, first, second = some_counts(1), some_means(2), some_means(3)
        mask = torch.arange(64).reshape(8, 8) % 3 > 0
        n = 3 * int(mask.sum())
        expected = n * (poisson_nll(second, counts, mask) - poisson_nll(first, counts, mask))
        assert_close(poisson_log_ratio(first, second, counts, mask), expected, "double")
        assert float(poisson_log_ratio(first, first, counts)) == 0
        assert bool(torch.isfinite(poisson_log_ratio(torch.zeros_like(first), second, counts)))
