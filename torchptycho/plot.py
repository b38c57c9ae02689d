"""Figures as PNG files, drawn without pyplot, so that no window, backend or global setting is involved.

Amplitudes are grey. Phases have a cyclic map (twilight) over -pi .. pi when they span more than pi, and otherwise a
perceptually uniform one (viridis) over their own range, where small differences can be seen. Pixels without data are
pale blue-grey, a colour of no map. Images have a scale bar instead of ticks.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Complex
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.offsetbox import AnchoredOffsetbox, AuxTransformBox, TextArea, VPacker
from matplotlib.patches import Rectangle
from PIL import Image
from scipy.spatial import cKDTree

from torchptycho.evaluation import Metrics, align_to_truth, half_period_px
from torchptycho.reconstruction import Reconstruction
from torchptycho.registration import flatten
from torchptycho.scan import Scan

__all__ = ["plot_frc", "plot_history", "plot_overview", "plot_reconstruction", "plot_scan"]

_NO_DATA = "#dde4ee"
# Okabe and Ito's colours, which remain apart for the colour-blind.
_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_DPI = 110
_LARGE_BYTES = 350_000
_TEXT = 9.0
_SMALL = 8.0
_FRAMES_PER_CHUNK = 64
# Averages where several object pixels share one pixel of the picture, which nearest would alias.
_SAMPLING = "antialiased"

Limits = tuple[float, float]


def plot_reconstruction(
    reconstruction: Reconstruction,
    path: str | Path,
    *,
    truth: Complex[np.ndarray, "h w"] | None = None,
    truth_origin_px: tuple[int, int] = (0, 0),
    metrics: Metrics | None = None,
    title: str | None = None,
) -> Path:
    """Amplitude, phase and coverage; with a truth, that below them, and where the phase is wrong.

    Without a truth the constant phase and the phase plane, which ptychography leaves free, are removed for display;
    with one, the reconstruction is shown in its gauge, after registration.

    Arguments:
        truth: [H, W] object whose pixel [0, 0] lies at `truth_origin_px`.
        metrics: figures to print below the images; without them none are printed.

    Raises:
        EvaluationError: the truth does not overlap the reconstruction.
    """
    pixel_m = reconstruction.object_pixel_m
    if truth is None:
        mask = reconstruction.valid & np.isfinite(reconstruction.object)
        box = _bounding_box(mask)
        mask = mask[box]
        image = flatten(np.where(mask, reconstruction.object[box], 0), mask)
        shown: tuple[np.ndarray, ...] = (image,)
        coverage = reconstruction.coverage[box]
    else:
        pair = align_to_truth(reconstruction, truth, truth_origin_px=truth_origin_px)
        box = _bounding_box(pair.mask)
        mask = pair.mask[box]
        # One constant phase for both, so that their difference stays what it is.
        turn = np.exp(-1j * np.angle(pair.truth[pair.mask].sum()))
        shown = (pair.object[box] * turn, pair.truth[box] * turn)
        y, x = (pair.origin_px[i] - reconstruction.origin_px[i] for i in range(2))
        coverage = reconstruction.coverage[box[0].start + y : box[0].stop + y, box[1].start + x : box[1].stop + x]
    height, width = mask.shape
    panel = 3.3
    rows = len(shown)
    tall = 2.95 * min(max(height / width, 0.4), 2.0)
    figure = _figure(3 * panel + 0.9, rows * (tall + 0.25) + 0.4 + 0.25 * (metrics is not None) + 0.25 * bool(title))
    axes = figure.subplots(rows, 3, squeeze=False)
    limits = _limits(np.abs(shown[-1]), mask)
    phase_map, phase_limits = _phase_map(shown[-1], mask)
    names = ("reconstruction", "truth") if rows == 2 else ("",)
    for row, (image, name) in enumerate(zip(shown, names, strict=True)):
        prefix = f"{name}: " if name else ""
        drawn = _image(axes[row, 0], np.abs(image), mask, "gray", limits, f"{prefix}amplitude")
        _colour_bar(axes[row, 0], drawn)
        drawn = _image(axes[row, 1], np.angle(image), mask, phase_map, phase_limits, f"{prefix}phase")
        _colour_bar(axes[row, 1], drawn, "rad", phase_limits)
    _scale_bar(axes[0, 0], width, pixel_m)
    drawn = _image(axes[0, 2], coverage, mask, "cividis", (0.0, max(float(coverage.max()), 1e-9)), "coverage")
    _colour_bar(axes[0, 2], drawn)
    if rows == 2:
        error = np.angle(shown[0] * shown[1].conj())
        bound = max(float(np.percentile(np.abs(error[mask]), 99)), 1e-3)
        drawn = _image(axes[1, 2], error, mask, "RdBu_r", (-bound, bound), "phase error")
        _colour_bar(axes[1, 2], drawn, "rad")
    if metrics is not None:
        figure.supxlabel(_caption(metrics), fontsize=_TEXT)
    if title:
        figure.suptitle(title, fontsize=_TEXT + 2)
    return _save(figure, path, ("gray", phase_map, "cividis", "RdBu_r")[: 2 + rows])


def plot_scan(scan: Scan, path: str | Path, *, title: str | None = None, max_frames: int = 2000) -> Path:
    """What was measured: diffraction, positions, dose, and the probe's first mode.

    Mean pattern and dose come from at most `max_frames` frames, evenly spaced over the scan, a few at a time.
    """
    figure = _figure(10.6, 6.9)
    axes = figure.subplots(2, 3)
    index, mean, total = _mean_counts(scan, max_frames)
    unit = "photons" if scan.domain == "counts" else "amplitude²"
    of = f" of {len(index)} frames" if len(index) < scan.n_frames else ""
    _pattern(axes[0, 0], mean, scan.mask, f"mean pattern{of}", f"{unit} / px")
    middle = scan.n_frames // 2
    _pattern(axes[0, 1], _counts(scan, scan.frames[middle : middle + 1])[0], scan.mask, f"frame {middle}", unit)
    _positions(axes[0, 2], scan)
    axes[0, 2].set_title(f"{scan.n_frames} positions", fontsize=_TEXT)
    probe = scan.probe[0]
    amplitude, everywhere = np.abs(probe), np.ones(probe.shape, dtype=bool)
    modes = f" (mode 1 of {len(scan.probe)})" if len(scan.probe) > 1 else ""
    top = (0.0, max(float(amplitude.max()), 1e-30))
    drawn = _image(axes[1, 0], amplitude, everywhere, "gray", top, f"probe amplitude{modes}")
    _colour_bar(axes[1, 0], drawn, "√photons" if scan.probe_is_calibrated else "arb. u.")
    _scale_bar(axes[1, 0], probe.shape[1], scan.geometry.with_object_pixel(scan.n_px).object_pixel_m)
    # Where there is hardly any light the phase is noise, and would be all that one sees.
    lit = amplitude > 0.1 * amplitude.max()
    drawn = _image(
        axes[1, 1], np.angle(probe), lit, "twilight", (-math.pi, math.pi), "probe phase, above 10 % amplitude"
    )
    _colour_bar(axes[1, 1], drawn, "rad", (-math.pi, math.pi))
    axis = axes[1, 2]
    axis.plot(index, total, ".", color=_BLUE, markersize=3, markeredgewidth=0)
    _plain_axes(axis, "frame", f"{unit} per frame")
    axis.set_ylim(0, 1.08 * float(total.max()) or 1.0)
    axis.set_title(f"dose: mean {float(total.mean()):.4g} {unit} per frame", fontsize=_TEXT)
    figure.suptitle(title if title is not None else _source_name(scan), fontsize=_TEXT + 2)
    return _save(figure, path, ("gray", "inferno", "twilight"))


def plot_frc(metrics: Metrics, path: str | Path) -> Path:
    """The Fourier ring correlation with its thresholds, and the resolutions where they cross."""
    figure = _figure(6.2, 4.2)
    axis = figure.subplots()
    frc, pixel_m = metrics.frc, metrics.object_pixel_m
    f = frc.frequency_cycles_per_px
    axis.axhline(0, color="0.8", linewidth=0.8)
    axis.plot(f, frc.correlation, color=_BLUE, linewidth=1.8, label="reconstruction against truth")
    for threshold, crossing, colour, name in (
        (np.full_like(f, 0.5), metrics.frc_half_cycles_per_px, _ORANGE, "0.5"),
        (frc.one_bit, metrics.frc_one_bit_cycles_per_px, _GREEN, "1 bit"),
    ):
        label = f"{name}: {_half_period(crossing, float(f[-1]), pixel_m)}"
        axis.plot(f, threshold, color=colour, linewidth=1.2, linestyle="--", label=label)
        if 0 < crossing < f[-1]:
            axis.plot(crossing, np.interp(crossing, f, threshold), "o", color=colour, markersize=5)
    _plain_axes(axis, "spatial frequency (cycles / px)", "Fourier ring correlation")
    axis.set_xlim(0, 0.5)
    axis.set_ylim(min(-0.05, float(frc.correlation.min()) - 0.03), 1.05)
    axis.legend(frameon=False, fontsize=_SMALL)
    top = axis.secondary_xaxis("top")
    periods = np.array([16.0, 8.0, 4.0, 3.0, 2.0, 1.5, 1.25, 1.0])
    factor, unit = _length_unit(2 * (pixel_m or 0.0)) if pixel_m else (1.0, "px")
    top.set_xticks(0.5 / periods, [f"{p * (pixel_m or 1.0) / factor:.3g}" for p in periods])
    top.tick_params(labelsize=_SMALL, colors="0.3")
    top.set_xlabel(f"half period ({unit})", fontsize=_TEXT)
    return _save(figure, path)


def plot_history(history: dict[str, list[tuple[int, float]]], path: str | Path) -> Path:
    """Curves of training over optimiser steps, one panel for each quantity.

    Arguments:
        history: (step, value) pairs by name. Names that differ only in a leading train, val or test share a panel.
            Panels whose values are all positive have a logarithmic axis.
    """
    panels: dict[str, list[tuple[str, list[tuple[int, float]]]]] = {}
    for name, points in history.items():
        stage, _, rest = name.replace("/", "_").partition("_")
        known = stage in ("train", "val", "test") and rest
        panels.setdefault(rest if known else name, []).append((stage if known else "", points))
    columns = min(3, max(1, len(panels)))
    rows = math.ceil(max(1, len(panels)) / columns)
    figure = _figure(0.6 + 4.2 * columns, 0.3 + 3.0 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    colours = {"train": _BLUE, "val": _ORANGE, "test": _GREEN, "": _PURPLE}
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
        _plain_axes(axis, "step", quantity.replace("_", " "))
        axis.grid(axis="y", color="0.9", linewidth=0.6)
        if any(stage for stage, _ in curves):
            axis.legend(frameon=False, fontsize=_SMALL)
    return _save(figure, path)


def plot_overview(scan: Scan, reconstruction: Reconstruction, metrics: Metrics, path: str | Path) -> Path:
    """One picture of a simulated experiment: what is measured, what comes out, what it should be.

    Raises:
        ValueError: the scan has no truth.
    """
    if scan.truth is None:
        raise ValueError(f"plot_overview: expected a scan with a truth; {scan.source} has none.")
    pair = align_to_truth(reconstruction, scan.truth)
    box = _bounding_box(pair.mask)
    mask = pair.mask[box]
    turn = np.exp(-1j * np.angle(pair.truth[pair.mask].sum()))
    out, truth = pair.object[box] * turn, pair.truth[box] * turn
    figure = _figure(10.6, 6.7)
    axes = figure.subplots(2, 3)
    middle = scan.n_frames // 2
    counts = _counts(scan, scan.frames[middle : middle + 1])[0]
    unit = "photons" if scan.domain == "counts" else "amplitude²"
    _pattern(axes[0, 0], counts, scan.mask, f"measured: one of {scan.n_frames} frames", unit)
    _positions(axes[1, 0], scan)
    axes[1, 0].set_title("scan positions over the object", fontsize=_TEXT)
    limits = _limits(np.abs(truth), mask)
    phase_map, phase_limits = _phase_map(truth, mask)
    for column, (image, name) in enumerate(((out, "reconstruction"), (truth, "truth")), start=1):
        upper = _image(axes[0, column], np.abs(image), mask, "gray", limits, f"{name}: amplitude")
        lower = _image(axes[1, column], np.angle(image), mask, phase_map, phase_limits, f"{name}: phase")
    _scale_bar(axes[0, 1], mask.shape[1], reconstruction.object_pixel_m)
    notes = (
        f"MAE {metrics.amplitude_mae:.3f}   SSIM {metrics.amplitude_ssim:.2f}",
        f"MAE {metrics.phase_mae_rad:.3f} rad   SSIM {metrics.phase_ssim:.2f}",
    )
    for row, note in enumerate(notes):
        axes[row, 1].set_xlabel(note, fontsize=_TEXT)
    _colour_bar(axes[0, 2], upper)
    _colour_bar(axes[1, 2], lower, "rad", phase_limits)
    return _save(figure, path, ("gray", "inferno", phase_map))


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="compressed", facecolor="white")


def _save(figure: Figure, path: str | Path, colour_maps: tuple[str, ...] = ()) -> Path:
    """Write a PNG; one that would be large is reduced to evenly spaced steps of the colour maps in it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DPI, format="png", bbox_inches="tight", pad_inches=0.08)
    with Image.open(drawn) as picture:
        plain = picture.convert("RGB")
    if colour_maps and drawn.tell() > _LARGE_BYTES:
        steps = np.linspace(0, 1, 240 // len(colour_maps))
        colours = [to_rgb(name) for name in (_NO_DATA, "white", "black", _BLUE, _ORANGE, _GREEN, _PURPLE)]
        rgb = np.rint(255 * np.concatenate([*(colormaps[name](steps)[:, :3] for name in colour_maps), colours]))
        pixels = np.asarray(plain).reshape(-1, 3)
        used, back = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
        wanted = np.stack([used >> 16, used >> 8 & 255, used & 255], axis=1)
        nearest = np.asarray(cKDTree(rgb).query(wanted)[1])
        plain = Image.fromarray(nearest[back].astype(np.uint8).reshape(plain.height, plain.width))
        plain.putpalette(rgb.astype(np.uint8).tobytes())
    plain.save(path, format="png", optimize=True)
    return path


def _image(
    axis: Axes, image: np.ndarray, mask: Bool[np.ndarray, "h w"], colour_map: str, limits: Limits, title: str
) -> AxesImage:
    colours = colormaps[colour_map].with_extremes(bad=_NO_DATA)
    shown = np.ma.masked_array(image, ~mask)
    drawn = axis.imshow(shown, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation=_SAMPLING)
    _frame_only(axis, title)
    return drawn


def _frame_only(axis: Axes, title: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title(title, fontsize=_TEXT)


def _plain_axes(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=_TEXT)
    axis.set_ylabel(y, fontsize=_TEXT)
    axis.tick_params(which="both", labelsize=_SMALL, colors="0.3", labelcolor="black")
    axis.yaxis.get_offset_text().set_fontsize(_SMALL)
    axis.spines[["top", "right"]].set_visible(False)


def _colour_bar(axis: Axes, drawn: AxesImage, unit: str = "", limits: Limits | None = None) -> None:
    """A bar as tall as the image, beside it."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(drawn, cax=axis.inset_axes((1.025, 0.0, 0.045, 1.0)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=_SMALL, length=2)
    bar.ax.yaxis.get_offset_text().set_fontsize(_SMALL)
    bar.set_label(unit, fontsize=_SMALL)
    if limits == (-math.pi, math.pi):
        bar.set_ticks([-math.pi, -math.pi / 2, 0, math.pi / 2, math.pi], labels=["−π", "−π/2", "0", "π/2", "π"])


def _pattern(axis: Axes, counts: np.ndarray, good: np.ndarray, title: str, unit: str) -> None:
    """A diffraction pattern on a logarithmic scale of at most six decades; no light has its lowest colour."""
    positive = counts[good & (counts > 0)]
    top = float(positive.max()) if positive.size else 1.0
    low = max(float(positive.min()), top * 1e-6) if positive.size else 0.1
    colours = colormaps["inferno"].with_extremes(bad=_NO_DATA)
    shown = np.ma.masked_array(np.maximum(counts, low), ~good)
    drawn = axis.imshow(shown, cmap=colours, norm=LogNorm(low, max(top, 1.01 * low)), interpolation=_SAMPLING)
    _frame_only(axis, title)
    _colour_bar(axis, drawn, unit)


def _positions(axis: Axes, scan: Scan) -> None:
    """Scan positions, over the truth where there is one, with the size of a frame for comparison."""
    y, x = scan.positions_px[:, 0], scan.positions_px[:, 1]
    half = scan.n_px / 2
    if scan.truth is not None:
        axis.imshow(np.abs(scan.truth), cmap="gray", alpha=0.55, interpolation=_SAMPLING)
    size = float(np.clip(6000 / max(scan.n_frames, 1), 1, 10))
    ids = np.unique(scan.scan_id)
    for i, one in enumerate(ids):
        chosen = scan.scan_id == one
        colour = (_BLUE, _ORANGE, _GREEN, _PURPLE)[i % 4]
        axis.scatter(x[chosen], y[chosen], s=size, color=colour, linewidths=0, label=f"scan {one}")
    if len(ids) > 1:
        axis.legend(frameon=False, fontsize=_SMALL, markerscale=2)
    corner = (float(x.min()) - half, float(y.min()) - half)
    edges = np.array([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]]) * scan.n_px + corner
    axis.plot(edges[:, 0], edges[:, 1], color="black", linewidth=1)
    axis.annotate(
        "frame", (corner[0] + 0.04 * scan.n_px, corner[1] + 0.04 * scan.n_px), fontsize=_SMALL, va="top", ha="left"
    )
    axis.set_aspect("equal")
    axis.set_xlim(corner[0] - 2, float(x.max()) + half + 2)
    axis.set_ylim(float(y.max()) + half + 2, corner[1] - 2)
    _plain_axes(axis, "x (px)", "y (px)")


def _scale_bar(axis: Axes, width_px: int, pixel_m: float | None) -> None:
    length_px, label = _nice_length(width_px, pixel_m)
    bar = AuxTransformBox(axis.transData)
    bar.add_artist(Rectangle((0, 0), length_px, width_px / 65, facecolor="black", linewidth=0))
    text = TextArea(label, textprops={"size": _SMALL})
    both = VPacker(children=[bar, text], align="center", pad=0, sep=3)
    box = AnchoredOffsetbox("lower left", child=both, pad=0.35, borderpad=0.4)
    box.patch.set(alpha=0.75, linewidth=0)
    axis.add_artist(box)


def _nice_length(width_px: int, pixel_m: float | None) -> tuple[float, str]:
    """The longest 1-2-5 length that is at most a quarter of the width: in pixels, and as it is written."""
    pixel = pixel_m or 1.0
    longest = 0.25 * width_px * pixel
    decade = 10.0 ** math.floor(math.log10(longest))
    length = max(step * decade for step in (1, 2, 5) if step * decade <= longest * (1 + 1e-9))
    if not pixel_m:
        return length, f"{length:g} px"
    factor, unit = _length_unit(length)
    return length / pixel, f"{length / factor:.4g} {unit}"


def _length_unit(length_m: float) -> tuple[float, Literal["mm", "µm", "nm", "pm"]]:
    if length_m >= 0.9999e-3:
        return 1e-3, "mm"
    if length_m >= 0.9999e-6:
        return 1e-6, "µm"
    return (1e-9, "nm") if length_m >= 0.9999e-9 else (1e-12, "pm")


def _half_period(frequency: float, last: float, pixel_m: float | None) -> str:
    if frequency <= 0:
        return "not resolved"
    period = half_period_px(frequency)
    bound = "≤ " if frequency >= last else ""
    if not pixel_m:
        return f"{bound}{period:.2f} px"
    factor, unit = _length_unit(period * pixel_m)
    return f"{bound}{period:.2f} px = {period * pixel_m / factor:.3g} {unit}"


def _caption(metrics: Metrics) -> str:
    half = 0.5 if math.isclose(metrics.frc_half_cycles_per_px, 0.5) else metrics.frc_half_cycles_per_px
    return (
        f"amplitude MAE {metrics.amplitude_mae:.3f}, SSIM {metrics.amplitude_ssim:.3f}   ·   "
        f"phase MAE {metrics.phase_mae_rad:.3f} rad, SSIM {metrics.phase_ssim:.3f}   ·   "
        f"half period at FRC 0.5: {_half_period(half, 0.5, metrics.object_pixel_m)}"
    )


def _limits(image: np.ndarray, mask: np.ndarray) -> Limits:
    low, high = (float(v) for v in np.percentile(image[mask], (0.5, 99.5))) if mask.any() else (0.0, 1.0)
    return (low, high) if high - low > 1e-6 else (low - 0.5, high + 0.5)


def _phase_map(image: np.ndarray, mask: np.ndarray) -> tuple[str, Limits]:
    low, high = _limits(np.angle(image), mask)
    return ("viridis", (low, high)) if high - low <= math.pi else ("twilight", (-math.pi, math.pi))


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _counts(scan: Scan, frames: np.ndarray) -> np.ndarray:
    # Cast before squaring: the detector's integers overflow.
    values = frames.astype(np.float64)
    return values if scan.domain == "counts" else values**2


def _mean_counts(scan: Scan, max_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame indices, their mean pattern, and their sums over good pixels."""
    index = np.unique(np.linspace(0, scan.n_frames - 1, min(max_frames, scan.n_frames)).round().astype(np.int64))
    mean = np.zeros((scan.n_px, scan.n_px))
    totals = []
    for start in range(0, len(index), _FRAMES_PER_CHUNK):
        counts = _counts(scan, scan.frames[index[start : start + _FRAMES_PER_CHUNK]])
        mean += counts.sum(axis=0)
        totals.append(counts[:, scan.mask].sum(axis=1))
    return index, mean / len(index), np.concatenate(totals)


def _source_name(scan: Scan) -> str:
    return Path(scan.source).name if len(scan.source) > 60 else scan.source
