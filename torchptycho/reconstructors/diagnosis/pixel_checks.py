"""Faults of detector pixels, of their mask and of the centre of the frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64

from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.io.bad_pixels import find_dead_pixels, find_hot_pixels
from torchptycho.io.position_scale import measure_center
from torchptycho.reconstructors.diagnosis.findings import Evidence, Finding
from torchptycho.reconstructors.diagnosis.measures import count_clipped, find_gaps, measure_masked_light
from torchptycho.reconstructors.diagnosis.scan_checks import Checked, ScanView

__all__ = ["PIXEL_CHECKS"]

_MAX_OFFSET_PX, _MAX_OFFSET_PART = 1.5, 1 / 40
_MAX_MASKED_LIGHT = 0.3


def _check_mask(view: ScanView) -> Checked | None:
    part = view.part
    light = measure_masked_light(view.pattern, part.mask)
    if light < _MAX_MASKED_LIGHT:
        return None
    asked = view.scan.reading.mask_sense
    finding = Finding(
        fault="mask",
        sentence=f"The mask leaves out {light:.0%} of the light and {1 - part.mask.mean():.0%} of the pixels: it seems "
        "to be read the wrong way round.",
        option=f"--mask-sense {'good' if asked == 'bad' else 'bad'}",
        evidence=Evidence(kind="pattern", title="mean pattern under the mask", values=view.pattern * ~part.mask),
    )
    # An inverted mask has no pixel in common with this one: the light itself says which pixels can be trusted.
    trusted = ~part.mask if part.mask.mean() > 0.5 else np.ones_like(part.mask)
    return Checked(finding=finding, fix=lambda one: dataclasses.replace(one, mask=trusted | one.mask))


def _check_hot(view: ScanView) -> Checked | None:
    summary = view.summary
    if not summary.n_hot_pixels:
        return None
    hot = find_hot_pixels(_sum_part(view), view.part.mask)
    return Checked(
        finding=Finding(
            fault="hot pixels",
            sentence=f"{summary.n_hot_pixels} pixel(s) count far more than their neighbours.",
            option="--find-bad-pixels",
            evidence=Evidence(kind="pattern", title="mean pattern", values=view.pattern, mark=_find_peak(view, hot)),
        ),
        fix=lambda one: dataclasses.replace(one, mask=one.mask & ~hot),
    )


def _check_dead(view: ScanView) -> Checked | None:
    summed = _sum_part(view)
    single = find_dead_pixels(summed, view.part.mask)
    center = measure_center(np.where(view.part.mask, summed, 0))
    gaps = find_gaps(summed, view.part.mask, (float(center[0]), float(center[1])))
    dead = single | gaps
    if not dead.any():
        return None
    alone = not (gaps & ~single).any()
    option, files = _offer_mask(view, view.part.mask & ~dead, alone=alone)
    return Checked(
        finding=Finding(
            fault="dead pixels",
            sentence=f"{int(dead.sum())} pixel(s) that are taken for good never count, although others at the same "
            "distance from the centre do." + ("" if option else " Mask them, in the layout of the file."),
            option=option,
            evidence=Evidence(kind="image", title="pixels that never count", values=dead.astype(float)),
            files=files,
        ),
        fix=lambda one: dataclasses.replace(one, mask=one.mask & ~dead),
    )


def _check_saturation(view: ScanView) -> Checked | None:
    frames = view.part.frames[:]
    found = count_clipped(frames, view.part.mask)
    if found is None and not view.summary.n_saturated_pixels:
        return None
    if found is None:
        pixels = frames.max(axis=0) == frames.max()
        sentence, alone = f"{view.summary.n_saturated_pixels} pixel(s) reach the largest value of their type.", True
    else:
        limit, pixels = found
        alone = bool(view.summary.n_saturated_pixels)
        sentence = f"{int(pixels.sum())} pixel(s) are cut off at {limit:.6g} counts: the detector was saturated."
    option, files = _offer_mask(view, view.part.mask & ~pixels, alone=alone)
    return Checked(
        finding=Finding(
            fault="saturation",
            sentence=sentence if option else f"{sentence} Mask them, in the layout of the file.",
            option=option,
            evidence=Evidence(kind="image", title="saturated pixels", values=pixels.astype(float)),
            files=files,
        ),
        fix=lambda one: dataclasses.replace(one, mask=one.mask & ~pixels),
    )


def _check_center(view: ScanView) -> Checked | None:
    scan, n_px = view.part, view.part.n_px
    wave = np.abs(np.fft.fftshift(np.fft.fft2(scan.probe), axes=(-2, -1))) ** 2
    # The pattern of a tilted probe is off centre with it.
    expected = measure_center(np.where(scan.mask, wave.sum(axis=0), 0))
    measured = measure_center(np.where(scan.mask, _sum_part(view), 0))
    offset = measured - expected
    if float(np.abs(offset).max()) <= max(_MAX_OFFSET_PX, _MAX_OFFSET_PART * n_px):
        return None
    shift = (-round(float(offset[0])), -round(float(offset[1])))
    y, x = (n_px / 2 - along for along in shift)
    known = not view.scan.reading.changes_frames
    return Checked(
        finding=Finding(
            fault="centre",
            sentence=f"The patterns are centred {offset[0]:+.1f} px in y and {offset[1]:+.1f} px in x from where the "
            "probe has its centre, which puts a ramp on the phase.",
            option=f"--beam-center-px {y:.1f} {x:.1f}" if known else "--beam-center-px estimated",
            evidence=Evidence(
                kind="pattern",
                title="mean pattern and its centre",
                values=view.pattern,
                mark=(float(measured[0]), float(measured[1])),
            ),
        ),
        fix=lambda one: _roll_frames(one, shift),
    )


PIXEL_CHECKS: tuple[Callable[[ScanView], Checked | None], ...] = (
    _check_mask,
    _check_hot,
    _check_dead,
    _check_saturation,
    _check_center,
)
"""Checks whose remedies change the frames or the mask."""


def _offer_mask(
    view: ScanView, mask: Bool[np.ndarray, "n n"], *, alone: bool
) -> tuple[str | None, dict[str, dict[str, np.ndarray]]]:
    """Return the option that masks pixels, and the file it refers to.

    Arguments:
        alone: whether --find-bad-pixels finds them.
    """
    if alone:
        return "--find-bad-pixels", {}
    # --mask is applied to frames as they are in the file; this mask has been cropped, shifted or binned with them.
    if view.scan.reading.changes_frames:
        return None, {}
    return "--mask mask.npz:mask --mask-sense good", {"mask.npz": {"mask": mask}}


def _sum_part(view: ScanView) -> Float64[np.ndarray, "n n"]:
    return np.asarray(view.part.frames[:].sum(axis=0, dtype=np.float64))


def _find_peak(view: ScanView, among: np.ndarray) -> tuple[float, float] | None:
    if not among.any():
        return None
    y, x = np.unravel_index(int(np.where(among, _sum_part(view), -1).argmax()), among.shape)
    return float(y), float(x)


def _roll_frames(scan: Scan, shift: tuple[int, int]) -> Scan:
    frames = np.roll(scan.frames[:], shift, axis=(1, 2))
    return dataclasses.replace(scan, frames=ArrayFrames(frames), mask=np.roll(scan.mask, shift, axis=(0, 1)))
