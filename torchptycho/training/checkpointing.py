"""Checkpoints of a run, written atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from torchptycho.core.config import LogConfig
from torchptycho.models.lightning_module import PtychoPINN

__all__ = ["AtomicCheckpointIO", "build_checkpoint_callbacks"]


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


def build_checkpoint_callbacks(folder: Path, module: PtychoPINN, config: LogConfig) -> list[ModelCheckpoint]:
    """Build the callbacks that write best.ckpt by the monitored metric, last.ckpt, and those that the configuration
    asks for."""

    def keep(name: str, monitor: str | None) -> ModelCheckpoint:
        # Two callbacks, because save_last copies the best checkpoint, which may be much older.
        return _LookCheckpoint(
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
