"""Which pixels of a detector are not to be trusted, judged by its own counts."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

__all__ = ["find_dead_pixels", "find_hot_pixels"]

# Expected counts above which a pixel without counts is dead: the probability by chance is exp(-20).
_EXPECTED_COUNTS = 20.0
_HOT_RATIO, _HOT_NEIGHBOUR_RATIO, _HOT_COUNTS = 10.0, 3.0, 100.0


def find_dead_pixels(counts: Float64[np.ndarray, "h w"], good: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Find pixels that never counted although the median of the 24 pixels around them predicts at least 20 counts."""
    from scipy.ndimage import median_filter

    around = np.ones((5, 5), bool)
    around[2, 2] = False
    expected = median_filter(counts, footprint=around, mode="nearest")
    dead: np.ndarray = (counts == 0) & (expected >= _EXPECTED_COUNTS) & good
    return dead


def find_hot_pixels(counts: Float64[np.ndarray, "h w"], good: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Find isolated pixels: over 10 times the median and 3 times the second largest of the 8 neighbours.

    A speckle is wider than a pixel wherever the probe is narrower than half the frame.
    """
    from scipy.ndimage import median_filter, rank_filter

    around = np.ones((3, 3), bool)
    around[1, 1] = False
    median = median_filter(counts, footprint=around, mode="nearest")
    second_largest = rank_filter(counts, rank=-2, footprint=around, mode="nearest")
    isolated = (counts > _HOT_RATIO * median) & (counts > _HOT_NEIGHBOUR_RATIO * second_largest)
    hot: np.ndarray = isolated & (counts >= _HOT_COUNTS) & good
    return hot
