"""The prior in training: loss, averaged weights and a schedule by steps or by time."""

from __future__ import annotations

import copy
import time
from typing import Annotated, Any

import lightning as L
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from torchptycho.core.config.base import Count, NonNegative, Positive, validated_dataclass
from torchptycho.models.prior.network import PriorConfig, PriorNetwork
from torchptycho.training.pretraining.crops import CropBatch

__all__ = ["PretrainingConfig", "PriorTraining", "compute_loss", "measure_error_ratio"]

# Noise relative to the amplitude below which a crop has less weight: there a small relative error is a large gradient.
_SOFT_SIGMA = 0.03
_MIN_NOISE_RATIO = 0.3
_MAX_AVERAGE = 0.998


@validated_dataclass
class PretrainingConfig:
    """How the prior is trained."""

    minutes: Positive = 120.0
    """Of training, over all sessions; the learning rate ends at zero then."""
    steps: Count = 1_000_000
    """Steps after which training ends earlier."""
    seed: Annotated[int, Field(ge=0)] = 20261129
    """Of the network, the scans and the crops."""
    pairs: Count = 2500
    """Scans that are simulated and refined."""
    learning_rate: Positive = 1.5e-3
    """Of AdamW, after the warm-up and before the cooldown."""
    warmup_steps: Count = 100
    """Steps in which the learning rate rises."""
    cooldown: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Last part of the training, in which the learning rate falls to zero."""
    weight_decay: NonNegative = 1e-4
    """Of AdamW."""
    batch_size: Count = 4
    """Crops of a step."""
    crop_px: Annotated[int, Field(ge=16, multiple_of=16)] = 80
    """Edge of the crops."""
    gradient_clip: Positive = 1.0
    """Largest norm of the gradient."""


class PriorTraining(L.LightningModule):
    """A prior, its average over the last steps, and the time that it was trained for.

    Arguments:
        network: what is trained further, or the size of a new network.
    """

    seconds: Tensor

    def __init__(self, network: PriorConfig | PriorNetwork, config: PretrainingConfig) -> None:
        super().__init__()
        self.config = config
        start = network if isinstance(network, PriorNetwork) else PriorNetwork(network)
        self.network = copy.deepcopy(start).requires_grad_(True).train()
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("seconds", torch.zeros((), dtype=torch.float64))
        self.losses: list[float] = []
        self._begun = 0.0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seed"] = self.config.seed

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
