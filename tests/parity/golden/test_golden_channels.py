"""The oracle holds the images of a group, and complex numbers, as the original did."""

from __future__ import annotations

import pytest
from agreement import MISSING, assert_agree

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.channels")


@pytest.mark.parametrize("prefix", ["", "gs3_"])
def test_channels_become_flat_images(golden, prefix):
    vectors = golden("g06_channel_formats")
    found = oracle.channel_to_flat(vectors[f"{prefix}channels"])
    assert_agree(found, vectors[f"{prefix}_channel_to_flat"], "golden.channels.exact", "copied")


@pytest.mark.parametrize(
    ("prefix", "gridsize", "name"),
    [("", 2, "_flat_to_channel"), ("", 2, "_flat_to_channel_2"), ("gs3_", 3, "_flat_to_channel")],
)
def test_flat_images_become_channels(golden, prefix, gridsize, name):
    vectors = golden("g06_channel_formats")
    found = oracle.flat_to_channel(vectors[f"{prefix}_channel_to_flat"], gridsize)
    assert_agree(found, vectors[f"{prefix}{name}"], "golden.channels.exact", "copied")


def test_grids(golden):
    vectors = golden("g06_channel_formats")
    grid = oracle.togrid(vectors["_channel_to_flat"], 2)
    assert_agree(grid, vectors["_togrid"], "golden.channels.exact", "copied")
    assert_agree(oracle.fromgrid(vectors["_togrid"]), vectors["_fromgrid"], "golden.channels.exact", "copied")
    assert_agree(
        oracle.grid_to_channel(vectors["_togrid"]), vectors["_grid_to_channel"], "golden.channels.exact", "copied"
    )
    found = oracle.channel_to_patches(vectors["channels"], 2)
    assert_agree(found, vectors["_channel_to_patches"], "golden.channels.exact", "copied")


def test_channels_are_centred_by_their_coordinates(golden):
    vectors = golden("g06_channel_formats")
    found = oracle.center_channels(vectors["channels"], vectors["offsets"])
    assert_agree(found, vectors["center_channels"], "golden.channels", "golden")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("combine_complex", {}),
        ("CombineComplexLayer", {"use_polar": True}),
        ("CombineComplexLayer_legacy", {"use_polar": False}),
    ],
)
def test_amplitude_and_phase_become_complex_numbers(golden, name, options):
    vectors = golden("g08_complex")
    found = oracle.combine_complex(vectors["amp"], vectors["phi"], **options)
    assert_agree(found, vectors[name], "golden.channels", "golden")


def test_complex_numbers_become_amplitude_and_phase(golden):
    vectors = golden("g08_complex")
    amplitude, phase = oracle.separate_amp_phase(vectors["combine_complex"])
    assert_agree(amplitude, vectors["sep_amp"], "golden.channels", "golden")
    assert_agree(phase, vectors["sep_phase"], "golden.channels", "golden")
