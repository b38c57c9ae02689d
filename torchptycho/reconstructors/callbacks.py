"""Prediction onto a canvas, batch by batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from torchptycho.data.batch import GroupBatch
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.reconstructors.canvas import Canvas
from torchptycho.reconstructors.stitcher import PatchStitcher

__all__ = ["CanvasWriter"]


class CanvasWriter(Callback):
    """Stitches the predictions of `Trainer.predict(..., return_predictions=False)` on a canvas.

    Arguments:
        positions_px: [M, 2] all positions of the scan, which determine the size of the canvas.
        weight: weights for averaging overlapping patches.
        training_scan: number of the scan whose probe determines the weight.
        agree_phases: align the phase of each group with its neighbours, see `PatchStitcher`; False needs less
            memory.
        scratch: folder for patches that do not fit into memory; None takes the system's.
    """

    def __init__(
        self,
        positions_px: Tensor,
        weight: Literal["probe", "central"] = "probe",
        training_scan: int = 0,
        *,
        agree_phases: bool = True,
        scratch: str | Path | None = None,
    ) -> None:
        self._positions_px, self._kind, self._scan = positions_px, weight, training_scan
        self._agree_phases, self._scratch = agree_phases, scratch
        self._stitcher: PatchStitcher | None = None
        self._canvas: Canvas | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PtychoPINN)
        self._stitcher = PatchStitcher(
            self._positions_px,
            pl_module.compute_stitch_weight(self._kind, self._scan),
            agree_phases=self._agree_phases,
            scratch=self._scratch,
        )
        self._canvas = None

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: GroupBatch, *_: Any
    ) -> None:
        assert self._stitcher is not None
        self._stitcher.add(outputs, batch.members, batch.is_first)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._stitcher is not None
        self._canvas = self._stitcher.finish()

    @property
    def n_placed(self) -> int:
        """Number of placed patches."""
        return 0 if self._stitcher is None else self._stitcher.n_placed

    @property
    def canvas(self) -> Canvas:
        """The stitched predictions."""
        if self._canvas is None:
            raise RuntimeError("CanvasWriter.canvas: nothing has been predicted yet")
        return self._canvas
