"""Panels with images: pixels without data, limits, colour bars and scale bars."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Bool
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.image import AxesImage
from matplotlib.offsetbox import AnchoredOffsetbox, AuxTransformBox, TextArea, VPacker
from matplotlib.patches import Rectangle

from torchptycho.visualization.plot.figure import FONT_SIZE, NO_DATA, SMALL_FONT_SIZE

__all__ = [
    "INTERPOLATION",
    "Limits",
    "add_colour_bar",
    "add_scale_bar",
    "choose_length_unit",
    "choose_phase_map",
    "choose_scale_length",
    "compute_limits",
    "draw_image",
    "draw_pattern",
    "find_bounding_box",
    "style_panel",
]  # fmt: skip

# Averages if several object pixels share one pixel of the figure; nearest-neighbour sampling would alias.
INTERPOLATION = "antialiased"

Limits = tuple[float, float]


def draw_image(
    axis: Axes, image: np.ndarray, mask: Bool[np.ndarray, "h w"], colour_map: str, limits: Limits, title: str
) -> AxesImage:
    colours = colormaps[colour_map].with_extremes(bad=NO_DATA)
    shown = np.ma.masked_array(image, ~mask)
    drawn = axis.imshow(shown, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation=INTERPOLATION)
    style_panel(axis, title)
    return drawn


def style_panel(axis: Axes, title: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title(title, fontsize=FONT_SIZE)


def add_colour_bar(axis: Axes, drawn: AxesImage, unit: str = "", limits: Limits | None = None) -> None:
    """Add a bar as tall as the image next to it."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(drawn, cax=axis.inset_axes((1.025, 0.0, 0.045, 1.0)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL_FONT_SIZE, length=2)
    bar.ax.yaxis.get_offset_text().set_fontsize(SMALL_FONT_SIZE)
    bar.set_label(unit, fontsize=SMALL_FONT_SIZE)
    if limits == (-math.pi, math.pi):
        bar.set_ticks([-math.pi, -math.pi / 2, 0, math.pi / 2, math.pi], labels=["−π", "−π/2", "0", "π/2", "π"])


def draw_pattern(axis: Axes, counts: np.ndarray, good: np.ndarray, title: str, unit: str) -> None:
    """Draw a diffraction pattern on a logarithmic scale of at most six decades; zero counts have its lowest colour."""
    positive = counts[good & (counts > 0)]
    top = float(positive.max()) if positive.size else 1.0
    low = max(float(positive.min()), top * 1e-6) if positive.size else 0.1
    colours = colormaps["inferno"].with_extremes(bad=NO_DATA)
    shown = np.ma.masked_array(np.maximum(counts, low), ~good)
    drawn = axis.imshow(shown, cmap=colours, norm=LogNorm(low, max(top, 1.01 * low)), interpolation=INTERPOLATION)
    style_panel(axis, title)
    add_colour_bar(axis, drawn, unit)


def add_scale_bar(axis: Axes, width_px: int, pixel_m: float | None) -> None:
    length_px, label = choose_scale_length(width_px, pixel_m)
    bar = AuxTransformBox(axis.transData)
    bar.add_artist(Rectangle((0, 0), length_px, width_px / 65, facecolor="black", linewidth=0))
    text = TextArea(label, textprops={"size": SMALL_FONT_SIZE})
    both = VPacker(children=[bar, text], align="center", pad=0, sep=3)
    box = AnchoredOffsetbox("lower left", child=both, pad=0.35, borderpad=0.4)
    box.patch.set(alpha=0.75, linewidth=0)
    axis.add_artist(box)


def choose_scale_length(width_px: int, pixel_m: float | None) -> tuple[float, str]:
    """Choose the longest 1-2-5 length of at most a quarter of the width: in pixels, and as text."""
    pixel = pixel_m or 1.0
    longest = 0.25 * width_px * pixel
    decade = 10.0 ** math.floor(math.log10(longest))
    length = max(step * decade for step in (1, 2, 5) if step * decade <= longest * (1 + 1e-9))
    if not pixel_m:
        return length, f"{length:g} px"
    factor, unit = choose_length_unit(length)
    return length / pixel, f"{length / factor:.4g} {unit}"


def choose_length_unit(length_m: float) -> tuple[float, Literal["mm", "µm", "nm", "pm"]]:
    if length_m >= 0.9999e-3:
        return 1e-3, "mm"
    if length_m >= 0.9999e-6:
        return 1e-6, "µm"
    return (1e-9, "nm") if length_m >= 0.9999e-9 else (1e-12, "pm")


def compute_limits(image: np.ndarray, mask: np.ndarray) -> Limits:
    low, high = (float(v) for v in np.percentile(image[mask], (0.5, 99.5))) if mask.any() else (0.0, 1.0)
    return (low, high) if high - low > 1e-6 else (low - 0.5, high + 0.5)


def choose_phase_map(image: np.ndarray, mask: np.ndarray) -> tuple[str, Limits]:
    low, high = compute_limits(np.angle(image), mask)
    return ("viridis", (low, high)) if high - low <= math.pi else ("twilight", (-math.pi, math.pi))


def find_bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
