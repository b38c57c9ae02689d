"""The oracle pads, trims and masks as the original did."""

from __future__ import annotations

import pytest
from agreement import MISSING, assert_agree

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.padding")

_N, _PADDED = 16, 30


def test_padding(golden):
    vectors = golden("g07_pad_trim")
    found = {
        "pad_reconstruction": oracle.pad_reconstruction(vectors["channels"], _PADDED),
        "pad_patches_default": oracle.pad_patches(vectors["flat"], _PADDED),
        "pad_patches_25_oddtotal": oracle.pad_patches(vectors["flat"], 25),
        "pad_size3": oracle.pad(vectors["flat"], 3),
        "pad_obj": oracle.pad_obj(vectors["flat"]),
    }
    for name, images in found.items():
        assert_agree(images, vectors[name], "golden.padding.exact", "copied")


@pytest.mark.parametrize(("n_px", "name"), [(_N, "trim_default_N16"), (_N - 1, "trim_N15_odd")])
def test_trimming(golden, n_px, name):
    vectors = golden("g07_pad_trim")
    assert_agree(oracle.trim_reconstruction(vectors["big30"], n_px), vectors[name], "golden.padding.exact", "copied")


def test_trimming_by_nothing_leaves_nothing(golden):
    vectors = golden("g07_pad_trim")
    found = oracle.trim_reconstruction(vectors["flat"], _N)
    assert found.shape == tuple(vectors["trim_MeqN_shape"])


@pytest.mark.parametrize("kind", ["center", "border"])
def test_mask_of_the_centre(golden, kind):
    vectors = golden("g07_pad_trim")
    found = oracle.mk_centermask(vectors["channels"], _N, 4, kind)
    expected = vectors[f"mk_centermask_{kind}"]
    assert found.dtype == expected.dtype
    assert_agree(found, expected, "golden.padding.exact", "copied")


def test_mask_by_a_threshold(golden):
    vectors = golden("g07_pad_trim")
    found = oracle.get_mask(vectors["channels"].real, 0.0)
    assert_agree(found, vectors["get_mask_thr0"], "golden.padding.exact", "copied")
