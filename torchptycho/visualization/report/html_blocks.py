"""Building blocks of a report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Complex, Float

from torchptycho.visualization.plot.panels import Limits, choose_scale_length
from torchptycho.visualization.plot.phase_colors import make_wheel_rgba
from torchptycho.visualization.plot.png import list_colour_stops
from torchptycho.visualization.report.inline_png import encode_complex_png, encode_mapped_png, encode_png

__all__ = [
    "Block",
    "Chart",
    "ColourBar",
    "Details",
    "Figure",
    "RowLayout",
    "ScaleBar",
    "Section",
    "Table",
    "make_complex_figure",
    "make_mapped_figure",
    "make_scale_bar",
]  # fmt: skip

_PIXELATED_BELOW_PX = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColourBar:
    """A colour bar: a CSS gradient, the labels of its ends, and the unit."""

    gradient: str
    low: str
    high: str
    unit: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleBar:
    """A length, as a percentage of the image's width, and how it is written."""

    percent: float
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """An image with its key.

    Arguments:
        title: above it.
        source: data URL.
        width, height: of the image in pixels.
        bar, wheel, scale: its keys, where it has them; the wheel is a data URL.
        note: below it.
    """

    title: str
    source: str
    width: int
    height: int
    bar: ColourBar | None = None
    wheel: str | None = None
    scale: ScaleBar | None = None
    note: str = ""
    kind: str = "figure"

    @property
    def pixelated(self) -> bool:
        """Whether its pixels are to be seen as such when it is enlarged."""
        return max(self.width, self.height) < _PIXELATED_BELOW_PX


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """An SVG with a legend of (name, colour 1 to 4, dashed)."""

    title: str
    svg: str
    legend: tuple[tuple[str, int, bool], ...] = ()
    note: str = ""
    kind: str = "chart"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; the first cell of a row is its name."""

    rows: Sequence[tuple[str, ...]]
    head: tuple[str, ...] = ()
    kind: str = "table"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Details:
    """Tables that are collapsed until opened, by title."""

    tables: list[tuple[str, Table]]
    kind: str = "details"


Block = Figure | Chart | Table | Details

RowLayout = Literal["wide", "small", "three", ""]
"""How figures and charts share a row: as wide as they may, many small ones, or three by three; "" for tables."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Arguments:
        id: its anchor.
        rows: contents from top to bottom.
        text: sentences below the title.
        warnings: sentences that must not be overlooked.
    """

    id: str
    title: str
    rows: list[tuple[RowLayout, list[Block]]]
    text: str = ""
    warnings: list[str] = dataclasses.field(default_factory=list)


def make_mapped_figure(
    title: str,
    values: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
    colour_map: str,
    limits: Limits,
    *,
    unit: str = "",
    ends: tuple[str, str] | None = None,
    scale: ScaleBar | None = None,
    note: str = "",
) -> Figure:
    """Make a figure of real values with a colour bar, labelled by its limits or by `ends`."""
    low, high = ends or tuple(f"{value:.3g}".replace("-", "−") for value in limits)
    if limits == (-math.pi, math.pi):
        low, high = "−π", "π"
    stops = ", ".join(list_colour_stops(colour_map))
    return Figure(
        title=title,
        source=encode_mapped_png(values, mask, colour_map, limits),
        width=mask.shape[1],
        height=mask.shape[0],
        bar=ColourBar(gradient=f"linear-gradient(to right, {stops})", low=low, high=high, unit=unit),
        scale=scale,
        note=note,
    )


def make_complex_figure(
    title: str,
    values: Complex[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
    *,
    scale: ScaleBar | None = None,
    note: str = "",
    wheel: bool = True,
) -> Figure:
    """Make a figure of complex values, phase as hue; the brightest half percent are clipped.

    Arguments:
        wheel: show the colour wheel as the key; one is enough for several such figures.
    """
    top = float(np.percentile(np.abs(values[mask]), 99.5)) if mask.any() else 1.0
    return Figure(
        title=title,
        source=encode_complex_png(values, mask, top or 1.0),
        width=mask.shape[1],
        height=mask.shape[0],
        wheel=encode_png(make_wheel_rgba()) if wheel else None,
        scale=scale,
        note=note,
    )


def make_scale_bar(width_px: int, pixel_m: float | None) -> ScaleBar:
    length_px, label = choose_scale_length(width_px, pixel_m)
    return ScaleBar(percent=100 * length_px / width_px, label=label)
