"""How far the model is from the counts, and what the exit waves would have to change: shared by all methods."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

__all__ = ["ReducedChiSquared", "compute_wave_correction", "propagate_to_detector"]

# Counts added to the expected ones where something is divided by them.
_COUNT_FLOOR = 1.0
# Where far more was counted than is expected, the wave grows by so many times itself in one step, and no more.
_MAX_RELATIVE_STEP = 4.0


def propagate_to_detector(
    patches: Complex[Tensor, "k n n"], probe: Complex[Tensor, "p n n"]
) -> tuple[Complex[Tensor, "k p n n"], Float[Tensor, "k n n"]]:
    """Waves on the detector (orthonormal, zero frequency at [0, 0]) and their summed intensity."""
    wave = torch.fft.fft2(patches[:, None] * probe, norm="ortho")
    intensity = wave.real.square() + wave.imag.square()
    return wave, intensity[:, 0] if len(probe) == 1 else intensity.sum(1)


def compute_wave_correction(
    intensity: Float[Tensor, "k n n"],
    counts: Float[Tensor, "k n n"],
    mask: Bool[Tensor, "n n"] | None,
    likelihood: Literal["poisson", "amplitude"],
    misfit: ReducedChiSquared,
) -> Float[Tensor, "k n n"]:
    """Relative change of the detector's waves that the counts ask for, 0 under the mask; and how large the misfit is.

    Poisson: (y - I) / 2 (I + 1), the gradient of the likelihood with the step that agrees with the projection below to
    first order; far from the solution it is cut.
    Amplitude: sqrt(y / I) - 1, the projection onto the measured modulus.
    Reference: Thibault, Guizar-Sicairos, New J. Phys. 14, 063004 (2012).

    Arguments:
        mask: None where every pixel can be trusted.
    """
    weight = (intensity + _COUNT_FLOOR).reciprocal_()
    difference = counts - intensity
    step = difference * weight
    if mask is not None:
        step, weight = step * mask, weight * mask
    misfit.add(step, difference, weight)
    if likelihood == "poisson":
        return step.mul_(0.5).clamp_max_(_MAX_RELATIVE_STEP)
    projection = (counts / intensity.clamp_min(1e-12)).sqrt_().sub_(1)
    return projection if mask is None else projection * mask


class ReducedChiSquared:
    """Mean squared deviation of the counts, in units of what photon noise gives: 1 is the limit.

    sum (y - I)^2 / (I + 1) over sum I / (I + 1), which is its mean under the model.
    """

    def __init__(self, like: Tensor) -> None:
        self._squared_deviation = self._weights = like.new_zeros((), dtype=torch.float64)
        self._n_frames = 0

    def add(self, step: Tensor, difference: Tensor, weight: Tensor) -> None:
        """One batch: (y - I) / (I + 1), y - I, and 1 / (I + 1), all 0 under the mask but the second."""
        self._squared_deviation = self._squared_deviation + torch.dot(step.flatten(), difference.flatten()).double()
        self._weights = self._weights + weight.sum().double()
        self._n_frames += weight.shape[0]

    def compute(self, n_good_pixels: int) -> float:
        expected = self._n_frames * n_good_pixels - self._weights
        return float(self._squared_deviation / expected.clamp_min(1e-30))
