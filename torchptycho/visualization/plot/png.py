"""PNG images of arrays, one pixel per element, without a figure around them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Num
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from torchptycho.visualization.plot.panels import Limits

__all__ = ["TRANSPARENT_INDEX", "apply_colour_map", "downsample", "list_colour_stops"]

TRANSPARENT_INDEX = 0
"""Index in the palette of `apply_colour_map` of the transparent colour."""
_N_COLOURS = 255


def apply_colour_map(
    values: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], colour_map: str, limits: Limits
) -> Image.Image:
    """Apply a colour map to real values; return a palette image in which pixels outside the mask are transparent."""
    low, high = limits
    part = np.clip((np.where(mask, values, low) - low) / max(high - low, 1e-300), 0, 1)
    index = np.where(mask, 1 + np.rint(part * (_N_COLOURS - 1)), TRANSPARENT_INDEX).astype(np.uint8)
    picture = Image.fromarray(index)
    colours = np.rint(255 * colormaps[colour_map](np.linspace(0, 1, _N_COLOURS))[:, :3]).astype(np.uint8)
    picture.putpalette(b"\0\0\0" + colours.tobytes())
    return picture


def list_colour_stops(colour_map: str) -> list[str]:
    """List evenly spaced colours of a map in CSS notation, for a colour bar next to the image."""
    return [to_hex(colour) for colour in colormaps[colour_map](np.linspace(0, 1, 17))]


def downsample(
    values: Num[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], largest_px: int
) -> tuple[Num[np.ndarray, "h2 w2"], Bool[np.ndarray, "h2 w2"]]:
    """Average an image over squares of its valid pixels until no side is above `largest_px`; the remainder at the far
    edges is cut off."""
    k = -(-max(values.shape) // largest_px)
    if k == 1:
        return values, mask
    k_y, k_x = (min(k, n) for n in values.shape)
    known = _sum_blocks(mask.astype(np.float32), k_y, k_x)
    total = _sum_blocks(np.where(mask, values, values.dtype.type(0)), k_y, k_x)
    return total / np.maximum(known, 1), known > 0


def _sum_blocks(array: Num[np.ndarray, "h w"], k_y: int, k_x: int) -> Num[np.ndarray, "h2 w2"]:
    """Sum over blocks of k_y x k_x by adding slices, which takes a tenth of a sum over short axes."""
    height, width = array.shape[0] // k_y, array.shape[1] // k_x
    rows = array[: height * k_y : k_y].copy()
    for i in range(1, k_y):
        rows += array[i : height * k_y : k_y]
    total = rows[:, : width * k_x : k_x].copy()
    for j in range(1, k_x):
        total += rows[:, j : width * k_x : k_x]
    return total
