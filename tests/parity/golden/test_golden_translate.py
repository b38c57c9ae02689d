"""The oracle moves and warps images as the original did."""

from __future__ import annotations

import pytest
from agreement import MISSING, assert_agree

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.translate")


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_translation_by_any_offset(golden, kind, interpolation):
    vectors = golden("g04_translate")
    found = oracle.translate(vectors[f"img_{kind}"], vectors["offsets"], interpolation)
    assert_agree(found, vectors[f"translate_xla_{kind}_{interpolation}"], "golden.translate", "golden")


def test_translation_layer(golden):
    vectors = golden("g04_translate")
    found = oracle.translate(vectors["img_complex"], vectors["offsets"])
    assert_agree(found, vectors["Translation_layer_complex"], "golden.translate", "golden")


def test_three_offsets_for_twelve_images_are_used_in_turn(golden):
    vectors = golden("g04_translate")
    found = oracle.translate(vectors["img_real"], vectors["offsets"][5:8])
    assert_agree(found, vectors["translate_xla_real_cyclic3"], "golden.translate", "golden")


def test_translation_in_double_precision(golden):
    vectors = golden("g04_translate")
    found = oracle.translate(vectors["img_real"].astype(float), vectors["offsets"].astype(float))
    assert_agree(found, vectors["translate_xla_real_f64"], "golden.translate.double", "oracle_double")


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_path_without_xla(golden, interpolation):
    vectors = golden("g04_translate")
    found = oracle.translate(vectors["img_real"], vectors["offsets"], interpolation, use_xla_translate=False)
    assert_agree(found, vectors[f"translate_noxla_real_{interpolation}"], "golden.translate", "golden")


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("fill_mode", ["edge", "zeros"])
def test_projective_warp(golden, fill_mode, interpolation):
    vectors = golden("g04_translate")
    found = oracle.projective_warp_xla(vectors["img_real"], vectors["warp_M"], interpolation, fill_mode)
    assert_agree(found, vectors[f"warp_{fill_mode}_{interpolation}"], "golden.translate", "golden")
