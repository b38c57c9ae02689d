"""The image that comes out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex64, Float32

__all__ = ["MIN_COVERAGE", "Reconstruction"]

MIN_COVERAGE = 0.02
"""A pixel that got less than this part of the largest weight is not an image of anything."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """A reconstructed object on the pixel grid of the positions.

    Arguments:
        object: [H, W] complex transmission; 0 where no frame reached.
        coverage: [H, W] sum of the weights that met at a pixel, as a fraction of their largest sum.
        valid: [H, W], True where coverage is enough for the value to mean something, by default `MIN_COVERAGE`.
        origin_px: (y, x) position of pixel [0, 0] in the scan's object pixels.
        object_pixel_m: edge of a pixel, or None when only pixels are known.
        provenance: plain data: configuration, checkpoint hash, source, versions, timings.
    """

    object: Complex64[np.ndarray, "h w"]
    coverage: Float32[np.ndarray, "h w"]
    valid: Bool[np.ndarray, "h w"]
    origin_px: tuple[int, int]
    object_pixel_m: float | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
