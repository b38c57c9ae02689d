"""Support and power of the probe, and the blur of the exit wave."""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

__all__ = ["scale_probe_power", "smoothing_envelope", "soft_disc"]


def soft_disc(n_px: int, diameter_px: float, edge_px: float) -> Float[Tensor, "n n"]:
    """Make a disc about pixel [N//2, N//2]: 1 inside, 0 outside, with a cosine edge over `edge_px` pixels of radius.

    The value is 1/2 at the radius diameter_px / 2.
    """
    steps = torch.arange(n_px, dtype=torch.float64) - n_px // 2
    outside_px = torch.hypot(steps[:, None], steps[None, :]) - diameter_px / 2
    if edge_px == 0:
        return (outside_px < 0).float()
    fall = (outside_px / edge_px + 0.5).clamp(0, 1)
    return (0.5 + 0.5 * torch.cos(math.pi * fall)).float()


def scale_probe_power(
    probe: Complex[Tensor, "*batch p n n"], photons: Float[Tensor, "*batch"]
) -> Complex[Tensor, "*batch p n n"]:
    """Scale the probe so that the sum of |P|^2 over all modes is a given number of photons; an empty probe stays so."""
    power = (probe.real.square() + probe.imag.square()).sum(dim=(-3, -2, -1))
    limits = torch.finfo(power.dtype)
    factor = (photons.to(power.dtype) / power.clamp_min(limits.tiny)).clamp_max(limits.max).sqrt()
    return probe * factor[..., None, None, None]


def smoothing_envelope(n_px: int, sigma_px: float) -> Float[Tensor, "n n"]:
    """Compute the factor by which a Gaussian blur of the exit wave multiplies the intensity at the detector.

    A convolution of the wave with a Gaussian of standard deviation sigma (periodic over the patch, of sum 1) is a
    product of the far field with exp(-2 pi^2 sigma^2 q^2), q in cycles per pixel; intensities get its square.
    """
    q = (torch.arange(n_px, dtype=torch.float64) - n_px // 2) / n_px
    squared = q[:, None].square() + q[None, :].square()
    return torch.exp(-4 * math.pi**2 * sigma_px**2 * squared).float()
