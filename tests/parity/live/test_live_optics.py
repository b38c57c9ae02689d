"""From an object and a probe to photon counts: values and gradients as in the oracle, and what differs on purpose."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from agreement import MISSING, assert_agree
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, seeds
from tolerances import assert_close
from torch import Tensor

from torchptycho.core.config import SimulateConfig
from torchptycho.data.simulation import make_probe
from torchptycho.interop.original_layouts import channels_first, channels_last
from torchptycho.physics.diffraction import expected_counts, far_field, measurement
from torchptycho.physics.noise import poisson_nll, poisson_sample
from torchptycho.physics.scaling import compute_gauge_factor, measure_scaling

oracle = pytest.importorskip("tf_reference", reason=MISSING)

PRECISIONS = pytest.mark.parametrize(
    ("dtype", "name", "suffix"),
    [(torch.complex64, "oracle_physics", ""), (torch.complex128, "oracle_double", ".double")],
    ids=["single", "double"],
)


@dataclasses.dataclass(frozen=True)
class Exposure:
    """Object patches and a probe of any odd or even edge, without symmetry and without structure."""

    count: int
    n_px: int
    modes: int
    photons_per_px: float
    seed: int

    @property
    def patches(self) -> Tensor:
        """[B, N, N], double precision."""
        return normal((self.count, self.n_px, self.n_px), self.seed)

    @property
    def probe(self) -> Tensor:
        """[P, N, N] in sqrt(photons), double precision."""
        probe = normal((self.modes, self.n_px, self.n_px), self.seed + 1)
        return probe * math.sqrt(self.photons_per_px / float(probe.abs().square().sum(0).mean()))


def powers_of_ten(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda power: 10**power)


all_edges, all_doses = st.integers(2, 40), powers_of_ten(-1, 4)
disc_edges = st.integers(4, 40)
"""For which the oracle's disc is not empty."""


def exposures(
    max_modes: int = 1,
    edges: st.SearchStrategy[int] = all_edges,
    photons_per_px: st.SearchStrategy[float] = all_doses,
) -> st.SearchStrategy[Exposure]:
    return st.builds(Exposure, st.integers(1, 3), edges, st.integers(1, max_modes), photons_per_px, seeds)


def images(patches: Tensor) -> np.ndarray:
    """[B, N, N] as the oracle's (B, N, N, 1)."""
    return channels_last(patches.detach().numpy()[:, None])


def frames(found: np.ndarray) -> np.ndarray:
    """The way back."""
    return channels_first(found)[:, 0]


def intensity(patches: Any, probe: Any) -> Any:
    """The oracle's (B, N, N, 1), of tensors."""
    n_px = int(patches.shape[1])
    waves, _ = oracle.probe_illumination.__wrapped__(patches, probe)
    return oracle.pad_and_diffract.__wrapped__(waves, n_px, n_px, pad=False)[1] ** 2


def oracle_counts(patches: Tensor, probe: Tensor) -> np.ndarray:
    """Incoherent modes one after the other, for the oracle knows one only."""
    n_px = patches.shape[-1]
    waves = [oracle.probe_illumination(images(patches), mode.numpy()[..., None])[0] for mode in probe]
    return sum(frames(oracle.pad_and_diffract(wave, n_px, n_px, pad=False)[1]) ** 2 for wave in waves)


# ---- what agrees ---------------------------------------------------------------------------------------------------


@PRECISIONS
@pytest.mark.contract("parity.far-field")
@given(exposures())
def test_far_field(dtype: torch.dtype, name: str, suffix: str, case: Exposure) -> None:
    wave = case.patches.to(dtype)
    found = measurement(far_field(wave)[:, None]).sqrt()
    assert_agree(found, frames(oracle.diffract_obj(images(wave))), "parity.far-field" + suffix, name)


@PRECISIONS
@pytest.mark.contract("parity.expected-counts")
@given(exposures(max_modes=3))
def test_expected_counts(dtype: torch.dtype, name: str, suffix: str, case: Exposure) -> None:
    patches, probe = case.patches.to(dtype), case.probe.to(dtype)
    found = expected_counts(patches, probe)
    assert_agree(found, oracle_counts(patches, probe), "parity.expected-counts" + suffix, name)


