"""Figures of curves: the Fourier ring correlation and the history of a training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from torchptycho.analysis.evaluation import Metrics, half_period_px
from torchptycho.visualization.plot.figure import (
    BLUE,
    FONT_SIZE,
    GREEN,
    ORANGE,
    PURPLE,
    SMALL_FONT_SIZE,
    make_figure,
    save,
    style_axes,
)
from torchptycho.visualization.plot.panels import choose_length_unit

__all__ = ["format_half_period", "group_by_quantity", "plot_frc", "plot_history"]


def plot_frc(metrics: Metrics, path: str | Path, *, halves: bool = False) -> Path:
    """Draw the Fourier ring correlation with its thresholds, and the resolutions where they cross.

    Arguments:
        halves: the correlation is of two halves of the data, whose threshold is half a bit, not against a truth.
    """
    figure = make_figure(6.2, 4.2)
    axis = figure.subplots()
    frc, pixel_m = metrics.frc, metrics.object_pixel_m
    f = frc.frequency_cycles_per_px
    axis.axhline(0, color="0.8", linewidth=0.8)
    axis.plot(
        f,
        frc.correlation,
        color=BLUE,
        linewidth=1.8,
        label="half against half" if halves else "reconstruction against truth",
    )
    bits = (
        (frc.half_bit, metrics.frc_half_bit_cycles_per_px, GREEN, "1/2 bit")
        if halves
        else (frc.one_bit, metrics.frc_one_bit_cycles_per_px, GREEN, "1 bit")
    )
    for threshold, crossing, colour, name in (
        (np.full_like(f, 0.5), metrics.frc_half_cycles_per_px, ORANGE, "0.5"),
        bits,
    ):
        label = f"{name}: {format_half_period(crossing, float(f[-1]), pixel_m)}"
        axis.plot(f, threshold, color=colour, linewidth=1.2, linestyle="--", label=label)
        if 0 < crossing < f[-1]:
            axis.plot(crossing, np.interp(crossing, f, threshold), "o", color=colour, markersize=5)
    style_axes(axis, "spatial frequency (cycles / px)", "Fourier ring correlation")
    axis.set_xlim(0, 0.5)
    axis.set_ylim(min(-0.05, float(frc.correlation.min()) - 0.03), 1.05)
    axis.legend(frameon=False, fontsize=SMALL_FONT_SIZE)
    top = axis.secondary_xaxis("top")
    periods = np.array([16.0, 8.0, 4.0, 3.0, 2.0, 1.5, 1.25, 1.0])
    factor, unit = choose_length_unit(2 * (pixel_m or 0.0)) if pixel_m else (1.0, "px")
    top.set_xticks(0.5 / periods, [f"{p * (pixel_m or 1.0) / factor:.3g}" for p in periods])
    top.tick_params(labelsize=SMALL_FONT_SIZE, colors="0.3")
    top.set_xlabel(f"half period ({unit})", fontsize=FONT_SIZE)
    return save(figure, path)


def plot_history(history: dict[str, list[tuple[int, float]]], path: str | Path) -> Path:
    """Draw training curves over optimiser steps, one panel for each quantity.

    Arguments:
        history: (step, value) pairs by name. Names that differ only in a leading train, val or test share a panel.
            Panels whose values are all positive have a logarithmic axis.
    """
    panels = group_by_quantity(history)
    columns = min(3, max(1, len(panels)))
    rows = math.ceil(max(1, len(panels)) / columns)
    figure = make_figure(0.6 + 4.2 * columns, 0.3 + 3.0 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    colours = {"train": BLUE, "val": ORANGE, "test": GREEN, "": PURPLE}
    for axis, (quantity, curves) in zip(axes, panels.items(), strict=False):
        drawn: list[float] = []
        for stage, points in curves:
            finite = [(step, value) for step, value in points if math.isfinite(value)]
            drawn += [value for _, value in finite]
            marker = "o" if len(finite) < 40 else None
            x, y = ([pair[i] for pair in finite] for i in range(2))
            axis.plot(x, y, color=colours[stage], linewidth=1.3, marker=marker, markersize=3, label=stage or None)
        if drawn and min(drawn) > 0 and max(drawn) > 10 * min(drawn):
            axis.set_yscale("log")
        style_axes(axis, "step", quantity.replace("_", " "))
        axis.grid(axis="y", color="0.9", linewidth=0.6)
        if any(stage for stage, _ in curves):
            axis.legend(frameon=False, fontsize=SMALL_FONT_SIZE)
    return save(figure, path)


def group_by_quantity(
    history: dict[str, list[tuple[int, float]]],
) -> dict[str, list[tuple[str, list[tuple[int, float]]]]]:
    """Group curves by quantity; each has its stage (train, val, test), or "" where its name has none."""
    panels: dict[str, list[tuple[str, list[tuple[int, float]]]]] = {}
    for name, points in history.items():
        stage, _, rest = name.replace("/", "_").partition("_")
        known = stage in ("train", "val", "test") and rest
        panels.setdefault(rest if known else name, []).append((stage if known else "", points))
    return panels


def format_half_period(frequency: float, last: float, pixel_m: float | None) -> str:
    if frequency <= 0:
        return "not resolved"
    period = half_period_px(frequency)
    bound = "≤ " if frequency >= last else ""
    if not pixel_m:
        return f"{bound}{period:.2f} px"
    factor, unit = choose_length_unit(period * pixel_m)
    return f"{bound}{period:.2f} px = {period * pixel_m / factor:.3g} {unit}"
