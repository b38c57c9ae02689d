"""Patches at sub-pixel places: the product's `extract` and `place` against the oracle's whole-image translation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agreement import MISSING, assert_agree
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, offsets, positions, seeds
from tolerances import relative_l2
from torch import Tensor

from torchptycho.interop import original_layouts
from torchptycho.physics.patches import extract, locate_corner, place

oracle = pytest.importorskip("tf_reference", reason=MISSING)

complex_precisions = st.sampled_from([(torch.complex64, "oracle_operator"), (torch.complex128, "oracle_double")])
precisions = (
    st.sampled_from([(torch.float32, "oracle_operator"), (torch.float64, "oracle_double")]) | complex_precisions
)
"""Types of the numbers in an image, each with its tolerance."""
sizes = st.tuples(st.integers(1, 3), st.integers(3, 14), st.integers(3, 14))
"""Images, rows, columns."""


def flat(images: Tensor) -> np.ndarray:
    """[B, H, W] as the oracle's (B, H, W, 1)."""
    return images.detach().numpy()[..., None]


def as_xy(offset_px: Tensor) -> np.ndarray:
    """[..., 2] of (y, x) as (x, y)."""
    return np.ascontiguousarray(offset_px.detach().numpy()[..., ::-1])


def read_moved(images: Tensor, offset_px: Tensor) -> Tensor:
    """What `translate` should give, by `extract`: the patch that begins at minus the offset, as large as the image."""
    height, width = images.shape[-2:]
    return extract(images, -offset_px[:, None], max(height, width))[:, 0, :height, :width]


def placed_moved(images: Tensor, offset_px: Tensor) -> Tensor:
    """The same by `place`: the image as a square patch that begins at the offset."""
    height, width = images.shape[-2:]
    room = max(height, width)
    square = torch.nn.functional.pad(images, (0, room - width, 0, room - height))
    return place(square[:, None], offset_px[:, None], (height, width))


def is_away_from_pixels(offset_px: Tensor) -> bool:
    """Whether no offset is whole: there a bilinear function has a kink, and either side's slope is a gradient."""
    return bool((offset_px != offset_px.floor()).all())


@pytest.mark.contract("parity.translate")
@given(precision=precisions, size=sizes, seed=seeds, data=st.data())
def test_translation_is_extracting_and_placing(precision, size, seed, data):
    dtype, name = precision
    images = normal(size, seed, dtype)
    # Up to beyond the image, in 1/256 px: a sliver at the border weighs no less than that, in float32 too.
    offset_px = data.draw(offsets(size[0], 1, max(size) + 2))[:, 0]
    expected = oracle.translate(flat(images), as_xy(offset_px))[..., 0]
    assert_agree(read_moved(images, offset_px), expected, "parity.translate", name)
    assert_agree(placed_moved(images, offset_px), expected, "parity.translate", name)


@pytest.mark.contract("parity.translate")
@given(precision=precisions, size=sizes, seed=seeds, data=st.data())
def test_translation_by_any_fraction_of_a_pixel(precision, size, seed, data):
    dtype, name = precision
    images, reach = normal(size, seed, dtype), min(size[1:]) / 2
    offset_px = data.draw(positions(size[0], -reach, reach))
    expected = oracle.translate(flat(images), as_xy(offset_px))[..., 0]
    assert_agree(read_moved(images, offset_px), expected, "parity.translate", name)
    assert_agree(placed_moved(images, offset_px), expected, "parity.translate", name)


@pytest.mark.contract("parity.translate")
@pytest.mark.parametrize("moved", [read_moved, placed_moved])
@given(precision=precisions, size=sizes, seed=seeds, data=st.data())
def test_gradients_of_translation(moved, precision, size, seed, data):
    dtype, name = precision
    images, cotangent = normal(size, seed, dtype).requires_grad_(), normal(size, seed + 1, dtype)
    offset_px = data.draw(offsets(size[0], 1, max(size) + 2))[:, 0].requires_grad_()
    moved(images, offset_px).backward(cotangent)
    arguments, options = (flat(images), as_xy(offset_px)), {"cotangent": flat(cotangent)}
    by_images = oracle.gradient(oracle.translate, *arguments, **options)[..., 0]
    assert_agree(images.grad, by_images, "parity.translate.gradient", name)
    if is_away_from_pixels(offset_px):
        by_offsets = oracle.gradient(oracle.translate, *arguments, wrt=1, **options)[:, ::-1].copy()
        assert_agree(offset_px.grad, by_offsets, "parity.translate.gradient", name)


