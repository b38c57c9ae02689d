"""The Lightning Trainer of a run: Lightning's own loop, and the callbacks around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor

from torchptycho.analysis.history import LOGS_FOLDER
from torchptycho.core.config import RunConfig
from torchptycho.data.store import Store
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.training.callbacks.collapse import CollapseMonitor
from torchptycho.training.callbacks.images import TrainingImages
from torchptycho.training.callbacks.progress import StepProgress
from torchptycho.training.callbacks.stop import StopAtLastStep
from torchptycho.training.callbacks.throughput import ThroughputMonitor
from torchptycho.training.checkpointing import AtomicCheckpointIO, build_checkpoint_callbacks
from torchptycho.training.loggers import build_loggers
from torchptycho.training.schedule import EpochPlan

__all__ = ["build_trainer"]


def build_trainer(
    config: RunConfig,
    module: PtychoPINN,
    store: Store,
    out: Path,
    epoch_plan: EpochPlan,
    callbacks: Sequence[Callback],
    *,
    progress: bool,
) -> L.Trainer:
    """Build a Trainer that trains `module` as the configuration says and writes into the folder `out`.

    Raises:
        ConfigError: a logger is not installed.
    """
    train, log = config.train, config.log
    standard: list[Callback] = [
        StopAtLastStep(epoch_plan),
        *build_checkpoint_callbacks(out / "checkpoints", module, log),
        CollapseMonitor(train.on_flat, epoch_plan.total_steps),
        LearningRateMonitor("step"),
        ThroughputMonitor(),
    ]
    if train.early_stop:
        # Without held-out frames it is called at the end of every epoch, otherwise at every validation.
        standard.append(EarlyStopping(module.monitor, patience=train.early_stop, check_finite=False))
    if log.image_every_epochs:
        frames = config.reconstruct.predict_batch_size
        groups = max(1, (64 if frames == "auto" else frames) // store.gridsize**2)
        standard.append(TrainingImages(store, out / "images", log.image_every_epochs, log.image_patches, groups))
    if progress:
        standard.append(StepProgress(epoch_plan.total_steps))
    # Some loggers do not create their folder.
    (out / LOGS_FOLDER).mkdir(parents=True, exist_ok=True)
    return L.Trainer(
        accelerator=train.accelerator,
        devices=train.devices,
        num_nodes=train.nodes,
        precision=train.precision,
        max_epochs=epoch_plan.epochs,
        accumulate_grad_batches=train.accumulate,
        check_val_every_n_epoch=epoch_plan.validate_every,
        gradient_clip_val=train.gradient_clip or None,
        logger=build_loggers(log.logger, out),
        log_every_n_steps=min(10, epoch_plan.steps, epoch_plan.total_steps),
        callbacks=[*standard, *callbacks],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
