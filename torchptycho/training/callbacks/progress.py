"""A progress bar that counts optimiser steps (training) or batches (prediction)."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.progress import Progress

from torchptycho.core.progress import create_progress_bar

__all__ = ["StepProgress"]


class StepProgress(Callback):
    """Shows how far a run is, its loss and the time left, on standard error and only where that is a terminal.

    Arguments:
        total_steps: optimiser steps of a training; None takes Lightning's estimate.
    """

    def __init__(self, total_steps: int | None = None) -> None:
        self._total_steps = total_steps
        self._bar: Progress | None = None

    def _start(self, what: str, total: int) -> None:
        self._bar = create_progress_bar()
        self._bar.start()
        self._bar.add_task(what, total=total, note="")

    def _update(self, done: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, note=note)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start("training", self._total_steps or int(trainer.estimated_stepping_batches))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # Not at every step, because reading the loss synchronises with the device.
        if trainer.global_step % 10 == 0:
            shown = {name: trainer.callback_metrics.get(name) for name in ("train/loss", "val/loss")}
            note = "  ".join(f"{name} {float(value):.4g}" for name, value in shown.items() if value is not None)
            self._update(trainer.global_step, note)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start("reconstructing", int(sum(trainer.num_predict_batches)))

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_index: int, *_: Any
    ) -> None:
        self._update(batch_index + 1)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()
