"""Is this scan fit for reconstruction? Numbers and plain sentences from one pass over its frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from torchptycho.core.config.model import SUPPORTED_N_PX, advise_network_size
from torchptycho.core.scan import Scan
from torchptycho.io import iter_checked_chunks
from torchptycho.io.bad_pixels import find_dead_pixels, find_hot_pixels
from torchptycho.io.detector_codes import reaches_saturation
from torchptycho.io.field import find_islands
from torchptycho.io.inputs import as_scan
from torchptycho.io.near_field import detect_near_field
from torchptycho.io.position_scale import (
    estimate_probe_diameter_px,
    find_particle_problem,
    find_scale_problem,
    measure_center,
    measure_steps,
)

__all__ = ["MIN_PHOTONS_PER_PX", "ScanSummary", "estimate_probe_diameter_px", "inspect_scan"]

Pixel = tuple[int, int]

_MIN_OVERLAP = 0.5
_MIN_PHOTONS = 100.0
_DIM_RATIO, _BRIGHT_RATIO = 0.1, 10.0
_MAX_LISTED = 20

MIN_PHOTONS_PER_PX = 10.0
"""Photons n through an object pixel below which its phase is uncertain by 1 / sqrt(2 n) = 0.22 rad and more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanSummary:
    """Result of `inspect_scan` as plain data. Positions and pixels are (y, x); lists contain at most the first 20.

    Arguments:
        positions_unit: in which the file has them, px for object pixels.
        step_px: median distance from a position to the nearest other one of the same scan.
        probe_diameter_px: diameter of the disc around the centre of |P|^2 that contains 90 % of it.
        overlap: 1 - step / probe diameter, within [0, 1].
        photons_mean: photons per frame in the good pixels, likewise min and max; None if the dose is unknown.
        dead_pixels: pixels without counts although the median of the 24 pixels around them predicts at least 20.
        hot_pixels: isolated pixels, over 10 times the median and 3 times the second largest of their 8 neighbours.
            A speckle is wider than a pixel wherever the probe is narrower than half the frame.
        saturated_pixels: pixels with the largest value of the integer type, or a detector code, in some frame.
        beam_offset_px: centre of mass of the mean frame, relative to [N/2, N/2].
        notes: how the file was interpreted: its format and why, the locations of the data, processing.
        left_out: [frame, reason] of the frames of the file that are not in the scan, numbered as in the file.
        near_field: evidence that the frames are not far-field patterns; None if there is none.
        dim_frames: less than a tenth of the median frame; bright_frames: more than ten times.
        problems: sentences that name a problem and its remedy.
        usable: False if a reconstruction would be meaningless until a problem is solved.
    """

    source: str
    n_frames: int
    n_scans: int
    n_px: int
    dtype: str
    domain: str
    positions_unit: str
    n_modes: int
    position_min_px: tuple[float, float]
    position_max_px: tuple[float, float]
    field_px: tuple[float, float]
    particle: str
    energy_eV: float | None
    wavelength_m: float | None
    object_pixel_m: float | None
    field_m: tuple[float, float] | None
    step_px: float
    probe_diameter_px: float
    overlap: float
    photons_mean: float | None
    photons_min: float | None
    photons_max: float | None
    brightest_pixel: Pixel
    beam_offset_px: tuple[float, float]
    n_masked_pixels: int
    n_dead_pixels: int
    dead_pixels: list[Pixel]
    n_hot_pixels: int
    hot_pixels: list[Pixel]
    n_saturated_pixels: int
    n_duplicate_positions: int
    n_dim_frames: int
    dim_frames: list[int]
    n_bright_frames: int
    bright_frames: list[int]
    probe_is_calibrated: bool
    has_truth: bool
    has_truth_patches: bool
    metadata: dict[str, Any]
    notes: list[str]
    n_left_out: int
    left_out: list[list[Any]]
    near_field: str | None
    problems: list[str]
    usable: bool

    @property
    def photons_per_px(self) -> float | None:
        """Photons through a pixel of the scanned field, about; None if the dose is unknown."""
        if self.photons_mean is None:
            return None
        area_px = math.prod(extent + self.probe_diameter_px for extent in self.field_px)
        return self.photons_mean * self.n_frames / max(area_px, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as str, numbers, bool, None, lists and dicts, ready for JSON."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in dataclasses.fields(self)
        } | {name: [list(pixel) for pixel in getattr(self, name)] for name in ("dead_pixels", "hot_pixels")}


