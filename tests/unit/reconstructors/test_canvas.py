"""The canvas at its edges: what it touches, what it refuses, and what it says about its own result."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from strategies import normal
from tolerances import assert_close
from torch import Tensor

from torchptycho.physics.exact_sums import QUANTUM, round_to_quanta
from torchptycho.reconstructors.canvas import MIN_COVERAGE, Canvas
from torchptycho.reconstructors.growing_canvas import GrowingCanvas

N = 6


def at(*places: tuple[float, float]) -> Tensor:
    return torch.tensor(places, dtype=torch.float64)


def ones(count: int) -> Tensor:
    return torch.ones(count, N, N, dtype=torch.complex64)


@pytest.mark.contract("stitch.origin")
def test_origin_is_the_object_pixel_of_the_first_canvas_pixel() -> None:
    canvas = Canvas.for_positions(at((10, 20.5), (13, -4.25)), N)
    assert canvas.origin_px == (7, -8)
    assert tuple(canvas.weight.shape) == (3 + N + 1, 25 + N + 1)
    patch = torch.zeros(1, N, N, dtype=torch.complex64)
    patch[0, N // 2, N // 2] = 1
    canvas.add(patch, at((13, 17)), torch.ones(N, N))
    assert np.argwhere(canvas.numerator.numpy() != 0).tolist() == [[13 - 7, 17 + 8]]


@pytest.mark.contract("stitch.average")
def test_overlap_is_the_weighted_average() -> None:
    patches = torch.stack([torch.full((N, N), 2 + 0j), torch.full((N, N), 1j)]).to(torch.complex64)
    weights = torch.stack([torch.full((N, N), 3.0), torch.ones(N, N)])
    canvas = Canvas.for_positions(at((0, 0), (0, 2)), N)
    canvas.add(patches, at((0, 0), (0, 2)), weights)
    row = torch.from_numpy(canvas.finish().object)[2, : N + 2]
    assert_close(row, torch.tensor([2, 2, *[(6 + 1j) / 4] * (N - 2), 1j, 1j]), "stored_single")


@pytest.mark.contract("stitch.local")
def test_adding_touches_only_the_pixels_of_the_patches() -> None:
    canvas = Canvas.for_positions(at((0, 0), (40, 40)), N)
    canvas.add(normal((2, N, N), 1), at((0, 0), (40, 40)), torch.ones(N, N))
    numerator, weight = canvas.numerator.clone(), canvas.weight.clone()
    canvas.add(normal((1, N, N), 2), at((20.5, 10)), torch.ones(N, N))
    touched = torch.zeros_like(weight, dtype=torch.bool)
    touched[20 : 20 + N + 1, 10 : 10 + N] = True
    assert torch.equal(canvas.weight != weight, touched)
    assert torch.equal(canvas.numerator != numerator, touched)


@pytest.mark.contract("stitch.outside")
@pytest.mark.parametrize("place", [(-0.01, 5.0), (5.0, -0.01), (11.5, 5.0), (5.0, 10.5), (100.0, 5.0), (np.nan, 5.0)])
def test_patch_outside_the_canvas_is_refused_and_leaves_it_as_it_was(place: tuple[float, float]) -> None:
    canvas = Canvas.for_positions(at((0, 0), (10, 9)), N)
    with pytest.raises(ValueError, match=r"1 patches fall outside the canvas, the first at \(y, x\)"):
        canvas.add(ones(2), at((3, 3), place), torch.ones(N, N))
    assert not bool(canvas.weight.any())


@pytest.mark.contract("stitch.add.same")
@pytest.mark.parametrize("other", [((0, 0), (9, 9)), ((1, 0), (9, 8))])
def test_canvases_of_unlike_frames_of_reference_do_not_add(other: tuple[tuple[int, int], ...]) -> None:
    canvas = Canvas.for_positions(at((0, 0), (8, 8)), N)
    with pytest.raises(ValueError, match="do not cover the same pixels"):
        canvas + Canvas.for_positions(at(*other), N)


@pytest.mark.contract("stitch.coverage")
def test_coverage_is_the_weight_relative_to_its_maximum_and_valid_says_where_it_suffices() -> None:
    canvas = Canvas.for_positions(at((0, 0), (0, 20), (0, 40)), N)
    weights = torch.tensor([1.0, 1.1 * MIN_COVERAGE, 0.9 * MIN_COVERAGE])[:, None, None].expand(3, N, N)
    canvas.add(ones(3), at((0, 0), (0, 20), (0, 40)), weights)
    result = canvas.finish()
    middle = N // 2
    found = result.coverage[middle, [middle, 20 + middle, 40 + middle, 15]]
    np.testing.assert_allclose(found, [1, 1.1 * MIN_COVERAGE, 0.9 * MIN_COVERAGE, 0], rtol=1e-6, atol=0)
    assert result.valid[middle, [middle, 20 + middle, 40 + middle, 15]].tolist() == [True, True, False, False]
    assert result.coverage.max() == 1


@pytest.mark.contract("stitch.coverage")
def test_pixels_that_no_frame_reached_are_zero_and_not_nan() -> None:
    canvas = Canvas.for_positions(at((0, 0), (0, 20)), N)
    canvas.add(ones(2), at((0, 0), (0, 20)), torch.ones(N, N))
    result = canvas.finish()
    assert np.isfinite(result.object).all()
    assert not result.object[result.coverage == 0].any()


@pytest.mark.contract("stitch.empty")
def test_empty_canvas_has_no_image() -> None:
    with pytest.raises(ValueError, match="no patch was placed"):
        Canvas.for_positions(at((0, 0)), N).finish()


@pytest.mark.contract("stitch.result")
def test_reconstruction_carries_what_was_said_about_it() -> None:
    canvas = Canvas.for_positions(at((3, 4)), N)
    canvas.add(ones(1), at((3, 4)), torch.ones(N, N))
    result = canvas.finish(object_pixel_m=2e-8, provenance={"seed": 1})
    assert (result.object.dtype, result.coverage.dtype, result.valid.dtype) == (np.complex64, np.float32, np.bool_)
    assert (result.origin_px, result.object_pixel_m, result.provenance) == ((0, 1), 2e-8, {"seed": 1})


@pytest.mark.contract("stitch.finite")
@pytest.mark.parametrize("bad", [np.nan, np.inf, complex(0, -np.inf)])
def test_patches_that_are_not_finite_are_left_out_and_named(bad: complex) -> None:
    patches = normal((40, N, N), 1, torch.complex64)
    patches[7, 2, 3] = bad
    places = 20 * torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for canvas in (Canvas.for_positions(places, N), GrowingCanvas()):
        placed = canvas.add(patches, places, torch.ones(N, N))
        assert torch.nonzero(~placed).flatten().tolist() == [7]
        without = Canvas.for_positions(places, N)
        others = torch.arange(40) != 7
        without.add(patches[others], places[others], torch.ones(N, N))
        inner = canvas.crop() if isinstance(canvas, GrowingCanvas) else canvas
        expected = Canvas(inner.shape, inner.origin_px)
        expected.paste(without)
        assert torch.equal(inner.numerator, expected.numerator)
        assert torch.equal(inner.weight, expected.weight)


@pytest.mark.contract("stitch.grow.limit")
def test_position_out_of_reach_is_not_placed_and_takes_no_memory() -> None:
    canvas = GrowingCanvas(tile_px=16, largest_px=200)
    places = at((0, 0), (1, 1), (1e9, 0), (0, -150), (np.nan, 0), (90, -80))
    assert canvas.add(ones(6), places, torch.ones(N, N)).tolist() == [True, True, False, False, False, False]
    assert canvas.add(ones(2), at((70, -70), (0, 1e300)), torch.ones(N, N)).tolist() == [True, False]
    assert max(canvas.shape) <= 200
    assert canvas.used_px == ((0 - N // 2, -70 - N // 2), (70 + N // 2 + 1, 1 + N // 2 + 1))


@pytest.mark.contract("stitch.empty")
def test_canvas_that_has_not_grown_has_no_image() -> None:
    canvas = GrowingCanvas()
    assert not bool(canvas.add(ones(1), at((np.nan, 0)), torch.ones(N, N)).any())
    assert (canvas.shape, canvas.origin_px, canvas.used_px) == ((0, 0), (0, 0), None)
    with pytest.raises(ValueError, match="no patch was placed"):
        canvas.finish()
    with pytest.raises(ValueError, match="at least four tiles"):
        GrowingCanvas(tile_px=64, largest_px=200)


@pytest.mark.contract("stitch.spread")
def test_canvas_without_spread_has_none_and_adds_to_its_like_only() -> None:
    canvas = Canvas.for_positions(at((0, 0)), N, with_spread=False)
    canvas.add(ones(1), at((0, 0)), torch.ones(N, N))
    assert canvas.finish().spread is None
    with pytest.raises(ValueError, match="with and without spread"):
        canvas + Canvas.for_positions(at((0, 0)), N)


@pytest.mark.parametrize("with_spread", [True, False])
def test_sums_that_were_saved_make_the_same_canvas(with_spread: bool) -> None:
    canvas = Canvas.for_positions(at((3, -4.5), (9, 2)), N, with_spread=with_spread)
    canvas.add(normal((2, N, N), 1, torch.complex64), at((3, -4.5), (9, 2)), torch.ones(N, N))
    sums = canvas.to_sums()
    assert set(sums) == {"numerator", "weight", "origin_px"} | ({"squares"} if with_spread else set())
    assert sums["origin_px"].tolist() == list(canvas.origin_px)
    again = Canvas.from_sums(sums)
    assert (again.origin_px, again.shape) == (canvas.origin_px, canvas.shape)
    for both in (canvas, again):
        both.add(normal((1, N, N), 2, torch.complex64), at((5, -1)), torch.ones(N, N))
    one, other = canvas.finish(), again.finish()
    np.testing.assert_array_equal(one.object, other.object)
    np.testing.assert_array_equal(one.coverage, other.coverage)
    assert (one.spread is None, other.spread is None) == (not with_spread, not with_spread)
    if one.spread is not None and other.spread is not None:
        np.testing.assert_array_equal(one.spread, other.spread)


@pytest.mark.contract("stitch.result")
def test_a_canvas_that_grew_passes_on_what_was_said_about_it() -> None:
    canvas = GrowingCanvas(tile_px=16, largest_px=64)
    assert canvas.used_px is None
    canvas.add(ones(1), at((3, 4)), torch.ones(N, N))
    result = canvas.finish(object_pixel_m=2e-8, provenance={"seed": 1})
    assert (result.origin_px, result.object_pixel_m, result.provenance) == ((0, 1), 2e-8, {"seed": 1})
    assert result.object.shape == (N + 1, N + 1)
    assert (canvas.origin_px, canvas.shape) == ((0, 0), (16, 16))


@pytest.mark.contract("stitch.grow.limit")
def test_the_sum_of_two_canvases_has_their_tiles_and_reach() -> None:
    one, other = (GrowingCanvas(tile_px=16, largest_px=200) for _ in range(2))
    one.add(ones(1), at((0, 0)), torch.ones(N, N))
    other.add(ones(1), at((-20, 40)), torch.ones(N, N))
    for total in (one + other, GrowingCanvas(tile_px=16, largest_px=200) + one + other):
        assert total.used_px == ((-23, -3), (4, 44))
        assert (total.origin_px, total.shape) == ((-32, -16), (48, 64))
        # In reach of the first patch of the first canvas: (200 - 6) // 2 - 16 - 1 px.
        assert total.add(ones(3), at((0, 80), (0, 81), (-80, 0)), torch.ones(N, N)).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="both with or both without"):
        one + GrowingCanvas(with_spread=False)
    with pytest.raises(ValueError, match="both with or both without"):
        one + Canvas((4, 4), (0, 0))


def test_each_patch_of_a_growing_canvas_keeps_its_own_weight() -> None:
    places = at((0, 0), (np.nan, 0), (0, 30))
    weights = torch.tensor([1.0, 5.0, 3.0])[:, None, None].expand(3, N, N)
    canvas = GrowingCanvas(tile_px=16, largest_px=200)
    canvas.add(ones(3), places, weights)
    found = canvas.crop()
    y = -found.origin_px[0]
    assert [float(found.weight[y, x - found.origin_px[1]]) for x in (0, 30)] == [1.0, 3.0]


@pytest.mark.contract("stitch.exact")
def test_sums_are_whole_quanta_and_exact() -> None:
    """Where the sums of any terms are rounded, the order shows."""
    terms = round_to_quanta(normal((10_000,), 3, torch.float64))
    assert torch.equal(terms / QUANTUM, (terms / QUANTUM).round())
    exact = sum(Fraction(term) for term in terms.tolist())
    assert Fraction(float(terms.cumsum(0)[-1])) == exact == Fraction(float(terms.flip(0).cumsum(0)[-1]))
    raw = normal((10_000,), 3, torch.float64)
    assert float(raw.cumsum(0)[-1]) != float(raw.flip(0).cumsum(0)[-1])
