"""Figures of merit on arrays, and the registration below them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchptycho.analysis import metrics
from torchptycho.analysis.registration import align, flatten_phase, fourier_shift

seeds = st.integers(0, 2**31)


def noise(seed: int, shape: tuple[int, int] = (96, 96)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def low_pass(image: np.ndarray, cutoff_cycles_per_px: float) -> np.ndarray:
    fy, fx = (np.fft.fftfreq(n) for n in image.shape)
    return np.fft.ifft2(np.fft.fft2(image) * (np.hypot(fy[:, None], fx[None, :]) < cutoff_cycles_per_px))


@pytest.mark.contract("evaluation.psnr")
def test_psnr_has_unit_peak() -> None:
    assert metrics.psnr_db(0.1**2) == pytest.approx(20.0, abs=1e-12)
    assert metrics.psnr_db(0.0) == float("inf")


def test_wrapped_angles_lie_above_minus_pi_and_up_to_pi() -> None:
    angles = np.array([np.pi, -np.pi, 3 * np.pi, 0.5, 7.0])
    np.testing.assert_allclose(metrics.wrap_rad(angles), [np.pi, np.pi, np.pi, 0.5, 7 - 2 * np.pi], rtol=0, atol=1e-12)


def test_correlation_is_that_of_pearson_and_zero_for_a_constant() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 400))
    assert metrics.correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    assert metrics.correlation(3 - 2 * a, a) == pytest.approx(-1, abs=1e-12)
    assert metrics.correlation(np.full(400, 0.3), b) == 0.0


@pytest.mark.contract("evaluation.nrmse")
@given(seeds)
@settings(max_examples=5)
def test_nrmse_of_signal_plus_noise_is_the_share_of_the_noise(seed: int) -> None:
    signal, added = noise(seed).ravel(), 0.3 * noise(seed + 1).ravel()
    # The best complex factor also shrinks the noise: sqrt(n^2 / (1 + n^2)).
    assert metrics.complex_nrmse(2j * (signal + added), signal) == pytest.approx(0.3 / np.sqrt(1.09), rel=0.04)


def test_ssim_of_a_masked_image_ignores_what_lies_outside() -> None:
    rng = np.random.default_rng(1)
    truth, image = rng.random((2, 48, 48))
    mask = np.zeros((48, 48), dtype=bool)
    mask[8:40, 10:36] = True
    inside = metrics.masked_ssim(image, truth, mask)
    assert metrics.masked_ssim(np.where(mask, image, 1e6), np.where(mask, truth, -1e6), mask) == inside
    assert metrics.masked_ssim(truth, truth, mask) == pytest.approx(1.0, abs=1e-12)
    assert inside < 0.2
    # On a rectangle it is scikit-image's own mean, which leaves out the rim of half a window.
    from skimage.metrics import structural_similarity

    box = np.s_[8:40, 10:36]
    expected = structural_similarity(image[box], truth[box], data_range=np.ptp(truth[box]))
    assert inside == pytest.approx(expected, abs=1e-12)


@pytest.mark.contract("evaluation.frc.noise")
@given(seeds)
@settings(max_examples=5)
def test_ring_correlation_of_independent_noise_is_zero(seed: int) -> None:
    _, curve, counts = metrics.fourier_ring_correlation(noise(seed), noise(seed + 1), taper=0)
    # The real part of the correlation of n independent complex pairs has standard deviation 1 / sqrt(2 n).
    assert np.abs(curve * np.sqrt(2 * counts)).max() < 5
    assert abs(np.average(curve, weights=counts)) < 0.05


@given(seeds)
@settings(max_examples=5)
def test_ring_correlation_of_identical_images_is_one_and_of_opposite_images_minus_one(seed: int) -> None:
    image = noise(seed) + 3
    frequency, curve, counts = metrics.fourier_ring_correlation(image, image)
    np.testing.assert_allclose(curve, 1, rtol=0, atol=1e-9)
    np.testing.assert_allclose(metrics.fourier_ring_correlation(image, -image)[1], -1, rtol=0, atol=1e-9)
    assert frequency[0] == pytest.approx(1 / 96)
    assert frequency[-1] == 0.5
    # All Fourier pixels inside the Nyquist circle (and half a ring more), but for the zero frequency.
    assert counts.sum() == pytest.approx(np.pi * 48.5**2 - 1, rel=0.02)


@pytest.mark.contract("evaluation.frc.snr")
@given(seeds)
@settings(max_examples=5)
def test_ring_correlation_with_the_truth_follows_the_signal_to_noise_ratio(seed: int) -> None:
    truth = noise(seed)
    _, curve, counts = metrics.fourier_ring_correlation(truth + noise(seed + 1) / np.sqrt(3), truth)
    assert np.average(curve, weights=counts) == pytest.approx(np.sqrt(3 / 4), abs=0.02)


def test_a_flat_image_resolves_nothing() -> None:
    frequency, curve, _ = metrics.fourier_ring_correlation(np.full((64, 64), 0.7 + 0.1j), noise(3, (64, 64)))
    assert not curve.any()
    assert metrics.frc_crossing(frequency, curve, 0.5) == 0.0


def test_opposite_edges_that_differ_do_not_correlate_through_the_window() -> None:
    rows = np.linspace(0, 20, 96)[:, None]
    tapered = metrics.fourier_ring_correlation(noise(4) + rows, noise(5) + rows)[1]
    open_edges = metrics.fourier_ring_correlation(noise(4) + rows, noise(5) + rows, taper=0)[1]
    assert np.abs(tapered[12:]).mean() < 0.5 * np.abs(open_edges[12:]).mean()


@pytest.mark.contract("evaluation.frc.cutoff")
@pytest.mark.parametrize("cutoff", [0.1, 0.2, 0.35])
def test_resolution_is_the_frequency_beyond_which_nothing_is_carried(cutoff: float) -> None:
    truth = noise(6, (160, 160))
    image = low_pass(truth, cutoff) + 0.1 * noise(7, (160, 160))
    frequency, curve, counts = metrics.fourier_ring_correlation(image, truth)
    assert metrics.frc_crossing(frequency, curve, 0.5) == pytest.approx(cutoff, abs=1.5 / 160)
    assert metrics.frc_crossing(frequency, curve, metrics.snr_threshold(counts)) == pytest.approx(cutoff, abs=1.5 / 160)


@pytest.mark.contract("evaluation.frc.threshold")
def test_thresholds_have_their_published_form_and_limits() -> None:
    many = np.array([10**12])
    assert metrics.snr_threshold(many, 1.0)[0] == pytest.approx(1 / 3, abs=1e-5)
    assert metrics.snr_threshold(many, 0.5)[0] == pytest.approx(0.2071 / 1.2071, abs=1e-4)
    n = np.array([16])
    published = (0.5 + 2.4142 / np.sqrt(n)) / (1.5 + 1.4142 / np.sqrt(n))
    np.testing.assert_allclose(metrics.snr_threshold(n), published, rtol=1e-4)
    published = (0.2071 + 1.9102 / np.sqrt(n)) / (1.2071 + 0.9102 / np.sqrt(n))
    np.testing.assert_allclose(metrics.snr_threshold(n, 0.5), published, rtol=1e-3)


@pytest.mark.contract("evaluation.frc.crossing")
def test_crossing_lies_between_rings_on_a_straight_line() -> None:
    f = np.arange(1, 6) / 10
    assert metrics.frc_crossing(f, np.array([1, 0.9, 0.7, 0.2, 0.9]), 0.5) == pytest.approx(0.34, abs=1e-12)
    assert metrics.frc_crossing(f, np.array([1, 0.9, 0.7, 0.6, 0.5]), 0.5) == 0.5
    assert metrics.frc_crossing(f, np.array([0.1, 0.2, 0.3, 0.9, 0.9]), 0.5) == 0.0
    assert metrics.frc_crossing(f, np.array([0.4, 0.9, 0.9, 0.1, 0.0]), 0.5) == pytest.approx(0.35, abs=1e-12)


@given(seeds, st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=5)
def test_registration_gives_shift_and_slope_with_their_signs(seed: int, y: float, x: float) -> None:
    truth = low_pass(noise(seed), 0.2) + 1
    rows, columns = np.indices(truth.shape)
    image = fourier_shift(truth, (y, x)) * np.exp(1j * (0.2 * rows - 0.1 * columns))
    # Both look at a field that is surrounded by the same, so that nothing but the shift differs.
    mask = np.zeros(truth.shape, dtype=bool)
    mask[16:-16, 16:-16] = True
    found = align(image, truth, mask, known=np.ones_like(mask))
    np.testing.assert_allclose(found.shift_px, (-y, -x), rtol=0, atol=0.02)
    # One step of the search is 1/500 turn over the field.
    np.testing.assert_allclose(found.ramp_rad_per_px, (0.2, -0.1), rtol=0, atol=1.5 * 2 * np.pi / 96 / 500)


def test_fourier_shift_moves_towards_larger_indices() -> None:
    image = np.zeros((32, 40), dtype=complex)
    image[10, 20] = 1
    np.testing.assert_allclose(fourier_shift(image, (3, -2)), np.roll(image, (3, -2), axis=(0, 1)), rtol=0, atol=5e-3)


def test_what_leaves_one_side_does_not_come_in_at_the_other() -> None:
    image = np.ones((32, 32), dtype=complex)
    image[:4] = 5
    assert np.abs(fourier_shift(image, (-4, 0))[-8:] - 1).max() < 0.2


@pytest.mark.contract("evaluation.square")
@given(seeds)
@settings(max_examples=10)
def test_largest_square_lies_in_the_mask_and_cannot_grow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.ones((40, 50), dtype=bool)
    mask[rng.integers(0, 40, 6), rng.integers(0, 50, 6)] = False
    rows, columns = metrics.largest_square(mask)
    edge = rows.stop - rows.start
    assert mask[rows, columns].all()
    assert edge == columns.stop - columns.start
    assert edge % 2 == 1
    grown = [mask[y : y + edge + 2, x : x + edge + 2].all() for y in range(40 - edge - 1) for x in range(50 - edge - 1)]
    assert not any(grown)


@pytest.mark.contract("evaluation.plane.bound")
def test_phase_plane_beyond_the_bound_is_refused_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    truth = low_pass(noise(8), 0.2) + 1
    mask = np.ones(truth.shape, dtype=bool)
    steep = truth * np.exp(0.5j * np.arange(96))
    with caplog.at_level(logging.WARNING, logger="torchptycho"):
        found = align(steep, truth, mask)
    assert not found.registered
    assert found.ramp_rad_per_px == (0.0, 0.0)
    assert "phase plane" in caplog.text
    assert align(truth * np.exp(0.3j * np.arange(96)), truth, mask).registered


@pytest.mark.contract("plot.flat")
@pytest.mark.parametrize("turns", [-3.3, 2.0])
def test_display_takes_out_a_plane_but_not_the_period_of_the_object(turns: float) -> None:
    truth = low_pass(noise(9), 0.1) + 3
    mask = np.hypot(*(np.indices(truth.shape) - 48)) < 44
    plane = np.exp(1j * (2 * np.pi * turns * np.arange(96) / 96 + 1))
    shown = flatten_phase(truth * plane[:, None], mask)
    assert np.abs(np.angle(shown * flatten_phase(truth, mask).conj()))[mask].max() < 0.1
    grating = np.exp(0.4j * np.pi * np.arange(96))[:, None] * np.ones(96)
    np.testing.assert_allclose(
        flatten_phase(grating, mask)[:5, 0] / grating[:5, 0], np.exp(-1j * np.angle(grating[mask].sum()))
    )
