"""Options of iterative refinement."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from torchptycho.core.config.base import Count, NonNegative, Positive, validated_dataclass

__all__ = ["RefineConfig"]


@validated_dataclass
class RefineConfig:
    """Iterative fit of object and, optionally, probe, positions and background to the counts."""

    method: Literal["rpie", "lsqml", "gradient"] = "rpie"
    """rpie: projections in mini-batches; lsqml: rpie with least-squares steps; gradient: automatic derivatives."""
    epochs: Count = 100
    """Largest number of passes over the frames."""
    batch_size: Count | None = None
    """Frames computed at once; also the frames of an update, before polishing. None takes a 25th of the scan's frames,
    8 to 64."""
    polish: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Final fraction of the epochs, in which each update uses more and more frames, so that noise averages out; with
    the method gradient, Adam's learning rate falls to a tenth instead."""
    likelihood: Literal["poisson", "amplitude"] = "poisson"
    """Noise model: Poisson counts, or Gaussian noise of the same variance at every pixel of the amplitude."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Regularisation of weakly illuminated pixels: 0 is none, 1 a plain gradient step (rpie, lsqml)."""
    step: Annotated[float, Field(gt=0, lt=2)] = 1.0
    """Step length of the updates (rpie), or factor of the least-squares step length (lsqml)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum: fraction of the last change that is repeated (rpie, lsqml)."""
    probe_update: bool = True
    """Refine the probe too."""
    probe_start_epoch: Annotated[int, Field(ge=0)] = 0
    """Epochs before the probe is refined. A large value fits the object to a wrong probe first."""
    n_modes: Annotated[int, Field(ge=1, le=64)] | None = None
    """Incoherent modes of the probe; None takes the scan's."""
    opr_modes: Annotated[int, Field(ge=0, le=32)] = 0
    """Modes of variation of a probe that changes from frame to frame (orthogonal probe relaxation); 0 is a stable
    one."""
    opr_start_epoch: Annotated[int, Field(ge=0)] = 3
    """Epochs before the probe may vary from frame to frame, in shape or power."""
    opr_smoothing: NonNegative = 0.0
    """Frames within which the variation stays the same: its weights lose what changes faster. 0 leaves every frame its
    own."""
    frame_scale: bool = False
    """Fit the power of the probe in each frame on its own."""
    n_slices: Annotated[int, Field(ge=1, le=64)] = 1
    """Slices of a thick object, with free space between them (multislice); 1 is a thin one."""
    slice_spacing_m: Positive | None = None
    """Distance between neighbouring slices; needs the wavelength and the object pixel of the scan."""
    thickness_m: Positive | None = None
    """Distance from the first slice to the last, instead of that between neighbouring ones."""
    slice_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Part of the difference between slices that is removed in each epoch at spatial frequencies where the counts
    hardly distinguish the slices; 0 is none."""
    background: bool = False
    """Fit counts that do not come from the sample, the same in every frame."""
    position_update: Literal["none", "affine", "frames", "both"] = "none"
    """Correct the positions: by one linear map (scale, rotation, shear), each frame separately, or both."""
    position_start_epoch: Annotated[int, Field(ge=0)] = 5
    """Epochs before positions are corrected."""
    position_step_px: Positive = 0.5
    """Largest change of a position in one epoch; it decreases towards the end."""
    position_limit_px: Annotated[float, Field(gt=0, le=1024)] = 8.0
    """Largest total correction of a position along each axis."""
    position_search_px: Annotated[float, Field(ge=0, le=1024)] = 0.0
    """Errors along each axis up to which positions are searched for before the first epoch: frames are reconstructed
    one by one with the given probe, and their images registered. For errors of more than about 2 px; it needs a probe
    that is about right, and the time of 60 epochs. 0 does not search."""
    regularization: Literal["none", "tv", "learned", "auto"] = "auto"
    """Prior that acts on the object while it is polished. tv: total variation; learned: the network that comes with the
    package; auto: the one of them that makes held-out counts likelier, or none where neither does, and not with
    `tv_weight` or `smoothness_weight`."""
    regularization_strength: NonNegative | None = None
    """Strength in units of the local photon noise. tv: such as 0.1; None chooses it by held-out counts. learned: what
    the noise is taken to be; None takes 0.8, a little less than what the photons leave."""
    prior_weights: str | None = None
    """File with the weights of the learnt prior, as `pretrain` writes it; None takes those of the package."""
    smoothness_weight: NonNegative = 0.0
    """Weight of the squared differences between neighbouring object pixels, from the first epoch on, by hand."""
    tv_weight: NonNegative = 0.0
    """Weight of the total variation of the object, from the first epoch on, by hand."""
    optimizer: Literal["adam", "lbfgs"] = "adam"
    """Optimiser of the method gradient."""
    learning_rate: Positive = 0.05
    """Learning rate of Adam in the method gradient, relative to 1 for the object and to its magnitude for the probe."""
    patience: Count | None = 20
    """Epochs without a better fit after which polishing starts, and later the iteration ends; None runs all epochs."""
    min_improvement: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    """Smallest relative decrease of the misfit that counts as an improvement."""
    refine_seed: int = 0
    """Seed of the order of the frames."""

    def without_prior(self) -> RefineConfig:
        """Return these options without a prior that acts while the object is polished."""
        return dataclasses.replace(self, regularization="none", regularization_strength=None, prior_weights=None)
