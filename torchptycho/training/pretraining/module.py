"""The prior in training: loss, averaged weights and a schedule by steps or by time."""

from __future__ import annotations

import copy
import dataclasses
import time
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from torchptycho.models.prior.network import PriorConfig, PriorNetwork
from torchptycho.training.pretraining.crops import CropBatch

__all__ = ["PretrainingConfig", "PriorTraining", "compute_loss", "measure_error_ratio"]

# Noise relative to the amplitude below which a crop has less weight: there a small relative error is a large gradient.
_SOFT_SIGMA = 0.03
_MIN_NOISE_RATIO = 0.3
_MAX_AVERAGE = 0.998


@dataclasses.dataclass(frozen=True)
class PretrainingConfig:
    """How the prior is trained.

    Arguments:
        minutes: of training, over all sessions; the learning rate ends at zero then.
        steps: ends training earlier when it is reached.
        seed: of the network, the scans and the crops.
        pairs: number of simulated scans.
        learning_rate: of AdamW, after the warm-up and before the last part, in which it falls to zero.
        cooldown: that last part.
    """

    minutes: float = 120.0
    steps: int = 1_000_000
    seed: int = 20261129
    pairs: int = 2500
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    cooldown: float = 0.35
    weight_decay: float = 1e-4
    batch_size: int = 8
    crop_px: int = 80
    gradient_clip: float = 1.0


class PriorTraining(L.LightningModule):
    """A prior, its average over the last steps, and the time that it was trained for."""

    seconds: Tensor

    def __init__(self, network: PriorConfig, config: PretrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.network = PriorNetwork(network)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("seconds", torch.zeros((), dtype=torch.float64))
        self.losses: list[float] = []
        self._begun = 0.0

    def compute_progress(self) -> float:
        """Return the part of the training that is done, by steps or by time, whichever is further."""
        return max(self.global_step / self.config.steps, float(self.seconds) / (60 * self.config.minutes))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.network.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )

    def on_train_start(self) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_start(self, batch: CropBatch, batch_idx: int) -> None:
        progress = self.compute_progress()
        rate = self.config.learning_rate * min(
            1.0, (self.global_step + 1) / self.config.warmup_steps, max(0.0, (1 - progress) / self.config.cooldown)
        )
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def training_step(self, batch: CropBatch, batch_idx: int) -> Tensor:
        loss = compute_loss(self.network, batch)
        self.losses.append(float(loss.detach()))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: CropBatch, batch_idx: int) -> None:
        keep = min(_MAX_AVERAGE, self.global_step / (self.global_step + 10))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        now = time.perf_counter()
        self.seconds += now - self._begun
        self._begun = now
        if self.compute_progress() >= 1:
            self.trainer.should_stop = True


def compute_loss(network: PriorNetwork, batch: CropBatch) -> Float[Tensor, ""]:
    """Average the error ratio of the crops, those with little noise weighted less."""
    covered = batch.sigma < 3 * batch.sigma.amin((-2, -1), keepdim=True)
    amplitude = (batch.truth.abs().square() * covered).sum((-2, -1)) / covered.sum((-2, -1))
    level = batch.sigma.amin((-2, -1)) / amplitude.sqrt().clamp_min(1e-6)
    weight = level / (level + _SOFT_SIGMA)
    return (weight * measure_error_ratio(network(batch.noisy, batch.sigma), batch)).sum() / weight.sum()


def measure_error_ratio(found: Tensor, batch: CropBatch) -> Float[Tensor, " b"]:
    """Measure the root mean square error of each crop in units of sigma, relative to what it was before."""
    left, right = (
        ((part - batch.truth).abs().square() / batch.sigma.square()).mean((-2, -1)) for part in (found, batch.noisy)
    )
    return (left + 1e-4).sqrt() / right.sqrt().clamp_min(_MIN_NOISE_RATIO)
