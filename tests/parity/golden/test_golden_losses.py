"""The oracle's losses are those of the original."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import MISSING, assert_agree

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.losses")


def test_likelihood(golden):
    vectors = golden("g12_losses")
    found = oracle.negloglik(vectors["y_true_int"], vectors["y_pred_int"])
    assert_agree(found, vectors["negloglik_elementwise"], "golden.negloglik", "golden")
    assert_agree(found.mean(), vectors["negloglik_keras_reduced"], "golden.negloglik", "golden")


def test_likelihood_has_no_floor(golden):
    found = oracle.negloglik(np.array([[0.0, 2.0]], np.float32), np.zeros((1, 2), np.float32))
    np.testing.assert_array_equal(found, golden("g12_losses")["negloglik_zero_pred"])


def test_mae_of_amplitudes(golden):
    vectors = golden("g12_losses")
    found = oracle.mean_absolute_error(np.sqrt(vectors["y_true_int"]), np.sqrt(vectors["y_pred_int"]))
    assert_agree(found, vectors["mae_keras"], "golden.mean_absolute_error", "golden")


def test_total_variation(golden):
    vectors = golden("g12_losses")
    found = {
        "complex": oracle.total_variation(vectors["pred_c"]),
        "amp_only": oracle.total_variation(vectors["pred_c"], amp_only=True),
        "real": oracle.total_variation(vectors["y_pred_int"]),
    }
    for name, value in found.items():
        assert_agree(value, vectors[f"total_variation_{name}"], "golden.total_variation", "golden")


def test_other_losses(golden):
    vectors = golden("g12_losses")
    found = oracle.meanSquaredLoss(vectors["y_true_int"], vectors["y_pred_int"])
    assert_agree(found, vectors["meanSquaredLoss"], "golden.meanSquaredLoss", "golden")
    assert_agree(oracle.gram_matrix(vectors["y_true_int"]), vectors["gram_matrix"], "golden.gram_matrix", "golden")


@pytest.mark.parametrize(("tv_weight", "probe_big"), [(0.0, True), (0.3, True), (0.3, False)])
def test_real_space_loss_is_total_variation_without_mae(golden, tv_weight, probe_big):
    vectors = golden("g12_losses")
    found = oracle.realspace_loss(vectors["target_c"], vectors["pred_c"], tv_weight=tv_weight, probe_big=probe_big)
    expected = vectors[f"realspace_loss_tv{tv_weight}_mae0.0_probebig{int(probe_big)}"]
    assert_agree(found.astype(np.float64), expected.astype(np.float64), "golden.realspace_loss", "golden")


@pytest.mark.parametrize(
    ("key", "target", "pred"),
    [
        ("real_real", "real", "real"),
        ("ctarget_realpred", "c", "real"),
        ("ctarget_cpred", "c", "c"),
        ("realtarget_cpred", "real", "c"),
    ],
)
def test_complex_mae(golden, key, target, pred):
    vectors = golden("g12b_losses_patched")
    found = oracle.complex_mae(vectors[f"target_{target}"], vectors[f"pred_{pred}"])
    assert_agree(found, vectors[f"complex_mae_{key}"], "golden.complex_mae", "golden")


def test_masked_mae(golden):
    vectors = golden("g12b_losses_patched")
    found = oracle.masked_mae(vectors["target_real"], vectors["pred_real"])
    assert_agree(found, vectors["masked_mae"], "golden.masked_mae", "golden")


@pytest.mark.parametrize(("key", "pred"), [("real", "real"), ("realtarget_cpred", "c")])
@pytest.mark.parametrize(("tv_weight", "probe_big"), [(0.0, True), (0.2, False)])
def test_real_space_loss(golden, key, pred, tv_weight, probe_big):
    vectors = golden("g12b_losses_patched")
    found = oracle.realspace_loss(
        vectors["target_real"],
        vectors[f"pred_{pred}"],
        tv_weight=tv_weight,
        realspace_mae_weight=0.5,
        probe_big=probe_big,
    )
    expected = vectors[f"realspace_loss_tv{tv_weight}_mae0.5_probebig{int(probe_big)}_{key}"]
    assert_agree(found, expected, "golden.realspace_loss", "golden")
