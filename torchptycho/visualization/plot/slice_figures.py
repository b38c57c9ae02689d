"""Figures of thick objects: the product of the slices, and each slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from torchptycho.analysis.registration import flatten_phase
from torchptycho.core.reconstruction import Reconstruction, project_slices
from torchptycho.visualization.plot import panels
from torchptycho.visualization.plot.figure import FONT_SIZE, make_figure, save

__all__ = ["plot_slices"]

_PANEL = 2.6


def plot_slices(image: Reconstruction, path: Path | str, *, title: str | None = None) -> Path:
    """Plot amplitude and phase of the product of the slices and of each slice, one column each.

    The constant phase and the phase plane of each are removed for display.
    """
    mask = image.valid & np.isfinite(image.object).all(0)
    box = panels.find_bounding_box(mask)
    mask = mask[box]
    stack = [project_slices(image).object, *image.object]
    shown = [flatten_phase(np.where(mask, each[box], 0), mask) for each in stack]
    height, width = mask.shape
    tall = _PANEL * min(max(height / width, 0.4), 2.0)
    figure = make_figure(len(shown) * (_PANEL + 0.35), 2 * (tall + 0.3) + 0.3 + 0.25 * bool(title))
    axes = figure.subplots(2, len(shown), squeeze=False)
    # One scale for all slices, because their differences are what is of interest.
    amplitudes = panels.compute_limits(
        np.abs(np.stack(shown[1:])), np.broadcast_to(mask, (len(shown) - 1, *mask.shape))
    )
    _, phases = panels.choose_phase_map(np.concatenate(shown[1:]), np.concatenate([mask] * (len(shown) - 1)))
    for column, values in enumerate(shown):
        name = "product" if column == 0 else f"slice {column}"
        limits, phase_limits = amplitudes, phases
        if column == 0:
            limits = panels.compute_limits(np.abs(values), mask)
            _, phase_limits = panels.choose_phase_map(values, mask)
        drawn = panels.draw_image(axes[0, column], np.abs(values), mask, "gray", limits, f"{name}: amplitude")
        bars = (0, len(shown) - 1)
        if column in bars:
            panels.add_colour_bar(axes[0, column], drawn)
        drawn = panels.draw_image(axes[1, column], np.angle(values), mask, "gray", phase_limits, f"{name}: phase")
        if column in bars:
            panels.add_colour_bar(axes[1, column], drawn, "rad", phase_limits)
    panels.add_scale_bar(axes[0, 0], width, image.object_pixel_m)
    if title:
        figure.suptitle(title, fontsize=FONT_SIZE + 2)
    return save(figure, Path(path), ("gray",))
