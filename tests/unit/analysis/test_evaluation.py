"""Reconstructions against a truth: what is free is taken out, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from torchptycho.analysis.evaluation import Metrics, evaluate
from torchptycho.analysis.registration import fourier_shift
from torchptycho.analysis.truth_alignment import align_to_truth
from torchptycho.core.errors import EvaluationError, TorchptychoError
from torchptycho.core.reconstruction import Reconstruction

SHAPE = (120, 132)
FIGURES = (
    "amplitude_mae", "phase_mae_rad", "amplitude_ssim", "phase_ssim", "amplitude_correlation", "phase_correlation",
    "complex_nrmse",
)  # fmt: skip


def smooth(rng: np.random.Generator, width_px: float, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    field = gaussian_filter(rng.normal(size=shape), width_px, mode="wrap")
    return field / np.abs(field).max()


def make_truth(seed: int, phase_rad: float = 0.8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    amplitude = 0.75 + 0.25 * smooth(rng, 2.5)
    return amplitude * np.exp(1j * phase_rad * smooth(rng, 2.5))


def round_coverage(shape: tuple[int, int] = SHAPE, radius: float = 50) -> np.ndarray:
    y, x = np.indices(shape)
    r = np.hypot(y - shape[0] / 2, x - shape[1] / 2)
    return np.clip((radius + 4 - r) / 8, 0, 1).astype(np.float32)


def reconstruct(image: np.ndarray, coverage: np.ndarray | None = None, **kwargs: object) -> Reconstruction:
    coverage = round_coverage(image.shape) if coverage is None else coverage
    fields = {"origin_px": (0, 0), "valid": coverage > 0.02} | kwargs
    return Reconstruction(object=image.astype(np.complex64), coverage=coverage, **fields)  # type: ignore[arg-type]


def blurred(seed: int, truth: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = smooth(rng, 1.5) + 1j * smooth(rng, 1.5)
    return gaussian_filter(truth, 1.0) + 0.1 * noise


def same(a: Metrics, b: Metrics, tolerance: float, ssim_tolerance: float | None = None) -> None:
    for name in FIGURES:
        allowed = ssim_tolerance if ssim_tolerance and "ssim" in name else tolerance
        assert getattr(a, name) == pytest.approx(getattr(b, name), abs=allowed), name


@pytest.mark.contract("evaluation.identity")
def test_the_truth_itself_has_no_error() -> None:
    truth = make_truth(0).astype(np.complex64)
    found = evaluate(reconstruct(truth), truth)
    assert found.amplitude_mae < 1e-12
    assert found.phase_mae_rad < 1e-12
    assert found.complex_nrmse < 1e-12
    assert found.amplitude_psnr_db > 200
    assert found.phase_psnr_db > 200
    for name in ("amplitude_ssim", "phase_ssim", "amplitude_correlation", "phase_correlation"):
        assert getattr(found, name) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(found.frc.correlation, 1, rtol=0, atol=1e-9)
    assert found.frc_half_cycles_per_px == 0.5
    assert found.resolution_one_bit_px == 1.0
    assert found.shift_px == pytest.approx((0, 0), abs=1e-9)
    assert found.registered


@pytest.mark.contract("evaluation.gauge")
@given(
    seed=st.integers(0, 2**31),
    phase=st.floats(-np.pi, np.pi),
    scale=st.floats(0.01, 100),
    slope_y=st.floats(-0.35, 0.35),
    slope_x=st.floats(-0.35, 0.35),
)
@settings(max_examples=6)
def test_metrics_do_not_change_with_phase_scale_and_plane(
    seed: int, phase: float, scale: float, slope_y: float, slope_x: float
) -> None:
    truth = make_truth(seed)
    image = blurred(seed + 1, truth)
    y, x = np.indices(SHAPE)
    turned = image * scale * np.exp(1j * (phase + slope_y * y + slope_x * x))
    # No search for a translation, which would answer the rounding of the plane by its own.
    before, after = (evaluate(reconstruct(one), truth, max_shift_px=0) for one in (image, turned))
    # The plane is found to 1/500 turn over the field: the phase at its edges may differ by 6 mrad, which the structural
    # similarity of windows with little contrast notices most.
    same(before, after, 1e-3, ssim_tolerance=5e-3)
    assert before.amplitude_mae > 0.005
    slope = np.subtract(after.ramp_rad_per_px, before.ramp_rad_per_px)
    np.testing.assert_allclose(slope, (slope_y, slope_x), rtol=0, atol=1.5 * 2 * np.pi / 120 / 500)
    np.testing.assert_allclose(after.frc.correlation, before.frc.correlation, rtol=0, atol=1e-2)


@pytest.mark.contract("evaluation.shift")
@given(seed=st.integers(0, 2**31), y=st.floats(-3, 3), x=st.floats(-3, 3))
@settings(max_examples=6)
def test_translation_is_found_and_taken_out(seed: int, y: float, x: float) -> None:
    truth = make_truth(seed)
    rows, columns = np.indices(SHAPE)
    moved = fourier_shift(truth, (y, x)) * np.exp(1j * (0.05 * rows - 0.03 * columns))
    found = evaluate(reconstruct(moved), truth)
    assert found.registered
    np.testing.assert_allclose(found.shift_px, (-y, -x), rtol=0, atol=0.02)
    assert found.amplitude_mae < 2e-3
    assert found.phase_mae_rad < 2e-3
    assert found.phase_ssim > 0.995


@pytest.mark.contract("evaluation.shift.bound")
def test_translation_beyond_the_bound_is_refused_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    truth = make_truth(1)
    moved = reconstruct(np.roll(truth, 7, axis=0))
    with caplog.at_level(logging.WARNING, logger="torchptycho"):
        found = evaluate(moved, truth, max_shift_px=4)
    assert not found.registered
    assert found.shift_px == (0.0, 0.0)
    assert "beyond 4.00 px" in caplog.text
    assert evaluate(moved, truth, max_shift_px=8).shift_px == pytest.approx((-7, 0), abs=0.02)
    unregistered = evaluate(reconstruct(np.roll(truth, 1, axis=0)), truth, max_shift_px=0)
    assert unregistered.shift_px == (0.0, 0.0)
    assert unregistered.amplitude_mae > 0.01


@pytest.mark.contract("evaluation.origin")
def test_images_are_laid_on_each_other_by_their_origins() -> None:
    truth = make_truth(2)
    part = reconstruct(truth[20:110, 30:], np.ones((90, 102), np.float32), origin_px=(120, -70))
    found = evaluate(part, truth[5:, :110], truth_origin_px=(105, -100))
    assert found.amplitude_mae < 1e-6
    assert found.region_px == (120, 210, -70, 10)
    smaller = evaluate(part, truth[5:, :110], truth_origin_px=(105, -100), region_px=(130, 170, -60, -20))
    assert smaller.region_px == (130, 170, -60, -20)
    assert smaller.n_pixels == 1600
    y0, y1, x0, x1 = smaller.frc_square_px
    assert y1 - y0 == x1 - x0 == 38


@pytest.mark.contract("evaluation.mask")
def test_pixels_outside_the_covered_field_have_no_influence() -> None:
    truth = make_truth(3)
    image = blurred(4, truth)
    coverage = round_coverage()
    outside = ~((coverage > 0.02) & (coverage > 0.1))
    clean = evaluate(reconstruct(image), truth, max_shift_px=0)
    spoilt = np.where(coverage > 0.02, image, np.nan)
    found = evaluate(reconstruct(spoilt), np.where(outside, 50, truth), max_shift_px=0)
    same(clean, found, 1e-9)
    assert found.n_pixels == int((~outside).sum())


@pytest.mark.contract("evaluation.flat")
@given(seed=st.integers(0, 2**31), phase=st.floats(0.5, 2))
@settings(max_examples=5)
def test_flat_image_is_charged_with_the_deviation_of_the_truth(seed: int, phase: float) -> None:
    truth = make_truth(seed, phase)
    found = evaluate(reconstruct(np.full(SHAPE, 0.3 - 0.2j)), truth)
    amplitude = np.abs(truth[round_coverage() > 0.1])
    assert found.amplitude_mae == pytest.approx(np.abs(amplitude - amplitude.mean()).mean(), rel=0.02)
    assert found.frc_half_cycles_per_px == 0.0
    assert found.resolution_half_px == float("inf")


@pytest.mark.contract("evaluation.phase.wrap")
def test_phases_beyond_pi_are_compared_without_jumps() -> None:
    truth = make_truth(5, phase_rad=9.0)
    image = truth * np.exp(0.1j * np.sign(smooth(np.random.default_rng(6), 1)))
    found = evaluate(reconstruct(image), truth)
    assert found.phase_mae_rad == pytest.approx(0.1, rel=0.05)
    assert found.phase_psnr_db == pytest.approx(20, abs=0.5)
    assert found.phase_correlation > 0.99
    turned = evaluate(reconstruct(image), -truth)
    assert turned.phase_mae_rad == pytest.approx(found.phase_mae_rad, abs=1e-6)


def test_resolution_is_given_in_metres_when_the_pixel_is_known() -> None:
    truth = make_truth(7)
    found = evaluate(reconstruct(blurred(8, truth), object_pixel_m=20e-9), truth)
    assert found.resolution_half_m == pytest.approx(20e-9 * 0.5 / found.frc_half_cycles_per_px, rel=1e-12)
    assert evaluate(reconstruct(truth), truth).resolution_half_m is None


@pytest.mark.contract("evaluation.json")
def test_metrics_are_plain_json() -> None:
    truth = make_truth(9)
    plain = evaluate(reconstruct(np.ones(SHAPE)), truth).to_dict()
    back = json.loads(json.dumps(plain, allow_nan=False))
    assert back == plain
    assert back["resolution_half_px"] is None
    assert len(back["frc"]["correlation"]) == len(back["frc"]["frequency_cycles_per_px"])
    assert {field.name for field in dataclasses.fields(Metrics)} <= set(back)


@pytest.mark.contract("evaluation.errors")
def test_what_cannot_be_compared_says_what_to_change() -> None:
    truth = make_truth(10)
    with pytest.raises(EvaluationError, match=r"rows 500:620, columns 0:132 against rows 0:120.*truth_origin_px"):
        evaluate(reconstruct(truth, origin_px=(500, 0)), truth)
    with pytest.raises(EvaluationError, match=r"no pixel to compare.*coverage > 2"):
        evaluate(reconstruct(truth), truth, min_coverage=2)
    with pytest.raises(EvaluationError, match="no pixel to compare"):
        evaluate(reconstruct(np.zeros(SHAPE)), truth)
    with pytest.raises(EvaluationError, match="largest square of covered pixels is 8 px"):
        evaluate(reconstruct(truth), truth, region_px=(50, 59, 40, 90))
    with pytest.raises(EvaluationError, match=r"shape \(1, 120, 132\)"):
        evaluate(reconstruct(truth), truth[None])
    assert issubclass(EvaluationError, TorchptychoError)


def test_aligned_pair_shows_the_reconstruction_in_the_gauge_of_the_truth() -> None:
    truth = make_truth(11)
    pair = align_to_truth(reconstruct(truth * 3 * np.exp(1.1j)), truth)
    error = np.linalg.norm((pair.object - pair.truth)[pair.mask]) / np.linalg.norm(pair.truth[pair.mask])
    assert error < 1e-6
    assert pair.amplitude_factor == pytest.approx(1 / 3, rel=1e-6)
    assert pair.phase_rad == pytest.approx(-1.1, abs=1e-6)


def flattened_phase(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Phase less its constant and its least-squares plane: another way to the same gauge."""
    phase = np.angle(image * np.exp(-1j * np.angle(image[mask].sum())))
    y, x = np.nonzero(mask)
    design = np.c_[y, x, np.ones(len(y))]
    values = phase[mask]
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


@pytest.mark.contract("evaluation.star")
def test_phase_correlation_on_the_star_agrees_with_an_independent_one(measured_data: Path) -> None:
    with np.load(measured_data / "siemens-star-128-reference.npz", allow_pickle=False) as file:
        truth, coverage = file["object"], file["coverage"]
    mask = coverage > 0.1
    rng = np.random.default_rng(0)
    noise = 0.3 * np.abs(truth[mask]).mean() * (rng.normal(size=truth.shape) + 1j * rng.normal(size=truth.shape))
    image = (truth + noise) * np.exp(0.4j + 0.002j * np.arange(truth.shape[1]))
    found = evaluate(reconstruct(image, coverage, valid=coverage > 0.05), truth)
    independent = np.corrcoef(flattened_phase(image, mask), flattened_phase(truth, mask))[0, 1]
    assert 0.5 < independent < 0.9
    assert found.phase_correlation == pytest.approx(independent, abs=0.02)