@PRECISIONS
@pytest.mark.contract("parity.expected-counts")
@given(exposures(max_modes=3))
def test_gradients_of_expected_counts(dtype: torch.dtype, name: str, suffix: str, case: Exposure) -> None:
    patches, probe = (value.to(dtype).requires_grad_() for value in (case.patches, case.probe))
    weights = normal(patches.shape, case.seed + 2, dtype.to_real())
    (weights * expected_counts(patches, probe)).sum().backward()
    by_patches, by_probe = torch.zeros_like(patches), torch.zeros_like(probe)
    for index, mode in enumerate(probe.detach()):
        arguments = images(patches), mode.numpy()[..., None]
        found = [oracle.gradient(intensity, *arguments, cotangent=images(weights), wrt=wrt) for wrt in (0, 1)]
        by_patches += torch.from_numpy(frames(found[0]))
        by_probe[index] = torch.from_numpy(found[1][..., 0])
    assert_agree(patches.grad, by_patches, "parity.expected-counts.gradient" + suffix, name)
    assert_agree(probe.grad, by_probe, "parity.expected-counts.gradient" + suffix, name)


dark_edges = st.integers(1, 5).map(lambda power: 2**power)
"""For which the Fourier transform of a constant is exactly 0 but for one pixel."""


def dark_frames(case: Exposure, kind: str) -> tuple[Tensor, Tensor]:
    """Patches and probe of which nothing arrives, or all of it in one pixel."""
    ones = torch.ones_like(case.patches)
    return (0 * ones, case.probe) if kind == "dark patch" else (ones, ones[:1] * case.probe[0, 0, 0])


@pytest.mark.contract("parity.expected-counts")
@given(exposures(edges=dark_edges), st.sampled_from(["dark patch", "constant wave"]))
def test_gradients_of_expected_counts_where_nothing_arrives(case: Exposure, kind: str) -> None:
    patches, probe = dark_frames(case, kind)
    weights = normal(patches.shape, case.seed + 2, torch.float64)
    theirs = oracle.gradient(intensity, images(patches), probe.numpy()[0][..., None], cotangent=images(weights))
    patches.requires_grad_()
    (weights * expected_counts(patches, probe)).sum().backward()
    assert_agree(patches.grad, frames(theirs), "parity.expected-counts.gradient.double", "oracle_double")


def likelihood(patches: Any, probe: Any, counts: Any) -> Any:
    """The oracle's, pixel by pixel, of tensors."""
    return oracle.negloglik.__wrapped__(counts, intensity(patches, probe))


@PRECISIONS
@pytest.mark.contract("parity.chain")
@given(exposures(photons_per_px=powers_of_ten(1, 4)))
def test_object_and_probe_to_likelihood(dtype: torch.dtype, name: str, suffix: str, case: Exposure) -> None:
    patches, probe = (value.to(dtype).requires_grad_() for value in (case.patches, case.probe))
    # Twice as bright as the model: the gradient is then no small difference of large numbers. And drawn from it, with
    # some photons to each pixel: where the model is dark, the likelihood is as steep as 1 / I if anything was counted.
    generator = torch.Generator().manual_seed(case.seed % 2**63)
    counts = poisson_sample(2 * expected_counts(case.patches, case.probe), generator).to(dtype.to_real())
    expected = expected_counts(patches, probe)
    value = poisson_nll(expected, counts)
    value.backward()
    arguments = images(patches), probe.detach().numpy()[0][..., None], images(counts)
    pixels = oracle.on_arrays(likelihood)(*arguments)
    # A difference of two sums, which may nearly cancel: the error is relative to the sums.
    terms = float(expected.detach().mean() + (counts * expected.detach().log()).abs().mean())
    found, reference = (
        torch.tensor([each, terms], dtype=torch.float64) for each in (value.item(), pixels.mean(dtype=np.float64))
    )
    assert_agree(found, reference, "parity.chain" + suffix, name)
    cotangent = np.full_like(pixels, 1 / pixels.size)
    theirs = [oracle.gradient(likelihood, *arguments, cotangent=cotangent, wrt=wrt) for wrt in (0, 1)]
    assert_agree(patches.grad, frames(theirs[0]), "parity.chain.gradient" + suffix, name)
    assert_agree(probe.grad, theirs[1][None, ..., 0], "parity.chain.gradient" + suffix, name)


