"""Sections of the configuration for training only: the model of the experiment, and logging."""

from __future__ import annotations

from typing import Literal

from torchptycho.core.config.base import Count, NonNegative, Positive, validated_dataclass
from torchptycho.core.errors import ConfigError

__all__ = ["ExperimentConfig", "LogConfig"]


@validated_dataclass
class ExperimentConfig:
    """Parts of the model of the experiment in addition to object and probe, all off by default."""

    probe_power: Literal["free", "fixed"] = "free"
    """fixed: the power of a trainable probe stays constant."""
    probe_support_px: Positive | None = None
    """Diameter of the disc to which the probe is restricted, in object pixels; None does not restrict it."""
    probe_support_edge_px: NonNegative = 2.0
    """Width of the soft edge of this disc, in object pixels."""
    scale_trainable: bool = False
    """Train one factor of the expected counts for each scan."""
    exit_smoothing_px: NonNegative = 0.0
    """Standard deviation of a Gaussian blur of the exit wave, in object pixels; 0 disables it."""
    background_counts: NonNegative = 0.0
    """Counts per detector pixel and frame that do not come from the sample."""
    background_trainable: bool = False
    """Train the background of each scan, starting from `background_counts`, or else from the darkest pixels of the mean
    frame; it stays positive."""
    experiment_learning_rate: Positive = 1e-2
    """Learning rate of scale and background, relative to their values."""


@validated_dataclass
class LogConfig:
    """Logging during training."""

    logger: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Loggers in addition to the CSV file, which is always written."""
    image_every_epochs: Count | None = None
    """Epochs between two sets of images (some patches, the stitched scan); None draws none."""
    image_patches: Count = 6
    """Number of patches in these images, the same ones each time."""
    checkpoint_every_steps: Count | None = None
    """Optimiser steps between two writes of last.ckpt; None writes it after validations only."""
    checkpoint_every_epochs: Count | None = None
    """Epochs between two checkpoints that are kept under their own names; None keeps best and last only."""

    def __post_init__(self) -> None:
        if len(set(self.logger)) < len(self.logger):
            raise ConfigError(f"logger: expected each name once; found {', '.join(self.logger)}.")
