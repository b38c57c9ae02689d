"""Terms of the loss: the oracle's up to known factors, values and gradients, and what differs on purpose."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from agreement import MISSING, assert_agree
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import normal, seeds
from tolerances import assert_close
from torch import Tensor

from torchptycho.core.config import LossConfig
from torchptycho.interop.original_layouts import channels_first, channels_last
from torchptycho.models.losses import Loss, LossInputs, total_variation
from torchptycho.physics.diffraction import expected_counts
from torchptycho.physics.noise import poisson_nll
from torchptycho.physics.overlap import central_weight

oracle = pytest.importorskip("tf_reference", reason=MISSING)

PRECISIONS = pytest.mark.parametrize(
    ("dtype", "name", "suffix"),
    [(torch.float32, "oracle_physics", ""), (torch.float64, "oracle_double", ".double")],
    ids=["single", "double"],
)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Groups of frames at some dose, with what is expected of them, and object patches with their truth."""

    groups: int
    members: int
    n_px: int
    counts_per_px: float
    seed: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.groups, self.members, self.n_px, self.n_px

    @property
    def expected(self) -> Tensor:
        """Positive, from hundredths of the mean to many times it, as on a detector."""
        return self.counts_per_px * normal(self.shape, self.seed, torch.float64).exp()

    @property
    def counts(self) -> Tensor:
        """Of something else: twice as bright on average, and 0 in places."""
        other = 2 * self.counts_per_px * normal(self.shape, self.seed + 1, torch.float64).exp()
        return torch.poisson(other, generator=torch.Generator().manual_seed(self.seed % 2**63))

    @property
    def patches(self) -> Tensor:
        return normal(self.shape, self.seed + 2)

    @property
    def truth(self) -> Tensor:
        return normal(self.shape, self.seed + 3)

    def comparison(self, **changes: Any) -> LossInputs:
        """All of it in the precision of `expected`, every pixel good."""
        expected = changes.pop("expected", self.expected)
        parts: dict[str, Any] = {
            "expected": expected,
            "counts": self.counts.to(expected.dtype),
            "mean_count": torch.full((self.groups,), self.counts_per_px, dtype=expected.dtype),
            "mask": torch.ones(self.groups, 1, self.n_px, self.n_px, dtype=torch.bool),
            "patches": self.patches.to(expected.dtype.to_complex()),
            "truth": self.truth.to(expected.dtype.to_complex()),
            "truth_weight": torch.ones(self.n_px, self.n_px, dtype=expected.dtype),
        }
        return LossInputs(**{**parts, **changes})


all_edges = st.integers(2, 24)
whole_quarters = st.integers(1, 6).map(lambda quarter: 4 * quarter)


def batches(edges: st.SearchStrategy[int] = all_edges) -> st.SearchStrategy[Batch]:
    dose = st.floats(-1, 5).map(lambda power: 10**power)
    return st.builds(Batch, st.integers(1, 3), st.sampled_from([1, 4]), edges, dose, seeds)


def there(values: Tensor) -> np.ndarray:
    """(B, C, N, N) as the oracle holds it."""
    return channels_last(values.detach().numpy())


