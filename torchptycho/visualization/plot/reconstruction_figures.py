"""Figures of reconstructions, alone and next to the ground truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Complex

from torchptycho.analysis.evaluation import Metrics
from torchptycho.analysis.registration import flatten_phase
from torchptycho.analysis.truth_alignment import align_to_truth
from torchptycho.core.reconstruction import Reconstruction, project_slices
from torchptycho.core.scan import Scan
from torchptycho.io.inputs import as_reconstruction
from torchptycho.visualization.plot import panels
from torchptycho.visualization.plot.curves import format_half_period
from torchptycho.visualization.plot.figure import FONT_SIZE, make_figure, save
from torchptycho.visualization.plot.scan_figures import draw_positions, to_counts
from torchptycho.visualization.plot.slice_figures import plot_slices

__all__ = ["plot_overview", "plot_reconstruction"]


def plot_reconstruction(
    reconstruction: Reconstruction | str | Path,
    path: str | Path,
    *,
    truth: Complex[np.ndarray, "h w"] | None = None,
    truth_origin_px: tuple[int, int] = (0, 0),
    metrics: Metrics | None = None,
    title: str | None = None,
) -> Path:
    """Plot amplitude, phase and coverage; with a ground truth also this and the phase error below them.

    Without a ground truth, the constant phase and the phase plane, which ptychography does not determine, are removed
    for display; with one, the reconstruction is shown in its gauge, after registration. Of a thick object all slices
    and their product are shown, with a ground truth the product.

    Arguments:
        truth: [H, W] object whose pixel [0, 0] lies at `truth_origin_px`.
        metrics: figures to print below the images; without them none are printed.

    Raises:
        EvaluationError: the truth does not overlap the reconstruction.
    """
    reconstruction = as_reconstruction(reconstruction)
    if reconstruction.object.ndim == 3 and truth is None:
        return plot_slices(reconstruction, path, title=title)
    reconstruction = project_slices(reconstruction)
    pixel_m = reconstruction.object_pixel_m
    if truth is None:
        mask = reconstruction.valid & np.isfinite(reconstruction.object)
        box = panels.find_bounding_box(mask)
        mask = mask[box]
        image = flatten_phase(np.where(mask, reconstruction.object[box], 0), mask)
        shown: tuple[np.ndarray, ...] = (image,)
        coverage = reconstruction.coverage[box]
    else:
        pair = align_to_truth(reconstruction, truth, truth_origin_px=truth_origin_px)
        box = panels.find_bounding_box(pair.mask)
        mask = pair.mask[box]
        # The same constant phase is removed from both, so that their difference is unchanged.
        turn = np.exp(-1j * np.angle(pair.truth[pair.mask].sum()))
        shown = (pair.object[box] * turn, pair.truth[box] * turn)
        y, x = (pair.origin_px[i] - reconstruction.origin_px[i] for i in range(2))
        coverage = reconstruction.coverage[box[0].start + y : box[0].stop + y, box[1].start + x : box[1].stop + x]
    height, width = mask.shape
    panel = 3.3
    rows = len(shown)
    tall = 2.95 * min(max(height / width, 0.4), 2.0)
    figure = make_figure(
        3 * panel + 0.9, rows * (tall + 0.25) + 0.4 + 0.25 * (metrics is not None) + 0.25 * bool(title)
    )
    axes = figure.subplots(rows, 3, squeeze=False)
    limits = panels.compute_limits(np.abs(shown[-1]), mask)
    phase_map, phase_limits = panels.choose_phase_map(shown[-1], mask)
    names = ("reconstruction", "truth") if rows == 2 else ("",)
    for row, (image, name) in enumerate(zip(shown, names, strict=True)):
        prefix = f"{name}: " if name else ""
        drawn = panels.draw_image(axes[row, 0], np.abs(image), mask, "gray", limits, f"{prefix}amplitude")
        panels.add_colour_bar(axes[row, 0], drawn)
        drawn = panels.draw_image(axes[row, 1], np.angle(image), mask, phase_map, phase_limits, f"{prefix}phase")
        panels.add_colour_bar(axes[row, 1], drawn, "rad", phase_limits)
    panels.add_scale_bar(axes[0, 0], width, pixel_m)
    most = max(float(coverage.max()), 1e-9)
    drawn = panels.draw_image(axes[0, 2], coverage, mask, "cividis", (0.0, most), "coverage")
    panels.add_colour_bar(axes[0, 2], drawn)
    if rows == 2:
        error = np.angle(shown[0] * shown[1].conj())
        bound = max(float(np.percentile(np.abs(error[mask]), 99)), 1e-3)
        drawn = panels.draw_image(axes[1, 2], error, mask, "RdBu_r", (-bound, bound), "phase error")
        panels.add_colour_bar(axes[1, 2], drawn, "rad")
    if metrics is not None:
        figure.supxlabel(_caption(metrics), fontsize=FONT_SIZE)
    if title:
        figure.suptitle(title, fontsize=FONT_SIZE + 2)
    return save(figure, path, ("gray", phase_map, "cividis", "RdBu_r")[: 2 + rows])


def plot_overview(scan: Scan, images: Mapping[str, tuple[Reconstruction, Metrics]], path: str | Path) -> Path:
    """Draw a figure of a simulated experiment: measurement, reconstructions and ground truth.

    Arguments:
        images: by the name of their method, with their metrics relative to the scan's truth.

    Raises:
        ValueError: the scan has no truth, or there is no image.
    """
    if scan.truth is None or not images:
        raise ValueError(f"plot_overview: expected a scan with a truth, and an image; {scan.source} has none.")
    figure = make_figure(3.6 + 3.5 * (len(images) + 1), 6.7)
    axes = figure.subplots(2, len(images) + 2)
    middle = scan.n_frames // 2
    counts = to_counts(scan, scan.frames[middle : middle + 1])[0]
    unit = "photons" if scan.domain == "counts" else "amplitude²"
    panels.draw_pattern(axes[0, 0], counts, scan.mask, f"measured: one of {scan.n_frames} frames", unit)
    draw_positions(axes[1, 0], scan)
    axes[1, 0].set_title("scan positions over the object", fontsize=FONT_SIZE)

    # All patches are compared on the pixels of the last, which is the best.
    pairs = [align_to_truth(image, scan.truth) for image, _ in images.values()]
    turn = np.exp(-1j * np.angle(pairs[-1].truth[pairs[-1].mask].sum()))
    truth, mask = (
        values[panels.find_bounding_box(pairs[-1].mask)] for values in (pairs[-1].truth * turn, pairs[-1].mask)
    )
    limits = panels.compute_limits(np.abs(truth), mask)
    phase_map, phase_limits = panels.choose_phase_map(truth, mask)
    shown = [
        (name, (pair.object * turn)[box := panels.find_bounding_box(pair.mask)], pair.mask[box], metrics)
        for (name, (_, metrics)), pair in zip(images.items(), pairs, strict=True)
    ]
    for column, (name, image, where, metrics) in enumerate([*shown, ("truth", truth, mask, None)], start=1):
        upper = panels.draw_image(axes[0, column], np.abs(image), where, "gray", limits, f"{name}: amplitude")
        lower = panels.draw_image(axes[1, column], np.angle(image), where, phase_map, phase_limits, f"{name}: phase")
        if metrics is not None:
            axes[0, column].set_xlabel(
                f"MAE {metrics.amplitude_mae:.3f}   SSIM {metrics.amplitude_ssim:.2f}", fontsize=FONT_SIZE
            )
            axes[1, column].set_xlabel(
                f"MAE {metrics.phase_mae_rad:.3f} rad   SSIM {metrics.phase_ssim:.2f}", fontsize=FONT_SIZE
            )
    panels.add_scale_bar(axes[0, 1], mask.shape[1], next(iter(images.values()))[0].object_pixel_m)
    panels.add_colour_bar(axes[0, -1], upper)
    panels.add_colour_bar(axes[1, -1], lower, "rad", phase_limits)
    return save(figure, path, ("gray", "inferno", phase_map))


def _caption(metrics: Metrics) -> str:
    half = 0.5 if math.isclose(metrics.frc_half_cycles_per_px, 0.5) else metrics.frc_half_cycles_per_px
    return (
        f"amplitude MAE {metrics.amplitude_mae:.3f}, SSIM {metrics.amplitude_ssim:.3f}   ·   "
        f"phase MAE {metrics.phase_mae_rad:.3f} rad, SSIM {metrics.phase_ssim:.3f}   ·   "
        f"half period at FRC 0.5: {format_half_period(half, 0.5, metrics.object_pixel_m)}"
    )
