"""An image to start from, brought to the pixels and positions that the scan has now."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
from jaxtyping import Complex64, Float64
from scipy.spatial import cKDTree

from torchptycho.analysis.resampling import resample_image
from torchptycho.core.errors import ConfigError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.io.guesses import compute_mean_pattern
from torchptycho.io.probe_fitting import correlate_with_pattern, resample_field

__all__ = ["match_start"]

_log = logging.getLogger(__name__)

# A larger ratio of two pixel sizes indicates a wrong unit, and the start is refused.
_MAX_SCALE = 4.0
# Tolerances: of positions that were given twice, and RMS of refined positions relative to the extent of the scan.
_SAME_PX, _REFINED_FRACTION = 0.05, 0.25
# Relative tolerance of equal pixel sizes.
_SAME_PIXEL = 1e-3
_TURNS = {
    "read as they are now": ((1, 0), (0, 1)),
    "with y reversed": ((-1, 0), (0, 1)),
    "with x reversed": ((1, 0), (0, -1)),
    "with x and y reversed": ((-1, 0), (0, -1)),
    "with x and y exchanged": ((0, 1), (1, 0)),
    "with x and y exchanged and y reversed": ((0, -1), (1, 0)),
    "with x and y exchanged and x reversed": ((0, 1), (-1, 0)),
    "with x and y exchanged and both reversed": ((0, -1), (-1, 0)),
}
"""How positions may be oriented: matrices on (y, x)."""

Positions = Float64[np.ndarray, "m 2"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Change:
    """A position p of the start is the position scale * p + shift_px of the scan."""

    scale: float
    shift_px: tuple[float, float] = (0.0, 0.0)

    def apply(self, positions_px: Positions) -> Positions:
        moved: Positions = self.scale * positions_px + np.array(self.shift_px)
        return moved

    def moves(self, extent_px: float) -> bool:
        return abs(self.scale - 1) * extent_px > _SAME_PX or max(map(abs, self.shift_px)) > _SAME_PX


def match_start(start: Reconstruction, scan: Scan) -> Reconstruction:
    """Bring a start to the object pixels of the scan, when energy, distance or detector were corrected since.

    How the scan was read before is known from the positions that it gave then; of an image without them from its pixel
    size. The object is resampled, and refined positions are scaled. The probe stays as it is pixel by pixel where it
    agrees better so with the mean pattern, as after a correction of what the file says about the same frames, and is
    resampled otherwise.

    Raises:
        ConfigError: the start is of another orientation or position source, or its pixels have nothing to do with the
            scan's.
    """
    pixel_m = scan.geometry.with_object_pixel(scan.n_px).object_pixel_m
    change = _find_change(start, scan, pixel_m)
    extent_px = float(max(*start.object.shape[-2:], *np.abs(start.origin_px)))
    if not change.moves(extent_px):
        return dataclasses.replace(start, **_match_probe(start, scan, pixel_m))
    if not 1 / _MAX_SCALE <= change.scale <= _MAX_SCALE:
        raise ConfigError(
            f"start: its object pixels are {change.scale:.4g} times as large as the scan's"
            f"{_describe_pixels(start.object_pixel_m, pixel_m)}. Correct the unit of energy, distance, detector pixel "
            "or positions, or refine without a start."
        )
    if start.object.ndim == 3:
        raise ConfigError(
            f"start: expected an image with the scan's pixels, because it has {len(start.object)} slices; found one of "
            f"another geometry{_describe_pixels(start.object_pixel_m, pixel_m)}. Read the scan as then, or refine "
            "without a start."
        )
    moved = resample_image(start, 1 / change.scale, pixel_m, change.shift_px)
    _log.warning(
        "%s: the start is of another geometry%s: its object was resampled to %.4g times as many pixels%s.",
        scan.source,
        _describe_pixels(start.object_pixel_m, pixel_m),
        change.scale,
        "" if start.positions_px is None else ", and its positions were scaled with it",
    )
    return dataclasses.replace(
        moved,
        **_match_probe(start, scan, pixel_m),
        positions_px=None if start.positions_px is None else change.apply(start.positions_px),
        given_positions_px=None if start.given_positions_px is None else change.apply(start.given_positions_px),
    )


def _find_change(start: Reconstruction, scan: Scan, pixel_m: float | None) -> _Change:
    """Find how positions changed since the start was made.

    Raises:
        ConfigError: they did not just become larger or smaller and move.
    """
    now, same = scan.positions_px, _Change(scale=1.0)
    ratio = start.object_pixel_m / pixel_m if start.object_pixel_m and pixel_m else 1.0
    ratio = 1.0 if abs(ratio - 1) < _SAME_PIXEL else ratio
    by_pixel = _Change(scale=ratio)
    if start.given_positions_px is not None and len(start.given_positions_px) != len(now):
        return _match_some_frames(start.given_positions_px, now, by_pixel)
    given, refined = (
        None if positions is None or positions.shape != now.shape else positions
        for positions in (start.given_positions_px, start.positions_px)
    )
    if given is not None:
        if np.abs(given - now).max() < _SAME_PX:
            return same
        if refined is not None and np.abs(refined - now).max() < _SAME_PX:
            # The scan already has the refined positions.
            return same
        _check_orientation(given, now)
        change = _fit_change(given, now)
        off_px = float(np.abs(change.apply(given) - now).max())
        if off_px > _SAME_PX:
            raise ConfigError(
                f"start: it was made with other positions: scaled by {change.scale:.4g} and moved, they still differ "
                f"from the scan's by up to {off_px:.3g} px. Read the same positions as then, or refine without a start."
            )
        # A correction of the positions may already include the change of scale.
        found = [same, change] if refined is not None else [change]
        return min(found, key=lambda each: _measure_rms(each, given if refined is None else refined, now))
    if refined is None:
        return by_pixel
    _check_orientation(refined, now)
    change = min((same, by_pixel), key=lambda each: _measure_rms(each, refined, now))
    off_px, extent_px = _measure_rms(change, refined, now), float(now.std(0).max())
    if off_px > max(1.0, _REFINED_FRACTION * extent_px):
        raise ConfigError(
            f"start: its positions are not those of the scan: {off_px:.3g} px RMS from them, which extend over "
            f"{' x '.join(f'{edge:.4g}' for edge in np.ptp(now, axis=0))} px. Is it an image of this scan?"
        )
    return change


def _match_some_frames(given: Positions, now: Float64[np.ndarray, "k 2"], by_pixel: _Change) -> _Change:
    """Find the change for a start of fewer or more frames, which lie where some of the others do.

    Raises:
        ConfigError: they do not.
    """
    off_px = {}
    for change in (_Change(scale=1.0), by_pixel):
        fewer, more = sorted((change.apply(given), now), key=len)
        off_px[change] = float(cKDTree(more).query(fewer)[0].max())
    best = min(off_px, key=lambda change: off_px[change])
    if off_px[best] > _SAME_PX:
        raise ConfigError(
            f"start: it was made with positions of {len(given)} frames that are not among those of the scan's "
            f"{len(now)}: up to {off_px[best]:.3g} px from the nearest. Read the scan as then (energy, distance, "
            "swap_xy, flip_y, flip_x), or refine without a start."
        )
    return best


def _check_orientation(before: Positions, now: Positions) -> None:
    """Refuse positions that agree better when they are turned than as they are."""
    rms = {}
    for name, matrix in _TURNS.items():
        turned = before @ np.array(matrix, np.float64).T
        rms[name] = _measure_rms(_fit_change(turned, now), turned, now)
    here, *_ = rms.values()
    best = min(rms, key=lambda name: rms[name])
    if rms[best] < 0.5 * here and here > _SAME_PX:
        raise ConfigError(
            f"start: it was made with another orientation: the scan's positions are the start's {best}. Read the scan "
            "as then (swap_xy, flip_y, flip_x, translation_sign), or refine without a start."
        )


def _fit_change(before: Positions, now: Positions) -> _Change:
    """Fit a scale and a shift in least squares."""
    away, wanted = before - before.mean(0), now - now.mean(0)
    scale = float((away * wanted).sum() / max(float((away**2).sum()), 1e-30))
    scale = max(scale, 1e-9)
    y, x = (now.mean(0) - scale * before.mean(0)).tolist()
    return _Change(scale=scale, shift_px=(y, x))


def _measure_rms(change: _Change, before: Positions, now: Positions) -> float:
    """RMS distance, less the shift that all have in common."""
    off = change.apply(before) - now
    return float(np.sqrt(np.square(off - off.mean(0)).sum(1).mean()))


def _match_probe(start: Reconstruction, scan: Scan, pixel_m: float | None) -> dict[str, Any]:
    """Return the start's probe, and its modes of variation likewise, as fields of the matched start."""
    if start.probe is None:
        return {}
    modes = start.probe if start.opr_modes is None else np.concatenate([start.probe, start.opr_modes])
    matched = _match_modes(modes, len(start.probe), start, scan, pixel_m)
    probe, variation = np.split(matched, [len(start.probe)])
    return {"probe": probe} if start.opr_modes is None else {"probe": probe, "opr_modes": variation}


def _match_modes(
    probe: Complex64[np.ndarray, "all n n"], n_modes: int, start: Reconstruction, scan: Scan, pixel_m: float | None
) -> Complex64[np.ndarray, "all k k"]:
    ratio = start.object_pixel_m / pixel_m if start.object_pixel_m and pixel_m else 1.0
    if not 1 / _MAX_SCALE <= ratio <= _MAX_SCALE:
        return probe
    same_edge = probe.shape[-1] == scan.n_px
    if same_edge and abs(ratio - 1) < _SAME_PIXEL:
        return probe
    resampled = resample_field(probe, ratio, scan.n_px)
    if not same_edge:
        return resampled
    pattern = np.sqrt(compute_mean_pattern(scan.frames, scan.domain)) * scan.mask
    return max((probe, resampled), key=lambda modes: correlate_with_pattern(modes[:n_modes], pattern))


def _describe_pixels(start_m: float | None, scan_m: float | None) -> str:
    if not start_m or not scan_m:
        return ""
    return f" (object pixel {start_m:.5g} m; the scan's is {scan_m:.5g} m)"
