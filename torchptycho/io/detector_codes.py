"""Values that detectors write in place of counts: gaps, dead and saturated pixels, in whatever dtype they arrive."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from torchptycho.core.config.base import Domain
from torchptycho.core.scan import Frames
from torchptycho.core.text import format_first
from torchptycho.io.frames.frame_stacks import sample_frames

__all__ = ["find_codes", "get_saturation_value", "reaches_saturation"]

# EIGER: 2^32 - 1 for a gap, 2^32 - 2 for a bad pixel, and the same in 16 bits; 2^31 - 1 where the file is signed;
# PILATUS: -1 for a gap, -2 for a bad pixel.
_CODES = (2**64 - 1, 2**63 - 1, 2**32 - 1, 2**32 - 2, 2**31 - 1, 2**31 - 2, 2**16 - 1, 2**16 - 2, -1, -2, -3)
# More than half of a detector is no gap: such frames are alike, and are refused as they are read.
_MAX_PART = 0.5
# A count of 65535 in a wider dtype is possible, once.
_LARGE_CODES = (2**63 - 1, 2**32 - 1, 2**32 - 2, 2**31 - 1)


def find_codes(frames: Frames, domain: Domain) -> tuple[Bool[np.ndarray, "h w"], str | None]:
    """Find the pixels that hold the same code of a detector, or NaN, in every frame of a sample.

    A pixel that counts, or is saturated in some frames, changes from frame to frame.

    Returns:
        True for such a pixel, and a sentence about them.
    """
    sample = sample_frames(frames)
    first = next(sample)
    constant, lost = np.ones(first.shape, bool), np.isnan(first)
    negative = first < 0
    for frame in sample:
        constant &= frame == first
        lost &= np.isnan(frame)
        negative |= frame < 0
    # Where other pixels are negative, too, something was subtracted from all of them.
    codes = _list_codes(frames.dtype, domain, negative=not (negative & ~constant).any())
    found = np.zeros(first.shape, bool)
    named = []
    for code in codes:
        here = constant & (np.isclose(first, code, rtol=1e-6) if domain == "amplitude" else first == code)
        if 0 < here.mean() <= _MAX_PART:
            found |= here
            named.append(f"{int(here.sum())} of {code:.16g}")
    if 0 < lost.mean() <= _MAX_PART:
        found |= lost
        named.append(f"{int(lost.sum())} of NaN")
    if not named:
        return found, None
    return found, f"{int(found.sum())} pixel(s) hold a detector's code in every frame and are masked: " + format_first(
        named, len(named)
    )


def _list_codes(dtype: np.dtype[Any], domain: Domain, *, negative: bool) -> list[Any]:
    """List the codes as values of a dtype; in amplitudes also their roots."""
    known = [code for code in _CODES if code > 0 or negative]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        codes = dict.fromkeys((int(limits.max), *known))
        return [code for code in codes if limits.min <= code <= limits.max]
    roots = [np.sqrt(code) for code in known if code > 0] if domain == "amplitude" else []
    return list(dict.fromkeys(float(np.array(code, dtype)) for code in (*known, *roots) if code < 2**63))


def get_saturation_value(dtype: np.dtype[Any]) -> int | None:
    """Return the largest value of an integer dtype, None for others."""
    return int(np.iinfo(dtype).max) if dtype.kind in "iu" else None


def reaches_saturation(frames: np.ndarray) -> Bool[np.ndarray, "*shape"]:
    """Find the values that are no counts: the largest of their integer dtype, or a large code held in a wider one."""
    if frames.dtype.kind not in "iuf":
        return np.zeros(frames.shape, bool)
    limit = get_saturation_value(frames.dtype)
    at_limit = np.zeros(frames.shape, bool) if limit is None else frames == limit
    if frames.dtype.itemsize < 4 or frames.size == 0 or not frames.max() >= min(_LARGE_CODES):
        return at_limit
    codes = np.array([code for code in _LARGE_CODES if limit is None or code <= limit]).astype(frames.dtype)
    return at_limit | np.isin(frames, codes)
