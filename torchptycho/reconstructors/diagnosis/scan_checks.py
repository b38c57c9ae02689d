"""Faults that the frames and positions of a scan show without a refinement."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Complex64, Float64, Int64

from torchptycho.analysis.inspection import MIN_PHOTONS_PER_PX, ScanSummary
from torchptycho.core.config.base import Domain
from torchptycho.core.config.read import ReadConfig
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation.probes import border_fraction
from torchptycho.io.domain_inference import infer_domain
from torchptycho.io.frames.selection import pick_frames
from torchptycho.reconstructors.diagnosis.findings import Evidence, Finding
from torchptycho.reconstructors.diagnosis.measures import find_repeats, measure_regularity, measure_spacing_px

__all__ = [
    "ADVICE_CHECKS",
    "Checked",
    "ScanView",
    "check_domain",
    "check_order",
    "check_scans",
    "check_wrap",
    "list_file_frames",
]

# A lattice is one when errors of its positions are below 6 % of the step.
_MIN_REGULARITY = 0.87
_MAX_BORDER_LIGHT = 0.05
_MIN_OVERLAP = 0.5
_OTHER_SCAN = 0.5
# Frames that are compared to find a second pass.
_MOST_COMPARED = 400


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScanView:
    """What the checks look at.

    Arguments:
        scan: all frames.
        part: the neighbourhood, as counts.
        pattern: mean counts of frames of the whole scan.
        summary: figures of the whole scan.
    """

    scan: Scan
    part: Scan
    pattern: Float64[np.ndarray, "n n"]
    summary: ScanSummary


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Checked:
    """A fault, and how the neighbourhood is without it.

    Arguments:
        fix: None where nothing is changed.
    """

    finding: Finding
    fix: Callable[[Scan], Scan] | None = None


def check_domain(scan: Scan) -> Checked | None:
    """Check whether frames hold what they are taken for, by the steps between their values."""
    found = infer_domain(scan.frames)
    whole = found.domain == "counts" and found.is_certain
    roots = found.domain == "amplitude" and found.count is not None
    if scan.domain == "amplitude" and whole:
        other: Domain = "counts"
        what = "The frames are read as amplitudes, but"
    elif scan.domain == "counts" and roots:
        other = "amplitude"
        what = "The frames are read as counts, but"
    else:
        return None
    frames = np.asarray(scan.frames[:1], np.float64)[0]
    finding = Finding(
        fault="domain",
        sentence=f"{what} {found.why}: they hold {'photon counts' if other == 'counts' else 'amplitudes'}.",
        option=f"--domain {other}",
        is_fatal=True,
        evidence=Evidence(kind="pattern", title=f"frame 0: {found.why}", values=frames),
    )
    return Checked(finding=finding, fix=lambda one: dataclasses.replace(one, domain=other))


def check_order(scan: Scan, pattern: Float64[np.ndarray, "n n"]) -> Checked | None:
    """Check whether the zero frequency is in the corner of the frames."""
    rows, columns = np.indices(pattern.shape) - len(pattern) // 2
    radius = rows**2 + columns**2
    if not (np.fft.fftshift(pattern) * radius).sum() < 0.5 * (pattern * radius).sum():
        return None
    finding = Finding(
        fault="centre",
        sentence="The intensity lies around pixel [0, 0] of the frames, not around their middle.",
        option="--fftshift",
        is_fatal=True,
        evidence=Evidence(kind="pattern", title="mean pattern", values=pattern, mark=(0, 0)),
    )
    return Checked(finding=finding, fix=_shift_frames)


def check_scans(scan: Scan, load: Callable[[Scan, np.ndarray], tuple[Scan, bool]]) -> Checked | None:
    """Check whether the file holds several scans."""
    ids = np.unique(scan.scan_id)
    if len(ids) > 1:
        finding = Finding(
            fault="several scans",
            sentence=f"The file holds {len(ids)} scans; only the first one is judged here.",
            option=f"--scan {scan.scan_id[0]}",
            is_fatal=True,
            evidence=_show_positions(scan, (scan.scan_id != scan.scan_id[0]).astype(float), "positions of the scans"),
        )
        return Checked(finding=finding)
    rows = np.unique(np.linspace(0, scan.n_frames - 1, min(scan.n_frames, _MOST_COMPARED)).round().astype(np.int64))
    if len(rows) < scan.n_frames and scan.n_frames < 2 * _MOST_COMPARED:
        rows = np.arange(scan.n_frames)
    part, _ = load(scan, rows)
    counts = part.frames[:].astype(np.float64) * part.mask
    repeats = find_repeats(scan.positions_px[rows], counts)
    if repeats is None or repeats[1] < _OTHER_SCAN:
        return None
    begin = int(rows[min(repeats[0], len(rows) - 1)])
    numbers = list_file_frames(scan)
    first, _, *step = (scan.reading.frames or ":").split(":")
    name = begin if numbers is None else int(numbers[begin])
    option = None if numbers is None else ":".join([f"--frames {first}", str(name), *step])
    finding = Finding(
        fault="several scans",
        sentence=f"From frame {name} on the positions are those of earlier frames, but the patterns are unlike them "
        f"({min(repeats[1], 1):.0%} of the difference between any two): the file holds two scans.",
        option=option,
        is_fatal=True,
        evidence=_show_positions(scan, (np.arange(scan.n_frames) >= begin).astype(float), "positions of both scans"),
    )
    return Checked(finding=finding, fix=lambda one: pick_frames(one, np.arange(begin)))


def list_file_frames(scan: Scan) -> Int64[np.ndarray, " m"] | None:
    """List the number that each frame of a scan has in its file; None where the reading options do not tell."""
    first, _, *step = (scan.reading.frames or ":").split(":")
    if scan.reading.scan is not None or first.startswith("-"):
        return None
    apart = int(step[0]) if step else 1
    numbers = int(first or 0) + apart * np.arange(scan.n_frames + len(scan.left_out))
    return numbers[~np.isin(numbers, list(scan.left_out))][: scan.n_frames]


def _check_frames(view: ScanView) -> Checked | None:
    summary = view.summary
    odd = sorted({*summary.dim_frames, *summary.bright_frames})
    if not odd:
        return None
    numbers, count = list_file_frames(view.scan), summary.n_dim_frames + summary.n_bright_frames
    option, rest = None, " Leave them out with --drop-frames and their numbers in the file."
    if numbers is not None:
        dropped = sorted({*view.scan.reading.drop_frames, *(int(numbers[frame]) for frame in odd)})
        option = "--drop-frames " + " ".join(str(frame) for frame in dropped)
        rest = "" if count == len(odd) else f" The option names the first {len(odd)} of them; diagnose the scan again."
    finding = Finding(
        fault="frames",
        sentence=f"{count} frame(s) differ from the median intensity by more than ten times.{rest}",
        option=option,
    )
    return Checked(finding=finding)


def _check_overlap(view: ScanView) -> Checked | None:
    probe_px = view.summary.probe_diameter_px
    step_px = max(view.summary.step_px, measure_spacing_px(view.part.positions_px))
    overlap = max(0.0, 1 - step_px / probe_px)
    if overlap >= _MIN_OVERLAP:
        return None
    finding = Finding(
        fault="overlap",
        sentence=f"Neighbouring frames overlap by {overlap:.0%} of the probe (step {step_px:.3g} px, probe "
        f"{probe_px:.3g} px); {_MIN_OVERLAP:.0%} or more is needed. Scan in finer steps.",
        evidence=_show_positions(view.scan, np.zeros(view.scan.n_frames), "positions"),
    )
    return Checked(finding=finding)


def _check_raster(view: ScanView) -> Checked | None:
    regular = measure_regularity(view.part.positions_px)
    if regular < _MIN_REGULARITY:
        return None
    finding = Finding(
        fault="raster",
        sentence="The positions lie on a regular lattice: a structure that repeats with its step can belong to the "
        "object or to the probe. Scan on a spiral or with jitter; for this scan, refine the probe late.",
        option="--probe-start-epoch 20",
        evidence=_show_positions(view.scan, np.zeros(view.scan.n_frames), f"positions, structure factor {regular:.2f}"),
    )
    return Checked(finding=finding)


def _check_dose(view: ScanView) -> Checked | None:
    per_px = view.summary.photons_per_px
    if per_px is None or per_px >= MIN_PHOTONS_PER_PX:
        return None
    finding = Finding(
        fault="dose",
        sentence=f"{per_px:.2g} photons pass an object pixel, so that its phase is uncertain by "
        f"{1 / math.sqrt(2 * per_px):.2g} rad or more: the dose is too low for pixels of this size.",
        option="--regularization learned",
        evidence=Evidence(kind="pattern", title="one frame", values=view.part.frames[:1][0].astype(np.float64)),
    )
    return Checked(finding=finding)


def check_wrap(probe: Complex64[np.ndarray, "p n n"], reading: ReadConfig) -> Checked | None:
    """Check whether a refined probe is too wide for the frame; one that is out of focus may only seem so."""
    light = border_fraction(probe)
    if light <= _MAX_BORDER_LIGHT:
        return None
    finding = Finding(
        fault="wrap",
        sentence=f"{light:.0%} of the probe's light reaches the outer tenth of the frame and wraps around: the probe "
        "is too wide for the sampling of the detector. Use smaller detector pixels (less binning), a longer distance, "
        "or a smaller probe.",
        option=f"--binning {reading.binning // 2}" if reading.binning > 1 else None,
        evidence=Evidence(kind="complex", title="probe", values=probe[0]),
    )
    return Checked(finding=finding)


ADVICE_CHECKS: tuple[Callable[[ScanView], Checked | None], ...] = (
    _check_frames,
    _check_overlap,
    _check_dose,
    _check_raster,
)
"""Checks that change nothing that is refined here."""


def _show_positions(scan: Scan, values: Float64[np.ndarray, " m"], title: str) -> Evidence:
    return Evidence(kind="points", title=title, x=scan.positions_px, values=values, x_label="x (px)", y_label="y (px)")


def _shift_frames(scan: Scan) -> Scan:
    frames = np.fft.fftshift(scan.frames[:], axes=(1, 2))
    return dataclasses.replace(scan, frames=ArrayFrames(frames), mask=np.fft.fftshift(scan.mask))
