"""The one adapter of layouts and signs, as a round trip and against the oracle's own conversions."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import MISSING, assert_agree
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import coordinates, seeds

from torchptycho.interop import original_layouts

oracle = pytest.importorskip("tf_reference", reason=MISSING)

groups = st.integers(1, 4)
gridsizes = st.integers(1, 3)


@st.composite
def grouped_positions(draw: st.DrawFn) -> NDArray[np.float64]:
    """[G, C, 2] positions (y, x); y and x share no number, so that exchanging them shows."""
    shape = draw(groups), draw(gridsizes) ** 2
    size = shape[0] * shape[1]
    y, x = (draw(st.lists(coordinates(*span), min_size=size, max_size=size)) for span in ((-50, -1), (1, 200)))
    return np.stack([np.reshape(y, shape), np.reshape(x, shape)], axis=-1)


@pytest.mark.contract("parity.layouts.images")
@given(batch=groups, gridsize=gridsizes, height=st.integers(1, 6), width=st.integers(1, 6), seed=seeds)
def test_images_change_their_layout_and_come_back(batch, gridsize, height, width, seed):
    images = np.random.default_rng(seed).normal(size=(batch, gridsize**2, height, width)).astype(np.float32)
    channels = original_layouts.channels_last(images)
    np.testing.assert_array_equal(original_layouts.channels_first(channels), images)
    # The oracle's flat index b*C + c is the order in which this package's array lies in memory.
    flat = images.reshape(-1, height, width, 1)
    assert_agree(oracle.channel_to_flat(channels), flat, "parity.layouts.images", "copied")
    assert_agree(oracle.flat_to_channel(flat, gridsize), channels, "parity.layouts.images", "copied")


@pytest.mark.contract("parity.layouts.images")
@given(batch=groups, gridsize=gridsizes, n_px=st.integers(1, 5), seed=seeds)
def test_channel_c_is_cell_c_of_the_grid_row_by_row(batch, gridsize, n_px, seed):
    images = np.random.default_rng(seed).normal(size=(batch, gridsize**2, n_px, n_px)).astype(np.float32)
    grid = oracle.togrid(images.reshape(-1, n_px, n_px, 1), gridsize)
    for c in range(gridsize**2):
        assert_agree(grid[:, c // gridsize, c % gridsize, ..., 0], images[:, c], "parity.layouts.images", "copied")
    assert_agree(
        oracle.grid_to_channel(grid), original_layouts.channels_last(images), "parity.layouts.images", "copied"
    )
    assert_agree(oracle.fromgrid(grid), images.reshape(-1, n_px, n_px, 1), "parity.layouts.images", "copied")
    patches = oracle.channel_to_patches(original_layouts.channels_last(images), gridsize)
    expected = images.reshape(batch, gridsize, gridsize, n_px**2)
    assert_agree(patches, expected, "parity.layouts.images", "copied")


@pytest.mark.contract("parity.layouts.coordinates")
@given(positions_px=grouped_positions())
def test_positions_change_their_layout_and_come_back(positions_px):
    coords = original_layouts.coords_from_positions(positions_px)
    np.testing.assert_array_equal(original_layouts.positions_from_coords(coords), positions_px)
    np.testing.assert_array_equal(coords[:, 0, 0], positions_px[..., 1])
    np.testing.assert_array_equal(coords[:, 0, 1], positions_px[..., 0])
    flat = oracle.flatten_offsets(coords)
    assert_agree(flat, positions_px.reshape(-1, 2)[:, ::-1].copy(), "parity.layouts.coordinates", "copied")


@pytest.mark.contract("parity.layouts.coordinates")
@given(positions_px=grouped_positions())
def test_offsets_from_the_centre_have_the_opposite_sign(positions_px):
    center_px = positions_px.mean(1)
    offset_px = positions_px - center_px[:, None]
    coords_offsets, coords_relative = oracle.get_relative_coords(original_layouts.coords_from_positions(positions_px))
    name, limit = "parity.layouts.coordinates", "oracle_double"
    # Offsets of frames on top of each other are the rounding errors of their mean, and as such are not comparable.
    scale = np.abs(positions_px).max()
    assert_agree(original_layouts.relative_from_offsets(offset_px) + scale, coords_relative + scale, name, limit)
    assert_agree(original_layouts.offsets_from_relative(coords_relative) + scale, offset_px + scale, name, limit)
    assert_agree(original_layouts.offsets_from_centers(center_px), coords_offsets, name, limit)
    assert_agree(original_layouts.centers_from_offsets(coords_offsets), center_px, name, limit)
