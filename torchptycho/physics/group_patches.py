"""Patches on many small canvases of equal size, one for each group, which lie under one another in one field.

`extract_groups` and `place_groups` are `extract_inside` and `place_inside` with derivatives: each is the other's
backward pass, and no index table is kept. `WholeBlocks` is for places on whole pixels that are read and written again
and again.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from torchptycho.physics.matrix_patches import extract_by_matrices, place_by_matrices, uses_matrix_patches
from torchptycho.physics.patches import extract_inside, place_inside

__all__ = ["WholePixelBlocks", "extract_groups", "place_groups"]


class _Extract(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, field: Tensor, corner_px: Tensor, n_px: int) -> Tensor:
        ctx.save_for_backward(corner_px)
        ctx.shape = field.shape
        return extract_inside(field, corner_px, n_px)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (corner_px,) = ctx.saved_tensors
        field = gradient.new_zeros(ctx.shape)
        place_inside(field, gradient, corner_px)
        return field, None, None


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, patches: Tensor, corner_px: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(corner_px)
        ctx.n_px = patches.shape[-1]
        field = patches.new_zeros(shape)
        place_inside(field, patches, corner_px)
        return field

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (corner_px,) = ctx.saved_tensors
        return extract_inside(gradient.contiguous(), corner_px, ctx.n_px), None, None


def extract_groups(
    canvases: Shaped[Tensor, "b h w"], corner_px: Float[Tensor, "b c 2"], n_px: int
) -> Shaped[Tensor, "b c n n"]:
    """Read C patches from each of B canvases, bilinearly; no derivative with respect to the places.

    Every corner lies within [0, size - n_px), which is not looked at.
    """
    if uses_matrix_patches():
        return extract_by_matrices(canvases, corner_px, n_px)
    groups, members = corner_px.shape[:2]
    field = canvases.reshape(-1, canvases.shape[-1])
    patches = _Extract.apply(field, _stack_corners(corner_px, canvases.shape[-2]), n_px)  # type: ignore[no-untyped-call]
    assert isinstance(patches, Tensor)
    return patches.reshape(groups, members, n_px, n_px)


def place_groups(
    patches: Shaped[Tensor, "b c n n"], corner_px: Float[Tensor, "b c 2"], size: int
) -> Shaped[Tensor, "b size size"]:
    """Sum C patches into each of B square canvases: the adjoint of `extract_groups`, under the same condition."""
    if uses_matrix_patches():
        return place_by_matrices(patches, corner_px, size)
    groups = patches.shape[0]
    stacked = _stack_corners(corner_px, size)
    field = _Place.apply(patches.flatten(0, 1), stacked, (groups * size, size))  # type: ignore[no-untyped-call]
    assert isinstance(field, Tensor)
    return field.reshape(groups, size, size)


class WholePixelBlocks:
    """C blocks of N x N on each of B square canvases, at whole pixels: nothing is interpolated.

    Arguments:
        first_px: (y, x) of each block's pixel [0, 0]; all blocks lie inside, which is not looked at.
        n_px: edge of the blocks.
        size: edge of the canvases.
    """

    def __init__(self, first_px: Int64[Tensor, "b c 2"], n_px: int, size: int) -> None:
        groups, members = first_px.shape[:2]
        self._shape, self._size = (groups, members, n_px, n_px), size
        # As `by_matrices` counts them; a hat at a whole pixel is 1 there and 0 elsewhere.
        self._corner_px = first_px.float() if uses_matrix_patches() else None
        if self._corner_px is not None:
            return
        span = torch.arange(n_px, device=first_px.device)
        first = (torch.arange(groups, device=first_px.device)[:, None] * size + first_px[..., 0]) * size
        self._table = (first[..., None, None] + first_px[..., 1, None, None] + (span[:, None] * size + span)).flatten()

    def extract(self, canvases: Shaped[Tensor, "b s s"]) -> Shaped[Tensor, "b c n n"]:
        """Copies of the blocks."""
        if self._corner_px is not None:
            return extract_by_matrices(canvases, self._corner_px, self._shape[-1])
        return canvases.reshape(-1).index_select(0, self._table).view(self._shape)

    def place(self, blocks: Shaped[Tensor, "b c n n"]) -> Shaped[Tensor, "b s s"]:
        """Canvases with the blocks added up: the adjoint of `extract`."""
        if self._corner_px is not None:
            return place_by_matrices(blocks, self._corner_px, self._size)
        groups, size = self._shape[0], self._size
        empty = blocks.new_zeros(groups * size * size)
        return empty.scatter_add(0, self._table, blocks.flatten()).view(groups, size, size)


def _stack_corners(corner_px: Tensor, height: int) -> Tensor:
    """Corners on the canvases as they lie under one another. In double precision: thousands of rows, and fractions."""
    below = torch.arange(corner_px.shape[0], device=corner_px.device, dtype=torch.float64) * height
    rows = corner_px[..., 0].double() + below[:, None]
    return torch.stack([rows, corner_px[..., 1].double()], -1).reshape(-1, 2)
