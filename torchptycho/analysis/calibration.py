"""Whether error bars are right: how often the truth lies within them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Complex

from torchptycho.analysis.metrics import wrap_rad
from torchptycho.core.reconstruction import Reconstruction

__all__ = ["find_within_sigma", "measure_calibration"]


def find_within_sigma(
    image: Reconstruction,
    object: Complex[np.ndarray, "h w"],
    truth: Complex[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
    origin_px: tuple[int, int],
    amplitude_factor: float = 1.0,
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Find where amplitude and phase are within one standard deviation of the truth: 68 % of the pixels if it is right.

    Arguments:
        image: with error bars.
        object, truth: the image and the truth, in the same gauge, on a part of the image's grid.
        mask: pixels to compare.
        origin_px: (y, x) of that part in object pixels.
        amplitude_factor: by which the image was multiplied.

    Returns:
        amplitude within, phase within, and where both are known.
    """
    assert image.amplitude_sigma is not None
    assert image.phase_sigma_rad is not None
    y, x = (a - b for a, b in zip(origin_px, image.origin_px, strict=True))
    part = slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1])
    amplitude_sigma, phase_sigma_rad = image.amplitude_sigma[part] * amplitude_factor, image.phase_sigma_rad[part]
    known = mask & np.isfinite(amplitude_sigma) & np.isfinite(phase_sigma_rad)
    phase_rad = np.abs(wrap_rad(np.angle(object * truth.conj())))
    with np.errstate(invalid="ignore"):
        amplitude_within = np.abs(np.abs(object) - np.abs(truth)) <= amplitude_sigma
        return known & amplitude_within, known & (phase_rad <= phase_sigma_rad), known


def measure_calibration(
    image: Reconstruction,
    object: Complex[np.ndarray, "h w"],
    truth: Complex[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
    origin_px: tuple[int, int],
    amplitude_factor: float,
) -> tuple[float | None, float | None]:
    """Measure which part of the pixels is within the error bars of amplitude and phase; None without error bars."""
    if image.amplitude_sigma is None or image.phase_sigma_rad is None:
        return None, None
    amplitude, phase, known = find_within_sigma(image, object, truth, mask, origin_px, amplitude_factor)
    count = max(int(known.sum()), 1)
    return int(amplitude.sum()) / count, int(phase.sum()) / count