def mean_of(function: Any, *arguments: np.ndarray, wrt: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """What Keras makes of a loss, the mean over what it returns; and its gradient."""
    values = function(*arguments, **options)
    cotangent = np.full_like(values, 1 / values.size)
    gradient = oracle.gradient(function, *arguments, cotangent=cotangent, wrt=wrt, **options)
    return values.mean(dtype=np.float64), channels_first(gradient)


def weighted(comparison: LossInputs, **weights: float) -> Tensor:
    return Loss(LossConfig(**{"nll_weight": 0.0, **weights}))(comparison)["loss"]


# ---- what agrees ---------------------------------------------------------------------------------------------------


@PRECISIONS
@pytest.mark.contract("parity.poisson-nll")
@given(batches(), st.booleans())
def test_likelihood(dtype: torch.dtype, name: str, suffix: str, batch: Batch, masked: bool) -> None:
    """The oracle knows no bad pixels; its values of the good ones are averaged here."""
    expected, counts = batch.expected.to(dtype).requires_grad_(), batch.counts.to(dtype)
    good = normal((batch.n_px, batch.n_px), batch.seed, torch.float64) < 1 if masked else torch.ones(1, 1, dtype=bool)
    share = float(good.double().mean())
    assume(share > 0)
    value = poisson_nll(expected, counts, good if masked else None)
    value.backward()
    pixels = good.numpy() * channels_first(oracle.negloglik(there(counts), there(expected)))
    weights = good.to(dtype).expand(batch.shape) / (share * counts.numel())
    gradient = oracle.gradient(oracle.negloglik, there(counts), there(expected), cotangent=there(weights), wrt=1)
    # A difference of two sums, which may nearly cancel: the error is relative to the sums.
    terms = float((expected.detach() + (counts * expected.detach().log()).abs()).mean())
    mean = pixels.mean(dtype=np.float64) / share
    operator = "parity.poisson-nll"
    assert_agree(np.array([value.item(), terms]), np.array([mean, terms]), operator + suffix, name)
    assert_agree(expected.grad, channels_first(gradient), f"{operator}.gradient{suffix}", name)


@PRECISIONS
@pytest.mark.contract("parity.loss-nll")
@given(batches())
def test_likelihood_term(dtype: torch.dtype, name: str, suffix: str, batch: Batch) -> None:
    """With half a count on both sides, less its smallest value, over the mean count of each group."""
    expected = batch.expected.to(dtype).requires_grad_()
    dose = batch.counts_per_px * torch.arange(1, batch.groups + 1, dtype=dtype)
    comparison = batch.comparison(expected=expected, mean_count=dose)
    value = weighted(comparison, nll_weight=1.0)
    value.backward()
    measured, model = there(comparison.counts + 0.5), there(expected + 0.5)
    weights = 1 / (model.size * dose.numpy()[:, None, None, None]) * np.ones_like(model)
    pixels = oracle.negloglik(measured, model) - oracle.negloglik(measured, measured)
    terms = float(np.sum(weights * (model + np.abs(measured * np.log(model))), dtype=np.float64))
    mean = float(np.sum(weights * pixels, dtype=np.float64))
    gradient = oracle.gradient(oracle.negloglik, measured, model, cotangent=weights, wrt=1)
    operator = "parity.loss-nll"
    assert_agree(np.array([value.item(), terms]), np.array([mean, terms]), operator + suffix, name)
    assert_agree(expected.grad, channels_first(gradient), f"{operator}.gradient{suffix}", name)


def dtype_of(dtype: torch.dtype) -> Any:
    return np.float32 if dtype == torch.float32 else np.float64


@PRECISIONS
@pytest.mark.contract("parity.loss-mae")
@given(batches())
def test_amplitude_term(dtype: torch.dtype, name: str, suffix: str, batch: Batch) -> None:
    """With half a count on both sides, over the root of the mean count."""
    amplitude = (batch.expected.to(dtype) + 0.5).sqrt().requires_grad_()
    comparison = batch.comparison(expected=amplitude**2 - 0.5)
    value = weighted(comparison, mae_weight=1.0)
    value.backward()
    measured = there((comparison.counts + 0.5).sqrt())
    mean = oracle.mean_absolute_error(measured, there(amplitude))
    one = np.ones_like(mean)
    gradient = oracle.gradient(oracle.mean_absolute_error, measured, there(amplitude), cotangent=one, wrt=1)
    root = dtype_of(dtype)(math.sqrt(batch.counts_per_px))
    # Amplitudes less one another: the error is relative to them.
    whole = np.mean(measured) / root
    operator = "parity.loss-mae"
    assert_agree(np.array([value.item(), whole]), np.array([mean / root, whole]), operator + suffix, name)
    assert_agree(amplitude.grad, channels_first(gradient / root), f"{operator}.gradient{suffix}", name)


@PRECISIONS
@pytest.mark.contract("parity.total-variation")
@given(batches())
def test_total_variation(dtype: torch.dtype, name: str, suffix: str, batch: Batch) -> None:
    """The oracle's is the sum over the batch, this one the mean over its patches."""
    patches = batch.patches.to(dtype.to_complex()).requires_grad_()
    value = total_variation(patches)
    value.backward()
    theirs = oracle.total_variation(there(patches))
    gradient = oracle.gradient(oracle.total_variation, there(patches), cotangent=np.ones_like(theirs))
    count = batch.groups * batch.members
    assert_agree(np.array(value.item() * count), np.array(theirs, np.float64), "parity.total-variation" + suffix, name)
    assert_agree(patches.grad * count, channels_first(gradient), "parity.total-variation.gradient" + suffix, name)


@PRECISIONS
@pytest.mark.parametrize("probe_big", [True, False])
@pytest.mark.contract("parity.loss-realspace-mae")
@given(batches(whole_quarters))
def test_real_space_term_of_real_objects(
    dtype: torch.dtype, name: str, suffix: str, probe_big: bool, batch: Batch
) -> None:
    """The oracle's is the same for a real truth and real patches, but for what the truth holds outside the centre."""
    truth = batch.truth.real.to(dtype)
    patches = batch.patches.real.to(dtype).requires_grad_()
    truth_weight = torch.ones(batch.n_px, batch.n_px, dtype=dtype) if probe_big else central_weight(batch.n_px, truth)
    comparison = batch.comparison(
        expected=batch.expected.to(dtype),
        patches=torch.complex(patches, 0 * patches),
        truth=truth + 0j,
        truth_weight=truth_weight,
    )
    value = weighted(comparison, realspace_mae_weight=1.0)
    value.backward()
    options = {"realspace_mae_weight": 1.0, "probe_big": probe_big}
    mean, gradient = mean_of(oracle.realspace_loss, there(truth), there(patches), wrt=1, **options)
    inside = float(truth_weight.mean())
    outside = float((truth.abs() * (1 - truth_weight)).double().mean())
    # Gradients of the mean over channels and pixels; the oracle's Keras sees them as one mean over all.
    operator = "parity.loss-realspace-mae"
    assert_agree(np.array(value.item()), np.array((mean - outside) / inside), operator + suffix, name)
    assert_agree(patches.grad, gradient / dtype_of(dtype)(inside), f"{operator}.gradient{suffix}", name)


# ---- what does not, on purpose -------------------------------------------------------------------------------------


@pytest.mark.contract("deviation.likelihood-floor")
@given(batches(), st.integers(0, 5))
def test_the_oracles_likelihood_has_no_floor(batch: Batch, counted: int) -> None:
    expected = batch.expected
    expected[0, 0, 0, 0] = 0.0
    counts = torch.full_like(expected, float(counted))
    with np.errstate(divide="ignore", invalid="ignore"):
        theirs = oracle.negloglik(there(counts), there(expected))
    assert (np.isposinf if counted else np.isnan)(theirs[0, 0, 0, 0])
    assert np.isfinite(theirs).sum() == theirs.size - 1
    expected.requires_grad_()
    value = poisson_nll(expected, counts)
    value.backward()
    alone = poisson_nll(torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), float(counted), dtype=torch.float64))
    assert float(alone) == pytest.approx(1e-8 + counted * 8 * math.log(10))
    assert math.isfinite(value.item())
    assert bool(expected.grad.isfinite().all())


