"""Merging the patches of a group: numerators, denominators, and the patches that are read back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from agreement import MISSING, assert_agree
from hypothesis import given
from hypothesis import strategies as st
from strategies import centred_offsets, normal, offsets, seeds
from tolerances import assert_close, relative_l2
from torch import Tensor

from torchptycho.interop import original_layouts
from torchptycho.physics.overlap import central_weight, merge, merge_canvas_px
from torchptycho.physics.patches import locate_corner, place

oracle = pytest.importorskip("tf_reference", reason=MISSING)

precisions = st.sampled_from([(torch.float32, "oracle_operator"), (torch.float64, "oracle_double")])
EPSILON = 1e-3
"""What the oracle adds to the denominator."""


@dataclasses.dataclass(frozen=True)
class Groups:
    """Sizes in pixels, and offsets [B, C, 2] of the members of each group from its centre."""

    n_px: int
    canvas_px: int
    offset_px: Tensor
    seed: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (*self.offset_px.shape[:2], self.n_px, self.n_px)

    @property
    def gridsize(self) -> int:
        return round(self.shape[1] ** 0.5)

    @property
    def relative(self) -> np.ndarray:
        return original_layouts.relative_from_offsets(self.offset_px.numpy())

    def corner_px(self, offset_px: Tensor) -> Tensor:
        return locate_corner(offset_px, self.n_px, (-self.canvas_px // 2,) * 2)


@st.composite
def any_groups(draw: st.DrawFn) -> Groups:
    """Offsets that need not be centred and reach beyond the canvas, in 1/256 px."""
    n_px, room = 4 * draw(st.integers(1, 4)), draw(st.integers(0, 6))
    batch, gridsize = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    offset_px = draw(offsets(batch, gridsize**2, n_px / 2 + room))
    return Groups(n_px, n_px + 2 * room, offset_px, draw(seeds))


@st.composite
def centred_groups(draw: st.DrawFn, max_gridsize: int = 3) -> Groups:
    """Offsets about the centre of each group, on a canvas that holds them: what both packages are made for."""
    n_px, reach = 4 * draw(st.integers(1, 4)), draw(st.integers(0, 6))
    batch, gridsize = draw(st.integers(1, 3)), draw(st.integers(1, max_gridsize))
    offset_px = draw(centred_offsets(batch, gridsize**2, reach))
    return Groups(n_px, merge_canvas_px(n_px, reach), offset_px, draw(seeds))


def channels(patches: Tensor) -> np.ndarray:
    return original_layouts.channels_last(patches.detach().numpy())


def read_back(objects: np.ndarray, groups: Groups) -> np.ndarray:
    """The oracle's patches [B, C, N, N] of its objects (B, P, P, 1)."""
    return oracle.extract_patches_position(objects, groups.relative, groups.n_px, groups.gridsize).reshape(groups.shape)