@pytest.mark.contract("parity.photon-noise")
@pytest.mark.parametrize("mean", [3.0, 40.0, 2000.0])
def test_photon_noise(mean: float) -> None:
    """The draws differ; mean and variance are those of a Poisson distribution in both."""
    expected = torch.full((450, 450), mean)
    mine = poisson_sample(expected, torch.Generator().manual_seed(0)).numpy()
    theirs = oracle.observe_amplitude(expected.sqrt().numpy(), seed=0) ** 2
    for counts in (mine, theirs):
        np.testing.assert_allclose(counts, np.round(counts), rtol=1e-6)
        for found in (counts.mean(), counts.var()):
            assert_close(torch.tensor([found]), torch.tensor([mean]), "two_percent")


def simulated(case: Exposure, nphotons: float, transmission: float = 1.0) -> tuple[np.ndarray, ...]:
    """X, Y_I, Y_phi and intensity_scale of the oracle's simulation, without noise."""
    moduli = np.float32(transmission) * case.patches.abs().clamp(max=1).float().numpy()
    phases = case.patches.angle().float().numpy()
    probe = case.probe[0].to(torch.complex64).numpy()
    found: tuple[np.ndarray, ...] = oracle.illuminate_and_diffract(
        moduli[..., None], phases[..., None], probe, nphotons=nphotons, gridsize=1
    )
    return found


@pytest.mark.contract("parity.gauge-factor")
@given(exposures(), powers_of_ten(1, 9))
def test_gauge_factor_is_the_scale_behind_a_transparent_object(case: Exposure, nphotons: float) -> None:
    probe = case.probe.to(torch.complex64)
    ones = np.ones((1, case.n_px, case.n_px, 1), np.float32)
    *_, scale = oracle.illuminate_and_diffract(ones, ones, probe[0].numpy(), nphotons=nphotons, gridsize=1)
    found = np.array(compute_gauge_factor(probe, nphotons), np.float32)
    assert_agree(found, scale, "parity.gauge-factor", "oracle_physics")


@pytest.mark.contract("parity.simulated-counts")
@given(exposures(), powers_of_ten(1, 9))
def test_simulated_amplitudes_stand_for_the_same_counts(case: Exposure, nphotons: float) -> None:
    X, _, _, scale = simulated(case, nphotons)
    mean_intensity = float((X.astype(np.float64) ** 2).sum((1, 2, 3)).mean())
    scaling = measure_scaling(mean_intensity, case.n_px, "amplitude", nphotons)
    found = X.astype(np.float64) ** 2 * scaling.counts_per_intensity
    assert_agree(found.astype(np.float32), (scale * X) ** 2, "parity.simulated-counts", "oracle_physics")


def oracle_gauge(probe: np.ndarray, probe_scale: float) -> float:
    """Modulus of a transparent object in the oracle: (N/2) probe_scale mean(|P| in the disc, over all pixels) / |P|."""
    n_px = len(probe)
    inside = np.abs(probe) * oracle.get_probe_mask_real(n_px)[..., 0]
    return float(n_px / 2 * probe_scale * inside.mean(dtype=np.float64) / np.linalg.norm(probe))


def oracle_prediction(patches: Tensor, probe: np.ndarray, probe_scale: float, nphotons: float) -> np.ndarray:
    """What the oracle's model predicts for object patches, in counts."""
    beam = oracle.set_probe(probe, probe_scale)
    amplitude = np.sqrt(oracle.on_arrays(intensity)(images(patches), beam))
    counts: np.ndarray = frames((np.float32(oracle.calculate_intensity_scale(nphotons, len(probe))) * amplitude) ** 2)
    return counts


@pytest.mark.contract("parity.predicted-counts")
@given(exposures(edges=disc_edges), powers_of_ten(1, 9), st.sampled_from([4.0, 10.0]))
def test_predicted_counts_at_any_dose(case: Exposure, nphotons: float, probe_scale: float) -> None:
    """Dose and unit of the probe drop out of the object in both; what is left is one factor between the two."""
    patches, probe = case.patches.to(torch.complex64), case.probe.to(torch.complex64)
    found = expected_counts(patches, probe * compute_gauge_factor(probe, nphotons))
    modulus = oracle_gauge(probe[0].numpy(), probe_scale)
    predicted = oracle_prediction(patches * modulus, probe[0].numpy(), probe_scale, nphotons)
    assert_agree(found, predicted, "parity.predicted-counts", "oracle_physics")


# ---- what does not, on purpose -------------------------------------------------------------------------------------


