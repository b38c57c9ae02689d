"""The figure of a planned scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from torchptycho.reconstructors.scan_design import ScanDesign
from torchptycho.reconstructors.scan_prediction import ScanPrediction
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

__all__ = ["plot_design"]


def plot_design(design: ScanDesign, found: ScanPrediction, path: str | Path) -> Path:
    """Draw positions and probe of a planned scan, its expected Fourier ring correlation, and the part of the quantum
    limit that its counts reach at each spatial frequency."""
    figure = make_figure(11.0, 3.7)
    places, frc, limit = figure.subplots(1, 3)
    y, x = design.positions_px.T
    places.plot(x, y, ".", color=BLUE, markersize=3)
    power = np.sum(np.abs(design.probe) ** 2, axis=0)
    half = design.n_px / 2
    center_y, center_x = np.median(y), np.median(x)
    places.contour(
        center_x - half + np.arange(design.n_px),
        center_y - half + np.arange(design.n_px),
        power / power.max(),
        levels=[0.1, 0.5],
        colors=[ORANGE],
        linewidths=1.0,
    )
    places.set_aspect("equal")
    places.invert_yaxis()
    style_axes(places, "x (object px)", "y (object px)")
    places.set_title(
        f"{found.n_frames} positions, step {found.step_px:.3g} px, overlap {found.overlap:.0%}", fontsize=FONT_SIZE
    )

    frequency = np.array(found.frequency_cycles_per_px)
    frc.plot(frequency, found.frc, color=BLUE, linewidth=1.8)
    crossing = 0.5 / found.half_period_px
    period = format_half_period(crossing, float(frequency[-1]), design.object_pixel_m)
    frc.axhline(0.5, color=ORANGE, linewidth=1.2, linestyle="--", label=f"0.5: half period {period}")
    frc.set_xlim(0, 0.5)
    frc.set_ylim(min(0.0, min(found.frc)), 1.05)
    style_axes(frc, "spatial frequency (cycles / px)", "expected correlation with the object")
    frc.legend(frameon=False, fontsize=SMALL_FONT_SIZE, loc="lower left")
    frc.set_title(f"nRMSE {found.complex_nrmse:.3g} at {found.photons_per_px:.3g} photons per px", fontsize=FONT_SIZE)

    limit.semilogx(found.efficiency_cycles_per_px, found.efficiency, "o-", color=GREEN, markersize=4)
    limit.axhline(0.5, color="0.6", linewidth=0.8, linestyle="--")
    limit.set_ylim(0, 1.0)
    style_axes(limit, "spatial frequency (cycles / px)", "part of the quantum limit (phase)")
    limit.set_title("information about phases", fontsize=FONT_SIZE)
    return save(figure, path)
