"""Photons that a scan brings to each pixel of the object, and the photon noise of an image that follows from them."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Float64
from torch import Tensor

from torchptycho.physics.patches import place_inside

__all__ = ["compute_illumination", "compute_noise_level"]

_BATCH_FRAMES = 256


def compute_illumination(
    probe: Complex[Tensor, "p n n"], corners_px: Float[Tensor, "k 2"], shape: tuple[int, int]
) -> Float64[Tensor, "h w"]:
    """Sum sum_m |P_m|^2 over the frames: photons per object pixel when the probe is in sqrt(photons).

    Arguments:
        corners_px: (y, x) of each patch's pixel [0, 0] on a canvas of this shape, which holds all patches.
    """
    illumination = torch.zeros(shape, dtype=torch.float64, device=probe.device)
    power = (probe.real.square() + probe.imag.square()).sum(0).double()
    for part in torch.split(corners_px, _BATCH_FRAMES):
        place_inside(illumination, power.expand(len(part), -1, -1), part)
    return illumination


def compute_noise_level(illumination: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    """Compute sigma = 1 / sqrt(2 n), the least standard deviation of real and imaginary part that n photons leave.

    In the unit of the object; infinite where there are no photons.
    """
    return (2 * illumination).rsqrt()
