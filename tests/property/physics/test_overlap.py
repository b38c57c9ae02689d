"""The overlap constraint inside a group, for any offsets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_asymmetric_probe, normal, offsets, probes, seeds
from tolerances import assert_close, relative_l2, tolerance
from torch import Tensor

from torchptycho.models.export.matrix_patches import MatrixPatches
from torchptycho.physics.group_patches import GATHER_SCATTER, extract_groups, place_groups
from torchptycho.physics.overlap import central_weight, merge, merge_canvas_px, probe_weight
from torchptycho.physics.patches import extract, locate_corner

N = 12
LIKE = torch.zeros((), dtype=torch.complex128)


def gentle_weight(seed: int, *lead: int) -> Tensor:
    """Weights between 0.1 and 1, without symmetry."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + 0.9 * torch.rand(*lead, N, N, generator=generator, dtype=torch.float64)


@pytest.mark.contract("physics.merge.constant")
@given(offset=offsets(2, 4, 7.5), value=st.complex_numbers(min_magnitude=0.1, max_magnitude=2), seed=seeds)
def test_constant_object_is_unchanged_by_merging(offset: Tensor, value: complex, seed: int) -> None:
    patches = torch.full((2, 4, N, N), value, dtype=torch.complex128)
    assert_close(merge(patches, offset, gentle_weight(seed), merge_canvas_px(N, 7.5)), patches, "double")


@pytest.mark.contract("physics.merge.constant")
@given(offset=offsets(1, 3, 5))
def test_constant_object_is_unchanged_wherever_the_frame_itself_has_weight(offset: Tensor) -> None:
    weight = central_weight(N, LIKE)
    patches = torch.ones(1, 3, N, N, dtype=torch.complex128)
    merged = merge(patches, offset, weight, merge_canvas_px(N, 5.0))[..., weight > 0]
    assert_close(merged, torch.ones_like(merged), "double")


