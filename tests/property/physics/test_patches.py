"""`extract` and `place` at any place: an adjoint pair with one convention for where a patch sits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import PatchCase, normal, patch_cases, seeds
from tolerances import assert_close, tolerance
from torch import Tensor

from torchptycho.physics.patches import extract, locate_corner, place, place_into, shift_bilinear


def inner(a: Tensor, b: Tensor) -> complex:
    return complex((a.conj() * b).sum())


@pytest.mark.contract("physics.patches.convention")
@given(seed=seeds, y=st.integers(8, 30), x=st.integers(8, 40), half=st.integers(1, 8))
def test_patch_at_whole_position_is_the_slice_with_pixel_half_n_on_it(seed: int, y: int, x: int, half: int) -> None:
    field = normal((40, 50), seed)
    position = torch.tensor([[y, x]], dtype=torch.float64)
    patch = extract(field, locate_corner(position, 2 * half), 2 * half)[0]
    assert patch[half, half] == field[y, x]
    assert torch.equal(patch, field[y - half : y + half, x - half : x + half])


@pytest.mark.contract("physics.patches.convention")
@given(seed=seeds, origin=st.tuples(st.integers(-50, 50), st.integers(-50, 50)))
def test_origin_is_the_position_of_the_first_pixel_of_the_canvas(seed: int, origin: tuple[int, int]) -> None:
    field = normal((20, 24), seed)
    position = torch.tensor([[origin[0] + 9, origin[1] + 13]], dtype=torch.float64)
    patch = extract(field, locate_corner(position, 6, origin), 6)[0]
    assert patch[3, 3] == field[9, 13]


@pytest.mark.contract("physics.patches.ramp")
@given(y=st.floats(6, 20), x=st.floats(6, 30), slope=st.tuples(st.floats(-3, 3), st.floats(-3, 3)))
def test_extract_reads_a_linear_ramp_exactly(y: float, x: float, slope: tuple[float, float]) -> None:
    rows, columns = torch.arange(27.0, dtype=torch.float64), torch.arange(37.0, dtype=torch.float64)
    field = 1 + slope[0] * rows[:, None] + slope[1] * columns
    position = torch.tensor([[y, x]], dtype=torch.float64)
    patch = extract(field, locate_corner(position, 12), 12)[0]
    step = torch.arange(12.0, dtype=torch.float64) - 6
    expected = 1 + slope[0] * (y + step)[:, None] + slope[1] * (x + step)
    assert float((patch - expected).abs().max()) <= 1e3 * tolerance("double")


@pytest.mark.contract("physics.patches.far")
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_fraction_of_a_pixel_survives_far_from_the_origin(fraction: float) -> None:
    field = torch.zeros(4, 20_004)
    field[1, 20_001] = 1
    corner_px = torch.tensor([[0, 20_000 + fraction]], dtype=torch.float64)
    patch = extract(field, corner_px, 2)[0]
    assert float(patch[1, 1]) == pytest.approx(1 - fraction, abs=1e-6)
    assert float(patch[1, 0]) == pytest.approx(fraction, abs=1e-6)


@pytest.mark.contract("physics.patches.outside")
@given(case=patch_cases())
def test_field_is_zero_outside_itself(case: PatchCase) -> None:
    margin = 40
    padded = torch.nn.functional.pad(case.field, (margin,) * 4)
    read = extract(case.field, case.corner_px, case.n_px)
    assert_close(read, extract(padded, case.corner_px + margin, case.n_px), "double")
    placed = place(case.patches, case.corner_px + margin, (padded.shape[-2], padded.shape[-1]))
    inside = placed[..., margin:-margin, margin:-margin]
    assert_close(place(case.patches, case.corner_px, case.shape), inside, "double")


@pytest.mark.contract("physics.patches.adjoint")
@given(case=patch_cases())
def test_extract_is_adjoint_of_place_for_complex_fields(case: PatchCase) -> None:
    left = inner(extract(case.field, case.corner_px, case.n_px), case.patches)
    right = inner(case.field, place(case.patches, case.corner_px, case.shape))
    assert abs(left - right) <= tolerance("double") * float(case.field.norm() * case.patches.norm())


@pytest.mark.contract("physics.patches.adjoint")
@given(case=patch_cases(torch.float64))
def test_extract_is_adjoint_of_place_for_real_fields(case: PatchCase) -> None:
    left = inner(extract(case.field, case.corner_px, case.n_px), case.patches)
    right = inner(case.field, place(case.patches, case.corner_px, case.shape))
    assert abs(left - right) <= tolerance("double") * float(case.field.norm() * case.patches.norm())


@pytest.mark.contract("physics.patches.sum")
@given(case=patch_cases(whole=True))
def test_place_at_whole_places_sums_what_slices_would_sum(case: PatchCase) -> None:
    height, width = case.shape
    n_px, margin = case.n_px, 40
    patches = case.patches.reshape(-1, *case.patches.shape[-3:])
    corners = case.corner_px.reshape(-1, *case.corner_px.shape[-2:]).long() + margin
    expected = torch.zeros(len(patches), height + 2 * margin, width + 2 * margin, dtype=torch.complex128)
    for lead, group in enumerate(patches):
        for k, patch in enumerate(group):
            y, x = corners[lead, k].tolist()
            expected[lead, y : y + n_px, x : x + n_px] += patch
    placed = place(case.patches, case.corner_px, case.shape)
    assert_close(placed.reshape(-1, height, width), expected[:, margin:-margin, margin:-margin], "double")


@pytest.mark.contract("physics.patches.into")
@given(case=patch_cases())
def test_place_into_adds_to_the_field_what_place_gives(case: PatchCase) -> None:
    field = case.field.clone()
    result = place_into(field, case.patches, case.corner_px)
    assert result.data_ptr() == field.data_ptr()
    assert_close(field, case.field + place(case.patches, case.corner_px, case.shape), "double")
    reached = place(torch.ones_like(case.patches), case.corner_px, case.shape) != 0
    assert torch.equal(field[~reached], case.field[~reached])


@pytest.mark.contract("physics.patches.sum")
@given(seed=seeds, fraction=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_spread_keeps_the_sum_and_moves_the_centre_of_mass(seed: int, fraction: tuple[float, float]) -> None:
    patch = normal((5, 5), seed, torch.float64).square()
    block = shift_bilinear(patch, torch.tensor(fraction, dtype=torch.float64))
    assert float(block.sum()) == pytest.approx(float(patch.sum()), rel=1e-12)
    index = torch.arange(6, dtype=torch.float64)
    for axis, shift in enumerate(fraction):
        before = (patch.sum(1 - axis) * index[:5]).sum() / patch.sum()
        after = (block.sum(1 - axis) * index).sum() / block.sum()
        assert float(after - before) == pytest.approx(shift, abs=1e-12)


@pytest.mark.contract("physics.patches.gradient")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients_of_extract_and_place_agree_with_finite_differences(dtype: torch.dtype) -> None:
    field = normal((2, 5, 6), 1, dtype).requires_grad_()
    patches = normal((2, 3, 3, 3), 2, dtype).requires_grad_()
    # Away from whole pixels, where a bilinear function of the place has a kink. Some places are outside.
    corner_px = (torch.tensor([[[0.3, 1.6], [-1.4, 2.2], [3.7, 4.5]]] * 2, dtype=torch.float64)).requires_grad_()
    numbers = {"eps": 1e-6, "atol": 1e-7, "rtol": 1e-6}
    assert torch.autograd.gradcheck(lambda f, c: extract(f, c, 3), (field, corner_px), **numbers)
    assert torch.autograd.gradcheck(lambda p, c: place(p, c, (5, 6)), (patches, corner_px), **numbers)
