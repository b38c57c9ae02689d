"""Sections of the configuration that training alone needs: the experiment around the object, and what is logged."""

from __future__ import annotations

from typing import Literal

from torchptycho.core.config.base import Count, NonNegative, Positive, validated_dataclass
from torchptycho.core.errors import ConfigError

__all__ = ["ExperimentConfig", "LogConfig"]


@validated_dataclass
class ExperimentConfig:
    """What the model of the experiment holds besides object and probe; all of it is off unless asked for."""

    probe_power: Literal["free", "fixed"] = "free"
    """fixed: a trainable probe keeps the photons that it began with."""
    probe_support_px: Positive | None = None
    """Diameter of the disc that the probe is confined to, in object pixels; None for none."""
    probe_support_edge_px: NonNegative = 2.0
    """Width over which that disc falls off, in object pixels."""
    scale_trainable: bool = False
    """Learn one factor of the expected counts for each scan."""
    exit_smoothing_px: NonNegative = 0.0
    """Standard deviation of a Gaussian that blurs the exit wave, in object pixels; 0 for none."""
    background_counts: NonNegative = 0.0
    """Counts per detector pixel and frame that do not come from the sample."""
    background_trainable: bool = False
    """Learn this background for each scan, from the given value on, or else from the darkest pixels of the mean frame;
    it stays positive."""
    experiment_learning_rate: Positive = 1e-2
    """Learning rate of scale and background, relative to themselves."""


@validated_dataclass
class LogConfig:
    """What is written down while a network trains."""

    logger: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Loggers besides the CSV file, which is always written."""
    image_every_epochs: Count | None = None
    """Epochs from one set of pictures (some patches, the stitched scan) to the next; None draws none."""
    image_patches: Count = 6
    """Patches in such a picture, the same ones every time."""
    checkpoint_every_steps: Count | None = None
    """Optimiser steps after which last.ckpt is written within an epoch; None writes it after validations only."""
    checkpoint_every_epochs: Count | None = None
    """Epochs after which a checkpoint is kept under its own name; None keeps best and last only."""

    def __post_init__(self) -> None:
        if len(set(self.logger)) < len(self.logger):
            raise ConfigError(f"logger: expected each name once; found {', '.join(self.logger)}.")
