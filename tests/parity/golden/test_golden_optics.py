"""The oracle's beam, objects, far field and photon noise are those of the original."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import MISSING, assert_agree

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.optics")


@pytest.fixture
def vectors(golden):
    return golden("g11_physics")


@pytest.mark.parametrize("pad", [False, True])
def test_pad_and_diffract(vectors, pad):
    padded, amplitude = oracle.pad_and_diffract(vectors["obj"], 16, 16, pad=pad)
    name = f"pad_and_diffract_pad{int(pad)}"
    assert_agree(padded, vectors[f"{name}_padded"], "golden.pad_and_diffract.padded", "copied")
    assert_agree(amplitude, vectors[f"{name}_amp"], "golden.pad_and_diffract", "golden")


def test_pad_and_diffract_with_an_odd_edge(vectors):
    _, amplitude = oracle.pad_and_diffract(vectors["obj15"], 15, 15, pad=False)
    assert_agree(amplitude, vectors["pad_and_diffract_N15_amp"], "golden.pad_and_diffract", "golden")


def test_diffract_obj(vectors):
    found = oracle.diffract_obj(vectors["obj"])
    assert_agree(found, vectors["diffract_obj_nopoisson"], "golden.diffract_obj", "golden")


def test_illuminate_and_diffract(vectors):
    X, Y_I, Y_phi, scale = oracle.illuminate_and_diffract(
        vectors["YI"], vectors["Yphi"], vectors["probe"], nphotons=1e4, gridsize=2
    )
    for value, key in ((X, "X_noiseless"), (Y_I, "Y_I"), (Y_phi, "Y_phi"), (scale, "intensity_scale")):
        assert_agree(value, vectors[f"iad_{key}"], "golden.illuminate_and_diffract", "golden")


def test_illuminate_and_diffract_with_a_given_scale(vectors):
    X, Y_I, _, scale = oracle.illuminate_and_diffract(
        vectors["YI"], vectors["Yphi"], vectors["probe"], nphotons=1e4, gridsize=2, intensity_scale=77.0
    )
    assert_agree(X, vectors["iad77_X_noiseless"], "golden.illuminate_and_diffract", "golden")
    assert_agree(Y_I, vectors["iad77_Y_I"], "golden.illuminate_and_diffract", "golden")
    assert float(scale) == 77.0


def test_observe_amplitude(vectors):
    """The draws are TensorFlow's own: mean and variance of the counts are what can be recorded of them."""
    counts = oracle.observe_amplitude(np.full((200, 200), 3.0, np.float32), seed=1) ** 2
    mean, variance = vectors["observe_amplitude_amp3_mean_var_of_square"]
    # Both sides are samples; five standard errors of the smaller one that this may be.
    assert counts.mean() == pytest.approx(mean, abs=0.1)
    assert counts.var() == pytest.approx(variance, abs=0.5)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-4)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_probe_illumination(vectors, mask, sigma):
    waves, probe = oracle.probe_illumination(vectors["obj"], vectors["probe"][..., None], mask=mask, sigma=sigma)
    name = f"ProbeIllumination_mask{int(mask)}_sigma{sigma}"
    assert_agree(waves, vectors[name], "golden.probe_illumination", "golden")
    assert_agree(probe, vectors[f"{name}_probe"], "golden.probe_illumination", "golden")


@pytest.mark.parametrize("n_px", [16, 64])
def test_disc_and_default_probe(vectors, n_px):
    np.testing.assert_array_equal(oracle.get_probe_mask_real(n_px), vectors[f"get_probe_mask_real_N{n_px}"])
    for name in ("get_default_probe", "get_squared_distance"):
        assert_agree(getattr(oracle, name)(n_px), vectors[f"{name}_N{n_px}"], f"golden.{name}", "golden")


@pytest.mark.parametrize(("key", "probe_scale"), [("set_probe_scale4", 4), ("set_probe_guess_scale10", 10)])
def test_set_probe(vectors, key, probe_scale):
    found = oracle.set_probe(vectors["probe"], probe_scale)
    assert found.dtype == vectors[key].dtype
    assert_agree(found, vectors[key], "golden.set_probe", "golden")


def test_gaussian_filters(vectors):
    found = oracle.complex_gaussian_filter2d(vectors["obj"], 3, 0.7)
    assert_agree(found, vectors["complex_gaussian_filter2d_3x3_s0.7"], "golden.gaussian_filter2d", "golden")
    # Of the real part, which is what was recorded.
    found = oracle.gaussian_filter2d(vectors["obj"].real.copy(), 5, 1.3)
    assert_agree(found, vectors["gaussian_filter2d_5x5_s1.3"], "golden.gaussian_filter2d", "golden")
    assert_agree(oracle.lowpass_g(0.7, 64), vectors["lowpass_g_0.7_64"], "golden.lowpass_g", "golden")


def test_simulated_object(vectors):
    found = oracle.mk_lines_img(64, rng=np.random.RandomState(0))
    assert_agree(found, vectors["mk_lines_img_N64_rng0"], "golden.mk_lines_img", "golden")
    assert_agree(oracle.dummy_phi(vectors["YI"]), vectors["dummy_phi"], "golden.dummy_phi", "golden")
