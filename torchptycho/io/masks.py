"""The sense of a detector mask: which of its values are good pixels, by option, by name, or by its values."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped

from torchptycho.core.config.base import Domain
from torchptycho.core.config.read import MaskSense
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.io.frames.frame_stacks import sample_frames

__all__ = ["check_masked_part", "decide_sense", "interpret_mask"]

_BAD_NAME = re.compile(r"bad|pixel_?mask|invalid|defect|dead|hot|masked|excluded|stop", re.IGNORECASE)
_GOOD_NAME = re.compile(r"good|valid|weight|included", re.IGNORECASE)
_DETECTOR_GROUP = re.compile(r"(^|/)(instrument|detector)[^/]*/", re.IGNORECASE)
_MAX_PIXELS, _MAX_LIGHT = 0.5, 0.1


def decide_sense(key: str, values: Shaped[np.ndarray, "*shape"], asked: MaskSense = "auto") -> tuple[bool, str]:
    """Decide whether the values other than 0 of a mask are its good pixels.

    Arguments:
        key: name of the mask, with its path inside the file.
        asked: what an option says; it has the last word.

    Returns:
        True for good, and why.
    """
    if asked != "auto":
        return asked == "good", "as asked for"
    name = key.rpartition("/")[2]
    if _BAD_NAME.search(name):
        return False, f"as {name} says"
    if _GOOD_NAME.search(name):
        return True, f"as {name} says"
    if values.dtype.kind != "b" and not np.isin(values, (0, 1)).all():
        return False, "because it holds bits"
    if values.dtype.kind != "b" and _DETECTOR_GROUP.search(key):
        return False, "as CXI and NeXus define a detector's mask"
    return True, "as masks of programs are"


def interpret_mask(
    path: Path, key: str, values: np.ndarray, shape: tuple[int, int], asked: MaskSense = "auto"
) -> tuple[Bool[np.ndarray, "h w"], str]:
    """Find the bad pixels of a mask.

    Returns:
        True where the detector is not to be trusted, and a sentence about it.

    Raises:
        ScanError: of another size than the frames, or no numbers.
    """
    if values.shape != shape or values.dtype.kind not in "biuf":
        raise ScanError(
            path,
            key or None,
            expected=f"a mask {shape}, as the recorded frames",
            found=f"{values.dtype} {values.shape}",
            remedy="Export a mask of the size of the frames.",
        )
    good, why = decide_sense(key, values, asked)
    with np.errstate(invalid="ignore"):
        marked = (values != 0) & ~np.isnan(values) if values.dtype.kind == "f" else values != 0
    bad: np.ndarray = ~marked if good else marked
    sense = "other values than 0 are good" if good else "0 is good"
    return bad, f"{int(bad.sum())} pixel(s) masked by {key or path.name}: {sense}, {why}"


def check_masked_part(
    path: Path, key: str, bad: Bool[np.ndarray, "h w"], frames: Frames, domain: Domain, *, is_own: bool
) -> str | None:
    """Refuse a mask of more than half of the pixels, or a tenth of the light.

    Arguments:
        is_own: the file defines the sense of its mask, so that much light under it is only reported.

    Returns:
        a sentence about light under the mask of the file.

    Raises:
        ScanError: naming the option that asks for it, or for the opposite.
    """
    found = None
    part = float(bad.mean())
    if part > _MAX_PIXELS:
        found = f"{int(bad.sum())} of {bad.size}"
    elif bad.any():
        light = _measure_masked_light(frames, bad, domain)
        if light > _MAX_LIGHT and is_own:
            return f"the mask {key} covers {light:.0%} of the light; --mask-sense good or bad states what it means"
        if light > _MAX_LIGHT:
            found = f"{int(bad.sum())} with {light:.0%} of the light"
    if found is not None:
        raise ScanError(
            path,
            key or None,
            expected=f"a mask of at most {_MAX_PIXELS:.0%} of the pixels and {_MAX_LIGHT:.0%} of the light",
            found=f"{found} masked",
            remedy="Say what values other than 0 mean with --mask-sense bad or --mask-sense good; either also asks for "
            "a mask as large as this.",
        )
    return None


def _measure_masked_light(frames: Frames, bad: np.ndarray, domain: Domain) -> float:
    """Measure the part of the light under a mask, without what bad pixels add to it."""
    from scipy.ndimage import median_filter

    sample = sample_frames(frames)
    first = next(sample)
    constant = np.ones(first.shape, bool)
    pattern = np.zeros(first.shape)
    for frame in itertools.chain([first], sample):
        constant &= frame == first
        values = np.nan_to_num(frame.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
        pattern += values**2 if domain == "amplitude" else values
    # A pixel that does not change from frame to frame sees no light; hot ones are brighter than what is around them.
    pattern[constant & bad] = 0.0
    around = median_filter(pattern, size=5, mode="nearest")
    light = np.where(bad, np.minimum(pattern, around), pattern)
    total = float(light.sum())
    return float(light[bad].sum()) / total if total > 0 else 0.0
