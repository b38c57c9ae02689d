"""Calibration of an electron detector by the bright-field disc, and the probe that belongs to it."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
from jaxtyping import Bool, Complex64, Float64

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.electron_optics import make_electron_probe, parse_aberrations
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.io.raw_scan import RawScan

__all__ = ["BrightFieldDisc", "calibrate_angle_rad", "find_bright_field_disc", "make_guessed_electron_probe"]

_log = logging.getLogger(__name__)

# The disc is where the mean pattern exceeds this fraction of its typical value inside.
_EDGE_FRACTION = 0.5
_MAX_ITERATIONS = 20
# Width of the edge on either side.
_EDGE_PX = 2
# Smaller discs cannot be measured; larger ones leave the frame.
_MIN_RADIUS_PX, _MAX_RADIUS_FRACTION = 3.0, 0.5
# The file's own calibration and the disc's differ by more than the disc can be measured to.
_MAX_DISAGREEMENT = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrightFieldDisc:
    """The image of the probe-forming aperture on the detector.

    Arguments:
        center_px: (y, x) in the frame.
        radius_px: of a disc of the same area.
    """

    center_px: tuple[float, float]
    radius_px: float


def find_bright_field_disc(
    pattern: Float64[np.ndarray, "n n"], mask: Bool[np.ndarray, "n n"]
) -> BrightFieldDisc | None:
    """Find the bright-field disc in a mean pattern; None where there is none that ends inside the frame.

    Pixels above half of the median inside belong to it, found by iteration from half of the maximum. Its edge counts by
    how bright it is between the inside and what is scattered beyond.

    Arguments:
        pattern: mean intensity.
        mask: good pixels.
    """
    from scipy.ndimage import binary_dilation, binary_erosion, median_filter

    smooth = median_filter(np.where(mask, pattern, 0.0), size=3, mode="nearest")
    if not smooth.max() > 0:
        return None
    inside = smooth > _EDGE_FRACTION * smooth.max()
    for _ in range(_MAX_ITERATIONS):
        further = smooth > _EDGE_FRACTION * np.median(smooth[inside])
        if np.array_equal(further, inside):
            break
        inside = further
    core = binary_erosion(inside, iterations=_EDGE_PX)
    reach = binary_dilation(inside, iterations=_EDGE_PX)
    beyond = binary_dilation(reach, iterations=_EDGE_PX) & ~reach
    if not core.any() or not beyond.any():
        return None
    low, high = np.median(smooth[beyond]), np.median(smooth[core])
    filled = np.where(mask, pattern, smooth)
    edge = (filled[reach & ~core] - low).sum() / (high - low)
    radius_px = float(np.sqrt(max(core.sum() + edge, 0.0) / np.pi))
    rows, columns = np.nonzero(inside)
    if not _MIN_RADIUS_PX <= radius_px < _MAX_RADIUS_FRACTION * len(pattern):
        return None
    return BrightFieldDisc(center_px=(float(rows.mean()), float(columns.mean())), radius_px=radius_px)


def calibrate_angle_rad(
    recorded: RawScan,
    pattern: Float64[np.ndarray, "n n"],
    mask: Bool[np.ndarray, "n n"],
    config: ReadConfig,
    binning: int,
    notes: list[str],
) -> float | None:
    """Return the angle between neighbouring pixels of the frames; None where lengths or the file say it, or nothing.

    Arguments:
        pattern: mean intensity of the frames.
        binning: detector pixels in one of the frames, along an edge.
        notes: receives how it was found.

    Raises:
        ScanError: it should come from the disc, and there is none.
    """
    if config.angle_per_pixel_mrad is not None:
        return config.angle_per_pixel_mrad * 1e-3 * binning
    lengths = (config.distance_m, config.detector_pixel_m, config.object_pixel_m)
    if config.convergence_mrad is None or any(length is not None for length in lengths):
        return None
    disc = find_bright_field_disc(pattern, mask)
    own_rad = _compute_own_angle_rad(recorded.geometry, recorded.frames.shape[1])
    if disc is None:
        if own_rad is not None:
            return None
        raise ScanError(
            recorded.path,
            None,
            expected="a bright-field disc inside the frame, to calibrate the detector with --convergence-mrad",
            found="none in the mean pattern",
            remedy="Give --angle-per-pixel-mrad.",
        )
    by_disc_rad = config.convergence_mrad * 1e-3 / disc.radius_px
    where = f"bright-field disc of {disc.radius_px:.1f} px = {config.convergence_mrad:g} mrad"
    if own_rad is None:
        notes.append(f"{where}: {1e3 * by_disc_rad:.4g} mrad per pixel of the detector")
        return by_disc_rad
    own_rad *= binning
    if abs(by_disc_rad / own_rad - 1) > _MAX_DISAGREEMENT:
        disagreement = (
            f"{where} says {1e3 * by_disc_rad:.4g} mrad per pixel, the file {1e3 * own_rad:.4g}, which is taken; "
            "--angle-per-pixel-mrad overrides both"
        )
        notes.append(disagreement)
        _log.warning("%s: %s", recorded.path, disagreement)
    return None


def _compute_own_angle_rad(geometry: Geometry, n_px: int) -> float | None:
    """Compute the angle between neighbouring recorded pixels that the lengths of a file give."""
    if geometry.detector_pixel_m is not None and geometry.distance_m is not None:
        return geometry.detector_pixel_m / geometry.distance_m
    if geometry.object_pixel_m is not None and geometry.wavelength_m is not None:
        return geometry.wavelength_m / (n_px * geometry.object_pixel_m)
    return None


def make_guessed_electron_probe(
    recorded: RawScan, geometry: Geometry, n_px: int, config: ReadConfig
) -> tuple[Complex64[np.ndarray, "1 n n"], str]:
    """Make the probe of the aperture and the aberrations that the options name, of power 1; say what it is.

    Raises:
        ScanError: the wavelength is not known.
    """
    assert config.convergence_mrad is not None
    if geometry.wavelength_m is None or geometry.object_pixel_m is None:
        raise ScanError(
            recorded.path,
            None,
            expected="the wavelength of the electrons, for --convergence-mrad",
            found="none",
            remedy="Give --particle electron --energy-eV (their acceleration voltage).",
        )
    aberrations = {"C10": config.probe_defocus_m} | parse_aberrations(config.aberrations)
    angle_rad = geometry.wavelength_m / (n_px * geometry.object_pixel_m)
    probe = make_electron_probe(n_px, angle_rad, geometry.wavelength_m, config.convergence_mrad * 1e-3, aberrations)
    named = ", ".join(f"{name} {value:g} m" for name, value in aberrations.items() if value)
    return probe.astype(np.complex64)[
        None
    ], f"a round aperture of {config.convergence_mrad:g} mrad, {named or 'in focus'}"
