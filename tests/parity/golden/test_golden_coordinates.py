"""The oracle's coordinates and sizes are those of the original."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import MISSING, assert_agree, assert_same_indices

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.coordinates")

_MEMBERS = (1, 4, 9)


@pytest.mark.parametrize("members", _MEMBERS)
def test_coordinates_relative_to_their_group(golden, members):
    vectors = golden("g03_coords")
    offsets, relative = oracle.get_relative_coords(vectors[f"coords_nn_C{members}"])
    assert relative.dtype == offsets.dtype == vectors[f"relative_C{members}"].dtype
    assert_agree(offsets, vectors[f"offsets_C{members}"], "golden.get_relative_coords", "golden")
    assert_agree(relative, vectors[f"relative_C{members}"], "golden.get_relative_coords", "golden")


@pytest.mark.parametrize("members", _MEMBERS)
def test_flat_and_centred_coordinates(golden, members):
    vectors = golden("g03_coords")
    flat = oracle.flatten_offsets(vectors[f"relative_C{members}"])
    assert_agree(flat, vectors[f"flatten_offsets_C{members}"], "golden.flatten_offsets", "golden")
    centred = oracle.center_reassembly_offsets(vectors[f"coords_nn_C{members}"])
    expected = vectors[f"center_reassembly_offsets_C{members}"]
    assert centred.dtype == expected.dtype
    assert_agree(centred, expected, "golden.center_reassembly_offsets", "golden")


def test_sizes_of_grid_padding_and_canvas(golden):
    table = golden("g03_coords")["sizes_N_gs_offset_jitter_bigN_paddingsize_paddedsize"]
    found = [
        (
            oracle.get_bigN(n, gridsize, offset),
            oracle.get_padding_size(gridsize, offset, jitter),
            oracle.get_padded_size(n, gridsize, offset, jitter),
        )
        for n, gridsize, offset, jitter in table[:, :4].tolist()
    ]
    assert_same_indices(np.array(found), table[:, 4:], "golden.padded_size")


def test_coordinates_of_nested_patches(golden):
    vectors = golden("g03_coords")
    prefix = "diffsim.extract_coords_size40_outer8_"
    found = oracle.extract_coords(40, 1, outer_offset=8, N=16, gridsize=2, offset=4)
    for name, value in zip(("offsets", "global_x", "global_y"), found, strict=True):
        assert value.dtype == vectors[prefix + name].dtype
        assert_agree(value, vectors[prefix + name], "golden.extract_coords", "golden")
