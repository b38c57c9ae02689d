"""Whether positions are in the unit in which they were read, judged by their steps, the probe and the object pixel."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Complex64, Float64, Int64

from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry, energy_to_wavelength_m
from torchptycho.core.scan import Scan
from torchptycho.io.units import compute_unit_factor, is_pixels

__all__ = [
    "describe_unit_error",
    "estimate_probe_diameter_px",
    "find_particle_problem",
    "find_scale_problem",
    "measure_center",
    "measure_steps",
    "refuse_isolated_frames",
    "suggest_units",
]

# Ptychography with photons of more energy is rare; electron microscopes begin here.
_MIN_ELECTRON_EV = 5e4
_CANDIDATES = ("px", "m", "mm", "um", "nm")
# Steps of a scan in object pixels; the candidates are a thousand apart, so that only one of them fits.
_MIN_STEP_PX, _MIN_EXTENT_PX = 0.3, 3.0
# Steps longer than this number of frames are no slightly coarse scan.
_ISOLATED_FRAMES = 2


def measure_steps(
    positions_px: Float64[np.ndarray, "m 2"], scan_id: Int64[np.ndarray, " m"] | None = None
) -> tuple[float, int]:
    """Measure the median distance to the nearest other position of the same scan, and count repeated positions."""
    from scipy.spatial import cKDTree

    scans = np.zeros(len(positions_px), np.int64) if scan_id is None else scan_id
    nearest: list[np.ndarray] = []
    duplicates = 0
    for one in np.unique(scans):
        positions = positions_px[scans == one]
        distinct = np.unique(positions, axis=0)
        duplicates += len(positions) - len(distinct)
        if len(distinct) > 1:
            distances = np.asarray(cKDTree(distinct).query(distinct, k=2)[0])
            nearest.append(distances[:, 1])
    return (float(np.median(np.concatenate(nearest))) if nearest else math.inf), duplicates


def measure_center(image: np.ndarray) -> Float64[np.ndarray, "2"]:
    """Measure the centre of mass (y, x) in pixels."""
    along_y, along_x = image.sum(axis=1), image.sum(axis=0)
    return np.array([along @ np.arange(len(along)) / along.sum() for along in (along_y, along_x)])


def estimate_probe_diameter_px(probe: Complex64[np.ndarray, "p n n"]) -> float:
    """Estimate the diameter of the disc, around the centre of mass of sum_p |P|^2, that holds 90 % of it."""
    intensity = np.zeros(probe.shape[1:])
    for mode in probe:
        intensity += mode.real.astype(np.float64) ** 2 + mode.imag.astype(np.float64) ** 2
    if not 0 < intensity.sum() < math.inf:
        return float(len(intensity))
    y, x = measure_center(intensity)
    along = np.arange(len(intensity))
    radius = np.hypot(along[:, None] - y, along - x).ravel()
    order = np.argsort(radius)
    held = np.cumsum(intensity.ravel()[order]) / intensity.sum()
    # A probe of one pixel has radius 0, but it is as wide as its pixel.
    return max(1.0, 2 * float(radius[order][np.searchsorted(held, 0.9)]))


def suggest_units(
    positions: Float64[np.ndarray, "m 2"],
    unit: str,
    geometry: Geometry,
    max_step_px: float,
    *,
    min_extent_px: float = _MIN_EXTENT_PX,
    in_px: bool = False,
) -> list[str]:
    """List the units in which the numbers of the file would be the positions of a scan.

    Arguments:
        positions: as in the file, or in object pixels.
        unit: that they were read in.
        geometry: with the object pixel, without which only pixels can be suggested.
        max_step_px: step beyond which frames do not overlap.
        min_extent_px: what the field is at least.
        in_px: whether the positions are in object pixels.
    """
    if not np.isfinite(positions).all():
        return []
    pixel_m = geometry.object_pixel_m

    def per_pixel(name: str) -> float | None:
        """Return what numbers in this unit are multiplied by to be in object pixels."""
        if is_pixels(name):
            return 1.0
        return None if pixel_m is None else compute_unit_factor("", None, name, "length", "") / pixel_m

    now = per_pixel(unit) if in_px else 1.0
    step, extent = measure_steps(positions)[0], float(np.ptp(positions, axis=0).max())
    units = []
    for name in _CANDIDATES:
        factor = per_pixel(name)
        if name == unit or factor is None or now is None:
            continue
        ratio = factor / now
        if _MIN_STEP_PX <= step * ratio <= max_step_px and extent * ratio >= min_extent_px:
            units.append(name)
    return units


def describe_unit_error(units: list[str], geometry: Geometry) -> str:
    """Describe what to do about positions that cannot be in their unit."""
    options = " or ".join(f"--positions-unit {unit}" for unit in units)
    if units:
        return f"They are a scan when they are read with {options}."
    if geometry.object_pixel_m is None:
        return (
            "They look like lengths: name their unit with --positions-unit (m, mm, um, nm), and give --energy-eV, "
            "--distance-m and --detector-pixel-m."
        )
    return f"Check the unit of the positions (--positions-unit) and {_describe_lengths(geometry)}."


def _describe_lengths(geometry: Geometry) -> str:
    lengths = {
        "energy": (geometry.energy_eV, "eV", "--energy-eV"),
        "distance": (geometry.distance_m, "m", "--distance-m"),
        "detector pixel": (geometry.detector_pixel_m, "m", "--detector-pixel-m"),
    }
    parts = [f"{name} {value:.4g} {unit} ({option})" for name, (value, unit, option) in lengths.items() if value]
    pixel = f"the object pixel of {geometry.object_pixel_m:.4g} m"
    return f"{pixel}, which follows from {', '.join(parts)}" if len(parts) == len(lengths) else pixel


def find_particle_problem(scan: Scan) -> str | None:
    """Describe why photons of this energy may be electrons; None if they are plausible, or the wavelength was given."""
    geometry, mapping = scan.geometry, scan.reading.mapping
    if scan.reading.wavelength_m is not None or (mapping is not None and mapping.wavelength is not None):
        return None
    if geometry.particle != "photon" or geometry.energy_eV is None or geometry.energy_eV < _MIN_ELECTRON_EV:
        return None
    return (
        f"The energy of {geometry.energy_eV / 1e3:.4g} keV is taken for that of photons, of "
        f"{energy_to_wavelength_m(geometry.energy_eV) * 1e12:.4g} pm. If they are electrons, of "
        f"{energy_to_wavelength_m(geometry.energy_eV, 'electron') * 1e12:.4g} pm, use --particle electron."
    )


def find_scale_problem(scan: Scan) -> str | None:
    """Describe why positions and probe cannot belong together as they were read; None when they can."""
    probe_px = estimate_probe_diameter_px(scan.probe)
    extent_px = float(np.ptp(scan.positions_px, axis=0).max())
    # No frame is nearer to the one after it than to its nearest, which takes longer to find.
    moves_px = np.hypot(*np.diff(scan.positions_px, axis=0).T)
    moves_px = np.sort(moves_px[moves_px > 0])
    step_px = float(moves_px[len(moves_px) // 2])
    if step_px >= probe_px:
        step_px, _ = measure_steps(scan.positions_px, scan.scan_id)
    if step_px >= probe_px:
        what = (
            f"Neighbouring frames do not overlap: the step is {step_px:.3g} px, the probe {probe_px:.3g} px wide. "
            f"Positions were read in {scan.positions_unit}."
        )
    elif extent_px < probe_px:
        what = (
            f"The probe covers the whole scan: it is {probe_px:.3g} px wide, the positions, read in "
            f"{scan.positions_unit}, span {extent_px:.3g} px."
        )
    else:
        return None
    known = scan.geometry.with_object_pixel(scan.n_px)
    units = suggest_units(
        scan.positions_px, scan.positions_unit, known, probe_px, min_extent_px=max(probe_px, _MIN_EXTENT_PX), in_px=True
    )
    if units or known.object_pixel_m is not None:
        return f"{what} {describe_unit_error(units, known)}"
    return (
        f"{what} If they are lengths, name their unit with --positions-unit and give --energy-eV, --distance-m and "
        "--detector-pixel-m; if they are object pixels, the scan is too "
        + ("coarse." if step_px >= probe_px else "small for its probe.")
    )


def refuse_isolated_frames(scan: Scan) -> None:
    """Refuse a scan whose frames nowhere touch another one, read in pixels that nothing states: they are lengths.

    Raises:
        ScanError: naming the unit to state.
    """
    if scan.reading.positions_unit is not None or not is_pixels(scan.positions_unit):
        return
    moves_px = np.hypot(*np.diff(scan.positions_px, axis=0).T)
    longest_px = _ISOLATED_FRAMES * scan.n_px
    if float(np.median(moves_px)) <= longest_px:
        return
    step_px, _ = measure_steps(scan.positions_px, scan.scan_id)
    if step_px <= longest_px:
        return
    known = scan.geometry.with_object_pixel(scan.n_px)
    units = suggest_units(scan.positions_px, scan.positions_unit, known, scan.n_px, in_px=True)
    raise ScanError(
        scan.source,
        None,
        expected="frames that overlap",
        found=f"steps of {step_px:.4g} px, more than the {scan.n_px} px of a frame, read in {scan.positions_unit}",
        remedy=f"{describe_unit_error(units, known)} Where they are pixels all the same, say --positions-unit px.",
        part="positions",
    )
