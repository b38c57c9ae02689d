"""Geometry and positions of a scan in object pixels, from what its file states and what the options ask for."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float64

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry, wavelength_to_energy_eV
from torchptycho.core.scan import Scan
from torchptycho.io.position_scale import describe_unit_error, suggest_units
from torchptycho.io.raw_scan import RawScan
from torchptycho.io.units import compute_position_factor, is_pixels

__all__ = [
    "build_geometry",
    "convert_positions",
    "convert_to_pixels",
    "find_reference_edge",
    "find_scale",
    "orient_positions",
    "rotate_positions",
]


# No ptychographic scan is wider: larger positions are not in metres.
_MAX_EXTENT_M = 0.5


def convert_positions(recorded: RawScan, scan: Scan) -> Float64[np.ndarray, "m 2"]:
    """Convert positions, in object pixels, for other frames of the file that a scan was made from.

    Arguments:
        recorded: what its reader gave for those frames.
        scan: made of some frames of the file, without a true object.

    Raises:
        ScanError: they are no lengths.
    """
    config = scan.reading
    scale = find_scale(recorded, scan.n_px, config.binning) if config.changes_frames else 1.0
    return orient_positions(convert_to_pixels(recorded, scan.geometry, scale, scan.n_px), config, [])


def find_scale(recorded: RawScan, n_px: int, binning: int) -> float:
    """Return the object pixels of processed frames in one of the file's: cutting a diffraction pattern makes the object
    pixel larger, binning makes that of a near-field image larger."""
    if recorded.geometry.propagation == "near":
        return 1 / binning
    return n_px * binning / find_reference_edge(recorded)


def find_reference_edge(recorded: RawScan) -> int:
    """Find the frame edge to which the file's object pixel and its probe refer."""
    if recorded.positions_n_px is not None:
        return recorded.positions_n_px
    height, width = recorded.frames.shape[1:]
    return height if height == width or recorded.probe is None else recorded.probe.shape[-1]


def build_geometry(
    recorded: RawScan,
    config: ReadConfig,
    n_px: int,
    scale: float,
    binning: int,
    angle_per_pixel_rad: float | None = None,
) -> Geometry:
    """Build the geometry of the scan: options override the file; the detector pixel is that after binning.

    Arguments:
        angle_per_pixel_rad: of the frames after binning, where it is known instead of distance and detector pixel.
    """
    given: dict[str, Any] = {
        name: value
        for name in ("energy_eV", "distance_m", "detector_pixel_m", "object_pixel_m")
        if (value := getattr(config, name)) is not None
    }
    own = recorded.geometry
    if config.particle is not None:
        given["particle"] = config.particle
    if config.wavelength_m is not None:
        given["energy_eV"] = wavelength_to_energy_eV(config.wavelength_m, config.particle or own.particle)
    changed = dataclasses.replace(own, **({"object_pixel_m": None} if given else {}) | given)
    if changed.detector_pixel_m is not None:
        changed = dataclasses.replace(changed, detector_pixel_m=changed.detector_pixel_m * binning)
    if angle_per_pixel_rad is not None and changed.wavelength_m is not None:
        pixel_m = changed.detector_pixel_m
        return dataclasses.replace(
            changed,
            object_pixel_m=changed.wavelength_m / (n_px * angle_per_pixel_rad),
            distance_m=None if pixel_m is None else pixel_m / angle_per_pixel_rad,
        )
    if changed.object_pixel_m is not None:
        changed = dataclasses.replace(changed, object_pixel_m=changed.object_pixel_m / scale)
    try:
        return changed.with_object_pixel(n_px) if not is_pixels(recorded.unit) or given else changed
    except (ValueError, OverflowError, ZeroDivisionError):
        raise ScanError(
            recorded.path,
            None,
            expected="lengths of an experiment",
            found=f"{changed}",
            remedy="Correct --energy-eV or --wavelength-m, --distance-m or --detector-pixel-m.",
            part="object-pixel",
        ) from None


def convert_to_pixels(recorded: RawScan, geometry: Geometry, scale: float, n_px: int) -> np.ndarray:
    """Convert the positions of a file to the object pixels of the scan.

    Arguments:
        scale: object pixels of the scan for one of the file's.

    Raises:
        ScanError: no scan is as wide, or the lengths are missing.
    """
    if is_pixels(recorded.unit):
        return recorded.positions * scale
    key = "', '".join(dict.fromkeys(reversed(recorded.position_keys)))
    positions_m = recorded.positions * compute_position_factor(recorded.path, key, recorded.unit, None)
    extent = float(np.ptp(positions_m, axis=0).max()) if np.isfinite(positions_m).all() else 0.0
    if extent > _MAX_EXTENT_M:
        raise ScanError(
            recorded.path,
            key,
            expected=f"positions that span less than {_MAX_EXTENT_M} m",
            found=f"{extent:.3g} m, read in {recorded.unit}",
            remedy=describe_unit_error(suggest_units(recorded.positions, recorded.unit, geometry, n_px), geometry),
        )
    if geometry.object_pixel_m is None:
        missing = [
            f"--{name.replace('_', '-')}"
            for name in ("energy_eV", "distance_m", "detector_pixel_m")
            if getattr(geometry, name) is None
        ]
        raise ScanError(
            recorded.path,
            key,
            expected=f"lengths that turn {recorded.unit} into object pixels",
            found=f"no {', no '.join(name.strip('-') for name in missing)}",
            remedy=f"Give them with {' '.join(missing)}; --wavelength-m may replace --energy-eV, and --object-pixel-m "
            "replaces all of them; for electrons --angle-per-pixel-mrad or --convergence-mrad replace the two lengths.",
            part="object-pixel",
        )
    return positions_m / geometry.object_pixel_m


def orient_positions(positions_px: np.ndarray, config: ReadConfig, notes: list[str]) -> np.ndarray:
    """Exchange, reverse and turn the axes of positions as the options ask for, in this order."""
    turned = positions_px[:, ::-1] if config.swap_xy else positions_px
    sign = np.array([-1.0 if config.flip_y else 1.0, -1.0 if config.flip_x else 1.0])
    done = [name for name in ("swap_xy", "flip_y", "flip_x") if getattr(config, name)]
    if done:
        notes.append(f"positions turned: {', '.join(done)}")
    turned = turned * sign
    if config.positions_rotation_deg:
        notes.append(f"positions turned by {config.positions_rotation_deg:g} degrees")
        turned = rotate_positions(turned, config.positions_rotation_deg)
    # + 0.0 turns -0.0 into 0.0, whose bytes differ.
    return np.ascontiguousarray(turned + 0.0, dtype=np.float64)


def rotate_positions(positions: Float64[np.ndarray, "m 2"], angle_deg: float) -> Float64[np.ndarray, "m 2"]:
    """Turn positions (y, x) about the origin, from x towards y."""
    cosine, sine = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    y, x = positions.T
    return np.stack([y * cosine + x * sine, x * cosine - y * sine], axis=1)
