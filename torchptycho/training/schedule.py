"""Numbers of steps and epochs, and the times of validation."""

from __future__ import annotations

import math
from typing import NamedTuple

from torchptycho.core.config import TrainConfig

__all__ = ["EpochPlan", "plan_epochs"]

VALIDATE_EVERY_STEPS = 100


class EpochPlan(NamedTuple):
    """What a run consists of.

    Arguments:
        batches: of an epoch on each process.
        steps: optimiser steps of a whole epoch.
        epochs: of which the last may end early.
        validate_every: epochs between validations; another one follows the last step.
        total_steps: optimiser steps of the run.
    """

    batches: int
    steps: int
    epochs: int
    validate_every: int
    total_steps: int


def plan_epochs(config: TrainConfig, batches_per_epoch: int) -> EpochPlan:
    """Plan exactly the steps or epochs that are asked for, with validations about every 100 steps."""
    steps = math.ceil(batches_per_epoch / config.accumulate)
    total = steps * config.epochs if config.epochs else config.steps
    epochs = math.ceil(total / steps)
    every = min(epochs, max(1, round(VALIDATE_EVERY_STEPS / steps)))
    return EpochPlan(batches_per_epoch, steps, epochs, every, total)