@pytest.mark.contract("deviation.half-count")
@given(batches(), st.integers(1, 100), st.floats(-7, -3).map(lambda power: 10**power))
def test_the_oracle_is_as_steep_as_1_over_i_where_the_model_is_dark(batch: Batch, counted: int, dark: float) -> None:
    counts = torch.full(batch.shape, float(counted), dtype=torch.float64)
    model = torch.full_like(counts, dark).requires_grad_()
    ones = there(torch.ones_like(counts))
    gradient = oracle.gradient(oracle.negloglik, there(counts), there(model), cotangent=ones, wrt=1)
    np.testing.assert_allclose(gradient, 1 - counted / dark)
    weighted(batch.comparison(expected=model, counts=counts), nll_weight=1.0).backward()
    mine = model.grad * counts.numel() * batch.counts_per_px
    assert_close(mine, torch.full_like(counts, 1 - (counted + 0.5) / (dark + 0.5)), "double")
    assert float(mine.abs().max()) <= 2 * counted


@pytest.mark.contract("deviation.amplitude-gradient")
@given(batches())
def test_the_oracles_amplitudes_are_infinitely_steep_at_zero(batch: Batch) -> None:
    def mae_of_counts(measured: Any, expected: Any) -> Any:
        return oracle.mean_absolute_error.__wrapped__(measured**0.5, expected**0.5)

    dark = torch.zeros(batch.shape, dtype=torch.float64, requires_grad=True)
    gradient = oracle.gradient(mae_of_counts, there(batch.counts + 1), there(dark), cotangent=np.array(1.0), wrt=1)
    assert np.isneginf(gradient).all()
    weighted(batch.comparison(expected=dark, counts=batch.counts + 1), mae_weight=1.0).backward()
    steepest = 0.5 / math.sqrt(0.5 * batch.counts_per_px)
    assert_close(dark.grad * dark.numel(), torch.full_like(dark, -steepest).detach(), "double")


