"""From the content of a file to a scan: the one place where the options of reading act."""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np

from torchptycho.core.config.base import Domain
from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import DEFAULT_PHOTONS_PER_FRAME, Frames, Scan
from torchptycho.core.text import format_first
from torchptycho.io.checks import check_finite, check_frame_shape, check_positions
from torchptycho.io.detector_codes import find_codes
from torchptycho.io.detector_images import load_detector_image, load_detector_mask
from torchptycho.io.electron_calibration import calibrate_angle_rad
from torchptycho.io.field import check_field, refuse_outliers
from torchptycho.io.frame_positions import place_on_raster
from torchptycho.io.frames.processing import ProcessedFrames, Processing
from torchptycho.io.given_positions import replace_positions
from torchptycho.io.guesses import (
    compute_mean_pattern,
    estimate_beam_center_px,
    survey_frames,
)
from torchptycho.io.masks import check_masked_part
from torchptycho.io.near_field_reading import (
    is_near_field,
    prepare_near_field,
)
from torchptycho.io.parts import POSITIONS_REMEDY, describe_replacement, name_part
from torchptycho.io.raw_scan import RawScan
from torchptycho.io.scan_choice import choose_scan, describe_scans, leave_out_unreadable, pick_frames
from torchptycho.io.scan_geometry import (
    build_geometry,
    convert_to_pixels,
    find_scale,
    orient_positions,
)
from torchptycho.io.scan_probe import build_probe

__all__ = ["build_scan"]

_log = logging.getLogger(__name__)

_MAX_LISTED = 20


def build_scan(recorded: RawScan, why: str, config: ReadConfig) -> Scan:
    """Build the scan in a file, as the options ask for it.

    Arguments:
        why: how its format was recognised.

    Raises:
        ScanError: the content breaks the contract, or something is missing that an option can bring.
    """
    notes = [f"recognised as {recorded.format}: {why}", *recorded.notes]
    domain = config.domain or recorded.domain or _infer_domain(recorded.frames)
    in_file = np.asarray(recorded.rows)
    recorded = replace_positions(place_on_raster(recorded, config, notes), config, notes)
    if config.ignore:
        notes.append(f"left unread: {', '.join(config.ignore)}")
    recorded = _choose_frames(recorded, config, notes)
    n_notes = len(notes)
    try:
        recorded, bad, left_out = _leave_out_bad_frames(recorded, config, domain, in_file, notes)
    except ScanError:
        readable = leave_out_unreadable(recorded) if config.bad_frames == "leave-out" else recorded
        if readable is recorded:
            raise
        del notes[n_notes:]
        recorded, bad, left_out = _leave_out_bad_frames(readable, config, domain, in_file, notes)
    if is_near_field(recorded, config):
        if config.object_pixel_m is not None:
            raise ScanError(
                recorded.path,
                None,
                expected="far-field frames, for --object-pixel-m",
                found="near-field frames, whose object pixel is that of the detector, magnified",
                remedy="Give --detector-pixel-m and --focus-distance-m instead.",
            )
        recorded, config = prepare_near_field(recorded, bad, domain, config, notes)
    elif recorded.geometry.propagation == "near":
        recorded = dataclasses.replace(
            recorded, geometry=dataclasses.replace(recorded.geometry, propagation="far", object_pixel_m=None)
        )
    frames, steps = _process_frames(recorded, bad, config, domain, notes)
    n_px = frames.shape[1]
    scale = 1.0 if steps is None else find_scale(recorded, n_px, steps.binning)
    binning = 1 if steps is None else steps.binning
    angle_rad = None
    if config.angle_per_pixel_mrad is not None or config.convergence_mrad is not None:
        pattern = compute_mean_pattern(frames, domain)
        good = ~bad if steps is None else steps.mask
        angle_rad = calibrate_angle_rad(recorded, pattern, good, config, binning, notes)
    geometry = build_geometry(recorded, config, n_px, scale, binning, angle_rad)
    with name_part("positions", POSITIONS_REMEDY):
        check_finite(recorded)
        refuse_outliers(recorded)
    positions_px = orient_positions(convert_to_pixels(recorded, geometry, scale, n_px), config, notes)
    if recorded.truth is not None and recorded.truth_is_centered:
        middle = (positions_px.min(axis=0) + positions_px.max(axis=0)) / 2
        positions_px = positions_px + np.array(recorded.truth.shape) / 2 - middle
    with name_part("positions"):
        check_positions(recorded.path, positions_px, geometry, recorded.position_keys, recorded.unit, n_px)
        check_field(positions_px, n_px, recorded.path, recorded.position_keys, np.asarray(recorded.rows))
    turned = config.swap_xy or config.flip_y or config.flip_x or bool(config.positions_rotation_deg)
    same_pixels = math.isclose(scale, 1.0) and not turned
    if recorded.truth is not None and not same_pixels:
        notes.append("its object is left out: positions or pixels are no longer the file's")
    nominal = recorded.nominal_positions_px
    probe_is_own = config.probe is None and recorded.probe is not None
    scan = Scan(
        frames=frames,
        domain=domain,
        positions_px=positions_px,
        probe=np.zeros((1, n_px, n_px), np.complex64),
        mask=~bad if steps is None else steps.mask,
        scan_id=np.zeros(frames.shape[0], np.int64) if recorded.scan_id is None else recorded.scan_id,
        geometry=geometry,
        positions_unit=recorded.unit,
        source=str(recorded.path),
        truth=recorded.truth if same_pixels else None,
        truth_slices=recorded.truth_slices if same_pixels else None,
        truth_patches=recorded.truth_patches if same_pixels and steps is None else None,
        nominal_positions_px=None if nominal is None else orient_positions(nominal * scale, config, []),
        metadata=recorded.metadata,
        probe_is_calibrated=recorded.probe_is_calibrated and probe_is_own and steps is None,
        reading=config,
        left_out=left_out,
    )
    if not scan.mask.any():
        raise ScanError(
            recorded.path,
            "mask",
            expected="some good pixels",
            found="none",
            remedy="Check what the mask means (--mask-sense, --ignore mask), and where the beam centre is "
            "(--beam-center-px).",
            part="mask",
        )
    return dataclasses.replace(scan, probe=build_probe(recorded, scan, steps, config, notes), notes=tuple(notes))


