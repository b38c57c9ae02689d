"""Free-space propagation over short distances, as a product in Fourier space."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Complex128

__all__ = ["angular_spectrum_transfer", "choose_padding_px", "compute_depth_of_focus_m"]


def angular_spectrum_transfer(
    n_px: int, pixel_m: float, distance_m: float, wavelength_m: float
) -> Complex128[np.ndarray, "n n"]:
    """Return the transfer function exp(2 pi i z / lambda (sqrt(1 - (lambda f)^2) - 1)) of free space.

    The constant phase of z is left out. Frequencies at which the function is undersampled, because light at their angle
    leaves a field of n pixels, are set to 0, as are evanescent ones.
    Reference: Goodman, Introduction to Fourier Optics, eq. 3-74; Matsushima, Shimobaba, Opt. Express 17, 19662 (2009).

    Arguments:
        n_px: edge of the field.
        pixel_m: edge of a pixel.
        distance_m: z; negative propagates backwards.
        wavelength_m: lambda.

    Returns:
        [n, n], zero frequency at [0, 0], of modulus 1 or 0.
    """
    frequency = np.fft.fftfreq(n_px, pixel_m)
    squared = (wavelength_m * frequency) ** 2
    sine_squared = squared[:, None] + squared[None, :]
    # sqrt(1 - s) - 1 = -s / (1 + sqrt(1 - s)): the difference of two numbers near 1 would lose digits.
    path = -sine_squared / (1 + np.sqrt(np.maximum(1 - sine_squared, 0)))
    limit = 1 / (wavelength_m * math.hypot(2 * distance_m / (n_px * pixel_m), 1))
    inside = np.abs(frequency) <= limit
    carried = (sine_squared < 1) & inside[:, None] & inside[None, :]
    transfer: np.ndarray = np.where(carried, np.exp(2j * np.pi * distance_m / wavelength_m * path), 0)
    return transfer


def choose_padding_px(pixel_m: float, distance_m: float, wavelength_m: float) -> int:
    """Return how far light of the highest sampled frequency moves sideways on its way to the detector, in pixels.

    lambda z / (2 p^2): half the reciprocal of the Fresnel number of a pixel.
    """
    return math.ceil(wavelength_m * distance_m / (2 * pixel_m**2))


_DEPTH_OF_FOCUS_FACTOR = 5.2
"""Depth of focus in units of p^2 / lambda, p being the half-period resolution."""


def compute_depth_of_focus_m(pixel_m: float, wavelength_m: float) -> float:
    """Compute the depth of focus 5.2 p^2 / lambda of an image whose half-period resolution is its pixel p.

    Slices that are closer than this are hardly distinguished by the counts alone.
    Reference: Tsai, Usov, Diaz, Menzel, Guizar-Sicairos, Opt. Express 24, 29089 (2016).
    """
    return _DEPTH_OF_FOCUS_FACTOR * pixel_m**2 / wavelength_m