@pytest.mark.contract("deviation.likelihood-dose")
@given(batches(), st.floats(2, 1000))
def test_the_oracles_gradient_grows_with_the_dose(batch: Batch, factor: float) -> None:
    """The same object in a brighter beam: each photon pulls once more."""
    shape = batch.groups * batch.members, 1, batch.n_px, batch.n_px
    one_by_one = dataclasses.replace(batch, groups=shape[0], members=1)
    # So bright that the half count which is added plays no part, wherever a random pattern is dark.
    brightness = 1e9
    probe = normal((1, batch.n_px, batch.n_px), batch.seed)
    theirs, mine = [], []
    for dose in (brightness, factor * brightness):
        beam = math.sqrt(dose) * probe
        counts = expected_counts(batch.truth.flatten(0, 1), beam) + dose
        patches = batch.patches.flatten(0, 1).requires_grad_()
        expected = expected_counts(patches, beam)
        arguments = there(counts.reshape(shape)), there(expected.reshape(shape))
        _, by_expected = mean_of(oracle.negloglik, *arguments, wrt=1)
        theirs += torch.autograd.grad(expected, patches, torch.from_numpy(by_expected).flatten(0, 1), retain_graph=True)
        comparison = one_by_one.comparison(
            expected=expected.reshape(shape),
            counts=counts.reshape(shape),
            mean_count=torch.full(shape[:1], dose, dtype=torch.float64),
        )
        mine += torch.autograd.grad(weighted(comparison, nll_weight=1.0), patches)
    assert_close(theirs[1] / factor, theirs[0], "double")
    assert_close(mine[1], mine[0], "high_dose")


@pytest.mark.contract("deviation.total-variation-sum")
@given(batches(), st.integers(2, 4))
def test_the_oracles_total_variation_grows_with_the_batch(batch: Batch, times: int) -> None:
    once, often = there(batch.patches), there(batch.patches.repeat(times, 1, 1, 1))
    assert oracle.total_variation(often) == pytest.approx(times * oracle.total_variation(once), rel=1e-12)
    mine = [total_variation(patches) for patches in (batch.patches, batch.patches.repeat(times, 1, 1, 1))]
    assert_close(mine[1], mine[0], "double")


@pytest.mark.contract("deviation.total-variation-rim")
@given(batches(whole_quarters))
def test_the_oracle_takes_the_rim_of_its_mask_for_a_variation(batch: Batch) -> None:
    constant = batch.patches[:, :, :1, :1].expand(batch.shape)
    theirs = oracle.realspace_loss(there(constant), there(constant), tv_weight=1.0, probe_big=False)
    # Four sides of N/2 pixels, and a step from the constant to 0 across each of them.
    power = float(constant[:, :, 0, 0].abs().square().sum())
    assert theirs == pytest.approx(4 * batch.n_px / 2 * power, rel=1e-12)
    assert float(total_variation(constant)) == 0