@st.composite
def canvases(draw: st.DrawFn) -> tuple[int, int, int, int, int, Tensor]:
    """Groups, gridsize, N, edge of the canvas, a seed, and offsets [B, C, 2] to beyond the canvas."""
    batch, gridsize = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n_px = 2 * draw(st.integers(1, 6))
    canvas_px = n_px + 2 * draw(st.integers(1, 6))
    return batch, gridsize, n_px, canvas_px, draw(seeds), draw(offsets(batch, gridsize**2, canvas_px))


@pytest.mark.contract("parity.extract_patches_position")
@given(precision=complex_precisions, case=canvases())
def test_patches_of_the_members_of_a_group(precision, case):
    dtype, name = precision
    batch, gridsize, n_px, canvas_px, seed, offset_px = case
    objects = normal((batch, canvas_px, canvas_px), seed, dtype).requires_grad_()
    offset_px.requires_grad_()
    patches = extract(objects, locate_corner(offset_px, n_px, (-canvas_px // 2,) * 2), n_px)
    arguments = flat(objects), original_layouts.relative_from_offsets(offset_px.detach().numpy())
    found = oracle.extract_patches_position(*arguments, n_px, gridsize)
    operator = "parity.extract_patches_position"
    assert_agree(patches, found.reshape(patches.shape), operator, name)

    cotangent = normal(tuple(patches.shape), seed + 1, dtype)
    patches.backward(cotangent)
    options = {"N": n_px, "gridsize": gridsize, "cotangent": cotangent.numpy().reshape(-1, n_px, n_px, 1)}
    by_objects = oracle.gradient(oracle.extract_patches_position, *arguments, **options)[..., 0]
    assert_agree(objects.grad, by_objects, f"{operator}.gradient", name)
    if is_away_from_pixels(offset_px):
        by_offsets = oracle.gradient(oracle.extract_patches_position, *arguments, wrt=1, **options)
        expected = original_layouts.offsets_from_relative(by_offsets)
        assert_agree(offset_px.grad, expected, f"{operator}.gradient", name)


@pytest.mark.contract("parity.center_channels")
@given(precision=precisions, case=canvases())
def test_channels_centred_by_their_coordinates(precision, case):
    dtype, name = precision
    batch, gridsize, n_px, _, seed, position_px = case
    images = normal((batch, gridsize**2, n_px, n_px), seed, dtype)
    centred = extract(images, position_px[:, :, None], n_px)[:, :, 0]
    channels = original_layouts.channels_last(images.numpy())
    found = oracle.center_channels(channels, original_layouts.coords_from_positions(position_px.numpy()))
    assert_agree(centred, original_layouts.channels_first(found), "parity.center_channels", name)


@pytest.mark.contract("deviation.offsets-in-turn")
@given(seed=seeds, batch=st.integers(2, 4), data=st.data())
def test_one_offset_per_group_moves_all_its_members(seed, batch, data):
    images = normal((batch, 4, 8, 8), seed)
    offset_px = data.draw(offsets(batch, 1, 4))
    by_group = extract(images, -offset_px[:, :, None].expand(-1, 4, 1, 2), 8)[:, :, 0]
    in_turn = oracle.translate(flat(images.reshape(-1, 8, 8)), as_xy(offset_px[:, 0])).reshape(images.shape)
    for index in range(batch * 4):
        group, member = divmod(index, 4)
        taken = offset_px[index % batch].expand(1, 2)
        expected = read_moved(images[group, member][None], taken)[0]
        assert_agree(in_turn[group, member], expected, "deviation.offsets-in-turn", "oracle_double")
    repeated = oracle.translate(flat(images.reshape(-1, 8, 8)), as_xy(offset_px[:, 0].repeat_interleave(4, 0)))
    assert_agree(by_group, repeated.reshape(images.shape), "parity.translate", "oracle_double")
    if len(offset_px[:, 0].unique(dim=0)) > 1:
        assert relative_l2(torch.from_numpy(in_turn), by_group) > 1e-3


@pytest.mark.contract("deviation.nearest")
@given(seed=seeds, fraction=st.floats(0.01, 0.49), sign=st.sampled_from([-1, 1]))
def test_nearest_pixel_loses_a_border_and_does_not_feel_the_fraction(seed, fraction, sign):
    images, offset_px = normal((1, 8, 8), seed), torch.tensor([[0.0, sign * fraction]], dtype=torch.float64)
    arguments = flat(images), as_xy(offset_px), "nearest"
    nearest = oracle.translate(*arguments)[0, ..., 0]
    # All of the image is still there when it is rounded to the nearest pixel, and the border is dropped all the same.
    kept = slice(1, None) if sign > 0 else slice(None, -1)
    expected = np.zeros((8, 8), np.complex128)
    expected[:, kept] = images[0].numpy()[:, kept]
    np.testing.assert_array_equal(nearest, expected)
    gradient = oracle.gradient(oracle.translate, *arguments, cotangent=np.ones((1, 8, 8, 1), np.complex128), wrt=1)
    assert not gradient.any()

    offset_px.requires_grad_()
    moved = read_moved(images, offset_px)
    moved.backward(torch.ones_like(moved))
    border = 0 if sign > 0 else 7
    assert_agree(moved[0, :, border], (1 - fraction) * images[0, :, border], "deviation.nearest", "oracle_double")
    assert offset_px.grad[0, 1] != 0


@pytest.mark.contract("deviation.translation-without-xla")
@given(seed=seeds, dy=st.integers(-3, 3), dx=st.integers(-3, 3))
def test_the_other_path_moves_the_other_way_and_loses_a_row_and_a_column(seed, dy, dx):
    images, offset_px = normal((1, 8, 8), seed), torch.tensor([[dy, dx]], dtype=torch.float64)
    other = oracle.translate(flat(images), as_xy(offset_px), use_xla_translate=False)[0, ..., 0]
    # Only where the source and the next row and column are inside: for a whole offset that drops the last ones.
    rows, columns = ((np.arange(8) + shift >= 0) & (np.arange(8) + shift < 7) for shift in (dy, dx))
    opposite = read_moved(images, -offset_px)[0].numpy()
    np.testing.assert_array_equal(other, opposite * rows[:, None] * columns)
    assert relative_l2(torch.from_numpy(other), read_moved(images, offset_px)[0]) > 0.1
    assert torch.equal(read_moved(images, torch.zeros_like(offset_px)), images)


@pytest.mark.contract("deviation.trim")
@given(seed=seeds, gridsize=st.integers(1, 2), n_px=st.sampled_from([4, 8, 12]), data=st.data())
def test_patches_of_a_canvas_without_room_or_with_an_odd_number_of_pixels(seed, gridsize, n_px, data):
    offset_px = data.draw(offsets(1, gridsize**2, 3))
    relative = original_layouts.relative_from_offsets(offset_px.numpy())
    for room in (0, 1, 3):
        canvas_px = n_px + room
        objects = normal((1, canvas_px, canvas_px), seed)
        found = oracle.extract_patches_position(flat(objects), relative, n_px, gridsize)
        assert found.shape[1] == (n_px + 1 if room > 1 else 0)
        patches = extract(objects, locate_corner(offset_px, n_px, (-(canvas_px // 2),) * 2), n_px)
        assert patches.shape == (1, gridsize**2, n_px, n_px)
        if room > 1:
            expected = found[:, :-1, :-1].reshape(patches.shape)
            assert_agree(patches, expected, "parity.extract_patches_position", "oracle_double")


@pytest.mark.contract("deviation.kink")
@given(seed=seeds, data=st.data())
def test_slope_at_a_whole_place(seed, data):
    """Reading and placing at a whole place have the slope towards larger places: adjoint also in their gradients."""
    images, cotangent = normal((1, 8, 8), seed, torch.float64), normal((1, 8, 8), seed + 1, torch.float64)
    offset_px = data.draw(offsets(1, 1, 3, whole=True))[:, 0].requires_grad_()
    step = 2.0**-20

    def slope(direction: int) -> np.ndarray:
        """Exact but for rounding: the value is bilinear, so linear along one axis up to the next pixel."""
        found = []
        for axis in range(2):
            there = offset_px.detach().clone()
            there[0, axis] += direction * step
            difference = placed_moved(images, there) - placed_moved(images, offset_px.detach())
            found.append(float((difference * cotangent).sum()) / (direction * step))
        return np.array([found])

    placed_moved(images, offset_px).backward(cotangent)
    np.testing.assert_allclose(offset_px.grad.numpy(), slope(+1), rtol=1e-6, atol=1e-6)
    theirs = oracle.gradient(oracle.translate, flat(images), as_xy(offset_px), cotangent=flat(cotangent), wrt=1)
    np.testing.assert_allclose(theirs[:, ::-1], slope(-1), rtol=1e-6, atol=1e-6)
