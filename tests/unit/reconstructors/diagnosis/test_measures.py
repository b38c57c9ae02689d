"""Measures that show a fault without a refinement: on what they find, and on what they must leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from torchptycho.core.config import ReadConfig
from torchptycho.core.config.read import parse_frame_slice
from torchptycho.io.scan_geometry import orient_positions
from torchptycho.reconstructors.diagnosis.findings import merge_options
from torchptycho.reconstructors.diagnosis.measures import (
    count_clipped,
    find_gaps,
    find_repeats,
    measure_masked_light,
    measure_regularity,
    measure_spacing_px,
)
from torchptycho.reconstructors.diagnosis.remedies import list_coarse_remedies, list_neighbours
from torchptycho.reconstructors.diagnosis.wording import combine_orientation, fit_map

RNG = np.random.default_rng(3)
N = 32
EVERYWHERE = np.ones((N, N), bool)


def make_raster(jitter_px: float) -> np.ndarray:
    y, x = np.meshgrid(np.arange(9) * 6.0, np.arange(9) * 6.0, indexing="ij")
    grid = np.stack([y.ravel(), x.ravel()], 1)
    return grid + RNG.uniform(-jitter_px, jitter_px, grid.shape)


def make_disc(level: float, frames: int) -> np.ndarray:
    rows, columns = np.indices((N, N)) - N / 2
    return RNG.poisson(level * np.exp(-(rows**2 + columns**2) / (2 * 6.0**2)), (frames, N, N)).astype(np.float64)


@pytest.mark.contract("diagnose.measures")
def test_only_a_lattice_is_regular() -> None:
    turned = make_raster(0.0) @ np.array([[0.9, 0.3], [-0.3, 1.1]])
    for lattice in (make_raster(0.0), make_raster(0.1), turned):
        assert measure_regularity(lattice) > 0.95
    for other in (make_raster(1.5), RNG.random((81, 2)) * 50):
        assert measure_regularity(other) < 0.8
    assert measure_regularity(make_raster(0.0)[:5]) == 0.0


@pytest.mark.contract("diagnose.measures")
def test_spacing_does_not_follow_close_neighbours() -> None:
    assert measure_spacing_px(make_raster(0.0)) == pytest.approx(6.0, rel=0.2)
    pairs = np.concatenate([make_raster(0.0), make_raster(0.0) + 0.4])
    assert measure_spacing_px(pairs) == pytest.approx(6.0 / np.sqrt(2), rel=0.2)


@pytest.mark.contract("diagnose.measures")
def test_second_pass_over_another_sample_is_found() -> None:
    places = RNG.random((40, 2)) * 40
    shapes = [make_disc(40, 40) * RNG.uniform(0, 2, (40, N, N)) for _ in range(2)]
    first, other = (RNG.poisson(shape).astype(float) for shape in shapes)
    again = RNG.poisson(shapes[0]).astype(float)
    both = np.concatenate([places, places])
    found = find_repeats(both, np.concatenate([first, other]))
    assert found is not None
    assert found[0] == 40
    assert found[1] > 0.8
    repeated = find_repeats(both, np.concatenate([first, again]))
    assert repeated is not None
    assert repeated[1] < 0.2
    assert find_repeats(places, first) is None


@pytest.mark.contract("diagnose.measures")
def test_gap_is_found_and_dark_fringes_are_not() -> None:
    summed = make_disc(50, 30).sum(0)
    assert not find_gaps(summed, EVERYWHERE, (16.0, 16.0)).any()
    gap = summed.copy()
    gap[18:21, 8:24] = 0
    found = find_gaps(gap, EVERYWHERE, (16.0, 16.0))
    assert found[18:21, 8:24].all()
    assert not found[:18].any()
    fringe = summed.copy()
    fringe[12, 12:20] = 0
    assert not find_gaps(fringe, EVERYWHERE, (16.0, 16.0)).any()
    assert not find_gaps(gap, gap > 0, (16.0, 16.0)).any()


@pytest.mark.contract("diagnose.measures")
def test_counts_that_are_cut_off_are_found() -> None:
    frames = make_disc(200, 20)
    assert count_clipped(frames, EVERYWHERE) is None
    found = count_clipped(np.minimum(frames, 120), EVERYWHERE)
    assert found is not None
    assert found[0] == 120
    assert found[1][16, 16]
    assert not found[1][0, 0]
    assert count_clipped(np.minimum(make_disc(3, 20), 4), EVERYWHERE) is None


@pytest.mark.contract("diagnose.measures")
def test_light_under_a_mask_is_measured_without_hot_pixels_and_codes() -> None:
    pattern = make_disc(200, 20).mean(0)
    wrong = pattern < 20
    assert measure_masked_light(pattern, wrong) > 0.5
    hot = pattern.copy()
    hot[3, 3] = 1e9
    right = np.ones_like(wrong)
    right[3, 3] = False
    assert measure_masked_light(hot, right) < 0.01
    assert measure_masked_light(pattern, EVERYWHERE) == 0.0


@pytest.mark.contract("diagnose.options")
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("turn", [0.0, 20.0])
@pytest.mark.parametrize("remedy", ["flip_y", "swap_xy", "swap_xy, flip_x", "flip_y, flip_x"])
def test_orientation_options_do_what_the_remedy_did(swap: bool, turn: float, remedy: str) -> None:
    given = RNG.random((6, 2)) * 30
    reading = ReadConfig(swap_xy=swap, flip_x=True, positions_rotation_deg=turn)
    read = orient_positions(given, reading, [])
    names = remedy.split(", ")
    wanted = orient_positions(read, ReadConfig(**dict.fromkeys(names, True)), [])
    flags, angle = combine_orientation(reading, remedy)
    words = flags.split()
    new = ReadConfig(
        swap_xy="--swap-xy" in words,
        flip_y="--flip-y" in words,
        flip_x="--flip-x" in words,
        positions_rotation_deg=angle,
    )
    np.testing.assert_allclose(orient_positions(given, new, []), wanted, atol=1e-9)
    # What the file was read with and is no longer wanted is taken back.
    assert ("--no-flip-x" in words) == (not new.flip_x)
    assert ("--no-swap-xy" in words) == (swap and not new.swap_xy)


@pytest.mark.contract("diagnose.options")
def test_options_are_merged() -> None:
    options = [
        "--position-update affine --position-limit-px 8",
        "--position-update frames --position-limit-px 12 --position-search-px 24",
        "--beam-center-px 30.0 33.0",
        "--mask mask.npz:mask --mask-sense good",
        "--mask mask.npz:mask --mask-sense good",
    ]
    assert merge_options(options) == (
        "--position-update both --position-limit-px 12 --position-search-px 24 --beam-center-px 30.0 33.0 "
        "--mask mask.npz:mask --mask-sense good"
    )
    assert merge_options(["--frames :40", "--background"]) == "--frames :40 --background"
    assert parse_frame_slice(":40") == slice(None, 40)


def test_linear_map_is_fitted() -> None:
    given = RNG.random((30, 2)) * 50
    matrix = np.array([[1.1, 0.2], [-0.1, 0.9]])
    found, explained = fit_map(given, given @ matrix.T + np.array([3.0, -1.0]))
    np.testing.assert_allclose(found, matrix, atol=1e-9)
    assert explained == pytest.approx(1.0)
    _, explained = fit_map(given, given + RNG.normal(0, 1, given.shape))
    assert explained < 0.5


def test_coarse_remedies_cover_their_range() -> None:
    remedies = list_coarse_remedies()
    assert {one.family for one in remedies} == {"orientation", "map", "defocus"}
    assert sum(one.family == "orientation" for one in remedies) == 7
    near = list_coarse_remedies(near=True)
    assert sorted(one.kind for one in near) == ["rotation"] * 2 + ["scale"] * 2
    best = next(one for one in remedies if one.value == "scale 1.07")
    assert sorted(one.number or 0.0 for one in list_neighbours(best)) == pytest.approx([1.035, 1.115])
