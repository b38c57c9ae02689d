"""Curves and scan positions as SVG that takes the page's own colours and type."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64
from markupsafe import Markup, escape
from matplotlib.ticker import LogLocator, MaxNLocator

from torchptycho.visualization.plot.panels import Limits, choose_length_unit

__all__ = ["Series", "draw_curves_svg", "draw_positions_svg"]

_WIDTH, _HEIGHT = 420.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 76.0, 12.0, 12.0, 40.0
_MAX_POINTS = 800
_MAX_POINTS_WITH_DOTS = 40
_MIN_RELATIVE_RANGE = 0.02
_TICK_STEPS = [1, 2, 2.5, 5, 10]

_AxisTransform = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """One curve.

    Arguments:
        name: as the legend calls it.
        x, y: [K]; values that are not finite, or not positive on a logarithmic axis, are omitted.
        colour: 1 to 4, one of the page's colours.
        dashed: for thresholds.
    """

    name: str
    x: Float64[np.ndarray, " k"]
    y: Float64[np.ndarray, " k"]
    colour: int = 1
    dashed: bool = False


def draw_curves_svg(
    series: list[Series], x_label: str, y_label: str, *, y_range: tuple[float, float] | None = None
) -> str:
    """Draw curves over common axes; the vertical one is logarithmic when all values are positive and span more than a
    decade.

    Arguments:
        y_range: of the axis, which is linear then.
    """
    values = np.concatenate([one.y[np.isfinite(one.y)] for one in series])
    log = y_range is None and bool(values.size and values.min() > 0 and values.max() > 10 * values.min())
    kept = [(one, np.isfinite(one.x) & np.isfinite(one.y)) for one in series]
    x = np.concatenate([one.x[keep] for one, keep in kept])
    x_low, x_high = _find_range(x, zero=True)
    y_low, y_high = y_range or ((float(values.min()), float(values.max())) if log else _find_range(values))

    def across(value: np.ndarray) -> np.ndarray:
        return np.asarray(_LEFT + (value - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT))

    def up(value: np.ndarray) -> np.ndarray:
        part = np.log(value / y_low) / math.log(y_high / y_low) if log else (value - y_low) / (y_high - y_low)
        return np.asarray(_HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM))

    drawn = [_draw_axes((x_low, x_high), (y_low, y_high), log, across, up, x_label, y_label)]
    for one, keep in kept:
        px, py = across(one.x[keep]), up(one.y[keep])
        step = -(-len(px) // _MAX_POINTS) or 1
        # The last point is the final value.
        chosen = np.unique(np.r_[np.arange(0, len(px), step), max(0, len(px) - 1)]) if len(px) else np.arange(0)
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(px[chosen], py[chosen], strict=True))
        style = "thin dash" if one.dashed else "line"
        if len(chosen):
            drawn.append(f'<path class="{style} c{one.colour}" d="{path}"/>')
        if 0 < len(chosen) < _MAX_POINTS_WITH_DOTS and not one.dashed:
            dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(px[chosen], py[chosen], strict=True))
            drawn.append(f'<path class="dots c{one.colour}" d="{dots}"/>')
    title = escape(f"{y_label} over {x_label}")
    return Markup(f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{title}">{"".join(drawn)}</svg>')


def draw_positions_svg(
    given_px: Float64[np.ndarray, "m 2"],
    found_px: Float64[np.ndarray, "m 2"] | None,
    n_px: int,
    pixel_m: float | None = None,
) -> tuple[str, float]:
    """Draw the scan positions (y down, as in the image), the square of one frame, and the correction of each position.

    Arguments:
        pixel_m: edge of an object pixel, for axes in units of length; without it they are in object pixels.

    Returns:
        the drawing, and the factor by which the corrections are magnified.
    """
    low, high = given_px.min(axis=0) - n_px / 2, given_px.max(axis=0) + n_px / 2
    height, width = np.maximum(high - low, 1.0)
    area = _WIDTH - _LEFT - _RIGHT
    scale = area / max(width, height)
    placed = (given_px - low) * scale + (_TOP, _LEFT)
    # Smaller if lines are drawn over them.
    dot = float(np.clip((160 if found_px is None else 70) / math.sqrt(len(placed)), 1.2, 5))
    points = "".join(f"M{x:.1f} {y:.1f}h0" for y, x in placed)
    frame = n_px * scale
    right, floor = _LEFT + width * scale, _TOP + height * scale
    drawn = [_draw_position_axes(low, high, scale, pixel_m)]
    drawn += [f'<path class="dots c1" stroke-width="{dot:.2f}" d="{points}"/>']
    times = 1.0
    if found_px is not None:
        moved = (found_px - given_px) * scale
        longest = float(np.abs(moved).max())
        if longest > 0:
            # Magnified to be visible: at most a twentieth of the figure, in steps of 1, 2, 5.
            times = max(1.0, _round_down(area / 20 / longest))
        lines = "".join(
            f"M{x:.1f} {y:.1f}l{dx * times:.2f} {dy * times:.2f}"
            for (y, x), (dy, dx) in zip(placed, moved, strict=True)
        )
        drawn.append(f'<path class="thin c2" d="{lines}"/>')
    drawn.append(f'<rect class="frame" x="{_LEFT:g}" y="{_TOP:g}" width="{frame:.1f}" height="{frame:.1f}"/>')
    box = f"0 0 {right + _RIGHT:.1f} {floor + _BOTTOM:.1f}"
    return Markup(f'<svg viewBox="{box}" role="img" aria-label="scan positions">{"".join(drawn)}</svg>'), times


def _draw_position_axes(low: np.ndarray, high: np.ndarray, scale: float, pixel_m: float | None) -> str:
    """Draw axes around the scan positions, in pixels or in the unit of length that suits them."""
    factor, unit = 1.0, "px"
    if pixel_m:
        length_m, unit = choose_length_unit(float((high - low).max()) * pixel_m)
        factor = pixel_m / length_m
    height, width = (high - low) * scale
    floor, right = _TOP + height, _LEFT + width
    parts = [f'<path class="axis" d="M{_LEFT:g} {_TOP:g}V{floor:.1f}H{right:.1f}"/>']
    for axis, edge in ((0, height), (1, width)):
        # Fewer ticks along a short side.
        ticks = MaxNLocator(max(1, min(6, int(edge / 50))), steps=_TICK_STEPS).tick_values(
            low[axis] * factor, high[axis] * factor
        )
        for tick in ticks:
            at = (tick / factor - low[axis]) * scale
            if not 0 <= at <= edge:
                continue
            if axis:
                parts.append(f'<path class="axis" d="M{_LEFT + at:.1f} {floor:.1f}v4"/>')
                parts.append(f'<text class="mid" x="{_LEFT + at:.1f}" y="{floor + 17:.1f}">{_format_tick(tick)}</text>')
            else:
                parts.append(f'<path class="axis" d="M{_LEFT:g} {_TOP + at:.1f}h-4"/>')
                parts.append(f'<text class="end" x="{_LEFT - 6:g}" y="{_TOP + at + 4:.1f}">{_format_tick(tick)}</text>')
    middle = _TOP + height / 2
    parts.append(f'<text class="mid" x="{(_LEFT + right) / 2:.1f}" y="{floor + 34:.1f}">x ({unit})</text>')
    turned = f'transform="rotate(-90 11 {middle:.1f})"'
    parts.append(f'<text class="mid" x="11" y="{middle:.1f}" {turned}>y ({unit}), down</text>')
    return "".join(parts)


def _find_range(values: np.ndarray, *, zero: bool = False) -> tuple[float, float]:
    """Find limits of a linear axis around the values."""
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if zero and 0 < low <= 0.1 * high:
        low = 0.0
    if high == low:
        return low - 0.5, high + 0.5
    # A curve that hardly changes must not fill the figure.
    missing = _MIN_RELATIVE_RANGE * max(abs(low), abs(high)) - (high - low)
    return (low - missing / 2, high + missing / 2) if missing > 0 and not zero else (low, high)


def _round_down(value: float) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    return max(step * decade for step in (1.0, 2.0, 5.0) if step * decade <= value * (1 + 1e-9))


def _draw_axes(
    x_range: Limits, y_range: Limits, log: bool, across: _AxisTransform, up: _AxisTransform, x_label: str, y_label: str
) -> str:
    (x_low, x_high), (y_low, y_high) = x_range, y_range
    x_ticks = [t for t in MaxNLocator(6, steps=_TICK_STEPS).tick_values(x_low, x_high) if x_low <= t <= x_high]
    locator = (
        LogLocator(subs=(1.0,) if y_high > 100 * y_low else (1.0, 2.0, 5.0))
        if log
        else MaxNLocator(5, steps=_TICK_STEPS)
    )
    y_ticks = [t for t in locator.tick_values(y_low, y_high) if y_low <= t <= y_high]
    floor, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick, y in zip(y_ticks, up(np.array(y_ticks)), strict=True):
        parts.append(f'<path class="grid" d="M{_LEFT:g} {y:.1f}H{right:g}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6:g}" y="{y + 4:.1f}">{_format_tick(tick)}</text>')
    for tick, x in zip(x_ticks, across(np.array(x_ticks)), strict=True):
        parts.append(f'<path class="axis" d="M{x:.1f} {floor:g}v4"/>')
        parts.append(f'<text class="mid" x="{x:.1f}" y="{floor + 17:g}">{_format_tick(tick)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT:g} {_TOP:g}V{floor:g}H{right:g}"/>')
    parts.append(f'<text class="mid" x="{(_LEFT + right) / 2:g}" y="{_HEIGHT - 6:g}">{escape(x_label)}</text>')
    middle = (_TOP + floor) / 2
    turned = f'transform="rotate(-90 11 {middle:g})"'
    parts.append(f'<text class="mid" x="11" y="{middle:g}" {turned}>{escape(y_label)}</text>')
    return "".join(parts)


def _format_tick(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        # Smallest distance of ticks for a range far from zero.
        return f"{value:.6g}".replace("-", "−")
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")
