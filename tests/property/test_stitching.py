"""What must hold for any set of patches on a canvas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, patches_of, positions, scans, seeds
from tolerances import assert_close, tolerance
from torch import Tensor

from torchptycho.physics.merging import central_weight, probe_weight
from torchptycho.physics.patches import corner, extract
from torchptycho.scan import Scan
from torchptycho.stitch import Canvas

N = 8
places = st.integers(1, 12).flatmap(lambda count: positions(count, -20, 30))
whole_places = st.integers(1, 12).flatmap(lambda count: positions(count, 6, 40, whole=True))


def some_weight(seed: int) -> Tensor:
    return 0.1 + normal((N, N), seed, torch.float64).square()


def object_under(canvas: Canvas, field: Tensor) -> Tensor:
    (y, x), (height, width) = canvas.origin_px, canvas.weight.shape
    return extract(field, torch.tensor([[y, x]], dtype=torch.float64), max(height, width))[0, :height, :width]


@pytest.mark.contract("stitch.identity")
@given(position_px=whole_places, seed=seeds)
def test_stitching_the_patches_of_an_object_gives_the_object(position_px: Tensor, seed: int) -> None:
    field = normal((48, 50), seed)
    canvas = Canvas.for_positions(position_px, N)
    canvas.add(extract(field, corner(position_px, N), N), position_px, some_weight(seed))
    result = canvas.finish()
    covered = torch.from_numpy(result.coverage) > 0
    expected = torch.where(covered, object_under(canvas, field), 0)
    assert_close(torch.from_numpy(result.object), expected, "devices")
    assert bool(covered.any())


@pytest.mark.contract("stitch.identity")
@settings(max_examples=8)
@given(scan=scans(noise=False), central=st.booleans())
def test_stitching_the_truth_of_a_scan_gives_the_truth(scan: Scan, central: bool) -> None:
    assert scan.truth is not None
    position_px = torch.from_numpy(scan.positions_px).floor()
    whole = Scan(**{**scan.__dict__, "positions_px": position_px.numpy()})
    probe = torch.from_numpy(scan.probe)
    weight = central_weight(scan.n_px, probe) if central else probe_weight(probe)
    canvas = Canvas.for_positions(position_px, scan.n_px)
    canvas.add(torch.from_numpy(patches_of(whole)), position_px, weight)
    result = canvas.finish()
    y, x = result.origin_px
    height, width = result.object.shape
    # The canvas is one pixel larger than the patches need at whole positions.
    truth = torch.nn.functional.pad(torch.from_numpy(scan.truth), (0, 1, 0, 1))[y : y + height, x : x + width]
    valid = torch.from_numpy(result.valid)
    assert_close(torch.from_numpy(result.object)[valid], truth[valid], "devices")


@pytest.mark.contract("stitch.constant")
@given(position_px=places, seed=seeds, value=st.complex_numbers(min_magnitude=0.1, max_magnitude=2))
def test_constant_object_is_constant_at_any_fraction_of_a_pixel(position_px: Tensor, seed: int, value: complex) -> None:
    canvas = Canvas.for_positions(position_px, N)
    canvas.add(torch.full((len(position_px), N, N), value, dtype=torch.complex128), position_px, some_weight(seed))
    result = canvas.finish()
    covered = torch.from_numpy(result.object)[torch.from_numpy(result.coverage) > 1e-6]
    assert_close(covered, torch.full_like(covered, value), "stored_single")


@pytest.mark.contract("stitch.sub-pixel")
@given(y=st.floats(-5, 5), x=st.floats(-5, 5))
def test_single_pixel_lands_where_its_position_says(y: float, x: float) -> None:
    position_px = torch.tensor([[y, x]], dtype=torch.float64)
    weight = torch.zeros(N, N, dtype=torch.float64)
    weight[N // 2, N // 2] = 1
    canvas = Canvas.for_positions(position_px, N)
    canvas.add(torch.ones(1, N, N, dtype=torch.complex64), position_px, weight)
    assert float(canvas.weight.sum()) == pytest.approx(1, rel=1e-12)
    for axis, place in enumerate((y, x)):
        index = torch.arange(canvas.weight.shape[axis], dtype=torch.float64) + canvas.origin_px[axis]
        assert float((canvas.weight.sum(1 - axis) * index).sum()) == pytest.approx(place, abs=1e-11)


@pytest.mark.contract("stitch.order")
@given(seed=seeds, batch=st.integers(1, 40), data=st.data())
def test_stitching_is_independent_of_batch_order_and_size(seed: int, batch: int, data: st.DataObject) -> None:
    position_px = data.draw(positions(40, -10, 20))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(40, generator=generator)
    patches, weight = normal((40, N, N), seed, torch.complex64), some_weight(seed)
    at_once, piecewise = (Canvas.for_positions(position_px, N) for _ in range(2))
    at_once.add(patches, position_px, weight)
    for part in order.split(batch):
        piecewise.add(patches[part], position_px[part], weight)
    assert_close(piecewise.numerator, at_once.numerator, "order")
    assert_close(piecewise.weight, at_once.weight, "order")


@pytest.mark.contract("stitch.add")
@given(position_px=positions(9, -10, 20), seed=seeds, cut=st.integers(0, 9))
def test_canvases_of_two_halves_add_to_the_canvas_of_the_whole(position_px: Tensor, seed: int, cut: int) -> None:
    patches, weight = normal((9, N, N), seed), some_weight(seed)
    whole, first, second = (Canvas.for_positions(position_px, N) for _ in range(3))
    whole.add(patches, position_px, weight)
    first.add(patches[:cut], position_px[:cut], weight)
    second.add(patches[cut:], position_px[cut:], weight)
    total = first + second
    assert_close(total.numerator, whole.numerator, "order")
    assert_close(total.weight, whole.weight, "order")
    assert total.origin_px == whole.origin_px


@pytest.mark.contract("stitch.fits")
@given(position_px=places)
def test_canvas_holds_all_of_every_patch_and_no_more_than_a_pixel_around_them(position_px: Tensor) -> None:
    canvas = Canvas.for_positions(position_px, N)
    canvas.add(torch.ones(len(position_px), N, N, dtype=torch.complex64), position_px, torch.ones(N, N))
    lost = 1 - float(canvas.weight.sum()) / (len(position_px) * N * N)
    assert abs(lost) <= tolerance("double")
    extent = position_px.amax(0) - position_px.amin(0)
    assert bool((torch.tensor(canvas.weight.shape) <= extent + N + 2).all())
