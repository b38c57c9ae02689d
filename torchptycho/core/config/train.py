"""Options of the optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from torchptycho.core.config.base import Count, NonNegative, Positive, validated_dataclass

__all__ = ["TrainConfig"]


@validated_dataclass
class TrainConfig:
    """The optimisation."""

    steps: Count = 200
    """Optimiser steps; epochs follow from the size of the scan."""
    epochs: Count | None = None
    """Passes over the scan; overrides `steps`."""
    batch_size: Count = 64
    """Frames per optimiser step, in batch_size / gridsize^2 groups, at least 1."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Update rule."""
    learning_rate: Positive = 2e-3
    """Peak learning rate."""
    learning_rate_factor: Positive = 1.0
    """What the learning rate is multiplied by; below 1 where a trained network goes on (`train --from`)."""
    freeze_encoder: bool = False
    """Leave the encoder of the network as it is, and train the rest."""
    accumulate: Count = 1
    """Batches whose gradients are averaged for one optimiser step."""
    probe_learning_rate: Positive = 1e-3
    """Learning rate of a trainable probe, relative to its root-mean-square value."""
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    """How the learning rate falls."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps over which the learning rate rises from zero."""
    gradient_clip: NonNegative = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    seed: int = 0
    """Seed of the weights and of the order of the frames."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Threads that gather batches ahead of their use; 0 gathers in the training thread."""
    accelerator: str = "auto"
    """Where to compute: auto, cpu, gpu."""
    devices: Count = 1
    """Number of devices; each takes batches of `batch_size`, and their gradients are averaged."""
    nodes: Count = 1
    """Number of machines with as many devices each, started by torchrun or srun."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic of the network; the physics is always float32."""
    compile: bool = False
    """Compile the network with torch.compile; where no compiler is found it runs as it is, and a warning says so."""
    early_stop: Count | None = None
    """Validations without a better loss after which training ends; None goes on to the last step."""
    on_flat: Literal["fail", "warn"] = "fail"
    """What to do when the network predicts the same featureless patch for every frame, and the frames do differ."""
