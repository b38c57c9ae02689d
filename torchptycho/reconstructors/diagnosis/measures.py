"""Measures of frames and positions that show a fault without a refinement."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float64, Shaped

__all__ = [
    "count_clipped",
    "find_gaps",
    "find_repeats",
    "measure_masked_light",
    "measure_regularity",
    "measure_spacing_px",
]

# Counts that are expected of a pixel that never counted, for it to be dead: by chance that happens once in exp(20).
_EXPECTED_COUNTS = 20.0
_MIN_GAP_PX = 16
# A limit of the detector lies above values that occur by chance, and is reached more often than approached.
_MIN_LIMIT, _MIN_CLIPPED, _NEAR_LIMIT = 30, 6, 0.9


def measure_regularity(positions_px: Float64[np.ndarray, "m 2"]) -> float:
    """Measure how far positions lie on a lattice: 1 on a perfect one, exp(-(2 pi s / step)^2) at errors of s, 0 else.

    It is the smaller structure factor |sum exp(2 pi i k p)|^2 / M^2 at the two strongest independent k, which are about
    one over the step.
    """
    from scipy.spatial import cKDTree

    distinct = np.unique(positions_px, axis=0)
    if len(distinct) < 9:
        return 0.0
    step = float(np.median(np.asarray(cKDTree(distinct).query(distinct, k=2)[0])[:, 1]))
    extent = max(float(np.ptp(distinct, axis=0).max()), step)
    reach = 1.3 / step
    k = np.arange(0, reach, 0.2 / extent)
    k = np.concatenate([-k[:0:-1], k])
    phases = [np.exp(2j * np.pi * np.outer(k, along)) for along in distinct.T]
    factor = np.abs(phases[0] @ phases[1].T) ** 2 / len(distinct) ** 2
    ky, kx = np.meshgrid(k, k, indexing="ij")
    length = np.hypot(ky, kx)
    factor[(length < 0.5 / step) | (length > reach)] = 0
    first = np.unravel_index(int(factor.argmax()), factor.shape)
    across = np.abs(ky * kx[first] - kx * ky[first]) / np.maximum(length * length[first], 1e-12)
    return float(factor[across > math.sin(math.radians(30))].max(initial=0.0))


def find_repeats(
    positions_px: Float64[np.ndarray, "m 2"], counts: Float64[np.ndarray, "m n n"]
) -> tuple[int, float] | None:
    """Find frames taken at the place of an earlier one that show something else: another scan in the same file.

    Returns:
        the number of the frame with which the second pass begins, and how unlike the frames of a place are, relative to
        frames of any two places: 0 for the same, 1 for no relation; None without a second pass or where noise hides it.
    """
    from scipy.spatial import cKDTree

    step = _measure_step(positions_px)
    pairs = cKDTree(positions_px).query_pairs(0.25 * step, output_type="ndarray")
    count = len(positions_px)
    pairs = np.sort(pairs, axis=1)
    pairs = pairs[pairs[:, 1] - pairs[:, 0] > count // 5]
    if len(pairs) < max(8, count // 5):
        return None
    roots, mean = np.sqrt(counts), counts.mean(axis=0)
    # The variance of the root of a count is 1/4, or its mean where that is less.
    noise = 2 * float(np.minimum(mean, 0.25).sum())
    other = np.random.default_rng(0).permutation(count)
    unlike = float(np.mean(((roots - roots[other]) ** 2).sum((1, 2))[other != np.arange(count)]))
    same = float(np.mean([((roots[a] - roots[b]) ** 2).sum() for a, b in pairs[:200]]))
    if unlike < 1.3 * noise:
        return None
    begin = round(float(np.median(pairs[:, 1] - pairs[:, 0])))
    return begin, max(0.0, same - noise) / (unlike - noise)


def find_gaps(
    summed: Float64[np.ndarray, "n n"], good: Bool[np.ndarray, "n n"], center: tuple[float, float]
) -> Bool[np.ndarray, "n n"]:
    """Find pixels that never counted although those at the same distance from the centre did: gaps, dead modules.

    Arguments:
        summed: counts of all frames.
        center: (y, x) of the direct beam.
    """
    from scipy.ndimage import label

    rows, columns = np.indices(summed.shape)
    ring = np.rint(np.hypot(rows - center[0], columns - center[1])).astype(int)
    expected = np.zeros(ring.max() + 1)
    for radius in range(len(expected)):
        # Neighbouring rings lie in the annulus, too, so that the innermost ones have enough pixels.
        values = summed[(np.abs(ring - radius) <= 1) & good]
        expected[radius] = np.median(values) if len(values) else 0.0
    silent = (summed == 0) & good & (expected[ring] >= _EXPECTED_COUNTS)
    # The dark fringes of an object are narrow; a single dead pixel is found by its neighbours.
    parts, _ = label(silent)
    gaps: Bool[np.ndarray, "n n"] = silent & (np.bincount(parts.ravel())[parts] >= _MIN_GAP_PX)
    return gaps


def count_clipped(
    frames: Shaped[np.ndarray, "k n n"], good: Bool[np.ndarray, "n n"]
) -> tuple[float, np.ndarray] | None:
    """Find counts that a limit of the detector cut off, below the largest value of their dtype.

    Returns:
        the limit, and True for the pixels that reached it; None where the largest values are rarer than those below.
    """
    values = np.where(good, frames, 0)
    limit = float(values.max())
    if limit < _MIN_LIMIT:
        return None
    at_limit = values == limit
    n_clipped = int(at_limit.sum())
    n_near = int(((values > _NEAR_LIMIT * limit) & ~at_limit).sum())
    if n_clipped < _MIN_CLIPPED or n_clipped <= n_near:
        return None
    return limit, at_limit.any(axis=0)


def measure_masked_light(pattern: Float64[np.ndarray, "n n"], good: Bool[np.ndarray, "n n"]) -> float:
    """Measure the part of the light of a mean pattern that lies under its mask; single hot pixels do not count."""
    from scipy.ndimage import median_filter

    smooth = median_filter(pattern, size=3)
    # Codes of a detector under the mask are larger than any count.
    smooth = np.minimum(smooth, 100 * max(float(smooth[good].max(initial=0.0)), 1e-300))
    total = float(smooth.sum())
    return float(smooth[~good].sum()) / total if total > 0 else 0.0


def measure_spacing_px(positions_px: Float64[np.ndarray, "m 2"], neighbours: int = 25) -> float:
    """Measure the mean distance between positions by their density around the middle of the field.

    Unlike the distance to the nearest it is not small where a few of random positions happen to lie close together.
    """
    distinct = np.unique(positions_px, axis=0)
    count = min(neighbours, len(distinct))
    distance = np.sort(np.hypot(*(distinct - np.median(distinct, axis=0)).T))
    return float(distance[count - 1]) * math.sqrt(math.pi / count)


def _measure_step(positions_px: Float64[np.ndarray, "m 2"]) -> float:
    from scipy.spatial import cKDTree

    distinct = np.unique(np.round(positions_px, 6), axis=0)
    nearest: Float64[np.ndarray, " k"] = np.asarray(cKDTree(distinct).query(distinct, k=2)[0])[:, 1]
    # A second pass with small errors of the positions halves the distance to the nearest.
    return float(np.median(nearest[nearest > 0.3 * np.quantile(nearest, 0.9)]))
