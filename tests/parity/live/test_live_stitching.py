"""The image of a whole scan: the product's `Canvas` against the oracle's stitching, pixel by pixel."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from agreement import MISSING, assert_agree
from hypothesis import given
from hypothesis import strategies as st
from strategies import centred_offsets, normal, seeds
from tolerances import assert_close, relative_l2
from torch import Tensor

from torchptycho.interop import original_layouts
from torchptycho.physics.overlap import central_weight
from torchptycho.physics.patches import extract, locate_corner, place_into
from torchptycho.reconstructors.canvas import Canvas

oracle = pytest.importorskip("tf_reference", reason=MISSING)


@dataclasses.dataclass(frozen=True)
class Stitching:
    """Patches [n, N, N] at offsets [n, 2] (y, x) in 1/256 px whose mean is zero; M central pixels of each count."""

    patches: Tensor
    offset_px: Tensor
    size: int

    @property
    def arguments(self) -> tuple[np.ndarray, np.ndarray]:
        """As the oracle takes them."""
        return self.patches.numpy()[..., None], as_offsets(self.offset_px)

    @property
    def room(self) -> int:
        """Pixels that the oracle's canvas is larger than M, on each side."""
        room = math.ceil(float(self.offset_px.abs().max()))
        return room + room % 2

    @property
    def weight(self) -> Tensor:
        """[N, N], 1 on the central M x M."""
        cut = (self.patches.shape[-1] - self.size) // 2
        return torch.nn.functional.pad(torch.ones(self.size, self.size, dtype=torch.float64), (cut,) * 4)

    def empty_canvas(self) -> Canvas:
        """A canvas of the product that covers the oracle's pixels, and half the border of a patch around them."""
        n_px = self.patches.shape[-1]
        edge = n_px + 2 * self.room
        origin = -(self.room + n_px // 2)
        return Canvas((edge, edge), (origin, origin))

    def on_oracle_pixels(self, image: Tensor | np.ndarray) -> Tensor:
        """What lies on the oracle's canvas, as its (S, S, 1)."""
        cut = (self.patches.shape[-1] - self.size) // 2
        edge = image.shape[0]
        return torch.as_tensor(image)[cut : edge - cut, cut : edge - cut, None]


def as_offsets(positions_px: Tensor) -> np.ndarray:
    """[n, 2] of (y, x) as the oracle's (n, 1, 2, 1) of (x, y)."""
    return original_layouts.offsets_from_centers(positions_px.numpy())


@st.composite
def stitchings(draw: st.DrawFn, counts: tuple[int, ...] = (1, 2, 3, 4, 5, 6)) -> Stitching:
    n_px = 2 * draw(st.integers(2, 6))
    size = n_px - 2 * draw(st.integers(0, n_px // 2 - 1))
    frames, seed = draw(st.sampled_from(counts)), draw(seeds)
    offset_px = draw(centred_offsets(1, frames, draw(st.integers(0, 12))))[0]
    return Stitching(normal((frames, n_px, n_px), seed, torch.complex64), offset_px, size)


@pytest.mark.contract("parity.shift_and_sum")
@given(case=stitchings(), chunk_size=st.integers(1, 4))
def test_sums_on_the_canvas(case, chunk_size):
    canvas = case.empty_canvas()
    canvas.add(case.patches, case.offset_px, case.weight)
    objects, offsets = case.arguments
    total = oracle.shift_and_sum(objects, offsets, case.size, chunk_size)
    count = oracle.shift_and_sum(np.ones_like(objects), offsets, case.size, chunk_size)
    assert_agree(case.on_oracle_pixels(canvas.numerator), total, "parity.shift_and_sum", "oracle_operator")
    assert_agree(case.on_oracle_pixels(canvas.weight + 0j), count, "parity.shift_and_sum", "oracle_operator")


@pytest.mark.contract("parity.shift_and_sum")
@given(case=stitchings((2, 3, 4, 5, 6)))
def test_gradient_of_the_sum(case):
    patches = case.patches.clone().requires_grad_()
    canvas = case.empty_canvas()
    n_px = patches.shape[-1]
    objects, offsets = case.arguments
    summed = place_into(
        canvas.numerator.to(patches.dtype),
        patches * case.weight.float(),
        locate_corner(case.offset_px, n_px, canvas.origin_px),
    )
    found = case.on_oracle_pixels(summed)
    cotangent = normal(tuple(found.shape), 1, patches.dtype)
    found.backward(cotangent)
    by_patches = oracle.gradient(
        oracle.shift_and_sum, objects, offsets, M=case.size, chunk_size=3, cotangent=cotangent.numpy()
    )
    assert_agree(patches.grad, by_patches[..., 0], "parity.shift_and_sum.gradient", "oracle_operator")


@pytest.mark.contract("parity.reassemble_position")
@given(case=stitchings())
def test_stitched_image_in_the_oracle_s_frame(case):
    canvas = case.empty_canvas()
    canvas.add(case.patches, case.offset_px, case.weight)
    # The oracle divides by 1e-9 + the sum of weights, and 1/65536 of a weight may lie on a pixel.
    damped = canvas.finish().object * (canvas.weight / (canvas.weight + 1e-9)).numpy()
    expected = oracle.reassemble_position(*case.arguments, M=case.size)
    assert_agree(case.on_oracle_pixels(damped), expected, "parity.reassemble_position", "oracle_operator")


@pytest.mark.contract("parity.reassemble_position")
@given(case=stitchings(), where=st.tuples(st.integers(-500, 500), st.integers(-500, 500)))
def test_stitched_image_at_absolute_positions(case, where):
    """The oracle's pixel (pad + M/2, pad + M/2) is the mean of the positions; here that is a whole pixel."""
    positions_px = case.offset_px + torch.tensor(where, dtype=torch.float64)
    cut = (case.patches.shape[-1] - case.size) // 2
    inner = case.patches[:, cut : cut + case.size, cut : cut + case.size]
    canvas = Canvas.for_positions(positions_px, case.size)
    canvas.add(inner, positions_px, torch.ones(case.size, case.size))
    damped = canvas.finish().object * (canvas.weight / (canvas.weight + 1e-9)).numpy()
    expected = oracle.reassemble_position(case.arguments[0], as_offsets(positions_px), M=case.size)[..., 0]
    # The product's canvas may end a pixel later; nothing lies there. The oracle's has more room on every side.
    y, x = (canvas.origin_px[axis] - where[axis] + case.room + case.size // 2 for axis in (0, 1))
    height, width = damped.shape
    found = np.zeros((expected.shape[0] + 1, expected.shape[1] + 1), np.complex128)
    found[y : y + height, x : x + width] = damped
    assert not found[-1].any()
    assert not found[:, -1].any()
    assert_agree(found[:-1, :-1], expected, "parity.reassemble_position", "oracle_operator")


@pytest.mark.contract("parity.stitch_patches")
@given(seed=seeds, count=st.integers(1, 4), kept=st.sampled_from([2, 4, 6]), border=st.integers(0, 3))
def test_tiles_of_a_regular_grid(seed, count, kept, border):
    n_px = kept + 2 * border
    patches = normal((count**2, n_px, n_px), seed, torch.complex64)
    row_column = torch.stack(torch.meshgrid(*(torch.arange(count),) * 2, indexing="ij"), dim=-1).reshape(-1, 2)
    positions_px = (row_column * kept).double()
    canvas = Canvas.for_positions(positions_px, n_px)
    canvas.add(patches, positions_px, torch.nn.functional.pad(torch.ones(kept, kept), (border,) * 4))
    inside = slice(border, border + count * kept)
    image = canvas.finish().object[None, inside, inside, None]
    for part, value in (("complex", image), ("amp", np.abs(image)), ("phase", np.angle(image))):
        found = oracle.stitch_patches(patches.numpy()[..., None], 2 * kept, part=part)
        assert_agree(value, found, "parity.stitch_patches", "oracle_operator")


@pytest.mark.contract("parity.reassemble_whole_object")
@given(case=stitchings((1, 4)))
def test_one_group_on_a_canvas_is_the_plain_average(case):
    n_px = case.patches.shape[-1]
    if n_px % 4:
        n_px -= 2
    frames = case.patches[:, :n_px, :n_px]
    plain = dataclasses.replace(case, patches=frames, size=n_px)
    canvas = plain.empty_canvas()
    canvas.add(frames, case.offset_px, torch.ones(n_px, n_px))
    channels = original_layouts.channels_last(frames[None].numpy())
    relative = original_layouts.relative_from_offsets(case.offset_px[None].numpy())
    found = oracle.reassemble_whole_object(channels, relative, canvas.weight.shape[0], norm=True)[..., 0]
    covered = canvas.weight.numpy() > 0
    np.testing.assert_array_equal(np.isfinite(found), covered)
    image = canvas.finish().object
    assert_agree(image[covered], found[covered], "parity.reassemble_whole_object", "oracle_operator")


@pytest.mark.contract("deviation.whole-object-weights")
@given(px=st.integers(-3, 3), values=st.tuples(st.floats(0.5, 1), st.floats(2, 5)))
def test_borders_outweigh_centres_in_the_oracle_s_whole_object(px, values):
    """Two groups of one frame each; the centre of the first lies under the border of the second."""
    n_px, edge = 16, 64
    offset_px = torch.tensor([[-3, -px], [3, px]], dtype=torch.float64)
    patches = torch.tensor(values, dtype=torch.complex64)[:, None, None].expand(2, n_px, n_px)
    relative = original_layouts.relative_from_offsets(offset_px[:, None].numpy())
    channels = original_layouts.channels_last(patches[:, None].numpy())
    theirs = oracle.reassemble_whole_object(channels, relative, edge, norm=True)[..., 0]
    origin = -edge // 2
    canvas = Canvas((edge, edge), (origin, origin))
    canvas.add(patches, offset_px, central_weight(n_px, patches))
    here = canvas.finish().object
    pixel = (-3 - 1 - origin, -px - origin)  # a pixel above the middle of the first frame, 7 above that of the second
    assert here[pixel] == pytest.approx(values[0], rel=1e-6)
    weights = 1 / 1.001, 1 / 0.001
    assert theirs[pixel] == pytest.approx(np.average(values, weights=weights), rel=1e-5)
    assert theirs[pixel] == pytest.approx(values[1], rel=1e-3)


@pytest.mark.contract("deviation.dropped-position")
@given(case=stitchings(), shift=st.tuples(st.integers(-300, 300), st.integers(-300, 300)))
def test_image_says_where_it_lies_here_only(case, shift):
    shift_px = torch.tensor(shift, dtype=torch.float64)
    objects, offsets = case.arguments
    there = oracle.reassemble_position(objects, offsets, M=case.size)
    moved = oracle.reassemble_position(objects, as_offsets(case.offset_px + shift_px), M=case.size)
    np.testing.assert_array_equal(moved, there)
    here, moved_here = (
        Canvas.for_positions(places, case.patches.shape[-1]) for places in (case.offset_px, case.offset_px + shift_px)
    )
    assert moved_here.origin_px == tuple(a + b for a, b in zip(here.origin_px, shift, strict=True))


@pytest.mark.contract("deviation.dropped-position")
@given(seed=seeds, count=st.integers(2, 6), data=st.data())
def test_frames_at_whole_pixels_are_blurred_there_by_the_fraction_of_their_mean(seed, count, data):
    n_px, size = 12, 10
    coordinates = data.draw(st.lists(st.integers(0, 15), min_size=2 * count, max_size=2 * count))
    positions_px = torch.tensor(coordinates, dtype=torch.float64).reshape(count, 2)
    sums = positions_px.sum(0)
    positions_px[0] += torch.where(sums % count == 0, 1.0, 0.0)  # the mean is not whole, on both axes
    field = normal((40, 40), seed, torch.complex64)
    patches = extract(field, locate_corner(positions_px, n_px, (-10, -10)), n_px)
    cut = (n_px - size) // 2
    canvas = Canvas.for_positions(positions_px, size)
    canvas.add(patches[:, cut:-cut, cut:-cut], positions_px, torch.ones(size, size))
    here = canvas.finish()
    origin = torch.tensor([here.origin_px], dtype=torch.float64) + 10
    truth = extract(field, origin, max(here.object.shape))[0, : here.object.shape[0], : here.object.shape[1]]
    covered = torch.from_numpy(here.coverage > 0)
    assert_close(torch.from_numpy(here.object)[covered], truth[covered], "stored_single")

    there = oracle.reassemble_position(patches.numpy()[..., None], as_offsets(positions_px), M=size)[..., 0]
    mean_px = positions_px.mean(0)
    room = (there.shape[0] - size) // 2
    # Whole pixels nearest to those of the oracle; none of its pixels is one.
    nearest = mean_px.round() - (room + size // 2) + 10
    shifted = extract(field, nearest[None], there.shape[0])[0]
    inside = (
        np.abs(oracle.shift_and_sum(np.ones_like(patches.numpy()[..., None]), as_offsets(positions_px), size)) > 0.99
    )
    assert relative_l2(torch.from_numpy(there[inside[..., 0]]), shifted[torch.from_numpy(inside[..., 0])]) > 0.1


@pytest.mark.contract("deviation.far-positions")
@pytest.mark.parametrize(("far_px", "least_error"), [(10_000.0, 1e-5), (100_000.0, 1e-4), (1_000_000.0, 1e-3)])
@given(seed=seeds)
def test_far_from_the_origin_fractions_of_a_pixel_survive_here_only(far_px, least_error, seed):
    frames, n_px = 6, 12
    patches = normal((frames, n_px, n_px), seed, torch.complex64)
    # In 1/4096 px, which a float32 holds up to 4096 px only; the largest is known, and with it the oracle's canvas.
    steps = torch.randint(-4 * 4096, 4 * 4096, (frames, 2), generator=torch.Generator().manual_seed(seed)).double()
    steps[0], steps[1] = -4.5 * 4096, 4.5 * 4096
    steps[-1] -= steps.sum(0)
    steps[-1].clamp_(-4.4 * 4096, 4.4 * 4096).round_()
    offset_px = steps / 4096
    near, far = (
        oracle.reassemble_position(patches.numpy()[..., None], as_offsets(offset_px + origin), M=n_px)
        for origin in (0.0, far_px)
    )
    assert relative_l2(torch.from_numpy(far), torch.from_numpy(near)) > least_error
    canvases = []
    for origin in (0.0, far_px):
        canvas = Canvas.for_positions(offset_px + origin, n_px)
        canvas.add(patches, offset_px + origin, torch.ones(n_px, n_px))
        canvases.append(canvas)
    assert_close(canvases[1].numerator, canvases[0].numerator, "order")
    assert_close(canvases[1].weight, canvases[0].weight, "order")


@pytest.mark.contract("deviation.square-canvas")
@given(length=st.integers(1, 200), along=st.integers(0, 1), seed=seeds)
def test_canvas_is_as_large_as_the_scan_here_and_a_square_there(length, along, seed):
    offset_px = torch.zeros(3, 2, dtype=torch.float64)
    offset_px[0, along], offset_px[2, along] = -length, length
    case = Stitching(normal((3, 8, 8), seed, torch.complex64), offset_px, 8)
    there = oracle.reassemble_position(*case.arguments, M=8)
    even = length + length % 2
    assert there.shape == (8 + 2 * even, 8 + 2 * even, 1)
    canvas = Canvas.for_positions(offset_px, 8)
    assert canvas.weight.shape[along] == 2 * length + 9
    assert canvas.weight.shape[1 - along] == 9


@pytest.mark.contract("deviation.odd-size")
@given(case=stitchings(), seed=seeds)
def test_patches_of_an_odd_size_are_stitched_here_only(case, seed):
    size = case.size - 1
    with pytest.raises(ValueError, match="expected an even number"):
        oracle.reassemble_position(*case.arguments, M=size)
    patches = torch.full((len(case.patches), size, size), 2 + 1j, dtype=torch.complex64)
    canvas = Canvas.for_positions(case.offset_px, size)
    canvas.add(patches, case.offset_px, torch.ones(size, size))
    image = canvas.finish()
    covered = torch.from_numpy(image.object[image.coverage > 0])
    assert_close(covered, torch.full_like(covered, 2 + 1j), "stored_single")


@pytest.mark.contract("deviation.stitching-epsilon")
@given(fraction=st.integers(1, 255))
def test_faint_edges_fade_there_only(fraction):
    """A corner on which a frame puts the square of a fraction of a pixel."""
    part = fraction / 256
    offset_px = torch.tensor([[part, part], [-part, -part]], dtype=torch.float64) / 2
    case = Stitching(torch.ones(2, 8, 8, dtype=torch.complex64), offset_px, 8)
    corner_weight = (part / 2) ** 2
    expected = np.float64(corner_weight / (corner_weight + 1e-9))
    there = oracle.reassemble_position(*case.arguments, M=8)[..., 0]
    edge = case.room - 1, case.room - 1
    weight = oracle.shift_and_sum(*case.arguments, 8)[(*edge, 0)]
    assert weight == pytest.approx(corner_weight, rel=1e-5)
    assert there[edge] == pytest.approx(expected, rel=1e-6)
    canvas = case.empty_canvas()
    canvas.add(case.patches, offset_px, case.weight)
    assert canvas.finish().object[edge] == 1
