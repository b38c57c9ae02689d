"""Arrays as PNG images inside a page, one pixel of the array for one of the image."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Bool, Complex, Float, UInt8
from PIL import Image

from torchptycho.visualization.plot.panels import Limits
from torchptycho.visualization.plot.phase_colors import complex_rgb
from torchptycho.visualization.plot.png import TRANSPARENT, mapped_picture, reduced

__all__ = ["complex_png", "mapped_png", "picture_png"]

# A page must stay small enough to be sent about.
_LARGEST_PX = 1200


def mapped_png(values: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], colour_map: str, limits: Limits) -> str:
    """Real values through a colour map, as a data URL; pixels outside the mask are transparent."""
    values, mask = reduced(values, mask, _LARGEST_PX)
    return _data_url(mapped_picture(values, mask, colour_map, limits), transparency=TRANSPARENT)


def complex_png(values: Complex[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], top: float) -> str:
    """Complex values in the colours of `complex_rgb`, as a data URL; pixels outside the mask are transparent."""
    values, mask = reduced(values, mask, _LARGEST_PX)
    alpha = np.where(mask, 255, 0).astype(np.uint8)[..., None]
    return picture_png(np.concatenate([complex_rgb(np.where(mask, values, 0), top), alpha], axis=-1))


def picture_png(rgba: UInt8[np.ndarray, "h w 4"]) -> str:
    """A picture as a data URL."""
    return _data_url(Image.fromarray(rgba))


def _data_url(picture: Image.Image, **options: int) -> str:
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