def _infer_domain(frames: Frames) -> Domain:
    return "counts" if frames.dtype.kind in "iu" else "amplitude"


def _choose_frames(recorded: RawScan, config: ReadConfig, notes: list[str]) -> RawScan:
    """Return the scan of the file that is asked for; several are kept, and listed."""
    if config.scan is not None:
        n_in_file = recorded.frames.shape[0]
        recorded = choose_scan(recorded, config.scan)
        notes.append(f"scan {config.scan} chosen: {recorded.frames.shape[0]} of {n_in_file} frames")
    elif recorded.scan_id is not None and (recorded.scan_id != recorded.scan_id[0]).any():
        notes.append(f"{len(np.unique(recorded.scan_id))} scans in the file: {describe_scans(recorded.scan_id)}")
    return recorded


def _leave_out_bad_frames(
    recorded: RawScan, config: ReadConfig, domain: Domain, in_file: np.ndarray, notes: list[str]
) -> tuple[RawScan, np.ndarray, dict[int, str]]:
    """Remove the frames that are to be left out; return the rest, the bad pixels, and what was left out by the file's
    numbers.

    Arguments:
        in_file: numbers of the frames that may be dropped, those of other scans in the file among them.
    """
    height, width = recorded.frames.shape[1:]
    if recorded.bad_pixels is not None and recorded.bad_pixels.shape != (height, width):
        found = f"{recorded.bad_pixels.shape}"
        raise ScanError(
            recorded.path,
            "mask",
            expected=f"({height}, {width}), as the frames",
            found=found,
            remedy=f"Export a mask of the size of the frames. {describe_replacement('mask')}",
            part="mask",
        )
    bad = np.zeros((height, width), bool) if recorded.bad_pixels is None else recorded.bad_pixels.copy()
    if recorded.mask_to_check is not None:
        with name_part("mask", describe_replacement("mask")):
            masked = check_masked_part(
                recorded.path, recorded.mask_to_check, bad, recorded.frames, domain, is_own=config.mapping is None
            )
        if masked is not None:
            notes.append(masked)
            _log.warning("%s: %s", recorded.path, masked)
    if config.mask is not None:
        extra_mask, place, note = load_detector_mask(config.mask, (height, width), config.mask_sense)
        if config.mask_sense == "auto":
            check_masked_part(place.path, place.key, extra_mask, recorded.frames, domain, is_own=False)
        bad |= extra_mask
        notes.append(note)
    if config.mask_codes:
        codes, seen_codes = find_codes(recorded.frames, domain)
        if seen_codes is not None and (codes & ~bad).any():
            bad |= codes
            notes.append(seen_codes)
            _log.warning("%s: %s", recorded.path, seen_codes)
    rows = np.asarray(recorded.rows)
    left_out = dict(recorded.left_out)
    for frame in config.drop_frames:
        if not (in_file == frame).any() and frame not in left_out:
            raise ScanError(
                recorded.path,
                None,
                expected=f"a frame {frame} to drop",
                found=f"frames {in_file[0]} to {in_file[-1]}",
                remedy="Count frames from 0.",
            )
        if (rows == frame).any() or frame in left_out:
            left_out[frame] = "asked for by drop_frames"
    if config.bad_frames == "leave-out":
        left_out |= {int(row): "no position" for row in rows[~np.isfinite(recorded.positions).all(axis=1)]}
    if config.find_bad_pixels or config.bad_frames == "leave-out":
        photons = recorded.metadata.get("nphotons", recorded.metadata.get("photons_per_frame"))
        clip = config.clip_negative or config.dark is not None
        seen = survey_frames(recorded.frames, bad, domain, photons or DEFAULT_PHOTONS_PER_FRAME, clip=clip)
        if config.bad_frames == "leave-out":
            left_out |= {int(rows[row]): fault for row, fault in seen.bad_frames.items()}
        if config.find_bad_pixels:
            for name, pixels in (("hot", seen.hot), ("dead", seen.dead), ("saturated", seen.saturated)):
                notes.append(f"{int(pixels.sum())} {name} pixel(s) masked")
            bad |= seen.hot | seen.dead | seen.saturated
    keep = ~np.isin(rows, list(left_out))
    if left_out:
        reasons = format_first((f"{frame} ({why})" for frame, why in sorted(left_out.items())), _MAX_LISTED)
        notes.append(f"{len(left_out)} frame(s) left out: {reasons}")
        _log.warning("%s: %s", recorded.path, notes[-1])
    return pick_frames(recorded, np.flatnonzero(keep)), bad, left_out