@pytest.mark.contract("physics.merge.consistent")
@given(offset=offsets(2, 4, 6, whole=True), seed=seeds)
def test_patches_of_one_object_merge_back_to_themselves(offset: Tensor, seed: int) -> None:
    canvas_px = merge_canvas_px(N, 6.0)
    field = normal((2, canvas_px, canvas_px), seed)
    patches = extract(field, locate_corner(offset, N, (-canvas_px // 2, -canvas_px // 2)), N)
    assert_close(merge(patches, offset, gentle_weight(seed), canvas_px), patches, "double")


@pytest.mark.contract("physics.merge.average")
def test_overlap_holds_the_weighted_average_of_two_frames() -> None:
    patches, offset = normal((1, 2, N, N), 3), torch.tensor([[[-2.0, 1.0], [3.0, -1.0]]])
    weight = gentle_weight(4)
    merged = merge(patches, offset, weight, merge_canvas_px(N, 3.0))
    # Frame 1 lies 5 px lower and 2 px to the left: its pixel (y, x) is pixel (y + 5, x - 2) of frame 0.
    first, second = patches[0, 0, 5:, :-2], patches[0, 1, :-5, 2:]
    w_first, w_second = weight[5:, :-2], weight[:-5, 2:]
    expected = (w_first * first + w_second * second) / (w_first + w_second)
    assert_close(merged[0, 0, 5:, :-2], expected, "double")
    assert_close(merged[0, 1, :-5, 2:], expected, "double")
    assert_close(merged[0, 0, :5], patches[0, 0, :5], "double")


@pytest.mark.contract("physics.merge.support")
@given(offset=offsets(2, 3, 5), seed=seeds)
def test_what_lies_outside_the_weight_contributes_to_nothing(offset: Tensor, seed: int) -> None:
    weight = central_weight(N, LIKE)
    patches = normal((2, 3, N, N), seed)
    spoiled = torch.where(weight > 0, patches, patches + 1e6)
    canvas_px = merge_canvas_px(N, 5.0)
    assert torch.equal(merge(spoiled, offset, weight, canvas_px), merge(patches, offset, weight, canvas_px))


@pytest.mark.contract("physics.merge.support")
def test_merged_object_is_zero_where_no_frame_has_weight() -> None:
    offset = torch.zeros(1, 2, 2, dtype=torch.float64)
    weight = central_weight(N, LIKE)
    merged = merge(normal((1, 2, N, N), 5), offset, weight, merge_canvas_px(N, 0.0))
    assert not bool(merged[..., weight == 0].any())
    assert bool(merged[..., weight > 0].abs().min() > 0)


@pytest.mark.contract("physics.merge.single")
@given(offset=offsets(3, 1, 4), seed=seeds)
def test_group_of_one_frame_is_left_as_it_is(offset: Tensor, seed: int) -> None:
    patches = normal((3, 1, N, N), seed)
    assert torch.equal(merge(patches, offset, central_weight(N, LIKE), merge_canvas_px(N, 4.0)), patches)


@pytest.mark.contract("physics.merge.canvas")
@given(max_offset_px=st.integers(0, 20 * 256).map(lambda steps: steps / 256), seed=seeds)
def test_canvas_holds_the_largest_offset_in_every_direction(max_offset_px: float, seed: int) -> None:
    signs = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)
    patches, weight = normal((1, 4, N, N), seed), gentle_weight(seed)
    offset = (max_offset_px * signs)[None]
    canvas_px = merge_canvas_px(N, max_offset_px)
    assert canvas_px % 2 == 0
    merged = merge(patches, offset, weight, canvas_px)
    assert_close(merged, merge(patches, offset, weight, canvas_px + 40), "double")
    # A corner that was clipped would come back as zero. The weight is even, for no pixel's to fall below the floor.
    transparent, even = torch.ones_like(patches), torch.ones(N, N, dtype=torch.float64)
    assert_close(merge(transparent, offset, even, canvas_px), transparent, "double")


@pytest.mark.contract("physics.merge.groups")
@given(offset=offsets(2, 3, 4), seed=seeds)
def test_each_group_is_merged_by_its_own_weight(offset: Tensor, seed: int) -> None:
    patches, weights = normal((2, 3, N, N), seed), gentle_weight(seed, 2)
    together = merge(patches, offset, weights, merge_canvas_px(N, 4.0))
    for g in range(2):
        alone = merge(patches[g : g + 1], offset[g : g + 1], weights[g], merge_canvas_px(N, 4.0))
        assert_close(together[g : g + 1], alone, "double")
    assert relative_l2(weights[0], weights[1]) > 0.1


@pytest.mark.contract("physics.merge.weights")
@given(probe=probes(N))
def test_probe_weight_is_the_power_of_all_modes_relative_to_its_maximum(probe: Tensor) -> None:
    power = probe.abs().square().sum(0)
    assert_close(probe_weight(probe), power / power.max(), "double")
    assert float(probe_weight(probe).max()) == pytest.approx(1, rel=1e-12)


@pytest.mark.contract("physics.merge.weights")
def test_weights_of_several_probes_are_each_relative_to_their_own_maximum() -> None:
    weights = probe_weight(torch.stack([make_asymmetric_probe(N), 100 * make_asymmetric_probe(N)]))
    assert_close(weights[1], weights[0], "double")
    assert not bool(probe_weight(torch.zeros(1, N, N, dtype=torch.complex64)).any())


@pytest.mark.contract("physics.merge.weights")
@pytest.mark.parametrize("n_px", [12, 32, 64])
def test_central_weight_is_one_on_the_central_half(n_px: int) -> None:
    weight = central_weight(n_px, LIKE)
    quarter = n_px // 4
    assert float(weight.sum()) == (n_px / 2) ** 2
    assert bool((weight[quarter:-quarter, quarter:-quarter] == 1).all())


@pytest.mark.contract("physics.merge.gradient")
def test_gradient_of_merging_agrees_with_finite_differences() -> None:
    patches = normal((1, 2, 4, 4), 9).requires_grad_()
    offset = torch.tensor([[[0.3, -1.2], [-0.4, 0.7]]], dtype=torch.float64)
    weight = 0.5 + gentle_weight(1)[:4, :4]
    canvas_px = merge_canvas_px(4, 1.2)
    check = {"eps": 1e-6, "atol": 1e-7, "rtol": 1e-6}
    assert torch.autograd.gradcheck(lambda p: merge(p, offset, weight, canvas_px), (patches,), **check)
    dark = torch.zeros(1, 2, 4, 4, dtype=torch.complex64, requires_grad=True)
    merge(dark, offset.float(), central_weight(4, dark), canvas_px).abs().square().sum().backward()
    assert dark.grad is not None
    assert float(dark.grad.abs().max()) <= tolerance("copied")


@pytest.mark.contract("export.matrices")
@given(offset=offsets(2, 3, 5), seed=seeds)
def test_matrices_read_and_place_as_groups_do(offset: Tensor, seed: int) -> None:
    size = merge_canvas_px(N, 5.0)
    place_px = locate_corner(offset.double(), N, (-(size // 2), -(size // 2)))
    canvases, patches = normal((2, size, size), seed), normal((2, 3, N, N), seed + 1)
    for complex_ in (True, False):
        field, part = (canvases, patches) if complex_ else (canvases.real, patches.real)
        assert_close(MatrixPatches().extract(field, place_px, N), extract_groups(field, place_px, N), "double")
        assert_close(MatrixPatches().place(part, place_px, size), place_groups(part, place_px, size), "double")
        blocks = [
            operators.build_blocks(place_px.floor().long(), N, size) for operators in (MatrixPatches(), GATHER_SCATTER)
        ]
        first, second = (each.extract(field.to(torch.complex64).real) for each in blocks)
        assert_close(first, second, "devices")
        first, second = (each.place(part.to(torch.complex64).real) for each in blocks)
        assert_close(first, second, "devices")
