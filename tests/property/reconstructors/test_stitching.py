"""What must hold for any set of patches on a canvas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cut_true_patches, make_asymmetric_probe, normal, positions, scans, seeds
from tolerances import assert_close, tolerance
from torch import Tensor

from torchptycho.core.scan import Scan
from torchptycho.physics.exact_sums import QUANTUM
from torchptycho.physics.overlap import central_weight, probe_weight
from torchptycho.physics.patches import extract, locate_corner
from torchptycho.reconstructors.canvas import Canvas
from torchptycho.reconstructors.growing_canvas import GrowingCanvas

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
    canvas.add(extract(field, locate_corner(position_px, N), N), position_px, some_weight(seed))
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
    canvas.add(torch.from_numpy(cut_true_patches(whole)), position_px, weight)
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
    # Four bilinear weights, each to half a quantum.
    assert float(canvas.weight.sum()) == pytest.approx(1, abs=2 * QUANTUM)
    for axis, place in enumerate((y, x)):
        index = torch.arange(canvas.weight.shape[axis], dtype=torch.float64) + canvas.origin_px[axis]
        assert float((canvas.weight.sum(1 - axis) * index).sum()) == pytest.approx(place, abs=100 * QUANTUM)


def same(a: Canvas, b: Canvas) -> bool:
    """Equal to the bit, also in the image that follows."""
    one, two = a.finish(), b.finish()
    assert one.spread is not None
    assert two.spread is not None
    return (
        a.origin_px == b.origin_px
        and torch.equal(a.numerator, b.numerator)
        and torch.equal(a.weight, b.weight)
        and np.array_equal(one.spread, two.spread)
    )


def weights_of(kind: str, seed: int) -> Tensor:
    """Even over the centre, |P|^2, or any, of all patches alike or one each."""
    if kind == "central":
        return central_weight(N, torch.ones(1))
    if kind == "probe":
        return probe_weight(make_asymmetric_probe(N, dtype=torch.complex64))
    return 0.1 + normal((40, N, N), seed, torch.float32).square()


weight_kinds = st.sampled_from(["central", "probe", "each"])


@pytest.mark.contract("stitch.order")
@given(seed=seeds, batch=st.integers(1, 40), kind=weight_kinds, data=st.data())
def test_stitching_is_independent_of_batch_order_and_size(
    seed: int, batch: int, kind: str, data: st.DataObject
) -> None:
    position_px = data.draw(positions(40, -10, 20))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(40, generator=generator)
    patches, weight = normal((40, N, N), seed, torch.complex64), weights_of(kind, seed)
    at_once, piecewise = (Canvas.for_positions(position_px, N) for _ in range(2))
    at_once.add(patches, position_px, weight)
    for part in order.split(batch):
        piecewise.add(patches[part], position_px[part], weight if weight.dim() == 2 else weight[part])
    assert same(piecewise, at_once)


@pytest.mark.contract("stitch.add")
@given(position_px=positions(9, -10, 20), seed=seeds, cut=st.integers(0, 9))
def test_canvases_of_two_halves_add_to_the_canvas_of_the_whole(position_px: Tensor, seed: int, cut: int) -> None:
    patches, weight = normal((9, N, N), seed), some_weight(seed)
    whole, first, second = (Canvas.for_positions(position_px, N) for _ in range(3))
    whole.add(patches, position_px, weight)
    first.add(patches[:cut], position_px[:cut], weight)
    second.add(patches[cut:], position_px[cut:], weight)
    assert same(first + second, whole)


@pytest.mark.contract("stitch.grow")
@given(position_px=positions(20, -300, 300), seed=seeds, batch=st.integers(1, 20), tile=st.sampled_from([1, 16, 100]))
def test_canvas_that_grew_is_the_canvas_made_for_all_positions(
    position_px: Tensor, seed: int, batch: int, tile: int
) -> None:
    patches, weight = normal((20, N, N), seed, torch.complex64), some_weight(seed)
    known = Canvas.for_positions(position_px, N)
    known.add(patches, position_px, weight)
    growing, half, rest = (GrowingCanvas(tile_px=tile, largest_px=2000) for _ in range(3))
    for number, part in enumerate(torch.arange(20).split(batch)):
        assert bool(growing.add(patches[part], position_px[part], weight).all())
        (half, rest)[number % 2].add(patches[part], position_px[part], weight)
    assert all(size % tile == 0 for size in growing.shape)
    assert same(growing.crop(), known)
    assert same((half + rest).crop(), known)


@pytest.mark.contract("stitch.spread")
@given(seed=seeds, place=positions(1, 3, 5), data=st.data())
def test_spread_is_the_weighted_standard_deviation_of_the_values_that_meet(
    seed: int, place: Tensor, data: st.DataObject
) -> None:
    """Each patch by itself on a canvas says which value it brings to a pixel, and with which weight."""
    position_px = torch.cat([place, data.draw(positions(4, 0, 8))])
    patches = normal((5, N, N), seed, torch.complex128)
    weight = 0.1 + normal((5, N, N), seed, torch.float64).square()
    together = Canvas.for_positions(position_px, N)
    together.add(patches, position_px, weight)
    values, weights = [], []
    for number in range(5):
        alone = Canvas.for_positions(position_px, N)
        alone.add(patches[number : number + 1], position_px[number : number + 1], weight[number])
        values.append(alone.numerator / alone.weight.clamp_min(1e-300))
        weights.append(alone.weight)
        assert float(np.abs(alone.finish().spread)[alone.weight.numpy() > 1e-2].max()) < 1e-4
    value, w = torch.stack(values), torch.stack(weights)
    total = w.sum(0)
    mean = (w * value).sum(0) / total
    expected = ((w * (value - mean).abs().square()).sum(0) / total).sqrt()
    found = together.finish().spread
    assert found is not None
    well = total > 1e-2
    np.testing.assert_allclose(found[well.numpy()], expected[well].numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.contract("stitch.identity")
@given(position_px=places, seed=seeds, gridsize=st.integers(1, 3), kind=weight_kinds)
def test_stitching_what_was_extracted_gives_the_object(
    position_px: Tensor, seed: int, gridsize: int, kind: str
) -> None:
    """At whole positions the object itself; at others it is smooth, and interpolation costs its curvature only."""
    y, x = torch.meshgrid(*(torch.arange(80, dtype=torch.float64),) * 2, indexing="ij")
    field = torch.polar(1 + 1e-3 * (y + seed % 7 * x), 1e-3 * (x - y)).to(torch.complex64)
    here = torch.tensor([[30.0, 30.0]], dtype=torch.float64)
    canvas = Canvas.for_positions(position_px, N)
    weight = weights_of(kind, seed)
    # In groups, as they are predicted.
    for part in torch.arange(len(position_px)).split(gridsize**2):
        patches = extract(field, locate_corner(position_px[part] + here, N), N)
        canvas.add(patches, position_px[part], weight if weight.dim() == 2 else weight[part])
    result = canvas.finish()
    origin = torch.tensor([canvas.origin_px], dtype=torch.float64) + here
    truth = extract(field, origin, max(canvas.shape))[0, : canvas.shape[0], : canvas.shape[1]]
    valid = torch.from_numpy(result.valid)
    # A pixel whose value a patch brings from half a pixel aside, twice, and a slope of 1e-2 per pixel.
    limit = 1e-6 if torch.equal(position_px, position_px.floor()) else 2e-2
    assert float((torch.from_numpy(result.object) - truth)[valid].abs().max()) < limit * float(truth.abs().max())


@pytest.mark.contract("stitch.fits")
@given(position_px=places)
def test_canvas_holds_all_of_every_patch_and_no_more_than_a_pixel_around_them(position_px: Tensor) -> None:
    canvas = Canvas.for_positions(position_px, N)
    weight = torch.ones(N, N, dtype=torch.float64)
    canvas.add(torch.ones(len(position_px), N, N, dtype=torch.complex64), position_px, weight)
    lost = 1 - float(canvas.weight.sum()) / (len(position_px) * N * N)
    assert abs(lost) <= tolerance("double")
    extent = position_px.amax(0) - position_px.amin(0)
    assert bool((torch.tensor(canvas.weight.shape) <= extent + N + 2).all())
