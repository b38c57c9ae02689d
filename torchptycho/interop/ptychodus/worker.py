"""Entry points of the process that Ptychodus starts for each training and each reconstruction.

They send messages (tag, pickled output) over its queue, as its `SubprocessReconstructor` expects. No file is read as a
pickle; only the job arrives as one, from the parent process.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from ptychodus.api.product import LossValue
from ptychodus.api.reconstruct import ReconstructOutput, TrainOutput
from ptychodus.model.processing.subprocess_reconstructor import TAG_MODEL_SAVED, TAG_OUTPUT, TAG_TRAIN_OUTPUT
from torch import Tensor

from torchptycho.core.config import RunConfig, from_dict
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.interop.ptychodus.jobs import ReconstructJob, RefineJob, TrainJob
from torchptycho.interop.ptychodus.product_conversion import make_product, make_scan_from_input, make_start_image
from torchptycho.interop.ptychodus.training_files import find_training_files, read_training_scan
from torchptycho.models.checkpoints import load_checkpoint
from torchptycho.models.losses import Loss
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.training.train import train

__all__ = ["MessageQueue", "reconstruct_product", "refine_product", "train_network"]

_log = logging.getLogger(__name__)


@runtime_checkable
class MessageQueue(Protocol):
    """The queue of messages to the parent process."""

    def put(self, item: tuple[str, Any]) -> None:
        """Send a message."""
        ...


def train_network(job: TrainJob, queue: MessageQueue) -> None:
    """Train on exported data; send the losses after each epoch and the path of the checkpoint at the end."""
    _set_visible_gpus(job.visible_gpus)
    config = from_dict(RunConfig, job.config)
    files, held_out = find_training_files(job.input_path)
    scans, val_scans = (
        [read_training_scan(path, subtract_mean_phase=job.subtract_mean_phase) for path in paths]
        for paths in (files, held_out)
    )
    result = train(
        scans,
        config,
        _choose_run_folder(job.output_path, job.mode),
        val_scans=val_scans,
        progress=False,
        callbacks=[_LossSender(queue)],
    )
    queue.put((TAG_MODEL_SAVED, str(result.checkpoint)))


def reconstruct_product(job: ReconstructJob, queue: MessageQueue) -> None:
    """Reconstruct the patterns with a trained network; send the product."""
    _set_visible_gpus(job.visible_gpus)
    config = from_dict(RunConfig, job.config)
    module = load_checkpoint(job.checkpoint, trust_generator=config.model.generator)
    supervised = Loss(module.config.loss).needs_truth
    if supervised != (job.mode == "Supervised"):
        trained = "with labels" if supervised else "without labels"
        _log.warning("%s: this network was trained %s, but is used as '%s'", job.checkpoint, trained, job.mode)
    prediction = dataclasses.replace(
        module.config.reconstruct,
        stitch_weight=config.reconstruct.stitch_weight,
        predict_batch_size=config.reconstruct.predict_batch_size,
    )
    scan = make_scan_from_input(job.parameters)
    image = reconstruct(module, scan, prediction, accelerator=config.train.accelerator, progress=False)
    product = make_product(job.parameters, image)
    queue.put((TAG_OUTPUT, pickle.dumps(ReconstructOutput(product=product, progress=job.goal))))


def refine_product(job: RefineJob, queue: MessageQueue) -> None:
    """Fit object and probe to the counts; send intermediate products and the final one."""
    _set_visible_gpus(job.visible_gpus)
    config = from_dict(RunConfig, job.config)
    patterns = job.parameters.diffraction_patterns
    photons = float(np.sum(patterns, dtype=np.float64)) / max(1, len(patterns))
    start = make_start_image(job.parameters.product, photons) if job.from_product else None

    def send_product(image: Reconstruction) -> None:
        moved = config.refine.position_update != "none"
        product = make_product(job.parameters, image, moved=moved)
        done = len(image.history["misfit"])
        _log.info("epoch %d of %d: misfit %.4g", done, config.refine.epochs, image.history["misfit"][-1])
        queue.put((TAG_OUTPUT, pickle.dumps(ReconstructOutput(product=product, progress=done))))

    send_product(
        refine(
            make_scan_from_input(job.parameters),
            start,
            config=config.refine,
            device=config.train.accelerator,
            on_image=send_product,
            image_every_epochs=job.image_every_epochs,
        )
    )


class _LossSender(Callback):
    """Sends the losses of all epochs so far after each epoch."""

    def __init__(self, queue: MessageQueue) -> None:
        self._queue = queue
        self._sum, self._batches = torch.zeros(()), 0
        self._training: list[LossValue] = []
        self._validation: list[LossValue] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss: Tensor = outputs["loss"]
        self._sum = self._sum.to(loss.device) + loss.detach()
        self._batches += 1

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Validation does not follow every epoch, and Lightning keeps the metric of an earlier one.
        self._validation.append(LossValue(trainer.current_epoch, float(trainer.callback_metrics["val/loss"])))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch
        self._training.append(LossValue(epoch, float(self._sum) / max(1, self._batches)))
        self._sum, self._batches = torch.zeros(()), 0
        output = TrainOutput(tuple(self._training), tuple(self._validation), progress=epoch + 1)
        _log.info("epoch %d: loss %.5g", epoch + 1, self._training[-1].value)
        self._queue.put((TAG_TRAIN_OUTPUT, pickle.dumps(output)))


def _set_visible_gpus(indexes: str) -> None:
    """Restrict this process to these GPUs; call it before CUDA is used. An empty text changes nothing."""
    if indexes.strip():
        os.environ["CUDA_VISIBLE_DEVICES"] = indexes.strip()


def _choose_run_folder(parent: Path, mode: str) -> Path:
    number = 1
    while (folder := parent / f"torchptycho-{mode.lower()}-{number}").exists():
        number += 1
    return folder
