"""Checkpoints of a run, written atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from torchptycho.core.config import LogConfig
from torchptycho.models.lightning_module import PtychoPINN

__all__ = ["AtomicCheckpointIO", "BestCheckpoint", "build_checkpoint_callbacks"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it: a run that is killed leaves the old one or the new."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        draft = f"{path}.part"
        super().save_checkpoint(checkpoint, draft, storage_options)
        os.replace(draft, path)


class _StepCheckpoint(ModelCheckpoint):
    """last.ckpt every few steps, except at the end of an epoch, where validation comes first."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 < trainer.num_training_batches:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pass

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pass


class _LookCheckpoint(ModelCheckpoint):
    """A checkpoint after each validation; without held-out frames, after the epochs that would have one."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0:
            super().on_train_epoch_end(trainer, pl_module)


class BestCheckpoint(_LookCheckpoint):
    """best.ckpt by the monitored metric; until training lowers the held-out loss, the weights that it began with.

    `start_loss` is the held-out loss of these, None without held-out frames.
    """

    start_loss: float | None = None
    # Kept until the first validation, which shows whether they are still the best.
    _start_weights: dict[str, Tensor] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        assert isinstance(pl_module, PtychoPINN)
        if trainer.global_step or self.start_loss is not None or not pl_module.has_validation:
            return
        loss = pl_module.measure_validation_loss()
        if loss is not None:
            self.start_loss = float(loss)
            self._start_weights = _copy_weights(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        start_weights, self._start_weights = self._start_weights, None
        loss = trainer.callback_metrics.get(str(self.monitor))
        if start_weights is None or self.start_loss is None or loss is None or float(loss) < self.start_loss:
            super().on_validation_end(trainer, pl_module)
            return
        trained = _copy_weights(pl_module)
        pl_module.load_state_dict(start_weights)
        self._update_best_and_save(torch.tensor(self.start_loss), trainer, self._monitor_candidates(trainer))
        pl_module.load_state_dict(trained)

    @property
    def has_improved(self) -> bool:
        """Whether training lowered the held-out loss, as far as that is known."""
        return (
            self.start_loss is None or self.best_model_score is None or float(self.best_model_score) < self.start_loss
        )

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"start_loss": self.start_loss, "start_weights": self._start_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.start_loss, self._start_weights = state_dict.get("start_loss"), state_dict.get("start_weights")


def _copy_weights(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def build_checkpoint_callbacks(folder: Path, module: PtychoPINN, config: LogConfig) -> list[ModelCheckpoint]:
    """Build the callbacks that write best.ckpt by the monitored metric, last.ckpt, and those that the configuration
    asks for."""

    def keep(name: str, monitor: str | None) -> ModelCheckpoint:
        # Two callbacks, because save_last copies the best checkpoint, which may be much older.
        return (_LookCheckpoint if monitor is None else BestCheckpoint)(
            dirpath=folder,
            filename=name,
            monitor=monitor,
            every_n_epochs=1,
            save_on_train_epoch_end=not module.has_validation,
            enable_version_counter=False,
        )

    kept = [keep("best", module.monitor), keep("last", None)]
    if config.checkpoint_every_steps:
        kept.append(
            _StepCheckpoint(
                dirpath=folder,
                filename="last",
                every_n_train_steps=config.checkpoint_every_steps,
                enable_version_counter=False,
            )
        )
    if config.checkpoint_every_epochs:
        kept.append(
            ModelCheckpoint(
                dirpath=folder,
                filename="epoch-{epoch:04d}",
                auto_insert_metric_name=False,
                save_top_k=-1,
                every_n_epochs=config.checkpoint_every_epochs,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        )
    return kept
