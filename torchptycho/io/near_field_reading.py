"""Near-field scans as their files have them: magnification, padding, a first probe."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
from jaxtyping import Bool, Complex64, Float64

from torchptycho.core.angular_spectrum import angular_spectrum_transfer, choose_padding_px
from torchptycho.core.config.base import Domain
from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import Scan
from torchptycho.io.guesses import compute_mean_pattern
from torchptycho.io.near_field import measure_magnification
from torchptycho.io.raw_scan import RawScan
from torchptycho.io.scan_geometry import orient_positions
from torchptycho.io.units import compute_position_factor, is_pixels

__all__ = ["estimate_near_field_probe", "is_near_field", "pad_probe", "prepare_near_field"]

_log = logging.getLogger(__name__)

# Illumination at the border of the frame, relative to its largest, above which waves would wrap around.
_MAX_BORDER_INTENSITY = 0.02
# A magnification below this is that of a parallel beam.
_MIN_MAGNIFICATION = 1.02


def is_near_field(recorded: RawScan, config: ReadConfig) -> bool:
    """Return whether the frames are to be read as near-field images: as the options say, or else the file."""
    if config.propagation == "auto":
        return not recorded.far_field or recorded.geometry.propagation == "near"
    return config.propagation == "near"


def prepare_near_field(
    recorded: RawScan, bad: Bool[np.ndarray, "h w"], domain: Domain, config: ReadConfig, notes: list[str]
) -> tuple[RawScan, ReadConfig]:
    """Complete the geometry of a near-field scan, and pad frames whose illumination reaches their border.

    Returns:
        the scan with its focus distance, and the options with the size of the padded frames.

    Raises:
        ScanError: energy, distance or detector pixel are unknown, or the focus cannot be found from the frames.
    """
    geometry = _complete_lengths(recorded, config)
    # Files that say near field state its object pixel, or none.
    stated = recorded.geometry.propagation == "near" or (
        not recorded.far_field and recorded.geometry.object_pixel_m is not None
    )
    if not stated:
        recorded = _convert_to_metres(recorded)
    if config.focus_distance_m == "parallel":
        geometry = dataclasses.replace(geometry, focus_distance_m=None)
    elif config.focus_distance_m != "estimated":
        geometry = dataclasses.replace(geometry, focus_distance_m=config.focus_distance_m)
    elif not stated:
        geometry = _estimate_focus(recorded, geometry, bad, domain, config, notes)
    elif recorded.geometry.propagation == "far" and recorded.geometry.object_pixel_m is not None:
        geometry = _infer_focus(geometry, recorded.geometry.object_pixel_m)
    # An object pixel that a far-field formula gave means nothing here.
    pixel_m = recorded.geometry.object_pixel_m if stated else None
    geometry = dataclasses.replace(geometry, object_pixel_m=pixel_m).with_object_pixel(recorded.frames.shape[1])
    notes.append(_describe(geometry))
    nominal, far_pixel_m = recorded.nominal_positions_px, recorded.geometry.object_pixel_m
    if nominal is not None and not stated and far_pixel_m is not None:
        assert geometry.object_pixel_m is not None
        nominal = nominal * far_pixel_m / geometry.object_pixel_m
    recorded = dataclasses.replace(recorded, geometry=geometry, far_field=True, nominal_positions_px=nominal)
    height, width = recorded.frames.shape[1:]
    if config.crop_px is not None or height != width:
        return recorded, config
    assert geometry.object_pixel_m is not None
    assert geometry.effective_distance_m is not None
    assert geometry.wavelength_m is not None
    pattern = np.where(bad, 0.0, compute_mean_pattern(recorded.frames, domain))
    border = np.concatenate([pattern[0], pattern[-1], pattern[:, 0], pattern[:, -1]])
    if border.mean() < _MAX_BORDER_INTENSITY * np.percentile(pattern, 99):
        return recorded, config
    needed = choose_padding_px(geometry.object_pixel_m, geometry.effective_distance_m, geometry.wavelength_m)
    padding = min(needed, height // 2)
    notes.append(
        f"frames padded by {padding} masked pixels on each side, because the illumination reaches their border"
    )
    edge_px = (height + 2 * padding) // config.binning // 2 * 2
    return recorded, dataclasses.replace(config, crop_px=edge_px)


def _convert_to_metres(recorded: RawScan) -> RawScan:
    """Convert positions in the object pixels of a far-field formula, which are not those of a near-field image."""
    pixel_m = recorded.geometry.object_pixel_m
    if not is_pixels(recorded.unit) or pixel_m is None:
        return recorded
    return dataclasses.replace(
        recorded, positions=recorded.positions * pixel_m, unit="m", truth=None, truth_slices=None
    )


def _complete_lengths(recorded: RawScan, config: ReadConfig) -> Geometry:
    given = {
        name: value
        for name in ("energy_eV", "distance_m", "detector_pixel_m")
        if (value := getattr(config, name)) is not None
    }
    geometry = dataclasses.replace(recorded.geometry, propagation="near", **given)
    missing = [name for name in ("energy_eV", "distance_m", "detector_pixel_m") if getattr(geometry, name) is None]
    if missing:
        raise ScanError(
            recorded.path,
            None,
            expected="the lengths of a near-field experiment",
            found=f"no {', no '.join(missing)}",
            remedy=f"Give them with {' '.join('--' + name.replace('_', '-') for name in missing)}.",
            part="propagation",
        )
    return geometry


def _infer_focus(geometry: Geometry, object_pixel_m: float) -> Geometry:
    """Infer the distance from the focus from the pixels of detector and object."""
    assert geometry.detector_pixel_m is not None
    assert geometry.distance_m is not None
    magnification = geometry.detector_pixel_m / object_pixel_m
    # Both pixels are stated, not measured: only rounding is in the way.
    if magnification < 1 + 1e-6:
        return geometry
    return dataclasses.replace(geometry, focus_distance_m=geometry.distance_m / (magnification - 1))


def _estimate_focus(
    recorded: RawScan,
    geometry: Geometry,
    bad: Bool[np.ndarray, "h w"],
    domain: Domain,
    config: ReadConfig,
    notes: list[str],
) -> Geometry:
    """Estimate the distance from the focus by how far images of neighbouring frames move on the detector."""
    assert geometry.detector_pixel_m is not None
    assert geometry.distance_m is not None
    found = None
    height, width = recorded.frames.shape[1:]
    if not is_pixels(recorded.unit) and height == width:
        key = "', '".join(dict.fromkeys(reversed(recorded.position_keys)))
        unit_m = compute_position_factor(recorded.path, key, recorded.unit, None)
        found = measure_magnification(
            Scan(
                frames=recorded.frames,
                domain=domain,
                positions_px=orient_positions(recorded.positions * unit_m / geometry.detector_pixel_m, config, []),
                probe=np.zeros((1, height, height), np.complex64),
                mask=~bad,
                scan_id=np.zeros(len(recorded.rows), np.int64) if recorded.scan_id is None else recorded.scan_id,
            )
        )
    if found is None:
        raise ScanError(
            recorded.path,
            None,
            expected="neighbouring frames that show the same image, from which the magnification follows",
            found="none, or positions without a unit of length",
            remedy="Give the distance from the focus to the sample with --focus-distance-m, or --focus-distance-m "
            "parallel for a parallel beam.",
        )
    magnification, turn = found
    advice = _advise_orientation(turn)
    if advice is not None:
        notes.append(advice)
        _log.warning("%s: %s", recorded.path, advice)
    if magnification < _MIN_MAGNIFICATION:
        notes.append(f"images of neighbouring frames are magnified by {magnification:.3g}: a parallel beam")
        return geometry
    focus_m = geometry.distance_m / (magnification - 1)
    notes.append(
        f"images of neighbouring frames are magnified by {magnification:.4g}: the focus is {focus_m:.3g} m upstream"
    )
    return dataclasses.replace(geometry, focus_distance_m=focus_m)


def _advise_orientation(turn: Float64[np.ndarray, "2 2"]) -> str | None:
    """Advise the options by which positions move against the images; None where they do."""
    if np.array_equal(turn, np.eye(2)):
        return None
    swap = not turn[0, 0] and not turn[1, 1]
    signs = turn.sum(axis=0)
    if not np.array_equal(np.abs(turn), np.eye(2)[::-1] if swap else np.eye(2)):
        return "the images of neighbouring frames do not move along the axes of the positions: they are rotated"
    options = ["swap_xy"] * swap + ["flip_y"] * bool(signs[0] < 0) + ["flip_x"] * bool(signs[1] < 0)
    return f"the images of neighbouring frames say that positions need the other state of {', '.join(options)}"


def _describe(geometry: Geometry) -> str:
    cone = f"cone beam, magnification {geometry.magnification:.4g}"
    kind = "parallel beam" if geometry.focus_distance_m is None else cone
    return (
        f"near field, {kind}: object pixel {geometry.object_pixel_m:.3g} m, effective distance "
        f"{geometry.effective_distance_m:.3g} m, Fresnel number of a pixel {geometry.fresnel_number:.2g}"
    )


def estimate_near_field_probe(
    pattern: Float64[np.ndarray, "n n"], mask: Bool[np.ndarray, "n n"], geometry: Geometry
) -> Complex64[np.ndarray, "1 n n"]:
    """Estimate a probe: the root of the mean pattern with a flat phase, propagated back to the sample.

    Arguments:
        pattern: mean intensity of frames, or of frames without the sample.
        mask: good pixels; the others take the value of the nearest good one.
    """
    from scipy.ndimage import distance_transform_edt

    assert geometry.wavelength_m is not None
    assert geometry.effective_distance_m is not None
    assert geometry.object_pixel_m is not None
    nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    amplitude = np.sqrt(pattern[tuple(nearest)])
    transfer = angular_spectrum_transfer(
        len(pattern), geometry.object_pixel_m, geometry.effective_distance_m, geometry.wavelength_m
    )
    return np.fft.ifft2(np.fft.fft2(amplitude) * transfer.conj()).astype(np.complex64)[None]


def pad_probe(probe: Complex64[np.ndarray, "p a a"], n_px: int) -> Complex64[np.ndarray, "p n n"]:
    """Pad a probe with zeros, or cut its border: pixel a/2 becomes pixel n/2."""
    size = probe.shape[-1]
    if size >= n_px:
        start = size // 2 - n_px // 2
        return np.ascontiguousarray(probe[:, start : start + n_px, start : start + n_px])
    before = n_px // 2 - size // 2
    width = (before, n_px - size - before)
    return np.pad(probe, ((0, 0), width, width))
