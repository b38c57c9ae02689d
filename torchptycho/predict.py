"""Streaming prediction: batches of patches go onto the canvas as they come, and are forgotten."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from torchptycho.data.batch import GroupBatch
from torchptycho.model import PtychoPINN
from torchptycho.stitch import Canvas

__all__ = ["CanvasWriter"]


class CanvasWriter(Callback):
    """Places what `Trainer.predict(..., return_predictions=False)` predicts onto a canvas.

    Device memory depends on the batch and on the canvas, not on the number of frames.

    Arguments:
        positions_px: [M, 2] every position of the scan, which sizes the canvas.
        weight: how overlapping patches are averaged.
        training_scan: whose probe gives the weight.
    """

    def __init__(
        self, positions_px: Tensor, weight: Literal["probe", "central"] = "probe", training_scan: int = 0
    ) -> None:
        self._positions_px, self._kind, self._scan = positions_px, weight, training_scan
        self._canvas: Canvas | None = None
        self._weight: Tensor | None = None
        self.n_placed = 0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PtychoPINN)
        self._canvas = Canvas.for_positions(self._positions_px, pl_module.n_px, pl_module.device)
        self._weight = pl_module.stitch_weight(self._kind, self._scan)
        self.n_placed = 0

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: GroupBatch, *_: Any
    ) -> None:
        assert self._weight is not None
        fresh = batch.fresh
        # Not center + offset, whose rounding can put a patch at the edge a hair outside the canvas.
        members = batch.members[fresh].to(self._positions_px.device)
        positions_px = self._positions_px[members].to(outputs.device)
        self.canvas.add(outputs[fresh], positions_px, self._weight)
        self.n_placed += int(fresh.sum())

    @property
    def canvas(self) -> Canvas:
        """The canvas so far."""
        if self._canvas is None:
            raise RuntimeError("CanvasWriter.canvas: nothing has been predicted yet")
        return self._canvas
