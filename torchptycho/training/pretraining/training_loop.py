"""Training of the prior: scans are simulated and refined, a network learns to undo their noise, weights are written."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from torchptycho.core.errors import ConfigError
from torchptycho.core.versions import collect_versions
from torchptycho.data.simulation.textures import HELD_OUT_FAMILIES, TRAINING_FAMILIES
from torchptycho.models.prior.network import PriorConfig, PriorNetwork
from torchptycho.models.prior.weights import save_prior
from torchptycho.training.checkpointing import AtomicCheckpointIO
from torchptycho.training.pretraining.crops import CropDataset, cut_validation_crops
from torchptycho.training.pretraining.module import PretrainingConfig, PriorTraining, measure_error_ratio
from torchptycho.training.pretraining.pairs import PairStore
from torchptycho.training.runtime import silence_lightning

__all__ = ["CHECKPOINT", "WEIGHTS", "check_output_folder", "train_prior"]

_log = logging.getLogger(__name__)

CHECKPOINT, WEIGHTS, PROGRESS, PAIRS = "prior.ckpt", "prior.safetensors", "progress.jsonl", "pairs"
START = "start.safetensors"
"""Weights that the training began with, when they are not random."""


class _Export(Callback):
    """Writes checkpoint, weights and a line of the report from time to time."""

    def __init__(self, out: Path, store: PairStore, every_s: float) -> None:
        self.out, self.store, self.every_s = out, store, every_s
        self._written = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if time.monotonic() - self._written > self.every_s:
            self.write(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.write(trainer, module)

    def write(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, PriorTraining)
        line = {
            "step": module.global_step,
            "minutes": round(float(module.seconds) / 60, 2),
            "pairs": len(self.store),
            "batch_size": module.config.batch_size,
            "loss": round(float(np.mean(module.losses[-500:])), 4),
            "validation": _validate(module, self.store),
        }
        trainer.save_checkpoint(self.out / CHECKPOINT)
        with (self.out / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        history = [json.loads(text) for text in (self.out / PROGRESS).read_text(encoding="utf-8").splitlines()]
        save_prior(module.average, self.out / WEIGHTS, _build_report(module, self.store, line) | {"history": history})
        self._written = time.monotonic()


def train_prior(
    out: str | Path,
    store: PairStore,
    config: PretrainingConfig,
    network: PriorConfig | PriorNetwork = PriorConfig(),  # noqa: B008 -- frozen
    *,
    resume: bool = False,
    export_every_s: float = 240.0,
    accelerator: str = "cpu",
) -> Path:
    """Train a prior on the pairs of a store, which may grow meanwhile, and write weights and checkpoint into `out`.

    Arguments:
        network: what is trained further, or the size of a new network.
        resume: go on from the checkpoint in `out`.

    Returns:
        the file of weights.

    Raises:
        ConfigError: there is a training in `out` already, or none to resume, or one of another seed.
    """
    out = Path(out)
    checkpoint = check_output_folder(out, config.seed, resume=resume)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    module = PriorTraining(network, config)
    start = 0
    if checkpoint is not None:
        start = int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
    crops = CropDataset(store, config.seed, batch_size=config.batch_size, crop_px=config.crop_px, start=start)
    with silence_lightning():
        trainer = L.Trainer(
            accelerator=accelerator,
            devices=1,
            max_steps=config.steps,
            precision="bf16-mixed",
            gradient_clip_val=config.gradient_clip,
            callbacks=[_Export(out, store, export_every_s)],
            plugins=[AtomicCheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, DataLoader(crops, batch_size=None), ckpt_path=checkpoint)
    return out / WEIGHTS


def check_output_folder(out: Path, seed: int, *, resume: bool) -> Path | None:
    """Return the checkpoint that training goes on from, None for a new one.

    Raises:
        ConfigError: there is a training already, or none to resume, or one of another seed.
    """
    checkpoint = out / CHECKPOINT
    if resume and not checkpoint.is_file():
        raise ConfigError(f"resume: expected the checkpoint of an earlier training, {checkpoint}; found no file.")
    if not resume and checkpoint.exists():
        raise ConfigError(
            f"out: {out} holds a training already. Continue it with --resume, replace it with --overwrite, or take "
            "another folder."
        )
    if not resume:
        return None
    before = torch.load(checkpoint, map_location="cpu", weights_only=True).get("seed", seed)
    if before != seed:
        raise ConfigError(f"seed: the training in {out} has seed {before}; found {seed}. Resume it with the same seed.")
    return checkpoint


def remove_training(out: Path) -> None:
    """Remove what a training has written; the checkpoint last, because it is what tells a training."""
    shutil.rmtree(out / PAIRS, ignore_errors=True)
    for name in (PROGRESS, WEIGHTS, START, CHECKPOINT):
        (out / name).unlink(missing_ok=True)


def _validate(module: PriorTraining, store: PairStore) -> float | None:
    """Average the error ratio of the averaged weights over the pairs that are never trained on."""
    batch = cut_validation_crops(store, crop_px=module.config.crop_px)
    if batch is None:
        return None
    with torch.no_grad():
        denoised = module.average(batch.noisy, batch.sigma)
        return round(float(measure_error_ratio(denoised, batch).mean()), 4)


def _build_report(module: PriorTraining, store: PairStore, line: dict[str, Any]) -> dict[str, Any]:
    return {
        "training": dataclasses.asdict(module.config),
        "pair_seed": store.seed,
        "families": list(TRAINING_FAMILIES),
        "held_out_families": list(HELD_OUT_FAMILIES),
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "versions": collect_versions(),
        **line,
    }
