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
    """Weights for averaging overlapping patches: |P|^2, or 1 in the central half."""
    agree_phases: bool = True
    """Align the global phase of each group with its neighbours before patches are averaged."""
    input_scale: Literal["training", "scan"] = "training"
    """Scale of the network's input: that of training, or that of this scan (if its dose differs)."""
    training_scan: Annotated[int, Field(ge=0)] = 0
    """Number of the training scan whose probe and scale are used, if there were several."""
    predict_batch_size: Count | Literal["auto"] = "auto"
    """Frames per forward pass. A CPU computes one batch per core in parallel, up to 8, and needs memory for all of
    them, except with OMP_NUM_THREADS=1. auto: the fastest size on a CPU, the largest that fits on a GPU."""
    predict_precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic of the network; the physics is always float32."""
    predict_compile: bool = False
    """Compile the network with torch.compile, which takes a minute at first; if it fails, it runs uncompiled."""
    predict_passes: Count = 1
    """Number of predictions of each frame, each in a group with other neighbours; the image averages them."""
    absolute_scale: bool = False
    """Scale the object so that object and a constant background best fit the counts of the whole scan."""
