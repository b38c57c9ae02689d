"""Which pixels of an object were never measured, where its file does not say."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Complex

__all__ = ["find_outside_zeros", "find_unmeasured"]

_MIN_EDGE_FRACTION = 0.25
_MIN_DISTINCT_FRACTION = 0.9
_SAMPLED_PX = 10_000


def find_outside_zeros(object: Complex[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Find the exact zeros connected to the edge of the image, which lie outside the scanned field.

    Zeros that other values enclose may be opaque parts of a sample.
    """
    return _keep_connected_to_edge(object == 0)


def find_unmeasured(object: Complex[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Find the pixels of a reconstruction that no frame changed: exact zeros, and the value it was started from.

    Measured pixels are never exactly 0 and next to never exactly alike. A region of one exact value that reaches the
    edge is taken for the start where all other values differ from it and from one another: a drawn object has few
    values, and its vacuum is part of it.
    """
    zeros: np.ndarray = object == 0
    edge = np.concatenate([object[0], object[-1], object[:, 0], object[:, -1]])
    values, counts = np.unique(edge, return_counts=True)
    start = values[int(counts.argmax())]
    same = object == start
    if start == 0 or counts.max() < _MIN_EDGE_FRACTION * len(edge):
        return zeros
    outside = _keep_connected_to_edge(same)
    others = object[~same & ~zeros]
    sampled = others[:: max(1, len(others) // _SAMPLED_PX)]
    is_start = (outside == same).all() and len(np.unique(sampled)) > _MIN_DISTINCT_FRACTION * len(sampled)
    if is_start:
        zeros |= outside
    return zeros


def _keep_connected_to_edge(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    if not mask.any():
        return mask
    from scipy.ndimage import label

    # A frame of True around the image joins all regions that touch its edge.
    labels, _ = label(np.pad(mask, 1, constant_values=True))
    connected: np.ndarray = (labels[1:-1, 1:-1] == labels[0, 0]) & mask
    return connected
