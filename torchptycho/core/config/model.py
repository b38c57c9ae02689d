"""Options of the network and of its loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from torchptycho.core.config.base import NonNegative, validated_dataclass

__all__ = ["SUPPORTED_N_PX", "LossConfig", "ModelConfig", "advise_network_size"]

SUPPORTED_N_PX = (32, 64, 128, 256)
"""Frame sizes for which networks exist."""


def advise_network_size(n_px: int) -> str | None:
    """Describe how frames of an edge that no network takes become frames of one that they take; None when they take it.

    Cropping the detector makes the object pixel, wavelength * distance / (N * detector pixel), larger. Probe and
    positions must follow.
    """
    if n_px in SUPPORTED_N_PX:
        return None
    near = min(SUPPORTED_N_PX, key=lambda n: abs(n - n_px))
    verb = "Crop" if near < n_px else "Pad"
    return (
        f"{verb} them with --crop-px {near} (and --beam-center-px Y X, where the direct beam is not in the "
        "middle): probe and "
        f"positions follow, as the object pixel becomes {n_px / near:.4g} times as large."
    )


@validated_dataclass
class ModelConfig:
    """Network and its use in the model of the experiment."""

    generator: str = "pie_unet"
    """Network: `pie_unet`, `resunet`, `cnn`, or your own as `package.module:Class`."""
    n_filters_scale: Annotated[int, Field(ge=1, le=16)] = 2
    """Width of the network (cnn: multiplies all filter counts; pie_unet: 2 is 32 to 96 channels; resunet: to 128)."""
    start_projections: Annotated[int, Field(ge=0)] = 12
    """pie_unet: rPIE iterations on each group before the network, at half resolution."""
    finish_projections: Annotated[int, Field(ge=0)] = 5
    """pie_unet: rPIE iterations after the network, at full resolution, at inference only."""
    amplitude_activation: Literal["sigmoid", "swish", "softplus", "relu"] = "sigmoid"
    """cnn only: activation of its amplitude."""
    probe_big: bool = True
    """cnn: predict the border of the patch too; real-space losses: compare it too, not only the central half."""
    merge_weight: Literal["probe", "central"] = "probe"
    """Weights for averaging the patches of a group before diffraction: |P|^2, or 1 in the central half."""
    probe_trainable: bool = False
    """Train the probe too."""


@validated_dataclass
class LossConfig:
    """Weights of the terms of the loss."""

    nll_weight: NonNegative = 1.0
    """Poisson likelihood of the measured counts: half the deviance divided by the mean count, 0 for a perfect fit."""
    mae_weight: NonNegative = 0.0
    """Mean absolute error of the diffraction amplitudes, both divided by the square root of the mean count."""
    tv_weight: NonNegative = 0.0
    """Total variation of the object patches."""
    realspace_weight: NonNegative = 0.0
    """Mean squared error of the patches relative to `truth` (simulated scans)."""
    realspace_mae_weight: NonNegative = 0.0
    """Mean absolute error of the patches relative to `truth` (simulated scans)."""
