"""Arrays as PNG images inside a page, one pixel of the array for one of the image."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Bool, Complex, Float, Num, UInt8
from matplotlib import colormaps
from PIL import Image

from torchptycho.plot.complexes import complex_rgb
from torchptycho.plot.panels import Limits

__all__ = ["complex_png", "mapped_png", "picture_png", "reduced"]

# A page must stay small enough to be sent about.
_LARGEST_PX = 1200
_STEPS = 255


def mapped_png(values: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], colour_map: str, limits: Limits) -> str:
    """Real values through a colour map, as a data URL; pixels outside the mask are transparent."""
    values, mask = reduced(values, mask)
    low, high = limits
    part = np.clip((np.where(mask, values, low) - low) / max(high - low, 1e-300), 0, 1)
    index = np.where(mask, 1 + np.rint(part * (_STEPS - 1)), 0).astype(np.uint8)
    picture = Image.fromarray(index)
    colours = np.rint(255 * colormaps[colour_map](np.linspace(0, 1, _STEPS))[:, :3]).astype(np.uint8)
    picture.putpalette(b"\0\0\0" + colours.tobytes())
    return _data_url(picture, transparency=0)


def complex_png(values: Complex[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], top: float) -> str:
    """Complex values in the colours of `complex_rgb`, as a data URL; pixels outside the mask are transparent."""
    values, mask = reduced(values, mask)
    alpha = np.where(mask, 255, 0).astype(np.uint8)[..., None]
    return picture_png(np.concatenate([complex_rgb(np.where(mask, values, 0), top), alpha], axis=-1))


def picture_png(rgba: UInt8[np.ndarray, "h w 4"]) -> str:
    """A picture as a data URL."""
    return _data_url(Image.fromarray(rgba))


def reduced(
    values: Num[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]
) -> tuple[Num[np.ndarray, "h2 w2"], Bool[np.ndarray, "h2 w2"]]:
    """An image too large for a page averaged over squares of pixels; what is left over at the far edges is cut off."""
    k = -(-max(values.shape) // _LARGEST_PX)
    if k == 1:
        return values, mask
    height, width = (max(1, n // k) for n in values.shape)
    k_y, k_x = min(k, values.shape[0]), min(k, values.shape[1])

    def blocks(array: np.ndarray) -> np.ndarray:
        return array[: height * k_y, : width * k_x].reshape(height, k_y, width, k_x)

    known = blocks(mask).sum(axis=(1, 3))
    total = blocks(np.where(mask, values, 0)).sum(axis=(1, 3))
    return total / np.maximum(known, 1), known > 0


def _data_url(picture: Image.Image, **options: int) -> str:
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