@pytest.mark.contract("deviation.probe-scale")
@given(exposures(edges=disc_edges), powers_of_ten(1, 9))
def test_the_oracles_object_has_the_modulus_that_probe_scale_gives_it(case: Exposure, nphotons: float) -> None:
    patches, probe = case.patches.to(torch.complex64), case.probe[0].to(torch.complex64).numpy()
    small, large = (oracle_prediction(patches, probe, probe_scale, nphotons) for probe_scale in (4, 10))
    assert_close(torch.from_numpy(small / large), torch.full(small.shape, 6.25), "oracle_operator")


@pytest.mark.contract("deviation.probe-scale")
@given(st.integers(4, 16).map(lambda quarter: 4 * quarter))
def test_a_transparent_object_can_be_out_of_reach_of_a_sigmoid(n_px: int) -> None:
    """A flat beam of the size of the disc, and the default probe_scale."""
    beam = oracle.get_probe_mask_real(n_px)[..., 0].astype(np.complex64)
    assert 2 < oracle_gauge(beam, 10) < 2.4
    ones = torch.ones(1, n_px, n_px, dtype=torch.complex64)
    photons = 1e4
    assert oracle_prediction(ones, beam, 10, photons).sum() < 0.25 * photons
    probe = torch.from_numpy(beam)[None]
    seen = expected_counts(ones, probe * compute_gauge_factor(probe, photons)).sum()
    assert float(seen) == pytest.approx(photons, rel=1e-5)


@pytest.mark.contract("deviation.probe-norm")
@given(exposures(edges=disc_edges), st.floats(1, 10))
def test_light_outside_the_disc_is_not_counted_by_the_oracles_norm(case: Exposure, factor: float) -> None:
    probe = case.probe[0].to(torch.complex64).numpy()
    inside = oracle.get_probe_mask_real(case.n_px)[..., 0]
    wider = np.where(inside, probe, np.float32(factor) * probe)
    power, more = (float(np.sum(np.abs(oracle.set_probe(wave, 4)) ** 2)) for wave in (probe, wider))
    added = (factor**2 - 1) * float(np.sum(np.abs(probe[~inside]) ** 2)) / float(np.sum(np.abs(probe) ** 2))
    assert more / power == pytest.approx(1 + added, rel=1e-4)
    for wave in (probe, wider):
        scaled = torch.from_numpy(wave)[None] * compute_gauge_factor(torch.from_numpy(wave)[None], 1e4)
        assert float(scaled.abs().square().sum()) == pytest.approx(1e4, rel=1e-5)


@pytest.mark.contract("deviation.probe-norm")
@given(exposures(edges=disc_edges))
def test_a_beam_that_is_dark_in_the_disc_has_no_scale_in_the_oracle(case: Exposure) -> None:
    ring = np.where(oracle.get_probe_mask_real(case.n_px)[..., 0], 0, case.probe[0].to(torch.complex64).numpy())
    with np.errstate(divide="ignore", invalid="ignore"):
        assert not np.isfinite(oracle.set_probe(ring, 4)).all()
    assert math.isfinite(compute_gauge_factor(torch.from_numpy(ring)[None], 1e4))


@pytest.mark.contract("deviation.dose-behind-the-object")
@given(exposures(), powers_of_ten(2, 6), st.floats(0.2, 0.9))
def test_the_oracles_dose_is_what_the_object_lets_through(case: Exposure, nphotons: float, transmission: float) -> None:
    counts = []
    for t in (1.0, transmission):
        X, _, _, scale = simulated(case, nphotons, t)
        counts.append(float(((scale * X) ** 2).sum(dtype=np.float64)) / case.count)
    assert counts == pytest.approx([nphotons, nphotons], rel=1e-4)
    probe = case.probe * compute_gauge_factor(case.probe, nphotons)
    patches = case.patches / case.patches.abs()
    for t in (1.0, transmission):
        photons = float(expected_counts(t * patches, probe).sum()) / case.count
        assert photons == pytest.approx(t**2 * nphotons, rel=1e-9)


@pytest.mark.contract("deviation.padded-far-field")
@given(exposures(edges=st.integers(1, 10).map(lambda quarter: 4 * quarter)))
def test_padding_makes_photons_in_the_oracle(case: Exposure) -> None:
    n_px, wave = case.n_px, case.patches
    padded, amplitude = oracle.pad_and_diffract(images(wave), n_px, n_px, pad=True)
    power = float(wave.abs().square().sum())
    assert float((amplitude**2).sum()) == pytest.approx(2.25 * power, rel=1e-9)
    found = far_field(torch.from_numpy(frames(padded))).abs()
    assert float(found.square().sum()) == pytest.approx(power, rel=1e-9)
    assert_close(1.5 * found, torch.from_numpy(frames(amplitude)), "oracle_double")


