"""Prediction onto a canvas: patches are stitched as they come, or kept until their phases agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from torchptycho.data.batch import GroupBatch
from torchptycho.model import PtychoPINN
from torchptycho.phases import synchronised
from torchptycho.stitch import Canvas

__all__ = ["CanvasWriter"]

# Patches beyond this are kept in a temporary file that is mapped.
_MEMORY_BYTES = 4 << 30
_PLACED_AT_ONCE = 256


class CanvasWriter(Callback):
    """Places what `Trainer.predict(..., return_predictions=False)` predicts onto a canvas.

    Without a folder for it, patches are placed and forgotten: memory depends on the batch and on the canvas, not on the
    number of frames. With one, they are kept until the end, in memory or in a file there when they are many, and each
    group is turned by the phase with which it agrees with its neighbours (`phases.synchronised`).

    Arguments:
        positions_px: [M, 2] every position of the scan, which sizes the canvas.
        weight: how overlapping patches are averaged.
        training_scan: whose probe gives the weight.
        keep_in: folder for the patches whose phases are to agree; None places them as they come.
    """

    def __init__(
        self,
        positions_px: Tensor,
        weight: Literal["probe", "central"] = "probe",
        training_scan: int = 0,
        keep_in: str | Path | None = None,
    ) -> None:
        self._positions_px, self._kind, self._scan, self._keep_in = positions_px, weight, training_scan, keep_in
        self._canvas: Canvas | None = None
        self._weight: Tensor | None = None
        self._patches: Tensor | None = None
        self._group = torch.full((len(positions_px),), -1, dtype=torch.int64)
        self._n_groups = 0
        self.n_placed = 0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PtychoPINN)
        self._canvas = Canvas.for_positions(self._positions_px, pl_module.n_px, pl_module.device)
        self._weight = pl_module.stitch_weight(self._kind, self._scan)
        self._group.fill_(-1)
        self._n_groups = self.n_placed = 0
        if self._keep_in is not None:
            shape = (len(self._positions_px), pl_module.n_px, pl_module.n_px)
            self._patches = _room(shape, pl_module.device, Path(self._keep_in))

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: GroupBatch, *_: Any
    ) -> None:
        fresh = batch.fresh
        members = batch.members[fresh].to(self._positions_px.device)
        self.n_placed += int(fresh.sum())
        if self._patches is None:
            self._place(outputs[fresh], members)
            return
        self._patches[members.to(self._patches.device)] = outputs[fresh].to(self._patches.device)
        number = torch.arange(len(batch.members), device=fresh.device)[:, None].expand(fresh.shape)
        self._group[members] = number[fresh].to(self._group.device) + self._n_groups
        self._n_groups += len(batch.members)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._patches is None or self.n_placed < len(self._patches):
            return
        assert self._weight is not None
        where = self._patches.device
        turn = synchronised(self._patches, self._positions_px, self._weight.to(where), self._group)
        for members in torch.split(torch.arange(len(self._patches)), _PLACED_AT_ONCE):
            there = members.to(where)
            turned = self._patches[there] * turn[there][:, None, None]
            self._place(turned.to(self.canvas.weight.device), members)
        self._patches = None

    def _place(self, patches: Tensor, members: Tensor) -> None:
        assert self._weight is not None
        # Not center + offset, whose rounding can put a patch at the edge a hair outside the canvas.
        self.canvas.add(patches, self._positions_px[members].to(patches.device), self._weight)

    @property
    def canvas(self) -> Canvas:
        """The canvas so far."""
        if self._canvas is None:
            raise RuntimeError("CanvasWriter.canvas: nothing has been predicted yet")
        return self._canvas


def _room(shape: tuple[int, ...], device: torch.device, folder: Path) -> Tensor:
    """Uninitialised complex64 room: on the GPU when half of what is free there suffices, in memory, or in a file."""
    size = int(np.prod(shape)) * 8
    if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] // 2:
        return torch.empty(shape, dtype=torch.complex64, device=device)
    if size <= _MEMORY_BYTES:
        return torch.empty(shape, dtype=torch.complex64)
    return torch.from_numpy(np.lib.format.open_memmap(folder / "patches.npy", "w+", np.complex64, shape))
