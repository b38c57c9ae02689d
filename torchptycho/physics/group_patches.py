"""Patches on many small canvases of equal size, one for each group, which lie under one another in one field.

`extract_groups` and `place_groups` are `extract_inside` and `place_inside` with derivatives: each is the other's
backward pass, and no index table is kept. `WholePixelBlocks` is for positions on whole pixels that are read and written
repeatedly. `PatchOperators` is what iterations over groups take as an argument; `GATHER_SCATTER` are the operators
of this module, and an export replaces them by matrices.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from torchptycho.physics.patches import extract_inside, place_inside

__all__ = [
    "GATHER_SCATTER",
    "GatherScatter",
    "PatchBlocks",
    "PatchOperators",
    "WholePixelBlocks",
    "extract_groups",
    "place_groups",
]


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
    """Read C patches from each of B canvases, bilinearly; no derivative with respect to the positions.

    Every corner must lie within [0, size - n_px); this is not checked.
    """
    groups, members = corner_px.shape[:2]
    field = canvases.reshape(-1, canvases.shape[-1])
    patches = _Extract.apply(field, _stack_corners(corner_px, canvases.shape[-2]), n_px)  # type: ignore[no-untyped-call]
    assert isinstance(patches, Tensor)
    return patches.reshape(groups, members, n_px, n_px)


def place_groups(
    patches: Shaped[Tensor, "b c n n"], corner_px: Float[Tensor, "b c 2"], size: int
) -> Shaped[Tensor, "b size size"]:
    """Sum C patches into each of B square canvases: the adjoint of `extract_groups`, under the same condition."""
    groups = patches.shape[0]
    stacked = _stack_corners(corner_px, size)
    field = _Place.apply(patches.flatten(0, 1), stacked, (groups * size, size))  # type: ignore[no-untyped-call]
    assert isinstance(field, Tensor)
    return field.reshape(groups, size, size)


class WholePixelBlocks:
    """C blocks of N x N on each of B square canvases, at whole pixels, without interpolation.

    Arguments:
        first_px: (y, x) of each block's pixel [0, 0]; all blocks must lie inside, which is not checked.
        n_px: edge of the blocks.
        size: edge of the canvases.
    """

    def __init__(self, first_px: Int64[Tensor, "b c 2"], n_px: int, size: int) -> None:
        groups, members = first_px.shape[:2]
        self._shape, self._size = (groups, members, n_px, n_px), size
        span = torch.arange(n_px, device=first_px.device)
        first = (torch.arange(groups, device=first_px.device)[:, None] * size + first_px[..., 0]) * size
        self._table = (first[..., None, None] + first_px[..., 1, None, None] + (span[:, None] * size + span)).flatten()

    def extract(self, canvases: Shaped[Tensor, "b s s"]) -> Shaped[Tensor, "b c n n"]:
        """Copy the blocks."""
        return canvases.reshape(-1).index_select(0, self._table).view(self._shape)

    def place(self, blocks: Shaped[Tensor, "b c n n"]) -> Shaped[Tensor, "b s s"]:
        """Add up the blocks on empty canvases: the adjoint of `extract`."""
        groups, size = self._shape[0], self._size
        empty = blocks.new_zeros(groups * size * size)
        return empty.scatter_add(0, self._table, blocks.flatten()).view(groups, size, size)


@runtime_checkable
class PatchBlocks(Protocol):
    """C blocks of N x N on each of B square canvases, at whole pixels."""

    def extract(self, canvases: Shaped[Tensor, "b s s"]) -> Shaped[Tensor, "b c n n"]:
        """Copy the blocks."""
        ...

    def place(self, blocks: Shaped[Tensor, "b c n n"]) -> Shaped[Tensor, "b s s"]:
        """Add up the blocks on empty canvases: the adjoint of `extract`."""
        ...


@runtime_checkable
class PatchOperators(Protocol):
    """How patches are read from the canvases of groups and placed there."""

    def extract(
        self, canvases: Shaped[Tensor, "b h w"], corner_px: Float[Tensor, "b c 2"], n_px: int
    ) -> Shaped[Tensor, "b c n n"]:
        """Read C patches from each of B canvases, bilinearly."""
        ...

    def build_blocks(self, first_px: Int64[Tensor, "b c 2"], n_px: int, size: int) -> PatchBlocks:
        """Return access to blocks at whole pixels."""
        ...


class GatherScatter:
    """`PatchOperators` by gather and scatter, for torch on a CPU or a GPU."""

    def extract(
        self, canvases: Shaped[Tensor, "b h w"], corner_px: Float[Tensor, "b c 2"], n_px: int
    ) -> Shaped[Tensor, "b c n n"]:
        """Read C patches from each of B canvases, bilinearly."""
        return extract_groups(canvases, corner_px, n_px)

    def build_blocks(self, first_px: Int64[Tensor, "b c 2"], n_px: int, size: int) -> WholePixelBlocks:
        """Return access to blocks at whole pixels."""
        return WholePixelBlocks(first_px, n_px, size)


GATHER_SCATTER = GatherScatter()
"""The operators where nothing else is asked for; they hold no state."""


def _stack_corners(corner_px: Tensor, height: int) -> Tensor:
    """Return the corners in the stacked canvases, in float64: there are thousands of rows, and fractions of pixels."""
    below = torch.arange(corner_px.shape[0], device=corner_px.device, dtype=torch.float64) * height
    rows = corner_px[..., 0].double() + below[:, None]
    return torch.stack([rows, corner_px[..., 1].double()], -1).reshape(-1, 2)
