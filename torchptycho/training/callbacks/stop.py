"""The end of a run at its last step, which may lie within an epoch."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from torchptycho.training.schedule import EpochPlan

__all__ = ["StopAtLastStep"]


class StopAtLastStep(Callback):
    """Ends a run after exactly the planned steps, with a validation and its checkpoints.

    Not by Lightning's `max_steps`, with which a run ends without a validation and resumes by other rules.
    """

    def __init__(self, plan: EpochPlan) -> None:
        self._plan = plan

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A run that is resumed within its last epoch does not start that epoch.
        self._validate_last_epoch(trainer)
        self._stop_if_done(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validate_last_epoch(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # Lightning's count for the loggers lacks a step after a checkpoint from a validation within an epoch (2.6).
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._stop_if_done(trainer)

    def _validate_last_epoch(self, trainer: L.Trainer) -> None:
        if trainer.current_epoch + 1 >= self._plan.epochs:
            trainer.check_val_every_n_epoch = 1

    def _stop_if_done(self, trainer: L.Trainer) -> None:
        # Lightning validates after the batch at which `should_stop` is set.
        if trainer.global_step >= self._plan.total_steps:
            trainer.should_stop = True
