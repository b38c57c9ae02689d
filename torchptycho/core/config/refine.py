"""Options of iterative refinement."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from torchptycho.core.config.base import Count, NonNegative, Positive, validated_dataclass

__all__ = ["RefineConfig"]


@validated_dataclass
class RefineConfig:
    """How an image is fitted to the counts: object, and if wanted probe, positions and background."""

    method: Literal["rpie", "lsqml", "gradient"] = "rpie"
    """rpie: projections in mini-batches; lsqml: with step lengths by least squares; gradient: automatic derivatives."""
    epochs: Count = 100
    """Passes over the frames, at most."""
    batch_size: Count | None = None
    """Frames computed at once; also the frames of an update, before polishing. None takes a 25th of the scan's frames,
    8 to 64."""
    polish: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Last part of the epochs, in which updates gather more and more frames, so that their noise averages out; with the
    method gradient, Adam's rate falls to a tenth instead."""
    likelihood: Literal["poisson", "amplitude"] = "poisson"
    """Noise of the counts: Poisson's, or the same at every pixel of the amplitude."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Regularisation of weakly illuminated pixels: 0 is none, 1 that of a plain gradient step (rpie, lsqml)."""
    step: Annotated[float, Field(gt=0, lt=2)] = 1.0
    """Length of the updates (rpie), or what the best length is multiplied by (lsqml)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Part of the last movement that is kept up (rpie, lsqml)."""
    probe_update: bool = True
    """Refine the probe as well."""
    probe_start_epoch: Annotated[int, Field(ge=0)] = 0
    """Epochs before the probe moves: an object that was fitted to a wrong probe is the worse beginning."""
    n_modes: Annotated[int, Field(ge=1, le=64)] | None = None
    """Incoherent modes of the probe; None takes the scan's."""
    background: bool = False
    """Fit counts that do not come from the sample, the same in every frame."""
    position_update: Literal["none", "affine", "frames", "both"] = "none"
    """Correct the positions: all by one linear map (scale, rotation, shear), each frame by itself, or both."""
    position_start_epoch: Annotated[int, Field(ge=0)] = 5
    """Epochs before positions move."""
    position_step_px: Positive = 0.5
    """Longest step of a frame in one epoch; it becomes shorter towards the end."""
    position_limit_px: Annotated[float, Field(gt=0, le=1024)] = 8.0
    """Farthest that a frame may move from where it was said to be, along each axis."""
    smoothness_weight: NonNegative = 0.0
    """Weight of the squared differences between neighbouring object pixels."""
    tv_weight: NonNegative = 0.0
    """Weight of the total variation of the object."""
    optimizer: Literal["adam", "lbfgs"] = "adam"
    """Of the method gradient."""
    learning_rate: Positive = 0.05
    """Of Adam, in the method gradient; the object's unit is 1, the probe's its own size."""
    patience: Count | None = 20
    """Epochs without a better fit after which polishing begins, and then the end; None goes on to the last epoch."""
    min_improvement: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    """What counts as better, relative."""
    refine_seed: int = 0
    """Seed of the order of the frames."""
