"""The page that figures are drawn on: its size, type and colours, and how it becomes a small PNG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial import cKDTree

from torchptycho.io.storage.file_access import replace_atomically

__all__ = [
    "BLUE",
    "FONT_SIZE",
    "GREEN",
    "NO_DATA",
    "ORANGE",
    "PURPLE",
    "SMALL_FONT_SIZE",
    "make_figure",
    "save",
    "style_axes",
]

NO_DATA = "#dde4ee"
# Okabe and Ito's colours, distinguishable for colour-blind readers.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
FONT_SIZE = 9.0
SMALL_FONT_SIZE = 8.0

_DPI = 110
_LARGE_BYTES = 350_000


def make_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="compressed", facecolor="white")


def save(
    figure: Figure, path: str | Path, colour_maps: tuple[str, ...] = (), colours: UInt8[np.ndarray, "k 3"] | None = None
) -> Path:
    """Write a PNG; a large one is reduced to a palette of evenly spaced steps of its colour maps.

    Arguments:
        colours: at most 100 further colours to keep, of elements without a colour map.

    Raises:
        ScanError: it cannot be written; an existing figure is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    fast = {"compress_level": 1}
    figure.savefig(drawn, dpi=_DPI, format="png", bbox_inches="tight", pad_inches=0.08, pil_kwargs=fast)
    with Image.open(drawn) as picture:
        plain = picture.convert("RGB")
    content = _encode_png(plain)
    if colour_maps and len(content) > _LARGE_BYTES:
        content = _encode_png(
            _quantize_colours(plain, colour_maps, np.zeros((0, 3)) if colours is None else colours / 255)
        )
    with replace_atomically(path) as file:
        file.write(content)
    return path


def _encode_png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, format="png")
    return content.getvalue()


def _quantize_colours(plain: Image.Image, colour_maps: tuple[str, ...], more: np.ndarray) -> Image.Image:
    """Reduce the image to a palette of 240 steps of these colour maps and the colours of lines."""
    steps = np.linspace(0, 1, (240 - len(more)) // len(colour_maps))
    colours = [to_rgb(name) for name in (NO_DATA, "white", "black", BLUE, ORANGE, GREEN, PURPLE)]
    rgb = np.rint(255 * np.concatenate([*(colormaps[name](steps)[:, :3] for name in colour_maps), colours, more]))
    pixels = np.asarray(plain).reshape(-1, 3)
    used, back = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
    wanted = np.stack([used >> 16, used >> 8 & 255, used & 255], axis=1)
    nearest = np.asarray(cKDTree(rgb).query(wanted)[1])
    reduced = Image.fromarray(nearest[back].astype(np.uint8).reshape(plain.height, plain.width))
    reduced.putpalette(rgb.astype(np.uint8).tobytes())
    return reduced


def style_axes(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=FONT_SIZE)
    axis.set_ylabel(y, fontsize=FONT_SIZE)
    axis.tick_params(which="both", labelsize=SMALL_FONT_SIZE, colors="0.3", labelcolor="black")
    axis.yaxis.get_offset_text().set_fontsize(SMALL_FONT_SIZE)
    axis.spines[["top", "right"]].set_visible(False)
