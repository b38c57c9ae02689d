"""The oracle's ground-truth patches are those of the original."""

from __future__ import annotations

import pytest
from agreement import MISSING, assert_agree

oracle = pytest.importorskip("tf_reference", reason=MISSING)


@pytest.mark.contract("golden.image-patches")
@pytest.mark.parametrize("gridsize", [1, 2])
def test_ground_truth_patches(golden, gridsize):
    vectors = golden("g01b_image_patches")
    expected = vectors[f"patches_gs{gridsize}"]
    offsets, relative = oracle.get_relative_coords(vectors[f"coords_nn_gs{gridsize}"])
    for where in ((vectors[f"offsets_gs{gridsize}"], vectors[f"relative_gs{gridsize}"]), (offsets, relative)):
        found = oracle.get_image_patches(vectors["obj"], *where, expected.shape[1], gridsize)
        assert found.dtype == expected.dtype
        assert_agree(found, expected, "golden.get_image_patches", "golden")