@pytest.mark.contract("deviation.real-space-weight")
@given(batches(whole_quarters), st.booleans())
def test_the_oracles_real_space_loss_is_nothing_without_its_terms(batch: Batch, probe_big: bool) -> None:
    """`realspace_weight` multiplies it, so that this weight alone has no effect."""
    assert oracle.realspace_loss(there(batch.truth), there(batch.patches), probe_big=probe_big) == 0
    value = weighted(batch.comparison(), realspace_weight=1.0)
    assert_close(value, (batch.patches - batch.truth).abs().square().mean(), "double")


@pytest.mark.contract("deviation.real-space-truth")
@given(batches())
def test_the_oracle_holds_modulus_and_angle_of_the_truth_against_the_whole_object(batch: Batch) -> None:
    """A perfect object has a loss, and half the sum of the truth's modulus and angle has no larger one."""
    truth = batch.truth
    modulus, angle = truth.abs(), truth.angle()
    theirs = oracle.complex_mae(there(truth), there(truth))
    expected = (truth - modulus).abs() + (truth - angle).abs()
    assert_close(torch.from_numpy(theirs), expected.mean(dim=1), "double")
    between = torch.complex((modulus + angle) / 2, 0 * angle)
    assert (oracle.complex_mae(there(truth), there(between)) <= theirs + 1e-12).all()
    perfect = batch.comparison(patches=truth)
    assert float(weighted(perfect, realspace_mae_weight=1.0)) == 0


@pytest.mark.contract("deviation.real-space-truth")
@given(batches())
def test_the_oracle_trains_complex_objects_towards_real_ones(batch: Batch) -> None:
    """Its data sets give the modulus as the truth, from which a correct phase is a distance."""
    truth = batch.truth
    theirs = oracle.complex_mae(there(truth.abs()), there(truth))
    assert_close(torch.from_numpy(theirs), (truth - truth.abs()).abs().mean(dim=1), "double")
    assert float(theirs.mean()) > 0.1 * float(truth.abs().mean())
    assert float(weighted(batch.comparison(patches=truth), realspace_mae_weight=1.0)) == 0


@pytest.mark.contract("deviation.real-space-rim")
@given(batches(whole_quarters))
def test_the_oracle_charges_the_truth_outside_the_centre_to_the_model(batch: Batch) -> None:
    truth = batch.truth.real.clone()
    theirs = oracle.masked_mae(there(truth), there(truth))
    central = central_weight(batch.n_px, truth)
    assert_close(torch.from_numpy(theirs), (truth.abs() * (1 - central)).mean(dim=1), "double")
    same = oracle.realspace_loss(there(truth), there(truth), realspace_mae_weight=1.0, probe_big=False)
    np.testing.assert_array_equal(same, theirs)
    perfect = batch.comparison(patches=truth + 0j, truth=truth + 0j, truth_weight=central)
    assert float(weighted(perfect, realspace_mae_weight=1.0)) == 0


@pytest.mark.contract("deviation.complex-modulus")
@given(batches())
def test_the_oracles_complex_error_is_the_modulus(batch: Batch) -> None:
    """Here |Re| + |Im|, the same up to a factor between 1 and the root of 2."""
    truth, patches = batch.truth.real, batch.patches
    theirs = float(oracle.complex_mae(there(truth), there(patches)).mean())
    mine = float(weighted(batch.comparison(truth=truth + 0j), realspace_mae_weight=1.0))
    error = patches - truth
    assert theirs == pytest.approx(float(error.abs().mean()), rel=1e-12)
    assert mine == pytest.approx(float((error.real.abs() + error.imag.abs()).mean()), rel=1e-12)
    assert theirs < mine <= math.sqrt(2) * theirs * (1 + 1e-12)