@pytest.mark.contract("deviation.likelihood-floor")
@given(exposures(edges=dark_edges), st.sampled_from(["dark patch", "constant wave"]), st.integers(0, 3))
def test_where_nothing_is_expected_the_oracle_has_no_likelihood(case: Exposure, kind: str, counted: int) -> None:
    patches, probe = dark_frames(case, kind)
    counts = torch.full(patches.shape, float(counted), dtype=torch.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        theirs = frames(oracle.on_arrays(likelihood)(images(patches), probe.numpy()[0][..., None], images(counts)))
    patches.requires_grad_()
    expected = expected_counts(patches, probe)
    dark = (expected == 0).numpy()
    assert dark.any()
    assert (np.isposinf if counted else np.isnan)(theirs[dark]).all()
    value = poisson_nll(expected, counts)
    value.backward()
    assert math.isfinite(value.item())
    assert bool(patches.grad.isfinite().all())


@pytest.mark.contract("deviation.probe-mask")
@given(exposures(edges=disc_edges))
def test_the_oracle_can_cut_the_beam_to_its_disc(case: Exposure) -> None:
    disc = torch.from_numpy(oracle.get_probe_mask_real(case.n_px)[..., 0])
    waves, probe = oracle.probe_illumination(images(case.patches), case.probe[0].numpy()[..., None], mask=True)
    assert probe.shape == (1, 1, case.n_px, case.n_px, 1)
    theirs = frames(oracle.diffract_obj(waves)) ** 2
    cut, whole = (expected_counts(case.patches, beam) for beam in (case.probe * disc, case.probe))
    assert_close(cut, torch.from_numpy(theirs), "oracle_double")
    lost = (case.patches * case.probe[0] * ~disc).abs().square().sum()
    assert_close(whole.sum() - cut.sum(), lost, "first_order")


@pytest.mark.contract("deviation.blurred-waves")
@given(exposures(), st.floats(0.3, 2))
def test_the_oracle_can_blur_exit_waves_and_loses_photons(case: Exposure, sigma: float) -> None:
    waves, _ = oracle.probe_illumination(images(case.patches), case.probe[0].numpy()[..., None], sigma=sigma)
    theirs = frames(oracle.diffract_obj(waves)) ** 2
    exit_waves = images(case.patches * case.probe[0])
    blurred = torch.from_numpy(frames(oracle.complex_gaussian_filter2d(exit_waves, 3, sigma)))
    assert_close(measurement(far_field(blurred)[:, None]), torch.from_numpy(theirs), "oracle_double")
    assert theirs.sum() < 0.99 * float(expected_counts(case.patches, case.probe).sum())


@pytest.mark.contract("deviation.disc-centre")
@given(st.integers(4, 32).map(lambda half: 2 * half), st.sampled_from(["disk", "gaussian"]))
def test_the_oracles_beams_are_half_a_pixel_off_the_centre_of_the_patch(n_px: int, kind: Any) -> None:
    def centre(power: np.ndarray) -> tuple[float, ...]:
        return tuple(float((power * index).sum() / power.sum()) for index in np.indices(power.shape))

    for power in (oracle.get_default_probe(n_px), oracle.get_probe_mask_real(n_px)[..., 0]):
        assert centre(power) == pytest.approx([(n_px - 1) / 2] * 2, abs=1e-6)
    beam = make_probe(SimulateConfig(n_px=n_px, probe_kind=kind))[0]
    assert centre(np.abs(beam) ** 2) == pytest.approx([n_px / 2] * 2, abs=1e-3)


@pytest.mark.contract("deviation.roots-of-counts")
@given(seeds, st.floats(1.2e6, 3.5e6))
def test_the_oracles_counts_are_not_whole_after_a_root(seed: int, mean: float) -> None:
    expected = torch.full((64, 64), mean)
    theirs = oracle.observe_amplitude(expected.sqrt().numpy(), seed=seed % 2**31) ** 2
    assert (theirs != np.round(theirs)).any()
    mine = poisson_sample(expected, torch.Generator().manual_seed(seed))
    assert bool((mine == mine.round()).all())
