"""The sections of the page about an image; None where there is nothing to show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Complex, Float32

from torchptycho.analysis.evaluation import Metrics, evaluate
from torchptycho.analysis.registration import flatten_phase
from torchptycho.core.errors import EvaluationError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.visualization.plot.curves import format_half_period, group_by_quantity
from torchptycho.visualization.plot.panels import (
    choose_length_unit,
    choose_phase_map,
    compute_limits,
    find_bounding_box,
)
from torchptycho.visualization.report.html_blocks import (
    Block,
    Chart,
    Section,
    Table,
    make_complex_figure,
    make_mapped_figure,
    make_scale_bar,
)
from torchptycho.visualization.report.pattern_panels import DetectorModel, compare_patterns
from torchptycho.visualization.report.quantities import CURVES, explain_misfit
from torchptycho.visualization.report.svg_charts import Series, draw_curves_svg, draw_positions_svg

__all__ = [
    "format_photons",
    "format_resolution",
    "make_curves_section",
    "make_image_section",
    "make_patterns_section",
    "make_positions_section",
    "make_probe_section",
    "make_resolution_section",
    "make_truth_section",
]

_WHEEL_KEY = (
    "Colour is the phase, as around the wheel: 0 to the right, π/2 up, ±π to the left. Brightness is the amplitude."
)
_DECADES = 5
_STAGE_COLOURS = {"train": 1, "val": 2, "test": 3, "": 4}
# Describes the machine, not the image.
_HIDDEN_QUANTITIES = ("plateau", "frames_per_s", "peak_memory_GB")


def make_image_section(image: Reconstruction) -> Section:
    """Make the figures of amplitude, phase, both in colour, coverage, and, if known, the disagreement of patches."""
    everything = image.valid & np.isfinite(image.object)
    box = find_bounding_box(everything)
    mask, coverage = everything[box], image.coverage[box]
    flat = flatten_phase(np.where(mask, image.object[box], 0), mask)
    phase_map, phase_limits = choose_phase_map(flat, mask)
    pixel_m = image.object_pixel_m
    shown: list[Block] = [
        make_mapped_figure("Amplitude", np.abs(flat), mask, "gray", compute_limits(np.abs(flat), mask),
                      scale=make_scale_bar(mask.shape[1], pixel_m)),
        make_mapped_figure("Phase", np.angle(flat), mask, phase_map, phase_limits, unit="rad"),
        make_complex_figure("Amplitude and phase", flat, mask),
        make_mapped_figure("Coverage", coverage, mask, "cividis", (0.0, max(float(coverage.max(initial=0)), 1e-9)),
                      note="Sum of the weights at a pixel, relative to the maximum."),
    ]  # fmt: skip
    spread: Float32[np.ndarray, "h w"] | None = getattr(image, "spread", None)
    if spread is not None:
        known = mask & np.isfinite(spread[box])
        high = float(np.percentile(spread[box][known], 99.5)) if known.any() else 1.0
        shown.append(
            make_mapped_figure(
                "Disagreement",
                spread[box],
                known,
                "magma",
                (0.0, high or 1.0),
                note="Standard deviation of the overlapping patches at a pixel, in units of the "
                "object. Where it is large, neighbouring frames contradict each other.",
            )
        )
    return Section(
        id="image",
        title="Image",
        rows=[("wide", shown)],
        text="The constant phase and the phase plane, which ptychography does not determine, are removed for display.",
        warnings=list(image.provenance.get("refinement", image.provenance).get("warnings", ())),
    )


def make_truth_section(image: Reconstruction, scan: Scan) -> Section | None:
    """Report how close the image is to the ground truth in the scan file."""
    if scan.truth is None:
        return None
    try:
        metrics = evaluate(image, scan.truth)
    except EvaluationError as error:
        return Section(id="truth", title="Against the file's object", rows=[], warnings=[str(error)])
    rows = [
        (name, error, f"{ssim:.3f}", f"{correlation:.4f}")
        for name, error, ssim, correlation in (
            ("Amplitude", f"{metrics.amplitude_mae:.4g}", metrics.amplitude_ssim, metrics.amplitude_correlation),
            ("Phase", f"{metrics.phase_mae_rad:.4g} rad", metrics.phase_ssim, metrics.phase_correlation),
        )
    ]
    curve = _make_frc_chart("Fourier ring correlation with the object in the file", metrics, "0.5", halves=False)
    head = ("", "mean absolute error", "SSIM", "correlation")
    return Section(
        id="truth",
        title="Against the file's object",
        rows=[("", [Table(rows=rows, head=head)]), ("wide", [curve])],
        text=f"The scan file contains an object: the ground truth of a simulation, or an earlier reconstruction. Over "
        f"{metrics.n_pixels} pixels, after shift, phase plane, phase and scale are removed, the complex nRMSE is "
        f"{metrics.complex_nrmse:.4g}.",
    )


def make_patterns_section(
    scan: Scan, image: Reconstruction, probe: np.ndarray, detect: DetectorModel | None
) -> Section:
    """Show a few frames, measured and predicted, and their difference in units of the photon noise."""
    misfits = image.history.get("misfit")
    patterns = compare_patterns(scan, image, probe, detect=detect)
    rows: list[tuple[Any, list[Block]]] = []
    good = scan.mask
    for frame, measured, expected in zip(patterns.frames, patterns.measured, patterns.expected, strict=True):
        top = float(max(measured[good].max(initial=0), expected[good].max(initial=0), 1e-12))
        positive = measured[good & (measured > 0)]
        low = max(float(positive.min(initial=top)), top * 10.0**-_DECADES) / 2
        limits = (math.log10(low), math.log10(max(top, 1.01 * low)))
        ends = (f"{low:.2g}", f"{top:.3g}")
        noise = (measured - expected) / np.sqrt(expected + 1)
        misfit = float(((measured - expected) ** 2 / (expected + 1))[good].sum())
        misfit /= max(float((expected / (expected + 1))[good].sum()), 1e-30)
        rows.append(
            (
                "three",
                [
                    make_mapped_figure(
                        f"Frame {frame}: measured",
                        np.log10(np.maximum(measured, low)),
                        good,
                        "inferno",
                        limits,
                        ends=ends,
                        note=format_photons(float(measured[good].sum())),
                    ),
                    make_mapped_figure(
                        "Predicted",
                        np.log10(np.maximum(expected, low)),
                        good,
                        "inferno",
                        limits,
                        ends=ends,
                        note=format_photons(float(expected[good].sum())),
                    ),
                    make_mapped_figure(
                        "Difference",
                        np.clip(noise, -5, 5),
                        good,
                        "RdBu_r",
                        (-5.0, 5.0),
                        unit="σ",
                        note=f"misfit {misfit:.3g}",
                    ),
                ],
            )
        )
    return Section(
        id="patterns",
        title="Measured and predicted",
        rows=rows,
        text="Counts on a logarithmic scale. The difference is in units of the photon noise of the predicted counts: "
        "it should look like noise, without structure. " + explain_misfit(misfits[-1] if misfits else None),
    )


def make_curves_section(image: Reconstruction, history: dict[str, list[tuple[int, float]]]) -> Section | None:
    """Show the curves that training and refinement logged."""
    charts: list[Block] = []
    if image.history.get("misfit"):
        misfit = np.array(image.history["misfit"])
        one = Series(name="misfit", x=np.arange(1.0, len(misfit) + 1), y=misfit)
        noise = Series(name="photon noise", x=np.array([1.0, len(misfit)]), y=np.ones(2), colour=3, dashed=True)
        both, about = [one, noise] if len(misfit) > 1 else [one], explain_misfit(float(misfit[-1]))
        charts.append(_make_chart("Refinement", both, "epoch", "misfit", note=about))
    # The loss comes first, because it is the most important curve.
    for quantity, curves in sorted(group_by_quantity(history).items(), key=lambda item: "loss" not in item[0]):
        series = [
            Series(
                name=stage or quantity.replace("_", " "),
                colour=_STAGE_COLOURS[stage],
                x=np.array([step for step, _ in points], dtype=np.float64),
                y=np.array([value for _, value in points], dtype=np.float64),
            )
            for stage, points in curves
        ]
        if quantity not in _HIDDEN_QUANTITIES and any(np.isfinite(one.y).any() for one in series):
            label, about = CURVES.get(quantity.removesuffix("_epoch"), (quantity.replace("_", " "), ""))
            stages = {stage for stage, _ in curves} - {""}
            if "val" in stages:
                about = f"{about} val: frames that were held out from training.".strip()
            charts.append(_make_chart(f"Training: {label}", series, "optimiser step", label, note=about))
    return Section(id="curves", title="Curves", rows=[("wide", charts)]) if charts else None


def make_resolution_section(metrics: Metrics) -> Section:
    """Show to which spatial frequency two halves of the frames agree."""
    chart = _make_frc_chart("Fourier ring correlation of the two halves", metrics, "½ bit", halves=True)
    return Section(
        id="resolution",
        title="Resolution",
        rows=[("wide", [chart])],
        text="Two halves of the frames, refined separately, agree down to a half period of "
        f"{format_resolution(metrics)} (½-bit threshold). Errors that both halves share are not detected.",
    )


def make_probe_section(probe: Complex[np.ndarray, "p n n"], pixel_m: float | None) -> Section:
    """Show every probe mode, in colour and with its share of the photons."""
    power = (np.abs(probe) ** 2).sum(axis=(1, 2), dtype=np.float64)
    everywhere = np.ones(probe.shape[1:], dtype=bool)
    figures: list[Block] = [
        make_complex_figure(
            f"Mode {number}" if len(probe) > 1 else "Probe",
            mode,
            everywhere,
            wheel=number == 1,
            scale=make_scale_bar(probe.shape[-1], pixel_m) if number == 1 else None,
            note=(f"{power[number - 1] / max(float(power.sum()), 1e-300):.3%} of " if len(probe) > 1 else "")
            + format_photons(float(power.sum())),
        )
        for number, mode in enumerate(probe, start=1)
    ]
    text = "The illumination of the sample, in object pixels."
    if len(probe) > 1:
        text += " Each mode has its own brightness scale; the percentage is its fraction of the photons per frame."
    return Section(id="probe", title="Probe", rows=[("small", figures)], text=text)


def make_positions_section(scan: Scan, image: Reconstruction) -> Section:
    """Show where the scan positions were, and where they were refined to."""
    refined_px = image.positions_px
    moved = (
        refined_px is not None
        and refined_px.shape == scan.positions_px.shape
        and bool(np.any(refined_px != scan.positions_px))
    )
    svg, times = draw_positions_svg(scan.positions_px, refined_px if moved else None, scan.n_px, image.object_pixel_m)
    frame = f"The square in the corner is one frame, {scan.n_px}x{scan.n_px} px."
    if not moved or refined_px is None:
        note = f"Positions of the file, not corrected. {frame}"
        chart = Chart(title=f"{scan.n_frames} positions", svg=svg, legend=(("scan position", 1, False),), note=note)
        return Section(id="positions", title="Scan positions", rows=[("wide", [chart])])
    shift = refined_px - scan.positions_px
    length = np.hypot(*shift.T)
    drawn = "" if times == 1 else f", drawn {times:g} times as long"
    chart = Chart(
        title=f"{scan.n_frames} positions and their corrections",
        svg=svg,
        legend=(("given scan position", 1, False), (f"correction{drawn}", 2, False)),
        note=frame,
    )
    mean = shift.mean(axis=0)
    rows = [
        ("Root mean square", _format_length(float(np.sqrt((length**2).mean())), image.object_pixel_m)),
        ("Largest", f"{_format_length(float(length.max()), image.object_pixel_m)}, frame {int(length.argmax())}"),
        ("Mean (y, x)", f"{mean[0]:.3f}, {mean[1]:.3f} px".replace("-", "−")),
    ]
    return Section(
        id="positions",
        title="Scan positions",
        rows=[("wide", [chart]), ("", [Table(rows=rows)])],
        text="Corrections of the positions of the file by refinement.",
    )


def format_resolution(metrics: Metrics) -> str:
    """Format the half period at the half-bit threshold, in pixels and in metres where these are known."""
    last = float(metrics.frc.frequency_cycles_per_px[-1])
    return format_half_period(metrics.frc_half_bit_cycles_per_px, last, metrics.object_pixel_m)


def format_photons(photons: float) -> str:
    """Format a number of photons, with all digits if there are few."""
    return f"{photons:,.0f} photons" if 100 <= photons < 1e7 else f"{photons:.3g} photons"


def _make_frc_chart(title: str, metrics: Metrics, threshold: str, *, halves: bool) -> Chart:
    f = metrics.frc.frequency_cycles_per_px
    level = metrics.frc.half_bit if halves else np.full_like(f, 0.5)
    crossing = metrics.frc_half_bit_cycles_per_px if halves else metrics.frc_half_cycles_per_px
    period = format_half_period(crossing, float(f[-1]), metrics.object_pixel_m)
    series = [
        Series(name="correlation", x=f, y=metrics.frc.correlation),
        Series(name=f"{threshold}: half period {period}", x=f, y=level, colour=2, dashed=True),
    ]
    low = min(0.0, float(metrics.frc.correlation.min()))
    return _make_chart(title, series, "spatial frequency (cycles / px)", "correlation", (low, 1.0))


def _make_chart(
    title: str,
    series: list[Series],
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    *,
    note: str = "",
) -> Chart:
    legend = tuple((one.name, one.colour, one.dashed) for one in series) if len(series) > 1 else ()
    return Chart(title=title, svg=draw_curves_svg(series, x_label, y_label, y_range=y_range), legend=legend, note=note)


def _format_length(length_px: float, pixel_m: float | None) -> str:
    if not pixel_m:
        return f"{length_px:.3g} px"
    factor, unit = choose_length_unit(length_px * pixel_m)
    return f"{length_px:.3g} px = {length_px * pixel_m / factor:.3g} {unit}"