def inspect_scan(scan: Scan | str | Path) -> ScanSummary:
    """Inspect a scan in one pass, with memory for a few frames.

    Raises:
        ScanError: the frames fail `iter_checked_chunks`.
    """
    scan = as_scan(scan)
    totals, summed, saturated = _accumulate_statistics(scan)
    mean_total = float(totals.mean())
    dose = 1.0 if scan.domain == "counts" else (scan.photons_per_frame or 0.0) / mean_total
    median_total = float(np.median(totals))
    dim = np.flatnonzero(totals < _DIM_RATIO * median_total)
    bright = np.flatnonzero(totals > _BRIGHT_RATIO * median_total)
    # If the dose is unknown, frame values are used as counts; normalised frames may hide bad pixels but cannot cause
    # false ones.
    dead = _list_pixels(find_dead_pixels(summed * (dose or 1.0), scan.mask))
    hot = _list_pixels(find_hot_pixels(summed * (dose or 1.0), scan.mask))
    step_px, n_duplicates = measure_steps(scan.positions_px, scan.scan_id)
    shadow = detect_near_field(scan) if scan.geometry.propagation == "far" else None
    diameter_px = estimate_probe_diameter_px(scan.probe)
    low, high = scan.positions_px.min(axis=0), scan.positions_px.max(axis=0)
    field = high - low
    pixel_m = scan.geometry.with_object_pixel(scan.n_px).object_pixel_m
    offset = measure_center(summed) - scan.n_px // 2
    peak_y, peak_x = np.unravel_index(int(summed.argmax()), summed.shape)
    summary = ScanSummary(
        source=scan.source,
        n_frames=scan.n_frames,
        n_scans=len(np.unique(scan.scan_id)),
        n_px=scan.n_px,
        dtype=str(scan.frames.dtype),
        domain=scan.domain,
        positions_unit=scan.positions_unit,
        n_modes=len(scan.probe),
        position_min_px=_to_pair(low),
        position_max_px=_to_pair(high),
        field_px=_to_pair(field),
        particle=scan.geometry.particle,
        energy_eV=scan.geometry.energy_eV,
        wavelength_m=scan.geometry.wavelength_m,
        object_pixel_m=pixel_m,
        field_m=None if pixel_m is None else _to_pair(field * pixel_m),
        step_px=step_px,
        probe_diameter_px=diameter_px,
        overlap=min(1.0, max(0.0, 1 - step_px / diameter_px)),
        photons_mean=mean_total * dose if dose else None,
        photons_min=float(totals.min()) * dose if dose else None,
        photons_max=float(totals.max()) * dose if dose else None,
        brightest_pixel=(int(peak_y), int(peak_x)),
        beam_offset_px=_to_pair(offset),
        n_masked_pixels=int((~scan.mask).sum()),
        n_dead_pixels=len(dead),
        dead_pixels=dead[:_MAX_LISTED],
        n_hot_pixels=len(hot),
        hot_pixels=hot[:_MAX_LISTED],
        n_saturated_pixels=saturated,
        n_duplicate_positions=n_duplicates,
        n_dim_frames=int(dim.size),
        dim_frames=dim[:_MAX_LISTED].tolist(),
        n_bright_frames=int(bright.size),
        bright_frames=bright[:_MAX_LISTED].tolist(),
        probe_is_calibrated=scan.probe_is_calibrated,
        has_truth=scan.truth is not None,
        has_truth_patches=scan.truth_patches is not None,
        metadata=dict(scan.metadata),
        notes=list(scan.notes),
        n_left_out=len(scan.left_out),
        left_out=[[frame, why] for frame, why in sorted(scan.left_out.items())[:_MAX_LISTED]],
        near_field=None if shadow is None else str(shadow),
        problems=[],
        usable=True,
    )
    fatal = list(_find_fatal_problems(summary, summed, find_scale_problem(scan)))
    minor = [*_find_minor_problems(summary), *filter(None, [find_particle_problem(scan)])]
    if not fatal and (apart := find_islands(scan)) is not None:
        minor.insert(0, apart)
    return dataclasses.replace(summary, problems=fatal + minor, usable=not fatal)


def _accumulate_statistics(scan: Scan) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, "n n"], int]:
    """Sum the intensity of each frame and of each pixel; count the pixels at the dtype's maximum."""
    totals = np.zeros(scan.n_frames)
    summed = np.zeros((scan.n_px, scan.n_px))
    at_limit = np.zeros((scan.n_px, scan.n_px), bool)
    start = 0
    for chunk in iter_checked_chunks(scan):
        values = chunk.astype(np.float64) ** (2 if scan.domain == "amplitude" else 1)
        totals[start : start + len(chunk)] = values.sum(axis=(1, 2))
        summed += values.sum(axis=0)
        at_limit |= reaches_saturation(chunk).any(axis=0)
        start += len(chunk)
    return totals, summed, int(at_limit.sum())


