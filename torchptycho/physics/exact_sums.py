"""Sums that do not depend on the order of their terms: every term is an integer number of quanta.

Numbers in float64 that are multiples of 2^-40 add without rounding as long as their sum stays below 2^13, and addition
without rounding is associative. So the terms are rounded, each by itself, and the sums are the same to the bit in any
order, in any parts, on any number of processes, and with the atomic additions of a GPU. Sums beyond 2^13 are good to
float64's last digit, but may depend on the order in it. Integers in fixed point would do the same, but would have to
be converted, and would overflow. All that is done to a term before is products and sums of two numbers each, which IEEE
754 prescribes to the bit: a fused operation is not, because a vectorised loop may have it and its remainder not.
Reference: Demmel, Nguyen, IEEE Trans. Comput. 64, 2060 (2015), with one bin.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

__all__ = ["QUANTUM", "add_blocks", "round_to_quanta", "shift_blocks"]

QUANTUM = 2.0**-40
"""What every term is a multiple of."""

# Above this value the last digit of a float64 is one quantum, up to twice as much.
_ROUNDING_OFFSET = 1.5 * 2**52 * QUANTUM


def round_to_quanta(values: Float[Tensor, "*any"]) -> Float64[Tensor, "*any"]:
    """Round to the nearest whole quanta; float64 is rounded in place."""
    return values.double().add_(_ROUNDING_OFFSET).sub_(_ROUNDING_OFFSET)


def shift_blocks(values: Float[Tensor, "k n n *c"], fraction: Float[Tensor, "k 2"]) -> Float[Tensor, "k m m *c"]:
    """Shift by a fraction of a pixel towards larger indices, bilinearly; m = n + 1. What `patches.spread` computes."""
    count, n_px = values.shape[:2]
    parts = fraction.to(values.dtype).reshape(count, 2, *([1] * (values.dim() - 1)))
    rows = values.new_empty(count, n_px + 1, *values.shape[2:])
    torch.mul(values, 1 - parts[:, 0], out=rows[:, :n_px])
    rows[:, n_px] = 0
    rows[:, 1:] += values * parts[:, 0]
    block = values.new_empty(count, n_px + 1, n_px + 1, *values.shape[3:])
    torch.mul(rows, 1 - parts[:, 1], out=block[:, :, :n_px])
    block[:, :, n_px] = 0
    block[:, :, 1:] += rows * parts[:, 1]
    return block


def add_blocks(
    field: Float64[Tensor, "h w *c"], blocks: Float64[Tensor, "k m m *c"], corner: Int64[Tensor, "k 2"]
) -> None:
    """Add blocks to the contiguous `field` in place, block pixel [0, 0] at its corner.

    A block may reach one column beyond the field's right edge where it is 0: that is added to the next row.
    """
    count, edge = blocks.shape[:2]
    row, step = field.stride()[:2]
    first = corner[:, 0] * row + corner[:, 1] * step
    if field.is_cuda:
        span = torch.arange(edge * step, device=field.device)
        table = span[:edge, None] * row + span
        field.view(-1).scatter_add_(0, (first[:, None, None] + table).view(-1), blocks.view(-1))
        return
    # Whole rows are added at a time, without a table of pixel indices: three times as fast on a CPU.
    places = field.view(-1).unfold(0, edge * step, 1)
    for start, block in zip(first.tolist(), blocks.view(count, edge, edge * step).unbind(), strict=True):
        places[start : start + (edge - 1) * row + 1 : row].add_(block)
