"""Figures of a scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from torchptycho.core.scan import Scan
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
from torchptycho.visualization.plot.panels import INTERPOLATION, add_colour_bar, add_scale_bar, draw_image, draw_pattern
from torchptycho.visualization.plot.phase_colors import add_colour_wheel, draw_complex, sample_wheel_colours

__all__ = ["average_counts", "draw_positions", "plot_scan", "to_counts"]

_FRAMES_PER_CHUNK = 64


def plot_scan(scan: Scan, path: str | Path, *, title: str | None = None, max_frames: int = 2000) -> Path:
    """Draw mean diffraction pattern, positions, dose, and the first probe mode.

    Mean pattern and dose come from at most `max_frames` frames, evenly spaced over the scan, a few at a time.
    """
    figure = make_figure(10.6, 6.9)
    axes = figure.subplots(2, 3)
    middle = scan.n_frames // 2
    index, mean, total, frame = average_counts(scan, max_frames, middle)
    unit = "photons" if scan.domain == "counts" else "amplitude²"
    of = f" of {len(index)} frames" if len(index) < scan.n_frames else ""
    draw_pattern(axes[0, 0], mean, scan.mask, f"mean pattern{of}", f"{unit} / px")
    draw_pattern(axes[0, 1], frame, scan.mask, f"frame {middle}", unit)
    draw_positions(axes[0, 2], scan)
    axes[0, 2].set_title(f"{scan.n_frames} positions", fontsize=FONT_SIZE)
    probe = scan.probe[0]
    amplitude, everywhere = np.abs(probe), np.ones(probe.shape, dtype=bool)
    modes = f" (mode 1 of {len(scan.probe)})" if len(scan.probe) > 1 else ""
    top = (0.0, max(float(amplitude.max()), 1e-30))
    drawn = draw_image(axes[1, 0], amplitude, everywhere, "gray", top, f"probe amplitude{modes}")
    add_colour_bar(axes[1, 0], drawn, "√photons" if scan.probe_is_calibrated else "arb. u.")
    add_scale_bar(axes[1, 0], probe.shape[1], scan.geometry.with_object_pixel(scan.n_px).object_pixel_m)
    # Dark where the intensity is low: the phase is noise there and would dominate the figure.
    draw_complex(axes[1, 1], probe, "probe, its phase as hue")
    add_colour_wheel(axes[1, 1])
    axis = axes[1, 2]
    axis.plot(index, total, ".", color=BLUE, markersize=3, markeredgewidth=0)
    style_axes(axis, "frame", f"{unit} per frame")
    axis.set_ylim(0, 1.08 * float(total.max()) or 1.0)
    axis.set_title(f"dose: mean {float(total.mean()):.4g} {unit} per frame", fontsize=FONT_SIZE)
    figure.suptitle(title if title is not None else _shorten_source(scan), fontsize=FONT_SIZE + 2)
    return save(figure, path, ("gray", "inferno"), sample_wheel_colours())


def draw_positions(axis: Axes, scan: Scan) -> None:
    """Draw the scan positions, over the ground truth if there is one, with the size of a frame for comparison."""
    y, x = scan.positions_px[:, 0], scan.positions_px[:, 1]
    half = scan.n_px / 2
    if scan.truth is not None:
        axis.imshow(np.abs(scan.truth), cmap="gray", alpha=0.55, interpolation=INTERPOLATION)
    size = float(np.clip(6000 / max(scan.n_frames, 1), 1, 10))
    ids = np.unique(scan.scan_id)
    for i, one in enumerate(ids):
        chosen = scan.scan_id == one
        colour = (BLUE, ORANGE, GREEN, PURPLE)[i % 4]
        axis.scatter(x[chosen], y[chosen], s=size, color=colour, linewidths=0, label=f"scan {one}")
    if len(ids) > 1:
        axis.legend(frameon=False, fontsize=SMALL_FONT_SIZE, markerscale=2)
    corner = (float(x.min()) - half, float(y.min()) - half)
    edges = np.array([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]]) * scan.n_px + corner
    axis.plot(edges[:, 0], edges[:, 1], color="black", linewidth=1)
    axis.annotate(
        "frame",
        (corner[0] + 0.04 * scan.n_px, corner[1] + 0.04 * scan.n_px),
        fontsize=SMALL_FONT_SIZE,
        va="top",
        ha="left",
    )
    axis.set_aspect("equal")
    axis.set_xlim(corner[0] - 2, float(x.max()) + half + 2)
    axis.set_ylim(float(y.max()) + half + 2, corner[1] - 2)
    style_axes(axis, "x (px)", "y (px)")


def to_counts(scan: Scan, frames: np.ndarray) -> np.ndarray:
    # Cast before squaring: the detector's integers overflow.
    values = frames.astype(np.float64)
    return values if scan.domain == "counts" else values**2


def average_counts(
    scan: Scan, max_frames: int, shown: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return frame indices, their mean pattern, their sums over good pixels, and the frame `shown`, in one pass.

    One pass, because a compressed file can only be read from its beginning.
    """
    index = np.unique(np.linspace(0, scan.n_frames - 1, min(max_frames, scan.n_frames)).round().astype(np.int64))
    mean = np.zeros((scan.n_px, scan.n_px))
    frame = np.zeros((scan.n_px, scan.n_px))
    totals = []
    start = 0
    for chunk in scan.frames.chunks(_FRAMES_PER_CHUNK):
        stop = start + len(chunk)
        counts = to_counts(scan, chunk[index[(index >= start) & (index < stop)] - start])
        mean += counts.sum(axis=0)
        totals.append(counts[:, scan.mask].sum(axis=1))
        if start <= shown < stop:
            frame = to_counts(scan, chunk[shown - start])
        start = stop
    return index, mean / len(index), np.concatenate(totals), frame


def _shorten_source(scan: Scan) -> str:
    return Path(scan.source).name if len(scan.source) > 60 else scan.source
