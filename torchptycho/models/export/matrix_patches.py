"""Patches of groups as products with matrices, for runtimes that have no fast gather and scatter."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

__all__ = ["MatrixPatches"]


class MatrixPatches:
    """`physics.group_patches.PatchOperators` by matrices, which are computed once for each set of corners."""

    def __init__(self) -> None:
        # The tensor of corners is kept with its matrices, so that its id is not reused.
        self._matrices: dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor]] = {}

    def extract(
        self, canvases: Shaped[Tensor, "b h h"], corner_px: Float[Tensor, "b c 2"], n_px: int
    ) -> Shaped[Tensor, "b c n n"]:
        """Read C patches from each of B canvases, as `extract_groups`; outside the canvas there is 0."""
        rows, columns = self._build_matrices(corner_px, n_px, canvases.shape[-1])

        def read(part: Tensor) -> Tensor:
            strips = rows.flatten(1, 2) @ part
            return strips.reshape(-1, corner_px.shape[1], n_px, part.shape[-1]) @ columns.mT

        return torch.complex(read(canvases.real), read(canvases.imag)) if canvases.is_complex() else read(canvases)

    def place(
        self, patches: Shaped[Tensor, "b c n n"], corner_px: Float[Tensor, "b c 2"], size: int
    ) -> Shaped[Tensor, "b size size"]:
        """Sum C patches into each of B canvases, as `place_groups`: the adjoint of `extract`."""
        rows, columns = self._build_matrices(corner_px, patches.shape[-1], size)

        def write(part: Tensor) -> Tensor:
            return rows.flatten(1, 2).mT @ (part @ columns).flatten(1, 2)

        return torch.complex(write(patches.real), write(patches.imag)) if patches.is_complex() else write(patches)

    def build_blocks(self, first_px: Int64[Tensor, "b c 2"], n_px: int, size: int) -> _MatrixBlocks:
        """Return the blocks at whole pixels, where the interpolation weights are 0 or 1."""
        return _MatrixBlocks(self, first_px.float(), n_px, size)

    def _build_matrices(self, corner_px: Tensor, n_px: int, size: int) -> tuple[Tensor, Tensor]:
        """Return [b, c, n, size] for rows and for columns; the kernel of bilinear interpolation is a triangle."""
        key = (id(corner_px), n_px, size)
        if key not in self._matrices:
            patch = torch.arange(n_px, device=corner_px.device, dtype=corner_px.dtype)
            canvas = torch.arange(size, device=corner_px.device, dtype=corner_px.dtype)
            weights = (1 - (canvas - (corner_px[..., None, None] + patch[:, None])).abs()).clamp_min(0)
            self._matrices[key] = corner_px, weights[:, :, 0], weights[:, :, 1]
        return self._matrices[key][1:]


class _MatrixBlocks:
    """Blocks at whole pixels, read and written by matrices."""

    def __init__(self, patches: MatrixPatches, corner_px: Tensor, n_px: int, size: int) -> None:
        self._patches, self._corner_px, self._n_px, self._size = patches, corner_px, n_px, size

    def extract(self, canvases: Shaped[Tensor, "b s s"]) -> Shaped[Tensor, "b c n n"]:
        """Copy the blocks."""
        return self._patches.extract(canvases, self._corner_px, self._n_px)

    def place(self, blocks: Shaped[Tensor, "b c n n"]) -> Shaped[Tensor, "b s s"]:
        """Add up the blocks on empty canvases."""
        return self._patches.place(blocks, self._corner_px, self._size)
