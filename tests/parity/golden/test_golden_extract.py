"""The oracle cuts patches out of images where the original did."""

from __future__ import annotations

import pytest
from agreement import MISSING, assert_agree

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.extract")

_N, _OFFSET, _OUTER_OFFSET = 16, 4, 8


@pytest.mark.parametrize(
    ("prefix", "gridsize", "recorded"),
    [
        ("gs1_", 1, "gs1_extract_patches_position"),
        ("", 2, "extract_patches_position_N16_gs2"),
        ("gs3_", 3, "gs3_extract_patches_position"),
    ],
)
def test_patches_at_the_positions_of_a_group(golden, prefix, gridsize, recorded):
    vectors = golden("g05_extract_patches")
    found = oracle.extract_patches_position(vectors[f"{prefix}imgs"], vectors[f"{prefix}offsets_xy"], _N, gridsize)
    assert_agree(found, vectors[recorded], "golden.extract", "golden")


def test_canvas_of_the_recorded_groups(golden):
    vectors = golden("g05_extract_patches")
    for prefix, gridsize in (("gs1_", 1), ("", 2), ("gs3_", 3)):
        assert vectors[f"{prefix}imgs"].shape[1] == oracle.get_padded_size(_N, gridsize, _OFFSET, 10)
    assert vectors["padded_size"] == oracle.get_padded_size(_N, 2, _OFFSET, 10)


def test_patches_on_a_grid(golden):
    vectors = golden("g05_extract_patches")
    found = oracle.extract_patches(vectors["big"], _N, _OFFSET)
    assert_agree(found, vectors["extract_patches_N16_off4"], "golden.extract.exact", "copied")


def test_what_groups_on_a_grid_see(golden):
    vectors = golden("g05_extract_patches")
    found = oracle.extract_outer(vectors["big"], _N, 2, _OFFSET, _OUTER_OFFSET)
    assert_agree(found, vectors["extract_outer_grid_outer8"], "golden.extract.exact", "copied")


@pytest.mark.parametrize("fmt", ["flat", "grid", "channel"])
def test_patches_of_groups_on_a_grid(golden, fmt):
    vectors = golden("g05_extract_patches")
    found = oracle.extract_nested_patches(vectors["big"], _N, 2, _OFFSET, _OUTER_OFFSET, fmt)
    assert_agree(found, vectors[f"extract_nested_patches_{fmt}_outer8"], "golden.extract.exact", "copied")
