"""Ground truth: where the product and the oracle cut the patches of a known object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from agreement import MISSING, assert_agree
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, positions, seeds
from tolerances import relative_l2

from torchptycho import GroupDataset, prepare
from torchptycho.core.config import GroupConfig, PrepareConfig, RunConfig, SimulateConfig
from torchptycho.data.simulation import simulate
from torchptycho.interop import original_layouts
from torchptycho.physics.patches import extract, locate_corner

oracle = pytest.importorskip("tf_reference", reason=MISSING)


def oracle_patches(image: np.ndarray, positions_px: np.ndarray, n_px: int) -> np.ndarray:
    """The oracle's ground truth (G, C, N, N) for positions (G, C, 2)."""
    where = oracle.get_relative_coords(original_layouts.coords_from_positions(positions_px))
    gridsize = round(positions_px.shape[1] ** 0.5)
    return original_layouts.channels_first(oracle.get_image_patches(image, *where, n_px, gridsize))


def product_patches(image: np.ndarray, positions_px: np.ndarray, n_px: int) -> np.ndarray:
    """The product's, as `GroupDataset` cuts them."""
    places = torch.from_numpy(positions_px.reshape(-1, 2))
    patches = extract(torch.from_numpy(image), locate_corner(places, n_px), n_px)
    return np.asarray(patches.reshape(*positions_px.shape[:2], n_px, n_px).numpy())


def mirrored(positions_px: np.ndarray) -> np.ndarray:
    """Positions (G, C, 2) mirrored about the middle of their group."""
    return np.asarray(2 * positions_px.mean(axis=1, keepdims=True) - positions_px)


@st.composite
def objects_and_places(draw: st.DrawFn, members: int) -> tuple[np.ndarray, np.ndarray, int]:
    """An object, groups of places in and around it, and the edge of a patch.

    One group lies inside, so that rounding is small against something: a patch may be a corner of a faint border.
    """
    height, width = draw(st.integers(10, 40)), draw(st.integers(10, 40))
    n_px, groups = 2 * draw(st.integers(1, 8)), draw(st.integers(1, 3))
    anywhere = draw(positions(members, -n_px, max(height, width) + n_px, lead=(groups,)))
    # Mirrored about the middle of the group they are inside as well.
    thousandths = draw(positions(members, 400, 600, lead=(1,)))
    inside = thousandths / 1000 * torch.tensor([height, width], dtype=torch.float64)
    image = normal((height, width), draw(seeds), torch.complex64)
    return image.numpy(), torch.cat([inside, anywhere]).numpy(), n_px


@pytest.mark.contract("parity.truth-patches")
@given(objects_and_places(1))
def test_patches_of_single_frames(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    expected = oracle_patches(*case)
    assert_agree(product_patches(*case), expected, "parity.truth-patches", "oracle_operator")


@pytest.mark.contract("parity.truth-patches")
@given(st.sampled_from([4, 9]).flatmap(objects_and_places))
def test_patches_of_groups_at_mirrored_places(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    image, positions_px, n_px = case
    expected = oracle_patches(image, positions_px, n_px)
    found = product_patches(image, mirrored(positions_px), n_px)
    assert_agree(found, expected, "parity.truth-patches", "oracle_operator")


@pytest.mark.contract("deviation.truth-mirrored")
@given(objects_and_places(4))
def test_the_truth_of_a_member_is_at_its_own_place_here_and_mirrored_there(
    case: tuple[np.ndarray, np.ndarray, int],
) -> None:
    image, positions_px, n_px = case
    middle = positions_px.mean(axis=1, keepdims=True)
    # A group whose members are apart, in the middle of the object.
    apart_px = np.array([[-2.0, -1.5], [2.5, -1.0], [-1.5, 2.0], [1.0, 0.5]])
    positions_px = middle[:1] + apart_px
    alone = np.swapaxes(oracle_patches(image, positions_px.reshape(4, 1, 2), n_px), 0, 1)
    theirs, ours = oracle_patches(image, positions_px, n_px), product_patches(image, positions_px, n_px)
    assert_agree(ours, alone, "parity.truth-patches", "oracle_operator")
    assert relative_l2(torch.from_numpy(theirs), torch.from_numpy(alone)) > 0.5


@pytest.mark.contract("deviation.positions-in-single-precision")
@given(st.integers(0, 255), seeds)
def test_fractions_of_a_pixel_are_kept_far_out_here_and_rounded_there(step: int, seed: int) -> None:
    """The same object 4,096 px further right: the oracle's float32 knows 1/2048 px there, the product's float64 all."""
    near = normal((12, 32), seed, torch.complex64).numpy()
    far = np.pad(near, ((0, 0), (4096, 0)))
    # Halfway between two neighbours in float32 at that place.
    x = 16 + step / 2048 + 1 / 4096
    places = [np.array([[[6.0, where]]]) for where in (x, x + 4096)]
    ours = [product_patches(image, place, 4) for image, place in zip((near, far), places, strict=True)]
    theirs = [oracle_patches(image, place, 4) for image, place in zip((near, far), places, strict=True)]
    np.testing.assert_array_equal(ours[0], ours[1])
    assert_agree(theirs[0], ours[0], "parity.truth-patches", "oracle_operator")
    assert relative_l2(torch.from_numpy(theirs[1]), torch.from_numpy(ours[1])) > 1e-4


@pytest.mark.contract("deviation.truth-mirrored")
@pytest.mark.contract("parity.truth-patches")
@pytest.mark.parametrize("gridsize", [1, 2])
def test_the_truth_in_a_batch_belongs_to_its_frames(gridsize: int, tmp_path: Path) -> None:
    scan = simulate(SimulateConfig(n_px=32, object_px=80, n_frames=24, photons_per_frame=1e4))
    config = RunConfig(
        prepare=PrepareConfig(val_fraction=0),
        group=GroupConfig(gridsize=gridsize, neighbor_count=7, sampler="oracle"),
    )
    batch = GroupDataset(prepare([scan], config, tmp_path / "store"), "train", with_truth=True).__getitems__(range(24))
    assert batch.truth is not None
    assert scan.truth is not None
    places = scan.positions_px[batch.members.numpy()]
    there = mirrored(places) if gridsize > 1 else places
    assert_agree(batch.truth.numpy(), product_patches(scan.truth, places, 32), "parity.truth-patches", "oracle_physics")
    assert_agree(
        oracle_patches(scan.truth, places, 32),
        product_patches(scan.truth, there, 32),
        "parity.truth-patches",
        "oracle_operator",
    )
