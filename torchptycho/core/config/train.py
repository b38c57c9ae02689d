"""Options of the optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from torchptycho.core.config.base import Count, NonNegative, Positive, validated_dataclass

__all__ = ["TrainConfig"]


@validated_dataclass
class TrainConfig:
    """Optimisation of the network."""

    steps: Count = 200
    """Number of optimiser steps; the last epoch ends with the last of them."""
    epochs: Count | None = None
    """Number of passes over the scan; overrides `steps`."""
    batch_size: Count = 64
    """Frames per optimiser step and device, in batch_size / gridsize^2 groups, at least 1."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Optimiser."""
    learning_rate: Positive = 2e-3
    """Peak learning rate."""
    learning_rate_factor: Positive = 1.0
    """Factor of the learning rate; use a value below 1 to fine-tune a trained network (`train --from`)."""
    freeze_encoder: bool = False
    """Freeze the encoder of the network and train the rest."""
    accumulate: Count = 1
    """Batches whose gradients are averaged for one optimiser step."""
    probe_learning_rate: Positive = 1e-3
    """Learning rate of a trainable probe, relative to its root-mean-square value."""
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    """How the learning rate decreases after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps during which the learning rate rises from zero."""
    gradient_clip: NonNegative = 1.0
    """Largest norm of the gradient; 0 disables clipping."""
    seed: int = 0
    """Seed of the weights and of the order of the frames."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Number of threads that gather batches in advance; 0 gathers in the training thread."""
    accelerator: str = "auto"
    """Device: auto, cpu or gpu."""
    devices: Count = 1
    """Number of devices per machine; each processes batches of `batch_size`, and the gradients are averaged."""
    nodes: Count = 1
    """Number of machines, started by torchrun or srun."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic of the network; the physics is always float32."""
    compile: bool = False
    """Compile the network with torch.compile; without a compiler it runs uncompiled, with a warning."""
    early_stop: Count | None = None
    """Number of validations without a better loss after which training ends; None runs all steps."""
    on_flat: Literal["fail", "warn"] = "fail"
    """What to do if the network predicts the same featureless patch for every frame although the frames differ."""
