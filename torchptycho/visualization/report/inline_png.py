"""Arrays as PNG images inside a page, one pixel of the array for one of the image."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Bool, Complex, Float, UInt8
from PIL import Image

from torchptycho.visualization.plot.panels import Limits
from torchptycho.visualization.plot.phase_colors import complex_to_rgb
from torchptycho.visualization.plot.png import TRANSPARENT_INDEX, apply_colour_map, downsample

__all__ = ["encode_complex_png", "encode_mapped_png", "encode_png"]

# Limits the size of the page.
_MAX_EDGE_PX = 1200


def encode_mapped_png(
    values: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], colour_map: str, limits: Limits
) -> str:
    """Encode real values with a colour map as a data URL; pixels outside the mask are transparent."""
    values, mask = downsample(values, mask, _MAX_EDGE_PX)
    return _to_data_url(apply_colour_map(values, mask, colour_map, limits), transparency=TRANSPARENT_INDEX)


def encode_complex_png(values: Complex[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], top: float) -> str:
    """Encode complex values by `complex_to_rgb` as a data URL; pixels outside the mask are transparent."""
    values, mask = downsample(values, mask, _MAX_EDGE_PX)
    alpha = np.where(mask, 255, 0).astype(np.uint8)[..., None]
    return encode_png(np.concatenate([complex_to_rgb(np.where(mask, values, 0), top), alpha], axis=-1))


def encode_png(rgba: UInt8[np.ndarray, "h w 4"]) -> str:
    """Encode an image as a data URL."""
    return _to_data_url(Image.fromarray(rgba))


def _to_data_url(picture: Image.Image, **options: int) -> str:
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
