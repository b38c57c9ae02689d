"""Patches of an object at sub-pixel places: `extract` and its adjoint `place`.

Both are bilinear, written as four weighted integer shifts, which unlike `grid_sample` is linear with an exact adjoint,
takes complex values and has a deterministic backward pass on the CPU.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

__all__ = ["corner", "extract", "place", "place_into", "spread"]


def corner(
    position_px: Float[Tensor, "*lead 2"], n_px: int, origin_px: tuple[int, int] = (0, 0)
) -> Float[Tensor, "*lead 2"]:
    """Place of patch pixel [0, 0] on a canvas that begins at `origin_px`: patch pixel N/2 sits on the position."""
    return position_px - position_px.new_tensor([origin_px[0] + n_px // 2, origin_px[1] + n_px // 2])


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
    index, inside = _block_index(base, n_px + 1, height, width)
    flat = field.reshape(*field.shape[:-2], height * width)
    lead = index.shape[:-3]
    block = torch.gather(flat, -1, index.reshape(*lead, -1)).reshape(index.shape) * inside
    wy, wx = _weights(fraction, field)
    rows = block[..., :-1, :] * (1 - wy) + block[..., 1:, :] * wy
    return rows[..., :, :-1] * (1 - wx) + rows[..., :, 1:] * wx


def place(
    patches: Shaped[Tensor, "*lead k n n"], corner_px: Float[Tensor, "*lead k 2"], shape: tuple[int, int]
) -> Shaped[Tensor, "*lead h w"]:
    """Sum K patches into a field of the given shape: the adjoint of `extract`, <extract(f), p> = <f, place(p)>.

    What falls outside the field is left out, as `extract` reads 0 there.
    """
    return place_into(patches.new_zeros(*patches.shape[:-3], *shape), patches, corner_px)


def place_into(
    field: Shaped[Tensor, "*lead h w"], patches: Shaped[Tensor, "*lead k n n"], corner_px: Float[Tensor, "*lead k 2"]
) -> Shaped[Tensor, "*lead h w"]:
    """`place` on top of what the contiguous `field` holds, in place, touching the patches' pixels only."""
    height, width = field.shape[-2:]
    base, fraction = _split(corner_px)
    block = spread(patches, fraction)
    index, inside = _block_index(base, block.shape[-1], height, width)
    lead = index.shape[:-3]
    flat = field.view(*lead, height * width)
    flat.scatter_add_(-1, index.reshape(*lead, -1), (block * inside).reshape(*lead, -1))
    return field


def spread(
    patches: Shaped[Tensor, "*lead n n"], fraction: Float[Tensor, "*lead 2"]
) -> Shaped[Tensor, "*lead n_plus_1 n_plus_1"]:
    """Shift each patch by a fraction of a pixel towards larger indices, bilinearly, one pixel larger each way."""
    wy, wx = _weights(fraction, patches)
    pad = torch.nn.functional.pad
    columns = pad(patches * (1 - wx), (0, 1)) + pad(patches * wx, (1, 0))
    return pad(columns * (1 - wy), (0, 0, 0, 1)) + pad(columns * wy, (0, 0, 1, 0))


def _split(corner_px: Tensor) -> tuple[Tensor, Tensor]:
    """Whole and fractional part. Positions come in float64: a float32 at 10,000 px resolves a thousandth only."""
    base = corner_px.floor()
    return base.to(torch.int64), corner_px - base


def _weights(fraction: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    weight = fraction.to(like.real.dtype)[..., None, None]
    return weight[..., 0, :, :], weight[..., 1, :, :]


def _block_index(
    base: Int64[Tensor, "*lead k 2"], n_px: int, height: int, width: int
) -> tuple[Int64[Tensor, "*lead k n n"], Shaped[Tensor, "*lead k n n"]]:
    """Flat indices of n_px x n_px blocks, clamped into the field, and where they were inside."""
    span = torch.arange(n_px, device=base.device)
    rows, columns = base[..., 0, None] + span, base[..., 1, None] + span
    inside = ((rows >= 0) & (rows < height))[..., :, None] & ((columns >= 0) & (columns < width))[..., None, :]
    index = rows.clamp(0, height - 1)[..., :, None] * width + columns.clamp(0, width - 1)[..., None, :]
    return index, inside
