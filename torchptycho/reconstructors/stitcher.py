"""Stitching of the patches of a scan: at once, or after the alignment of their phases."""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor, distributed

from torchptycho.core.parallel import ordered_map
from torchptycho.reconstructors.canvas import Canvas

__all__ = ["PatchStitcher"]

_CHUNK_PATCHES = 256


class PatchStitcher:
    """A canvas that takes groups of patches in any order.

    Patches are kept, in a temporary file or on a GPU with enough memory, until the last has arrived; then the phases of
    the groups are aligned (`synchronize_phases`), and all patches are placed. Without alignment they are placed
    immediately. In both cases memory depends on the canvas, not on the number of frames: writing and reading a patch
    takes a hundredth of the time of predicting it.

    Several processes, each with a part of the groups, share a file, and `finish` returns the complete canvas to all.

    Arguments:
        positions_px: (y, x) of all patches.
        weight: of the pixels of a patch.
        agree_phases: False places patches immediately.
        scratch: folder for the temporary file; None takes the system's.
        shared: file for all patches, to which all processes of the default group write; None for a single process.
    """

    def __init__(
        self,
        positions_px: Float[Tensor, "m 2"],
        weight: Float[Tensor, "n n"],
        *,
        agree_phases: bool = True,
        scratch: str | Path | None = None,
        shared: Path | None = None,
    ) -> None:
        self._positions_px, self._weight = positions_px.cpu(), weight
        n_px = weight.shape[-1]
        self._canvas = Canvas.for_positions(self._positions_px, n_px, weight.device)
        shape = (len(positions_px), n_px, n_px)
        self._shared = shared is not None
        self._patches = _allocate_patches(shape, weight.device, scratch, shared) if agree_phases else None
        self._group = torch.full((len(positions_px),), -1, dtype=torch.int64)
        self._is_local = torch.zeros(len(positions_px), dtype=torch.bool)
        self._placed = torch.zeros(len(positions_px), dtype=torch.bool)
        self._n_groups = 0
        self.n_placed = 0

    def add(
        self,
        patches: Complex[Tensor, "b c n n"],
        members: Int64[Tensor, "b c"],
        is_first: Bool[Tensor, "b c"],
        first_group: int | None = None,
    ) -> None:
        """Take B groups of patches: their numbers in the scan, and which of them have not come before.

        Arguments:
            first_group: number of the first of them among the groups of all processes; None counts them as they come.
        """
        is_first = is_first.cpu()
        numbers = members.cpu()[is_first]
        # Usually all patches are finite, and no copy is needed.
        mine = patches.flatten(0, 1) if bool(is_first.all()) else patches[is_first.to(patches.device)]
        self._is_local[numbers] = True
        if self._patches is None:
            self._place(mine, numbers)
            self.n_placed = int(self._placed.sum())
            return
        # A patch that is not finite would corrupt the phases of all overlapping ones.
        placed = len(mine)
        if not bool(torch.view_as_real(mine).sum().isfinite()):
            finite = torch.view_as_real(mine).isfinite().flatten(1).all(-1)
            mine = torch.where(finite[:, None, None], mine, 0)
            self._is_local[numbers[~finite.cpu()]] = False
            placed = int(finite.sum())
        self.n_placed += placed
        where = self._patches.device
        self._patches[numbers.to(where)] = mine.to(where)
        begin = self._n_groups if first_group is None else first_group
        self._group[numbers] = (torch.arange(len(members))[:, None].expand(members.shape) + begin)[is_first]
        self._n_groups = begin + len(members)

    def finish(self) -> Canvas:
        """Return the canvas with the finite patches of all processes.

        Raises:
            ValueError: patches are kept until their phases agree, and some have not come.
        """
        if self._patches is not None:
            self._place_synchronized(self._patches)
            self._patches = None
        if self._shared:
            placed = self._placed.to(self._weight.device, torch.uint8)
            distributed.all_reduce(placed, distributed.ReduceOp.MAX)
            self._placed = placed.cpu().bool()
            self._canvas.all_reduce()
        self.n_placed = int(self._placed.sum())
        return self._canvas

    @property
    def left_out(self) -> list[int]:
        """Numbers of the patches that were not placed, because they are not finite; after `finish`."""
        return torch.nonzero(~self._placed).flatten().tolist()

    def _place_synchronized(self, patches: Tensor) -> None:
        if self._shared:
            group = self._group.to(self._weight.device)
            distributed.all_reduce(group, distributed.ReduceOp.MAX)
            self._group = group.cpu()
        missing = int((self._group < 0).sum())
        if missing:
            raise ValueError(f"expected {len(patches)} patches; {len(patches) - missing} came")
        # Imported here: it takes half a second, which overlaps with the network's computation.
        from torchptycho.reconstructors.phase_sync import synchronize_phases

        phase_factor = synchronize_phases(patches, self._positions_px, self._weight.to(patches.device), self._group)

        def place(numbers: Tensor) -> None:
            there = numbers.to(patches.device)
            turned = patches[there] * phase_factor[there][:, None, None]
            self._place(turned.to(self._weight.device), numbers)

        chunks = torch.split(torch.nonzero(self._is_local).flatten(), _CHUNK_PATCHES)
        with ordered_map(place, chunks, serial=self._weight.is_cuda) as done:
            deque(done, maxlen=0)

    def _place(self, patches: Tensor, numbers: Tensor) -> None:
        # The positions themselves, because the rounding of center + offset can place a patch at the edge slightly
        # outside the canvas.
        placed = self._canvas.add(patches, self._positions_px[numbers].to(patches.device), self._weight)
        self._placed[numbers] = placed.cpu()


def _allocate_patches(
    shape: tuple[int, ...], device: torch.device, scratch: str | Path | None, shared: Path | None
) -> Tensor:
    """Allocate uninitialised complex64 memory: on the GPU when a quarter of its free memory suffices, else in a
    file."""
    size = int(np.prod(shape)) * 8
    if shared is not None:
        return torch.from_numpy(np.memmap(shared, np.complex64, "r+", shape=shape))
    # Half of the free memory is reserved for a batch.
    if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] // 4:
        return torch.empty(shape, dtype=torch.complex64, device=device)
    # A file, because memory would grow with the scan; the system caches as much as fits. It has no name and is deleted
    # with the array.
    with tempfile.TemporaryFile(dir=scratch) as file:
        return torch.from_numpy(np.memmap(file, np.complex64, "w+", shape=shape))