def _find_fatal_problems(summary: ScanSummary, summed: np.ndarray, scale_problem: str | None) -> Iterator[str]:
    if scale_problem is not None:
        yield scale_problem
    corner, centre = _mean_square_radius(np.fft.fftshift(summed)), _mean_square_radius(summed)
    if corner < 0.5 * centre:
        yield (
            f"The intensity lies around pixel [0, 0], not around [{summary.n_px // 2}, {summary.n_px // 2}]. "
            "Read them with --fftshift."
        )
    if summary.near_field is not None:
        yield (
            f"These are near-field data, which no far-field model explains: {summary.near_field}. Refine them with "
            "--propagation near."
        )
    if summary.n_dim_frames + summary.n_bright_frames > summary.n_frames / 2:
        yield "Most frames differ from the median intensity by more than ten times. Check the detector and the shutter."


def _find_minor_problems(summary: ScanSummary) -> Iterator[str]:
    advice = advise_network_size(summary.n_px)
    if advice is not None:
        sizes = ", ".join(map(str, SUPPORTED_N_PX))
        yield f"For networks: none takes frames of {summary.n_px} px, only of N = {sizes} px. {advice}"
    if 0 < summary.overlap < _MIN_OVERLAP:
        yield (
            f"Neighbouring frames overlap by {summary.overlap:.0%} of the probe (step {summary.step_px:.3g} px, probe "
            f"{summary.probe_diameter_px:.3g} px); {_MIN_OVERLAP:.0%} or more is needed for a dependable image. "
            "Scan in finer steps."
        )
    if summary.probe_diameter_px > 0.8 * summary.n_px:
        yield (
            f"The probe ({summary.probe_diameter_px:.3g} px) nearly fills the frame ({summary.n_px} px), so that its "
            "diffraction is undersampled. Use larger frames, or a probe that is cropped to its support."
        )
    if max(map(abs, summary.beam_offset_px)) > summary.n_px / 16:
        y, x = summary.beam_offset_px
        yield (
            f"The frames are centred {y:+.1f} px in y and {x:+.1f} px in x from [N/2, N/2], which puts a ramp on the "
            "phase. Cut them around the direct beam: --beam-center-px Y X, or estimated."
        )
    if summary.photons_mean is not None and summary.photons_mean < _MIN_PHOTONS:
        yield f"A frame holds {summary.photons_mean:.3g} photons on average: expect little more than noise."
    for n, pixels, what in (
        (summary.n_dead_pixels, summary.dead_pixels, "never count although their neighbours do"),
        (summary.n_hot_pixels, summary.hot_pixels, "count far more than their neighbours"),
    ):
        if n:
            yield f"{_list_first(n, 'pixel', pixels)} {what}. Mask them with --find-bad-pixels."
    if summary.n_saturated_pixels:
        yield (
            f"{summary.n_saturated_pixels} pixel(s) reach the largest {summary.dtype} or a code of a detector: "
            "saturated, or bad. Mask them with --find-bad-pixels."
        )
    if summary.n_duplicate_positions:
        yield (
            f"{summary.n_duplicate_positions} frame(s) repeat a position of the same scan exactly; repeated frames add "
            "dose, not information on the positions. Check that the positions were read back."
        )
    for n, frames, what in (
        (
            summary.n_dim_frames,
            summary.dim_frames,
            "hold less than a tenth of the median intensity (direct beam lost?)",
        ),
        (summary.n_bright_frames, summary.bright_frames, "hold more than ten times the median intensity"),
    ):
        if n:
            yield f"{_list_first(n, 'frame', frames)} {what}. Drop them with --drop-frames."


def _list_first(n: int, noun: str, first: list[Any]) -> str:
    names = ", ".join(str(list(one) if isinstance(one, tuple) else one) for one in first[:5])
    return f"{n} {noun}(s) ({names}{', ...' if n > 5 else ''})"


def _mean_square_radius(image: np.ndarray) -> float:
    """Compute the mean squared distance of the intensity from [N/2, N/2], in pixels squared."""
    rows, columns = np.indices(image.shape) - image.shape[0] // 2
    return float((image * (rows**2 + columns**2)).sum() / image.sum())


def _to_pair(values: np.ndarray) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _list_pixels(where: np.ndarray) -> list[Pixel]:
    return [(int(y), int(x)) for y, x in np.argwhere(where)]
