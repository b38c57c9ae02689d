"""Options of prediction and stitching."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from torchptycho.core.config.base import Count, validated_dataclass

__all__ = ["ReconstructConfig"]


@validated_dataclass
class ReconstructConfig:
    """Prediction and stitching."""

    stitch_weight: Literal["probe", "central"] = "probe"
    """How overlapping patches are averaged: by |P|^2, or evenly over the central half."""
    agree_phases: bool = True
    """Turn each group's patches by the phase with which they agree with their neighbours, before they are averaged."""
    input_scale: Literal["training", "scan"] = "training"
    """Scale the network's input as in training, or from this scan (when its dose differs)."""
    training_scan: Annotated[int, Field(ge=0)] = 0
    """Which training scan's probe and scale to use, when there were several."""
    predict_batch_size: Count | Literal["auto"] = "auto"
    """Frames per forward pass; a CPU runs one on each core at once, 8 at most, and needs the memory of all of them, but
    for OMP_NUM_THREADS=1. auto: what a CPU is fastest with, and what a GPU has memory for."""
    predict_precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic of the network; the physics is always float32."""
    predict_compile: bool = False
    """Compile the network with torch.compile, which takes a minute at first; where it fails it runs as it is."""
    predict_passes: Count = 1
    """Times that each frame is predicted, each time in a group with other neighbours; the image averages them."""
    absolute_scale: bool = False
    """Scale the object so that object and a constant background fit the counts of the whole scan best."""
