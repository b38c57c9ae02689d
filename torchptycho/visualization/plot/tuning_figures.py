"""The picture of a search for parameters: its course, what was tried, and what each parameter gains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from torchptycho.visualization.plot.figure import (
    BLUE,
    FONT_SIZE,
    GREEN,
    ORANGE,
    SMALL_FONT_SIZE,
    make_figure,
    save,
    style_axes,
)

if TYPE_CHECKING:
    from torchptycho.reconstructors.tuning import ParameterChange, Tuning

__all__ = ["plot_tuning"]

_MOST_COLUMNS = 4
_LIKELIHOOD = "held-out log-likelihood per photon"


def plot_tuning(found: Tuning, path: str | Path) -> Path:
    """Draw the likelihood over the trials, what each parameter gains, and the likelihood over each of them.

    Raises:
        ScanError: the file cannot be written.
    """
    panels = 2 + len(found.changes)
    columns = min(_MOST_COLUMNS, panels)
    rows = math.ceil(panels / columns)
    figure = make_figure(3.6 * columns, 3.1 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes[panels:]:
        axis.set_axis_off()
    done = [one.likelihood for one in found.trials if one.state == "complete" and one.likelihood is not None]
    # Trials that were given up lie far below the others, and are drawn at the edge.
    floor = min(done) - 0.1 * (max(done) - min(done))
    _draw_history(axes[0], found, floor)
    _draw_gains(axes[1], found)
    for axis, change in zip(axes[2:], found.changes, strict=False):
        _draw_values(axis, found, change, floor)
    name = Path(found.source).name if len(found.source) > 60 else found.source
    figure.suptitle(
        f"{name}: {found.frames} of {found.n_frames} frames, {len(found.trials)} trials of {found.epochs} epochs",
        fontsize=FONT_SIZE + 2,
    )
    return save(figure, path)


def _draw_history(axis: Axes, found: Tuning, floor: float) -> None:
    for state, marker, colour in (("complete", "o", BLUE), ("pruned", "x", "0.6")):
        chosen = [one for one in found.trials if one.state == state and one.likelihood is not None]
        points = [(one.number, max(one.likelihood or floor, floor)) for one in chosen]
        axis.plot(*np.array(points).reshape(-1, 2).T, marker, color=colour, markersize=4, label=state)
    done = [(one.number, one.likelihood) for one in found.trials if one.state == "complete"]
    numbers, values = np.array(done, np.float64).reshape(-1, 2).T
    axis.step(numbers, np.maximum.accumulate(values), where="post", color=ORANGE, linewidth=1.2, label="best so far")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axis, "trial", _LIKELIHOOD)
    axis.legend(frameon=False, fontsize=SMALL_FONT_SIZE, loc="lower right")
    axis.set_title("trials", fontsize=FONT_SIZE)


def _draw_gains(axis: Axes, found: Tuning) -> None:
    places = np.arange(len(found.changes))
    colours = [GREEN if one.is_changed else "0.7" for one in found.changes]
    axis.barh(
        places,
        [one.gain for one in found.changes],
        xerr=[one.error for one in found.changes],
        color=colours,
        ecolor="0.3",
        capsize=2,
    )
    axis.set_yticks(places, [one.parameter.name for one in found.changes], fontsize=SMALL_FONT_SIZE)
    axis.invert_yaxis()
    axis.axvline(0, color="0.3", linewidth=0.8)
    style_axes(axis, "loss with the given value", "")
    axis.set_title("what mattered (green: changed)", fontsize=FONT_SIZE)


def _draw_values(axis: Axes, found: Tuning, change: ParameterChange, floor: float) -> None:
    parameter = change.parameter
    names = [str(choice) for choice in parameter.choices]

    def place(value: object) -> float:
        return float(names.index(str(value))) if names else float(value)  # type: ignore[arg-type]

    for state, marker, colour in (("pruned", "x", "0.6"), ("complete", "o", BLUE)):
        chosen = [one for one in found.trials if one.state == state and one.likelihood is not None]
        points = [(place(one.values[parameter.name]), max(one.likelihood or floor, floor)) for one in chosen]
        axis.plot(*np.array(points, np.float64).reshape(-1, 2).T, marker, color=colour, markersize=4)
    axis.axvline(place(parameter.given), color="0.4", linewidth=1.0, linestyle="--", label="given")
    axis.axvline(place(change.best), color=ORANGE, linewidth=1.2, label="best")
    if names:
        axis.set_xticks(np.arange(len(names)), names, fontsize=SMALL_FONT_SIZE)
    elif parameter.is_log and parameter.high > 4 * parameter.low:
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
    style_axes(axis, f"{parameter.name} ({parameter.unit})" if parameter.unit else parameter.name, _LIKELIHOOD)
    axis.legend(frameon=False, fontsize=SMALL_FONT_SIZE, loc="lower right")
