"""An image on other pixels."""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage

from torchptycho.core.errors import EvaluationError
from torchptycho.core.reconstruction import Reconstruction

__all__ = ["resample_image"]


def resample_image(
    image: Reconstruction, factor: float, pixel_m: float | None, shift_px: tuple[float, float] = (0.0, 0.0)
) -> Reconstruction:
    """Resample an image to pixels that are `factor` times as large, about the same position 0 or one that moves.

    Arguments:
        image: of it, object, coverage and valid pixels are resampled; probe and positions are left out.
        factor: edge of the new pixels over that of the old ones.
        pixel_m: edge of the new pixels.
        shift_px: (y, x) in new pixels: position p becomes p / factor + shift_px.

    Raises:
        EvaluationError: the new pixels are too large for the image.
    """
    lines = list(zip(image.origin_px, image.object.shape, shift_px, strict=True))
    starts = [math.ceil(origin / factor + shift) for origin, _, shift in lines]
    stops = [math.floor((origin + n - 1) / factor + shift) + 1 for origin, n, shift in lines]
    axes = [
        (np.arange(start, stop) - shift) * factor - origin
        for start, stop, (origin, _, shift) in zip(starts, stops, lines, strict=True)
    ]
    if min(len(axis) for axis in axes) < 4:
        raise EvaluationError(
            f"{factor:.3g} times larger pixels leave fewer than 4 pixels per axis of {image.object.shape} px."
        )
    at = np.meshgrid(*axes, indexing="ij")
    # What is finer than the new pixels is averaged, over valid pixels only, by a Gaussian that leaves about as much of
    # their finest period as a pixel of their size does.
    sigma = 0.4 * math.sqrt(max(factor**2 - 1, 0))
    known = (image.valid & np.isfinite(image.object)).astype(np.float64)
    blurred_weight = scipy.ndimage.gaussian_filter(known, sigma)
    values = np.where(known > 0, image.object, 0).astype(np.complex128)
    parts = []
    for part in (values.real, values.imag):
        blurred = scipy.ndimage.gaussian_filter(part, sigma) / np.maximum(blurred_weight, 1e-6)
        parts.append(scipy.ndimage.map_coordinates(np.where(known > 0, blurred, 0), at, order=3, mode="nearest"))
    real, imag = parts
    valid = scipy.ndimage.map_coordinates(known, at, order=1) > 0.999
    coverage = scipy.ndimage.map_coordinates(image.coverage.astype(np.float64), at, order=1)
    return Reconstruction(
        object=np.where(valid, real + 1j * imag, 0).astype(np.complex64),
        coverage=coverage.astype(np.float32),
        valid=valid,
        origin_px=(starts[0], starts[1]),
        object_pixel_m=pixel_m,
        provenance=image.provenance,
    )
