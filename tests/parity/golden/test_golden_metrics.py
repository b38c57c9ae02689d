"""The oracle's figures of merit, registration and cropping are those of the original."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import MISSING, assert_agree

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.metrics")

_UPSAMPLE, _BORDER_PX, _ALIGN_PATCH_PX = 10, 4, 19
"""Arguments of the calls that were recorded, as the results tell them."""


@pytest.fixture
def vectors(golden):
    return golden("g15_metrics")


@pytest.fixture
def amplitudes(vectors):
    """As they were given to the figures of merit: moduli in single precision, stored in double."""
    return tuple(np.abs(vectors[name]).astype(np.float64) for name in ("gt", "rec"))


@pytest.mark.parametrize("normalize", [False, True])
def test_errors(vectors, amplitudes, normalize):
    for name in ("mae", "mse"):
        found = getattr(oracle, name)(*amplitudes, normalize=normalize)
        assert_agree(np.asarray(found), vectors[f"{name}_norm{int(normalize)}"], f"golden.{name}", "golden")


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_psnr(vectors, amplitudes, normalize, shift):
    found = oracle.psnr(*amplitudes, normalize=normalize, shift=shift)
    expected = vectors[f"psnr_norm{int(normalize)}_shift{int(shift)}"]
    assert_agree(np.asarray(found), expected, "golden.psnr", "golden")


def test_ms_ssim(vectors, amplitudes):
    for sigma in (0.0, 1.0):
        found = oracle.ms_ssim(*amplitudes, sigma=sigma)
        assert_agree(np.asarray(found), vectors[f"ms_ssim_sigma{sigma}"], "golden.ms_ssim", "golden")
    found = oracle.ms_ssim(*(np.angle(vectors[name]).astype(np.float64) for name in ("gt", "rec")))
    assert_agree(np.asarray(found), vectors["ms_ssim_phase"], "golden.ms_ssim", "golden")


def test_ring_correlation(vectors, amplitudes):
    truth, image = amplitudes
    noisy = vectors["noisy"]
    cases = {
        ("frc_curve", "frc50", "frc1over7"): oracle.frc_cutoffs(truth, image),
        ("frc_noisy_curve", "frc_noisy_50", "frc_noisy_1over7"): oracle.frc_cutoffs(truth, noisy),
        ("frc_noisy_sigma2_curve", "frc_noisy_sigma2_50"): oracle.frc_cutoffs(truth, noisy, frc_sigma=2),
        ("frc_noisy_nonsquare_curve",): oracle.frc_cutoffs(truth[:, :90], noisy[:, :90]),
        ("frc_odd95_curve",): oracle.frc_cutoffs(truth[:95, :95], noisy[:95, :95]),
    }
    for keys, found in cases.items():
        for key, value in zip(keys, found, strict=False):
            assert_agree(np.asarray(value), vectors[key], "golden.frc", "golden")


def test_planes_and_trimming(vectors, amplitudes):
    truth, image = np.angle(vectors["gt"]), np.angle(vectors["rec"])
    found = oracle.fit_and_remove_plane(image.astype(np.float64))
    assert_agree(found, vectors["fit_and_remove_plane"], "golden.fit_and_remove_plane", "golden")
    found = oracle.fit_and_remove_plane(image, truth)
    assert_agree(found, vectors["fit_and_remove_plane_ref"], "golden.fit_and_remove_plane", "golden")
    assert_agree(oracle.trim(amplitudes[0].astype(np.float32), 4), vectors["trim"], "golden.trim", "copied")


@pytest.mark.parametrize("method", ["plane", "mean"])
def test_eval_reconstruction(vectors, method):
    found = oracle.eval_reconstruction(vectors["rec"], vectors["gt"], offset=4, phase_align_method=method)
    for name, pair in found.items():
        expected = vectors.get(f"eval_{method}_{name}", np.empty(0))
        if name == "frc":
            expected = [vectors[f"eval_{method}_frc_{part}"] for part in ("amp", "phi")]
        for value, recorded in zip(pair, expected, strict=True):
            assert_agree(np.asarray(value), recorded, f"golden.eval.{name}", "golden")


def test_low_and_high_frequencies(vectors, amplitudes):
    for name in ("lowpass2d", "highpass2d"):
        found = getattr(oracle, name)(amplitudes[0], 2)
        assert_agree(found, vectors[f"{name}_2"], f"golden.{name}", "golden")


def test_registration(vectors, amplitudes):
    truth, moved = vectors["gt"], vectors["moved"]
    offset = oracle.find_translation_offset(moved, truth, upsample_factor=50)
    assert_agree(offset, vectors["find_translation_offset"], "golden.registration", "golden")
    found = oracle.fourier_shift(amplitudes[0], np.array([1.25, -0.5]))
    assert_agree(found, vectors["fourier_shift_real"], "golden.registration", "golden")
    cases = {
        "apply_shift_and_crop": oracle.apply_shift_and_crop(moved, truth, offset, border_crop=2),
        "register_and_align": oracle.register_and_align(moved, truth, _UPSAMPLE, _BORDER_PX),
    }
    for name, pair in cases.items():
        for value, part in zip(pair, ("img", "ref"), strict=True):
            assert_agree(value, vectors[f"{name}_{part}"], "golden.registration", "golden")


def test_cropping(vectors, amplitudes):
    truth = amplitudes[0]
    scan = vectors["scan_yx"]
    assert oracle.get_scan_area_bbox(scan, 16) == tuple(vectors["scan_area_bbox_r16"])
    image, area = oracle.align_for_evaluation(vectors["rec2"], vectors["gt"], scan, _ALIGN_PATCH_PX)
    assert_agree(image, vectors["align_rec"], "golden.cropping", "copied")
    assert_agree(area, vectors["align_gt"], "golden.cropping", "copied")
    assert_agree(oracle.center_crop(truth, 30, 41), vectors["center_crop_30x41"], "golden.cropping", "copied")
    found = oracle.center_crop_border(truth.astype(np.float32), 5)
    assert_agree(found, vectors["center_crop_border5"], "golden.cropping", "copied")
