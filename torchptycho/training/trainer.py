"""The Lightning Trainer of a run: Lightning's own loop, and the callbacks around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor

from torchptycho.analysis.history import LOGS
from torchptycho.core.config import RunConfig
from torchptycho.data.store import Store
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.training.callbacks.collapse import FlatnessWatch
from torchptycho.training.callbacks.images import Pictures
from torchptycho.training.callbacks.progress import StepProgress
from torchptycho.training.callbacks.throughput import Meters
from torchptycho.training.checkpointing import AtomicCheckpoints, checkpoints
from torchptycho.training.loggers import loggers
from torchptycho.training.schedule import Rhythm

__all__ = ["build_trainer"]


def build_trainer(
    config: RunConfig,
    module: PtychoPINN,
    store: Store,
    out: Path,
    rhythm: Rhythm,
    callbacks: Sequence[Callback],
    *,
    progress: bool,
) -> L.Trainer:
    """A Trainer that trains `module` as the configuration says and writes into the folder `out`.

    Raises:
        ConfigError: a logger is not installed.
    """
    train, log = config.train, config.log
    own: list[Callback] = [
        *checkpoints(out / "checkpoints", module, log, rhythm.validate_every),
        FlatnessWatch(train.on_flat, rhythm.steps * rhythm.epochs),
        LearningRateMonitor("step"),
        Meters(),
    ]
    if train.early_stop:
        # Without held-out frames it looks at the end of every epoch, else at every validation.
        own.append(EarlyStopping(module.monitor, patience=train.early_stop, check_finite=False))
    if log.image_every_epochs:
        frames = config.reconstruct.predict_batch_size
        groups = max(1, (64 if frames == "auto" else frames) // store.gridsize**2)
        own.append(Pictures(store, out / "images", log.image_every_epochs, log.image_patches, groups))
    if progress:
        own.append(StepProgress())
    # Not every logger makes its folder.
    (out / LOGS).mkdir(parents=True, exist_ok=True)
    return L.Trainer(
        accelerator=train.accelerator,
        devices=train.devices,
        num_nodes=train.nodes,
        precision=train.precision,
        max_epochs=rhythm.epochs,
        limit_train_batches=rhythm.batches,
        accumulate_grad_batches=train.accumulate,
        check_val_every_n_epoch=rhythm.validate_every,
        gradient_clip_val=train.gradient_clip or None,
        logger=loggers(log.logger, out),
        log_every_n_steps=min(10, rhythm.steps),
        callbacks=[*own, *callbacks],
        plugins=[AtomicCheckpoints()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
