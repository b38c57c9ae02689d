"""How many steps make an epoch, and when a run looks at the held-out frames."""

from __future__ import annotations

import math
from typing import NamedTuple

from torchptycho.core.config import TrainConfig

__all__ = ["EpochPlan", "plan_epochs"]

VALIDATE_EVERY_STEPS = 100


class EpochPlan(NamedTuple):
    """Batches of an epoch on each process, optimiser steps that they make, epochs, and epochs between validations."""

    batches: int
    steps: int
    epochs: int
    validate_every: int


def plan_epochs(config: TrainConfig, batches_per_epoch: int) -> EpochPlan:
    """Plan whole epochs with validations about every 100 steps, the last one at the end."""
    if config.epochs:
        steps, epochs = math.ceil(batches_per_epoch / config.accumulate), config.epochs
        wanted = max(1, round(VALIDATE_EVERY_STEPS / steps))
        every = max(n for n in range(1, min(epochs, wanted) + 1) if epochs % n == 0)
        return EpochPlan(batches_per_epoch, steps, epochs, every)
    batches = min(batches_per_epoch, config.steps * config.accumulate)
    steps = math.ceil(batches / config.accumulate)
    epochs = math.ceil(config.steps / steps)
    every = min(epochs, max(1, round(VALIDATE_EVERY_STEPS / steps)))
    return EpochPlan(batches, steps, math.ceil(epochs / every) * every, every)
