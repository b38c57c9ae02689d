"""Whether a fit that has ended can be right."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import label

from torchptycho.core.reconstruction import MIN_COVERAGE
from torchptycho.reconstructors.iterative.fit import EpochFit

__all__ = ["HOPELESS_UNEXPLAINED", "compute_unexplained", "judge_fit", "judge_illumination", "summarize_fit"]

HOPELESS_UNEXPLAINED = 0.2
"""Part of the variation between frames that a fit leaves when the scan was read wrongly.

Position errors of 0.5 px RMS leave 0.06, of 1 px 0.16 to 0.21, positions twice as large 0.215 and more, at any dose at
which photon noise does not hide them (benchmarks/hopeless_fits.py). A higher bound would miss these.
"""

# Up to here position errors of about 1 px RMS leave as much as positions that are twice as large, or a wrong domain. A
# correction of the positions tells them apart: it leaves 0.0001 of the former, and 0.16 or more of the latter.
_LIKE_POSITION_ERRORS = 0.25

# A fit that has just begun is far from the counts whatever it is going to be, and one that still gains this much in as
# many epochs may come to be right.
_MIN_EPOCHS, _STILL_FALLING = 10, 0.9

# A fit that leaves less of the variation between frames has found its probe, however small it is. Otherwise a probe
# that fills less than this part of what it began with, or a canvas with this part outside its largest piece, ran away.
_EXPLAINED, _MIN_AREA_RATIO, _MAX_APART = 0.05, 0.3, 0.1


def compute_unexplained(fit: EpochFit, variation: float) -> float:
    """Compute the part of what distinguishes the frames that a fit leaves unexplained.

    0 is photon noise, and 1 no better than the same pattern for every frame. Unlike the misfit it does not grow with
    the dose: from the residual and from the variation that of photon noise, whose misfit is 1, is subtracted.

    Arguments:
        variation: of the frames, see `measure_variation`.
    """
    if not fit.misfit > 1:
        return 0.0
    noise = fit.residual / fit.misfit
    # Where the frames differ by less than photon noise there is nothing to explain but the mean pattern.
    return (fit.residual - noise) / max(variation - noise, noise)


def judge_fit(history: dict[str, list[float]], source: str, *, corrects_positions: bool = False) -> str | None:
    """Describe what is wrong with a fit in one line when there is no hope that its image is right, else return None.

    Arguments:
        corrects_positions: whether positions were corrected, so that their errors are not left.
    """
    unexplained = history.get("unexplained", [])
    if len(unexplained) < _MIN_EPOCHS or unexplained[-1] <= HOPELESS_UNEXPLAINED:
        return None
    small = unexplained[-1] <= _LIKE_POSITION_ERRORS and not corrects_positions
    falls = unexplained[-1] < _STILL_FALLING * unexplained[-_MIN_EPOCHS // 2]
    return (
        f"{source}: the fit leaves {unexplained[-1]:.0%} of the variation between frames unexplained, beyond "
        f"photon noise (misfit {history['misfit'][-1]:.4g} after {len(unexplained)} epochs); above "
        f"{HOPELESS_UNEXPLAINED:.0%} the scan is not what it is taken for. Look first at the orientation, the units of "
        "positions, energy and distance, the mask, the domain, a background, then at the probe and at position errors."
        + (" Position errors of 1 px leave as much: --position-update frames tells them apart." if small else "")
        + (" It still improves: give it more epochs before that." if falls else "")
    )


def judge_illumination(
    history: dict[str, list[float]], area_ratio: float, coverage: Float32[np.ndarray, "h w"], source: str
) -> str | None:
    """Describe in one line that the probe has run away from the positions, else return None.

    When positions are wrong by much, a probe that has shrunk to a spot fits each frame alone: the frames no longer
    overlap, and the canvas falls into parts.

    Arguments:
        area_ratio: pixels that the light of the probe fills, over those that it filled in the beginning.
        coverage: of the canvas, 1 at its peak.
    """
    unexplained = history.get("unexplained", [])
    if len(unexplained) < _MIN_EPOCHS or unexplained[-1] < _EXPLAINED:
        return None
    illuminated = coverage > MIN_COVERAGE
    parts, n_parts = label(illuminated, np.ones((3, 3)))
    apart = 0.0 if n_parts < 2 else 1 - float(np.bincount(parts[illuminated]).max()) / float(illuminated.sum())
    shrunk = area_ratio < _MIN_AREA_RATIO
    if not shrunk and apart < _MAX_APART:
        return None
    faults = []
    if shrunk:
        faults.append(f"the probe has shrunk to {area_ratio:.0%} of the area that it began with")
    if apart >= _MAX_APART:
        faults.append(f"the illuminated canvas falls into {n_parts} parts")
    return (
        f"{source}: {' and '.join(faults)}, as it happens when positions are wrong by much. Search for them "
        "with --position-update frames --position-search-px 24, correct their unit, or give a better probe."
    )


def summarize_fit(history: dict[str, list[float]]) -> dict[str, float | None]:
    """Return the last figures of a fit; None for those that are not known."""
    return {name: next(reversed(history.get(name, [])), None) for name in ("misfit", "residual", "unexplained")}
