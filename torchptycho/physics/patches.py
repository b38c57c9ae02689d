"""Patches of an object at sub-pixel positions: `extract` and its adjoint `place`.

Both are bilinear, as four weighted integer shifts. Unlike `torch.nn.functional.grid_sample`, this has an exact adjoint,
accepts complex values and has a deterministic backward pass on the CPU.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Int64, Shaped
from torch import Tensor

__all__ = [
    "extract",
    "extract_derivatives",
    "extract_inside",
    "extract_slices",
    "index_inside",
    "locate_corner",
    "place",
    "place_inside",
    "place_into",
    "shift_bilinear",
]


def locate_corner(
    position_px: Float[Tensor, "*lead 2"], n_px: int, origin_px: tuple[int, int] = (0, 0)
) -> Float[Tensor, "*lead 2"]:
    """Compute the canvas position of patch pixel [0, 0]; patch pixel N/2 is at the scan position."""
    # Subtracted number by number, because copying a tensor of the two to a GPU would synchronise with it.
    y, x = position_px.unbind(-1)
    return torch.stack([y - (origin_px[0] + n_px // 2), x - (origin_px[1] + n_px // 2)], dim=-1)


def extract(
    field: Shaped[Tensor, "*lead h w"], corner_px: Float[Tensor, "*lead k 2"], n_px: int
) -> Shaped[Tensor, "*lead k n n"]:
    """Read K patches of n_px x n_px from each field, bilinearly; outside the field there is 0.

    Arguments:
        field: real or complex.
        corner_px: (y, x) of each patch's pixel [0, 0], sub-pixel, anywhere, also outside.
        n_px: edge of the patches.
    """
    height, width = field.shape[-2:]
    base, fraction = _split(corner_px)
    index, inside = _index_blocks(base, n_px + 1, height, width)
    flat = field.reshape(*field.shape[:-2], height * width)
    lead = index.shape[:-3]
    block = torch.gather(flat, -1, index.reshape(*lead, -1)).reshape(index.shape) * inside
    wy, wx = _split_weights(fraction, field)
    rows = block[..., :-1, :] * (1 - wy) + block[..., 1:, :] * wy
    return rows[..., :, :-1] * (1 - wx) + rows[..., :, 1:] * wx


def place(
    patches: Shaped[Tensor, "*lead k n n"], corner_px: Float[Tensor, "*lead k 2"], shape: tuple[int, int]
) -> Shaped[Tensor, "*lead h w"]:
    """Sum K patches into a field of the given shape: the adjoint of `extract`, <extract(f), p> = <f, place(p)>.

    Pixels outside the field are discarded, as `extract` reads 0 there.
    """
    return place_into(patches.new_zeros(*patches.shape[:-3], *shape), patches, corner_px)


def place_into(
    field: Shaped[Tensor, "*lead h w"], patches: Shaped[Tensor, "*lead k n n"], corner_px: Float[Tensor, "*lead k 2"]
) -> Shaped[Tensor, "*lead h w"]:
    """Add to the contiguous `field`, in place, what `place` returns, changing only the pixels of the patches."""
    height, width = field.shape[-2:]
    base, fraction = _split(corner_px)
    block = shift_bilinear(patches, fraction)
    index, inside = _index_blocks(base, block.shape[-1], height, width)
    lead = index.shape[:-3]
    flat = field.view(*lead, height * width)
    flat.scatter_add_(-1, index.reshape(*lead, -1), (block * inside).reshape(*lead, -1))
    return field


def extract_inside(field: Shaped[Tensor, "h w"], corner_px: Float[Tensor, "k 2"], n_px: int) -> Shaped[Tensor, "k n n"]:
    """Extract patches that lie inside the field, every corner in [0, size - n_px), several times faster than `extract`.

    The corners are not checked.
    """
    block, fraction = _gather_blocks(field, corner_px, n_px)
    wy, wx = _split_weights(fraction, field)
    rows = _interpolate(block[:, :-1], block[:, 1:], wy)
    return _interpolate(rows[..., :-1], rows[..., 1:], wx)


def extract_slices(
    slices: Shaped[Tensor, "slices h w"], corner_px: Float[Tensor, "k 2"], n_px: int
) -> Shaped[Tensor, "slices k n n"]:
    """Extract the same patches of each slice of a thick object, as `extract_inside` does."""
    if len(slices) == 1:
        return extract_inside(slices[0], corner_px, n_px)[None]
    return torch.stack([extract_inside(each, corner_px, n_px) for each in slices])


def extract_derivatives(
    field: Complex[Tensor, "h w"], corner_px: Float[Tensor, "k 2"], n_px: int
) -> tuple[Complex[Tensor, "k n n"], Complex[Tensor, "k n n"]]:
    """Compute derivatives of `extract_inside` with respect to the corner's y and x, under the same condition."""
    block, fraction = _gather_blocks(field, corner_px, n_px)
    wy, wx = _split_weights(fraction, field)
    down, right = block[:, 1:] - block[:, :-1], block[..., 1:] - block[..., :-1]
    return down[..., :-1] * (1 - wx) + down[..., 1:] * wx, right[:, :-1] * (1 - wy) + right[:, 1:] * wy


