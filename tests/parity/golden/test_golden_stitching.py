"""The oracle stitches the patches of a scan as the original did."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import MISSING, assert_agree

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.stitching")


@pytest.mark.parametrize("operator", ["shift_and_sum", "reassemble_position"])
@pytest.mark.parametrize("size", [10, 16, 20])
def test_patches_at_their_offsets(golden, operator, size):
    vectors = golden("g10_stitch")
    found = getattr(oracle, operator)(vectors["obj"], vectors["offsets_n112"], M=size)
    assert_agree(found, vectors[f"{operator}_M{size}"], "golden.stitching", "golden")


@pytest.mark.parametrize(
    ("offsets", "chunk_size", "recorded"),
    [("offsets_n121", 64, "off121"), ("offsets_n112", 5, "chunk5"), ("offsets_int", 64, "int")],
)
def test_other_offsets_and_chunks(golden, offsets, chunk_size, recorded):
    vectors = golden("g10_stitch")
    found = oracle.reassemble_position(vectors["obj"], vectors[offsets], M=20, chunk_size=chunk_size)
    assert_agree(found, vectors[f"reassemble_position_M20_{recorded}"], "golden.stitching", "golden")


def test_odd_size_is_refused(golden):
    vectors = golden("g10_stitch")
    assert "reassemble_position_M11_ERROR" in vectors
    with pytest.raises(ValueError, match="expected an even number; found 11"):
        oracle.reassemble_position(vectors["obj"], vectors["offsets_n112"], M=11)


@pytest.mark.parametrize("wrong", [("obj", np.complex128), ("offsets_n112", np.float32)])
def test_other_precisions_are_refused(golden, wrong):
    vectors = golden("g10_stitch")
    name, dtype = wrong
    vectors[name] = vectors[name].astype(dtype)
    with pytest.raises(TypeError, match="expected float64 offsets, complex64 objects"):
        oracle.reassemble_position(vectors["obj"], vectors["offsets_n112"])


@pytest.mark.parametrize(("norm", "recorded"), [(False, "64"), (True, "64_norm")])
def test_groups_on_one_canvas(golden, norm, recorded):
    vectors = golden("g10_stitch")
    found = oracle.reassemble_whole_object(vectors["wo_patches"], vectors["wo_offsets"], 64, norm)
    expected = vectors[f"reassemble_whole_object_{recorded}"]
    known = np.isfinite(expected)
    assert known.any()
    np.testing.assert_array_equal(np.isfinite(found), known)
    assert_agree(found[known], expected[known], "golden.stitching", "golden")


@pytest.mark.parametrize("part", ["amp", "phase", "complex"])
def test_tiles_of_a_regular_grid(golden, part):
    vectors = golden("g10_stitch")
    found = oracle.stitch_patches(vectors["grid_patches16"], outer_offset=8, part=part)
    assert_agree(found, vectors[f"stitch_patches_{part}"], "golden.stitching", "golden")