def _process_frames(
    recorded: RawScan, bad: np.ndarray, config: ReadConfig, domain: Domain, notes: list[str]
) -> tuple[Frames, Processing | None]:
    height, width = recorded.frames.shape[1:]
    if not config.changes_frames:
        check_frame_shape(recorded.path, str(getattr(recorded.frames, "key", "frames")), height, width)
        return recorded.frames, None
    for name in ("dark", "flat", "clip_negative"):
        if getattr(config, name) and domain == "amplitude":
            raise ScanError(
                recorded.path,
                None,
                expected=f"counts, for --{name.replace('_', '-')}",
                found="amplitudes",
                remedy="Leave it out, or say --domain counts.",
            )
    center: tuple[float, float] = (height // 2, width // 2)
    if config.beam_center_px == "estimated":
        pattern = compute_mean_pattern(recorded.frames, domain)
        if config.fftshift:
            pattern, shifted_bad = np.fft.fftshift(pattern), np.fft.fftshift(bad)
        center = estimate_beam_center_px(pattern, shifted_bad if config.fftshift else bad)
        notes.append(f"beam centre estimated at pixel (y, x) = ({center[0]:.1f}, {center[1]:.1f})")
    elif config.beam_center_px is not None:
        center = config.beam_center_px
        if not (center[0] < height and center[1] < width):
            raise ScanError(
                recorded.path,
                None,
                expected=f"a beam centre inside the {height}x{width} px of a frame",
                found=f"beam_center_px {center}",
                remedy="Give pixels as (y, x).",
            )
    n_px = config.crop_px or min(height, width) // config.binning // 2 * 2
    if not 2 <= n_px * config.binning <= 2 * max(height, width):
        raise ScanError(
            recorded.path,
            None,
            expected=f"frames that fill at least half of {n_px * config.binning} px",
            found=f"{height}x{width} px",
            remedy="Choose a smaller crop_px or binning.",
        )
    # The centre of pixel N/2 is on the direct beam, to within whole detector pixels.
    back = (n_px * config.binning + config.binning - 1) / 2
    steps = Processing(
        shift=config.fftshift,
        top=math.floor(center[0] - back + 0.5),
        left=math.floor(center[1] - back + 0.5),
        n_px=n_px,
        binning=config.binning,
        bad_pixels=bad,
        clip=config.clip_negative,
        dark=None if config.dark is None else load_detector_image(config.dark, (height, width)),
        flat=None if config.flat is None else load_detector_image(config.flat, (height, width)),
    )
    notes.append(
        f"frames of {height}x{width} px {'shifted and ' if config.fftshift else ''}cut to rows {steps.top}:"
        f"{steps.top + n_px * config.binning}, columns {steps.left}:{steps.left + n_px * config.binning}, binned by "
        f"{config.binning} to {n_px}x{n_px}"
    )
    notes += [f"{name}: {getattr(config, name)}" for name in ("dark", "flat") if getattr(config, name)]
    if config.dark is not None or config.clip_negative:
        notes.append("negative counts set to 0")
    return ProcessedFrames(recorded.frames, steps, domain), steps
