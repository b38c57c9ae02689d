"""The patches of a scan as they are predicted, put together: at once, or when their phases agree."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from torchptycho.phases import synchronised
from torchptycho.stitch import Canvas

__all__ = ["Mosaic"]

# Patches beyond this are kept in a temporary file that is mapped.
_MEMORY_BYTES = 4 << 30
_PLACED_AT_ONCE = 256


class Mosaic:
    """A canvas that takes groups of patches in any order.

    Patches are kept, in memory or in a temporary file when they are many, until the last has come; then each group is
    turned by the phase with which it agrees with its neighbours (`phases.synchronised`), and all are placed. Without
    that, they are placed and forgotten: memory depends on the canvas, not on the number of frames.

    Arguments:
        positions_px: (y, x) of every patch that will come.
        weight: of the pixels of a patch.
        agree_phases: False places patches as they come.
        scratch: folder for the temporary file; None takes the system's.
    """

    def __init__(
        self,
        positions_px: Float[Tensor, "m 2"],
        weight: Float[Tensor, "n n"],
        *,
        agree_phases: bool = True,
        scratch: str | Path | None = None,
    ) -> None:
        self._positions_px, self._weight = positions_px.cpu(), weight
        n_px = weight.shape[-1]
        self._canvas = Canvas.for_positions(self._positions_px, n_px, weight.device)
        shape = (len(positions_px), n_px, n_px)
        self._patches = _room(shape, weight.device, scratch) if agree_phases else None
        self._group = torch.full((len(positions_px),), -1, dtype=torch.int64)
        self._n_groups = 0
        self.n_placed = 0

    def add(
        self, patches: Complex[Tensor, "b c n n"], members: Int64[Tensor, "b c"], fresh: Bool[Tensor, "b c"]
    ) -> None:
        """Take B groups of patches: their numbers in the scan, and which of them have not come before."""
        numbers = members[fresh].cpu()
        self.n_placed += len(numbers)
        if self._patches is None:
            self._place(patches[fresh], numbers)
            return
        where = self._patches.device
        self._patches[numbers.to(where)] = patches[fresh].to(where)
        group = torch.arange(len(members))[:, None].expand(members.shape) + self._n_groups
        self._group[numbers] = group[fresh.cpu()]
        self._n_groups += len(members)

    def finish(self) -> Canvas:
        """The canvas with every patch that came.

        Raises:
            ValueError: patches are kept until their phases agree, and some have not come.
        """
        if self._patches is None:
            return self._canvas
        if self.n_placed < len(self._patches):
            raise ValueError(f"expected {len(self._patches)} patches; {self.n_placed} came")
        where = self._patches.device
        turn = synchronised(self._patches, self._positions_px, self._weight.to(where), self._group)
        for numbers in torch.split(torch.arange(len(self._patches)), _PLACED_AT_ONCE):
            there = numbers.to(where)
            turned = self._patches[there] * turn[there][:, None, None]
            self._place(turned.to(self._weight.device), numbers)
        self._patches = None
        return self._canvas

    def _place(self, patches: Tensor, numbers: Tensor) -> None:
        # Not center + offset, whose rounding can put a patch at the edge a hair outside the canvas.
        self._canvas.add(patches, self._positions_px[numbers].to(patches.device), self._weight)


def _room(shape: tuple[int, ...], device: torch.device, scratch: str | Path | None) -> Tensor:
    """Uninitialised complex64 room: on the GPU when half of what is free there suffices, in memory, or in a file."""
    size = int(np.prod(shape)) * 8
    if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] // 2:
        return torch.empty(shape, dtype=torch.complex64, device=device)
    if size <= _MEMORY_BYTES:
        return torch.empty(shape, dtype=torch.complex64)
    # The file has no name and goes with the array.
    with tempfile.TemporaryFile(dir=scratch) as file:
        return torch.from_numpy(np.memmap(file, np.complex64, "w+", shape=shape))
