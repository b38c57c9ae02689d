"""`extract_groups` and `place_groups` as products with matrices, for programs that have no fast gather and scatter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["extract_by_matrices", "place_by_matrices", "use_matrix_patches", "uses_matrix_patches"]

# The matrices of each set of corners, kept with it so that its id stays its own. None: not wanted.
_MatrixCache = dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor]]
_MATRIX_CACHE: ContextVar[_MatrixCache | None] = ContextVar("matrices", default=None)


@contextlib.contextmanager
def use_matrix_patches() -> Iterator[None]:
    """Trace groups' patches as products with matrices, which are made once for each set of corners."""
    token = _MATRIX_CACHE.set({})
    try:
        yield
    finally:
        _MATRIX_CACHE.reset(token)


def uses_matrix_patches() -> bool:
    """Whether a network is being traced within `use_matrix_patches`."""
    # The first is constant where a compiler looks at it.
    return torch.compiler.is_exporting() and _MATRIX_CACHE.get() is not None


def extract_by_matrices(
    canvases: Shaped[Tensor, "b h h"], corner_px: Float[Tensor, "b c 2"], n_px: int
) -> Shaped[Tensor, "b c n n"]:
    """`inside.extract_groups`; where a corner is not inside, there is 0."""
    below, beside = _build_matrices(corner_px, n_px, canvases.shape[-1])

    def read(part: Tensor) -> Tensor:
        rows = below.flatten(1, 2) @ part
        return rows.reshape(-1, corner_px.shape[1], n_px, part.shape[-1]) @ beside.mT

    return torch.complex(read(canvases.real), read(canvases.imag)) if canvases.is_complex() else read(canvases)


def place_by_matrices(
    patches: Shaped[Tensor, "b c n n"], corner_px: Float[Tensor, "b c 2"], size: int
) -> Shaped[Tensor, "b size size"]:
    """`inside.place_groups`: the adjoint of `extract_by_matrices`."""
    below, beside = _build_matrices(corner_px, patches.shape[-1], size)

    def put(part: Tensor) -> Tensor:
        return below.flatten(1, 2).mT @ (part @ beside).flatten(1, 2)

    return torch.complex(put(patches.real), put(patches.imag)) if patches.is_complex() else put(patches)


def _build_matrices(corner_px: Tensor, n_px: int, size: int) -> tuple[Tensor, Tensor]:
    """[b, c, n, size] for rows and for columns: bilinear interpolation weighs by a hat of width 2."""
    known, key = _MATRIX_CACHE.get(), (id(corner_px), n_px, size)
    if known is not None and key in known:
        return known[key][1:]
    patch = torch.arange(n_px, device=corner_px.device, dtype=corner_px.dtype)
    canvas = torch.arange(size, device=corner_px.device, dtype=corner_px.dtype)
    hats = (1 - (canvas - (corner_px[..., None, None] + patch[:, None])).abs()).clamp_min(0)
    below, beside = hats[:, :, 0], hats[:, :, 1]
    if known is not None:
        known[key] = corner_px, below, beside
    return below, beside