def coverage(groups: Groups, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """The oracle's denominator without what it adds to it, (B, P, P, 1)."""
    mask = central_weight(groups.n_px, torch.zeros((), dtype=dtype)).expand(groups.shape)
    return oracle.reassemble_patches_position_real(channels(mask), groups.relative, groups.canvas_px)


def without_epsilon(covered: np.ndarray) -> np.ndarray:
    """What turns x / (covered + 1e-3) into x / covered."""
    return np.divide(covered + EPSILON, covered, out=np.zeros_like(covered), where=covered > 0)


@pytest.mark.contract("parity.reassemble_patches_position_real")
@given(precision=precisions, groups=any_groups())
def test_sum_of_patches_on_a_canvas(precision, groups):
    dtype, name = precision
    operator, relative = "parity.reassemble_patches_position_real", groups.relative
    patches = normal(groups.shape, groups.seed, dtype).requires_grad_()
    # Where the oracle puts them: less the mean of the whole batch (deviation.batch-mean), in float32.
    centred = -oracle.center_reassembly_offsets(relative).astype(np.float64)[:, ::-1].copy()
    offset_px = torch.from_numpy(centred).reshape(groups.offset_px.shape).requires_grad_()
    placed = place(patches, groups.corner_px(offset_px), (groups.canvas_px,) * 2)
    sums = oracle.reassemble_patches_position_real(channels(patches), relative, groups.canvas_px)
    assert_agree(placed, sums[..., 0], operator, name)

    cotangent = normal(tuple(placed.shape), groups.seed + 1, dtype)
    placed.backward(cotangent)
    options = {"padded_size": groups.canvas_px, "cotangent": cotangent.numpy()[..., None]}
    arguments = channels(patches), relative
    by_patches = oracle.gradient(oracle.reassemble_patches_position_real, *arguments, **options)
    assert_agree(patches.grad, original_layouts.channels_first(by_patches), f"{operator}.gradient", name)
    if bool((offset_px != offset_px.floor()).all()):
        by_offsets = oracle.gradient(oracle.reassemble_patches_position_real, *arguments, wrt=1, **options)
        expected = original_layouts.offsets_from_relative(by_offsets)
        found = offset_px.grad - offset_px.grad.reshape(-1, 2).mean(0)
        assert_agree(found, expected, f"{operator}.gradient", "oracle_operator")


@pytest.mark.contract("parity.mk_norm")
@given(precision=precisions, groups=centred_groups())
def test_denominator_is_the_sum_of_central_weights(precision, groups):
    dtype, name = precision
    patches = normal(groups.shape, groups.seed, dtype)
    weight = central_weight(groups.n_px, patches).expand(groups.shape).contiguous()
    placed = place(weight, groups.corner_px(groups.offset_px), (groups.canvas_px,) * 2)
    norm = oracle.mk_norm(channels(patches), groups.relative, groups.canvas_px)
    assert_agree(placed + EPSILON, norm[..., 0], "parity.mk_norm", name)


@pytest.mark.contract("parity.merge")
@given(single=st.booleans(), groups=centred_groups())
def test_merged_patches_are_the_oracle_s_but_for_its_epsilon(single, groups):
    dtype, name = (torch.complex64, "oracle_operator") if single else (torch.complex128, "oracle_double")
    weight = central_weight(groups.n_px, torch.zeros((), dtype=dtype))
    patches = (normal(groups.shape, groups.seed, dtype) * weight).requires_grad_()
    merged = merge(patches, groups.offset_px, weight, groups.canvas_px)
    objects = oracle.reassemble_patches(channels(patches), groups.relative, groups.canvas_px)
    factor = without_epsilon(coverage(groups, weight.dtype))
    assert_agree(merged, read_back(objects * factor, groups), "parity.merge", name)

    cotangent = normal(groups.shape, groups.seed + 1, dtype)
    merged.backward(cotangent)
    # The chain rule by hand, from the patches that are read back to those that were placed.
    at_object = oracle.gradient(
        oracle.extract_patches_position,
        objects * factor,
        groups.relative,
        N=groups.n_px,
        gridsize=groups.gridsize,
        cotangent=cotangent.numpy().reshape(-1, groups.n_px, groups.n_px, 1),
    )
    at_patches = oracle.gradient(
        oracle.reassemble_patches,
        channels(patches),
        groups.relative,
        padded_size=groups.canvas_px,
        cotangent=at_object * factor,
    )
    # Outside the centre the oracle's gradient is not zero: deviation.unmasked-numerator.
    expected = original_layouts.channels_first(at_patches) * weight.numpy()
    if groups.gridsize == 1:
        expected = cotangent  # one frame is left as it is, also outside the centre: deviation.single-frame
    assert_agree(patches.grad, expected, "parity.merge.gradient", name)


@pytest.mark.contract("deviation.merge-epsilon")
@given(groups=centred_groups())
def test_constant_object_is_one_here_and_less_there(groups):
    weight = central_weight(groups.n_px, torch.zeros((), dtype=torch.complex128))
    patches = torch.ones(groups.shape, dtype=torch.complex128) * weight
    objects = oracle.reassemble_patches(channels(patches), groups.relative, groups.canvas_px)
    covered = coverage(groups)
    assert_agree(objects, covered / (covered + EPSILON) + 0j, "deviation.merge-epsilon", "oracle_double")
    known = weight.expand(groups.shape) > 0
    merged = merge(patches, groups.offset_px, weight, groups.canvas_px)[known]
    assert_close(merged, torch.ones_like(merged), "double")
    # Where a frame lies alone, on a whole pixel, the bias is exactly this; where its edge fades it is more.
    alone = np.abs(covered - 1) < 1e-12
    if alone.any():
        assert_close(
            torch.from_numpy(objects[alone]),
            torch.full((alone.sum(),), 1 / 1.001 + 0j, dtype=torch.complex128),
            "double",
        )


@pytest.mark.contract("deviation.unmasked-numerator")
@given(groups=centred_groups(), value=st.floats(0.1, 2))
def test_border_of_a_patch_is_divided_by_a_thousandth_there_and_left_out_here(groups, value):
    weight = central_weight(groups.n_px, torch.zeros((), dtype=torch.complex128))
    patches = normal(groups.shape, groups.seed)
    border = value * (1 - weight).expand(groups.shape).to(torch.complex128)
    clean, disturbed = (
        oracle.reassemble_patches(channels(p), groups.relative, groups.canvas_px) for p in (patches, patches + border)
    )
    covered = coverage(groups)
    borders = oracle.reassemble_patches_position_real(channels(border.real), groups.relative, groups.canvas_px)
    change = disturbed - clean
    assert_agree(change, borders / (covered + EPSILON) + 0j, "deviation.unmasked-numerator", "oracle_double")
    outside = (covered == 0) & (borders > value / 2)
    assert outside.any()
    assert (np.abs(change[outside]) > 0.4e3 * value).all()
    if groups.gridsize > 1:
        here = [merge(p, groups.offset_px, weight, groups.canvas_px) for p in (patches, patches + border)]
        assert torch.equal(*here)


@pytest.mark.contract("deviation.single-frame")
@given(seed=seeds, n_px=st.sampled_from([4, 8, 12, 16]))
def test_frame_without_neighbours_is_left_as_it_is_here(seed, n_px):
    offset_px, weight = torch.zeros(2, 1, 2, dtype=torch.float64), torch.zeros(n_px, n_px, dtype=torch.float64)
    groups = Groups(n_px, oracle.get_padded_size(n_px, 1, 4, 10), offset_px, seed)
    patches = normal(groups.shape, seed)
    assert torch.equal(merge(patches, offset_px, weight, groups.canvas_px), patches)
    theirs = read_back(oracle.reassemble_patches(channels(patches), groups.relative, groups.canvas_px), groups)
    central = central_weight(n_px, patches)
    expected = patches * (central / (1 + EPSILON) + (1 - central) / EPSILON)
    assert_agree(theirs, expected, "deviation.single-frame", "oracle_double")


@pytest.mark.contract("deviation.clipped-canvas")
@given(seed=seeds, gridsize=st.integers(2, 3), beyond=st.integers(1, 20), data=st.data())
def test_member_beyond_the_oracle_s_canvas_is_lost_there(seed, gridsize, beyond, data):
    n_px, members = 16, gridsize**2
    canvas_px = oracle.get_padded_size(n_px, gridsize, 4, 10)
    # Beyond this its centre leaves the canvas by so many pixels; two members opposite each other keep the mean.
    away = (canvas_px - n_px) // 2 + n_px // 4 + beyond
    offset_px = torch.zeros(1, members, 2, dtype=torch.float64)
    axis, sign = data.draw(st.integers(0, 1)), data.draw(st.sampled_from([-1, 1]))
    offset_px[0, 0, axis], offset_px[0, 1, axis] = sign * away, -sign * away
    groups = Groups(n_px, canvas_px, offset_px, seed)
    weight = central_weight(n_px, torch.zeros((), dtype=torch.complex128))
    patches = normal(groups.shape, seed) * weight

    theirs = read_back(oracle.reassemble_patches(channels(patches), groups.relative, canvas_px), groups)
    lost = min(beyond, n_px // 2)
    kept = torch.from_numpy(theirs)[0, 0].transpose(0, 1) if axis else torch.from_numpy(theirs)[0, 0]
    kept = kept[4:12] if sign < 0 else kept[4:12].flip(0)
    assert not kept[:lost].any()
    assert (kept[lost:, 4:12] != 0).all()
    wide = merge_canvas_px(n_px, float(offset_px.abs().max()))
    merged = merge(patches, offset_px, weight, wide)
    assert_close(merged[0, :2], patches[0, :2], "double")


@pytest.mark.contract("deviation.batch-mean")
@given(seed=seeds, groups=centred_groups(2), shift=st.tuples(st.integers(-3, 3), st.integers(-3, 3)).filter(any))
def test_object_of_a_group_depends_on_the_others_in_its_batch_there(seed, groups, shift):
    """Offsets from anything but the mean of the group, its first frame say, reach the oracle's merging as they are."""
    shift_px = torch.tensor(shift, dtype=torch.float64)
    mates = groups.offset_px[:1].repeat(2, 1, 1)
    mates[1] += 2 * shift_px  # the mean over the batch is shift_px now
    pair = dataclasses.replace(groups, offset_px=mates, canvas_px=groups.canvas_px + 12)
    patches = normal(pair.shape, seed)
    alone = dataclasses.replace(pair, offset_px=mates[:1])
    weight = central_weight(pair.n_px, patches)

    together = oracle.reassemble_patches(channels(patches), pair.relative, pair.canvas_px)
    by_itself = oracle.reassemble_patches(channels(patches[:1]), alone.relative, pair.canvas_px)
    moved = np.roll(by_itself[0], tuple(-n for n in shift), axis=(0, 1))
    assert_agree(together[0], moved, "deviation.batch-mean", "oracle_double")
    assert relative_l2(torch.from_numpy(together[0]), torch.from_numpy(by_itself[0])) > 0.1
    # Patches are read back at the offsets that were given, which now miss the object by the mean.
    read = torch.from_numpy(read_back(together, pair)[0])
    assert relative_l2(read, torch.from_numpy(read_back(by_itself, alone)[0])) > 0.1

    here = merge(patches, pair.offset_px, weight, pair.canvas_px)
    assert torch.equal(here[:1], merge(patches[:1], alone.offset_px, weight, pair.canvas_px))


@pytest.mark.contract("deviation.collapsed-batch")
@given(seed=seeds, gridsize=st.integers(1, 3), fewer=st.integers(1, 3), data=st.data())
def test_large_batch_becomes_one_object_there(seed, gridsize, fewer, data):
    n_px, members, full = 8, gridsize**2, 4
    offset_px = data.draw(centred_offsets(full, members, 3))
    groups = Groups(n_px, 16, offset_px, seed)
    patches = normal(groups.shape, seed)
    limit = full * members

    # One group less: all as without a limit.
    some = dataclasses.replace(groups, offset_px=offset_px[:-fewer])
    few = channels(patches[:-fewer]), some.relative, 16
    assert_agree(
        oracle.reassemble_patches(*few, batch_size=limit),
        oracle.reassemble_patches(*few),
        "deviation.collapsed-batch",
        "copied",
    )
    # At the limit: one object that is the sum of all groups, whose patches are those of the first group.
    collapsed = oracle.reassemble_patches_position_real(channels(patches.real), groups.relative, 16, batch_size=limit)
    each = oracle.reassemble_patches_position_real(channels(patches.real), groups.relative, 16)
    assert collapsed.shape == (1, 16, 16, 1)
    assert_agree(collapsed, each.sum(0, keepdims=True), "deviation.collapsed-batch", "oracle_double")
    read = oracle.extract_patches_position(collapsed, groups.relative, n_px, gridsize)
    assert read.shape == (members, n_px, n_px, 1)
    first = oracle.extract_patches_position(collapsed, groups.relative[:1], n_px, gridsize)
    np.testing.assert_array_equal(read, first)

    weight = central_weight(n_px, patches)
    here = merge(patches, offset_px, weight, 16)
    assert here.shape == groups.shape
    for index in range(full):
        one = merge(patches[index : index + 1], offset_px[index : index + 1], weight, 16)[0]
        assert_close(here[index], one, "copied")


@pytest.mark.contract("parity.reassemble_patches_real")
@given(seed=seeds, precision=precisions, gridsize=st.integers(1, 3), pitch=st.integers(1, 5), average=st.booleans())
def test_patches_at_their_nominal_places(seed, precision, gridsize, pitch, average):
    dtype, name = precision
    n_px, members = 6, gridsize**2
    patches = normal((2, members, n_px, n_px), seed, dtype)
    row_column = torch.stack([torch.arange(members) // gridsize, torch.arange(members) % gridsize], dim=-1)
    corner_px = (row_column * pitch).double().expand(2, members, 2)
    shape = (n_px + (gridsize - 1) * pitch,) * 2
    total, count = place(patches, corner_px, shape), place(torch.ones_like(patches), corner_px, shape)
    found = total / count if average else total
    expected = oracle.reassemble_patches_real(channels(patches), gridsize, pitch, average)[..., 0]
    assert_agree(found, expected, "parity.reassemble_patches_real", name)