def place_inside(
    field: Shaped[Tensor, "h w"], patches: Shaped[Tensor, "k n n"], corner_px: Float[Tensor, "k 2"]
) -> None:
    """Add patches to the contiguous `field` in place: the adjoint of `extract_inside`, under the same condition."""
    block = shift_bilinear(patches, _split(corner_px)[1])
    index = index_inside(corner_px, block.shape[-1], field.shape[-1])
    field.view(-1).scatter_add_(0, index, block.reshape(-1))


def index_inside(corner_px: Float[Tensor, "k 2"], n_px: int, width: int) -> Int64[Tensor, " j"]:
    """Return the flat indices, in a field of this width, of the n_px x n_px pixels that begin at each whole corner.

    There are k n_px^2 of them: pixels of several blocks appear several times. The corners are not checked.
    """
    base, span = _split(corner_px)[0], torch.arange(n_px, device=corner_px.device)
    index = (base[:, 0] * width + base[:, 1])[:, None, None] + (span[:, None] * width + span)
    return index.reshape(-1)


def shift_bilinear(
    patches: Shaped[Tensor, "*lead n n"], fraction: Float[Tensor, "*lead 2"]
) -> Shaped[Tensor, "*lead n_plus_1 n_plus_1"]:
    """Shift each patch by a fraction of a pixel towards larger indices, bilinearly, one pixel larger each way."""
    wy, wx = _split_weights(fraction, patches)
    framed = torch.nn.functional.pad(patches, (1, 1, 1, 1))
    rows = _interpolate(framed[..., 1:, :], framed[..., :-1, :], wy)
    return _interpolate(rows[..., 1:], rows[..., :-1], wx)


def _gather_blocks(field: Tensor, corner_px: Tensor, n_px: int) -> tuple[Tensor, Tensor]:
    """Gather the n_px + 1 pixels each way that a patch is interpolated from, and its fraction of a pixel."""
    base, fraction = _split(corner_px)
    # All blocks are one view of the field, so that whole rows are copied without a table of indices.
    every = field.unfold(0, n_px + 1, 1).unfold(1, n_px + 1, 1)
    return every[base[:, 0], base[:, 1]], fraction


def _interpolate(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Compute a (1 - w) + b w in one pass, which torch does with a real weight for real values only."""
    if not a.is_complex():
        return torch.lerp(a, b, weight)
    return torch.view_as_complex(torch.lerp(torch.view_as_real(a), torch.view_as_real(b), weight[..., None]))


def _split(corner_px: Tensor) -> tuple[Tensor, Tensor]:
    """Split into whole and fractional part. Positions are float64: float32 at 10,000 px resolves only a thousandth."""
    base = corner_px.floor()
    return base.to(torch.int64), corner_px - base


def _split_weights(fraction: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    weight = fraction.to(like.real.dtype)[..., None, None]
    return weight[..., 0, :, :], weight[..., 1, :, :]


def _index_blocks(
    base: Int64[Tensor, "*lead k 2"], n_px: int, height: int, width: int
) -> tuple[Int64[Tensor, "*lead k n n"], Shaped[Tensor, "*lead k n n"]]:
    """Return flat indices of n_px x n_px blocks, clamped to the field, and a mask of those inside."""
    span = torch.arange(n_px, device=base.device)
    rows, columns = base[..., 0, None] + span, base[..., 1, None] + span
    inside = ((rows >= 0) & (rows < height))[..., :, None] & ((columns >= 0) & (columns < width))[..., None, :]
    index = rows.clamp(0, height - 1)[..., :, None] * width + columns.clamp(0, width - 1)[..., None, :]
    return index, inside
