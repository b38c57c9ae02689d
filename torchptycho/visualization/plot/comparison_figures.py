"""The figure of a comparison: images side by side, their differences, and to which spatial frequency they agree."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from torchptycho.analysis.comparison import Comparison
from torchptycho.analysis.evaluation import Metrics
from torchptycho.analysis.metrics import wrap_rad
from torchptycho.core.inputs import as_path, require_type
from torchptycho.visualization.plot import panels
from torchptycho.visualization.plot.curves import format_half_period
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

__all__ = ["plot_comparison"]

_MAX_NAME_LENGTH = 20


def plot_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Draw amplitudes above phases with the differences from the reference (the truth, else the first image), and below
    them the Fourier ring correlations with a table.

    Raises:
        ConfigError: it is no result of `compare`.
    """
    require_type(comparison, Comparison, "comparison")
    path = as_path(path, "path")
    comparison, legend = _shorten_names(comparison)
    names = list(comparison.images)
    mask = comparison.mask
    reference = names[2] if len(names) == 3 else names[0]
    target = comparison.images[reference]
    # The same constant phase is removed from all images, so that their differences are unchanged.
    turn = np.exp(-1j * np.angle(target[mask].sum()))
    others = [name for name in names if name != reference]
    columns = len(names) + len(others)
    height, width = mask.shape
    tall = 2.7 * min(max(height / width, 0.4), 2.0)
    figure = make_figure(2.95 * columns + 0.6, 2 * (tall + 0.25) + 2.9)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[2 * (tall + 0.25), 2.9])[:, 0]
    axes = upper.subplots(2, columns, squeeze=False)
    if legend:
        upper.suptitle("\n".join(legend), fontsize=SMALL_FONT_SIZE, color="0.3")
    limits = panels.compute_limits(np.abs(target), mask)
    phase_map, phase_limits = panels.choose_phase_map(target * turn, mask)
    for column, name in enumerate(names):
        image = comparison.images[name] * turn
        drawn = panels.draw_image(axes[0, column], np.abs(image), mask, "gray", limits, f"{name}: amplitude")
        below = panels.draw_image(axes[1, column], np.angle(image), mask, phase_map, phase_limits, f"{name}: phase")
    panels.add_colour_bar(axes[0, len(names) - 1], drawn)
    panels.add_colour_bar(axes[1, len(names) - 1], below, "rad", phase_limits)
    differences = [
        (np.abs(comparison.images[name]) - np.abs(target), wrap_rad(np.angle(comparison.images[name] * target.conj())))
        for name in others
    ]
    # The same colour scale for both differences, so that the better one is visible.
    bounds = [max(float(np.percentile(np.abs(pair[row][mask]), 99)) for pair in differences) for row in (0, 1)]
    for column, (name, pair) in enumerate(zip(others, differences, strict=True), start=len(names)):
        for row, what in ((0, "amplitude"), (1, "phase")):
            bound = max(bounds[row], 1e-3)
            drawn = panels.draw_image(
                axes[row, column], pair[row], mask, "RdBu_r", (-bound, bound), f"{name} − {reference}: {what}"
            )
            if name == others[-1]:
                panels.add_colour_bar(axes[row, column], drawn, "rad" if row else "")
    panels.add_scale_bar(axes[0, 0], width, comparison.object_pixel_m)
    curves, table = lower.subplots(1, 2, width_ratios=[1, 1.25])
    _draw_curves(curves, comparison.metrics)
    _draw_table(table, comparison.metrics)
    return save(figure, path, ("gray", phase_map, "RdBu_r"))


def _shorten_names(comparison: Comparison) -> tuple[Comparison, list[str]]:
    """Replace names that do not fit above an image by letters; return the key to these as well."""
    short = {
        name: name if len(name) <= _MAX_NAME_LENGTH else letter
        for letter, name in zip("ABC", comparison.images, strict=False)
    }
    if len(set(short.values())) < len(short) or all(short[name] == name for name in short):
        return comparison, []
    metrics = {
        " against ".join(short.get(name, name) for name in title.split(" against ")): entry
        for title, entry in comparison.metrics.items()
    }
    images = {short[name]: image for name, image in comparison.images.items()}
    legend = [f"{label}: {name}" for name, label in short.items() if label != name]
    return dataclasses.replace(comparison, images=images, metrics=metrics), legend


def _draw_curves(axis: Axes, metrics: dict[str, Metrics]) -> None:
    axis.axhline(0.5, color="0.6", linewidth=1, linestyle="--")
    lowest = 0.0
    for colour, (name, figures) in zip((BLUE, ORANGE, GREEN), metrics.items(), strict=False):
        axis.plot(figures.frc.frequency_cycles_per_px, figures.frc.correlation, color=colour, linewidth=1.6, label=name)
        lowest = min(lowest, float(figures.frc.correlation.min()))
    style_axes(axis, "spatial frequency (cycles / px)", "Fourier ring correlation")
    axis.set_xlim(0, 0.5)
    axis.set_ylim(lowest - 0.03, 1.03)
    axis.legend(frameon=False, fontsize=SMALL_FONT_SIZE)


def _draw_table(axis: Axes, metrics: dict[str, Metrics]) -> None:
    """Draw the table as text, aligned by hand: matplotlib's own tables draw every cell as a box."""
    axis.set_axis_off()
    rows = (
        "amplitude: mean abs. error", "phase: mean abs. error (rad)", "amplitude SSIM", "phase SSIM", "complex nRMSE",
        "half period at FRC 0.5",
    )  # fmt: skip
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    line = 0.115
    for row, text in enumerate(rows):
        axis.text(0.0, 0.8 - row * line, text, fontsize=FONT_SIZE, va="top")
    for column, (name, figures) in enumerate(metrics.items()):
        last = float(figures.frc.frequency_cycles_per_px[-1])
        period = format_half_period(figures.frc_half_cycles_per_px, last, figures.object_pixel_m).split(" = ")[-1]
        values = (
            f"{figures.amplitude_mae:.4g}",
            f"{figures.phase_mae_rad:.4g}",
            f"{figures.amplitude_ssim:.3f}",
            f"{figures.phase_ssim:.3f}",
            f"{figures.complex_nrmse:.4g}",
            period,
        )
        x = 0.46 + 0.54 * (column + 1) / max(2, len(metrics))
        axis.text(
            x,
            0.94,
            name.replace(" against ", "\nagainst "),
            fontsize=SMALL_FONT_SIZE,
            va="center",
            ha="right",
            color="0.3",
        )
        for row, text in enumerate(values):
            axis.text(x, 0.8 - row * line, text, fontsize=FONT_SIZE, va="top", ha="right")
