"""The terms of the loss: what they compare, in which domain, and how they are weighed."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from strategies import make_asymmetric_probe, normal
from tolerances import assert_close, tolerance
from torch import Tensor

from torchptycho.core.config import LossConfig
from torchptycho.core.errors import ConfigError
from torchptycho.models.losses import Loss, LossInputs, total_variation
from torchptycho.physics.diffraction import expected_counts
from torchptycho.physics.noise import poisson_nll, poisson_sample

N, B, C = 8, 3, 2
NAMES = ("nll", "mae", "tv", "realspace", "realspace_mae")


def only(**weights: float) -> Loss:
    return Loss(LossConfig(**{"nll_weight": 0.0, **weights}))


def comparison(photons: float = 1e5, seed: int = 0, truth: bool = True) -> LossInputs:
    """A batch whose patches differ from the truth by 10 %, measured at the given dose without noise."""
    field = 1 + 0.2 * normal((B, C, N, N), seed)
    patches = field + 0.1 * normal((B, C, N, N), seed + 1)
    probe = make_asymmetric_probe(N, photons=photons)
    return LossInputs(
        expected=expected_counts(patches, probe),
        counts=expected_counts(field, probe),
        mean_count=torch.full((B,), photons / N**2, dtype=torch.float64),
        mask=torch.ones(B, 1, N, N, dtype=torch.bool),
        patches=patches,
        truth=field if truth else None,
        truth_weight=torch.ones(N, N, dtype=torch.float64),
    )


class TestConstruction:
    @pytest.mark.contract("loss.domain")
    def test_counts_and_amplitudes_cannot_be_mixed(self) -> None:
        with pytest.raises(ConfigError, match="nll_weight compares counts and mae_weight amplitudes"):
            Loss(LossConfig(nll_weight=1.0, mae_weight=0.5))

    @pytest.mark.contract("loss.domain")
    @pytest.mark.parametrize("data", ["nll_weight", "mae_weight"])
    def test_either_domain_goes_with_terms_of_the_object(self, data: str) -> None:
        loss = only(**{data: 1.0, "tv_weight": 0.1, "realspace_weight": 0.1, "realspace_mae_weight": 0.1})
        assert set(loss(comparison())) == {data.removesuffix("_weight"), "tv", "realspace", "realspace_mae", "loss"}

    @pytest.mark.contract("loss.data")
    @pytest.mark.parametrize("weights", [{}, {"tv_weight": 1.0}])
    def test_loss_that_looks_at_no_data_is_refused(self, weights: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="expected a term that depends on the data"):
            only(**weights)

    @pytest.mark.contract("loss.truth")
    @pytest.mark.parametrize("name", ["realspace_weight", "realspace_mae_weight"])
    def test_real_space_terms_need_a_truth(self, name: str) -> None:
        loss = only(**{name: 1.0})
        assert loss.needs_truth
        with pytest.raises(ConfigError, match="truth"):
            loss(comparison(truth=False))

    @pytest.mark.contract("loss.truth")
    def test_diffraction_terms_need_no_truth(self) -> None:
        for loss in (only(nll_weight=1.0), only(mae_weight=1.0), only(nll_weight=1.0, tv_weight=1.0)):
            assert not loss.needs_truth
            assert bool(loss(comparison(truth=False))["loss"].isfinite())


class TestWeights:
    @pytest.mark.contract("loss.weights")
    @pytest.mark.parametrize("data", ["nll", "mae"])
    def test_loss_is_the_weighted_sum_of_its_terms(self, data: str) -> None:
        weights = {data: 0.7, "tv": 0.01, "realspace": 3.0, "realspace_mae": 2.0}
        terms = only(**{f"{name}_weight": weight for name, weight in weights.items()})(comparison())
        expected = sum(weight * terms[name] for name, weight in weights.items())
        assert isinstance(expected, Tensor)
        assert_close(terms["loss"], expected, "double")

    @pytest.mark.contract("loss.weights")
    def test_term_without_weight_is_not_computed(self) -> None:
        assert set(Loss(LossConfig())(comparison(truth=False))) == {"nll", "loss"}


class TestData:
    @pytest.mark.contract("loss.fit")
    @pytest.mark.parametrize("name", ["nll", "mae", "realspace", "realspace_mae"])
    def test_every_term_is_zero_where_model_and_data_agree(self, name: str) -> None:
        batch = comparison()
        assert batch.truth is not None
        agreed = dataclasses.replace(batch, expected=batch.counts, patches=batch.truth)
        loss = only(**{f"{name}_weight": 1.0})
        assert float(loss(agreed)["loss"]) == 0
        assert float(loss(batch)["loss"]) > 1e-4

    @pytest.mark.contract("loss.dose")
    @pytest.mark.parametrize("name", ["nll", "mae"])
    def test_loss_is_the_same_at_any_high_dose(self, name: str) -> None:
        loss = only(**{f"{name}_weight": 1.0})
        low, high = (loss(comparison(photons))["loss"] for photons in (1e10, 1e13))
        assert_close(low, high, "high_dose")

    @pytest.mark.contract("loss.dose")
    def test_groups_of_unlike_dose_weigh_alike(self) -> None:
        weak, strong = comparison(1e9), comparison(1e12)
        picked = torch.tensor([True, False, True])
        mixed = dataclasses.replace(
            weak,
            **{
                name: torch.stack([getattr(weak if p else strong, name)[b] for b, p in enumerate(picked)])
                for name in ("expected", "counts", "mean_count")
            },
        )
        assert_close(only(nll_weight=1.0)(mixed)["nll"], only(nll_weight=1.0)(strong)["nll"], "high_dose")

    @pytest.mark.contract("loss.nll")
    def test_gradient_is_that_of_the_likelihood_over_the_mean_count(self) -> None:
        batch = comparison(1e9)
        expected = batch.expected.clone().requires_grad_()
        loss = only(nll_weight=1.0)(dataclasses.replace(batch, expected=expected))["loss"]
        mean_count = float(batch.mean_count[0])
        likelihood = poisson_nll(expected, batch.counts) / mean_count
        pull, reference = (torch.autograd.grad(value, expected)[0] for value in (loss, likelihood))
        assert_close(pull, reference, "high_dose")

    @pytest.mark.contract("loss.mae")
    def test_amplitude_error_is_in_units_of_the_root_of_the_mean_count(self) -> None:
        batch = comparison(1e12)
        mean_count = float(batch.mean_count[0])
        expected = (batch.expected.sqrt() - batch.counts.sqrt()).abs().mean() / mean_count**0.5
        assert_close(only(mae_weight=1.0)(batch)["mae"], expected, "high_dose")

    @pytest.mark.contract("loss.mask")
    @pytest.mark.parametrize("name", ["nll", "mae"])
    def test_masked_pixels_have_no_influence(self, name: str) -> None:
        batch, loss = comparison(), only(**{f"{name}_weight": 1.0})
        mask = batch.mask.clone()
        mask[..., 3, :] = mask[0, ..., 1] = False
        clean = dataclasses.replace(batch, mask=mask)
        spoiled = dataclasses.replace(clean, counts=torch.where(mask, batch.counts, 65535.0))
        assert torch.equal(loss(clean)["loss"], loss(spoiled)["loss"])
        values = [float(loss(dataclasses.replace(batch, mask=m))["loss"]) for m in (mask, ~mask)]
        share = float(mask.double().mean())
        whole = share * values[0] + (1 - share) * values[1]
        assert whole == pytest.approx(float(loss(batch)["loss"]), rel=1e-12)

    @pytest.mark.contract("loss.dark")
    @pytest.mark.parametrize("name", ["nll", "mae"])
    def test_gradient_is_finite_in_the_dark(self, name: str) -> None:
        batch = comparison()
        patches = torch.zeros(B, C, N, N, dtype=torch.complex64, requires_grad=True)
        counts = poisson_sample(torch.full((B, C, N, N), 0.3), torch.Generator().manual_seed(1))
        expected = expected_counts(patches, make_asymmetric_probe(N, dtype=torch.complex64))
        dark = dataclasses.replace(batch, expected=expected, counts=counts, mean_count=torch.full((B,), 0.3))
        only(**{f"{name}_weight": 1.0})(dark)["loss"].backward()
        assert patches.grad is not None
        assert bool(patches.grad.isfinite().all())


class TestObject:
    @pytest.mark.contract("loss.tv")
    def test_total_variation_of_a_constant_is_zero(self) -> None:
        assert float(total_variation(torch.full((2, 3, 5, 5), 0.3 - 0.7j))) == 0

    @pytest.mark.contract("loss.tv")
    @pytest.mark.parametrize("axis", [-2, -1])
    def test_total_variation_of_a_step_is_its_square_times_its_length(self, axis: int) -> None:
        step = 0.5 + 2j
        patches = torch.zeros(2, 3, 6, 6, dtype=torch.complex128)
        patches.narrow(axis, 4, 2).fill_(step)
        assert float(total_variation(patches)) == pytest.approx(6 * abs(step) ** 2, rel=1e-12)

    @pytest.mark.contract("loss.tv")
    def test_total_variation_is_the_sum_over_neighbours_in_each_patch(self) -> None:
        patches = normal((B, C, 4, 4), 3)
        total = 0.0
        for patch, (i, j) in itertools.product(patches.reshape(-1, 4, 4), itertools.product(range(4), repeat=2)):
            total += float((patch[i + 1, j] - patch[i, j]).abs() ** 2) if i < 3 else 0.0
            total += float((patch[i, j + 1] - patch[i, j]).abs() ** 2) if j < 3 else 0.0
        assert float(total_variation(patches)) == pytest.approx(total / (B * C), rel=1e-12)

    @pytest.mark.contract("loss.realspace")
    def test_real_space_terms_are_squares_and_absolutes_of_real_and_imaginary_errors(self) -> None:
        batch = comparison()
        assert batch.truth is not None
        shifted = dataclasses.replace(batch, patches=batch.truth + (0.3 - 0.4j))
        terms = only(realspace_weight=1.0, realspace_mae_weight=1.0)(shifted)
        assert float(terms["realspace"]) == pytest.approx(0.25, rel=1e-12)
        assert float(terms["realspace_mae"]) == pytest.approx(0.7, rel=1e-12)

    @pytest.mark.contract("loss.realspace")
    @pytest.mark.parametrize("name", ["realspace", "realspace_mae"])
    def test_real_space_terms_look_only_where_they_are_told(self, name: str) -> None:
        batch, loss = comparison(), only(**{f"{name}_weight": 1.0})
        assert batch.truth is not None
        inside = torch.zeros(N, N, dtype=torch.float64)
        inside[2:6, 2:6] = 1
        patches = torch.where(inside > 0, batch.truth + 1, batch.patches + 100)
        value = loss(dataclasses.replace(batch, patches=patches, truth_weight=inside))["loss"]
        assert float(value) == pytest.approx(1, rel=tolerance("double"))
