"""Images of the detector that an option names: dark, flat, mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from torchptycho.core.errors import ScanError
from torchptycho.io.array_refs import parse_array_ref

__all__ = ["load_detector_image", "load_detector_mask"]

_FRAMES_PER_CHUNK = 8


def load_detector_image(text: str, shape: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """Load the image that `FILE:KEY` names, or the mean of the stack.

    Raises:
        ScanError: not there, of another size than the frames, or not finite.
    """
    place = parse_array_ref(text, Path())
    image = None
    try:
        stack = place.open_frames()
    except ScanError:
        image = place.load().astype(np.float64)
    else:
        summed = np.zeros(stack.shape[1:])
        for chunk in stack.chunks(_FRAMES_PER_CHUNK):
            summed += chunk.sum(axis=0, dtype=np.float64)
        image = summed / stack.shape[0]
    if image.shape != shape or not np.isfinite(image).all():
        found = f"{image.shape}" if image.shape != shape else "NaN or infinity"
        raise ScanError(
            place.path,
            place.key or None,
            expected=f"finite values, {shape} as the recorded frames",
            found=found,
            remedy="Record it with the same region of the detector.",
        )
    return image.astype(np.float32)


def load_detector_mask(text: str, shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Good pixels of the mask that `FILE:KEY` names; under the key `bad_pixels` True is bad.

    Raises:
        ScanError: not there, of another size than the frames, or not of zeros and ones.
    """
    place = parse_array_ref(text, Path())
    values = place.load()
    if values.shape != shape or values.dtype.kind not in "biu" or not np.isin(values, (0, 1)).all():
        found = f"{values.dtype} {values.shape}" + ("" if values.shape != shape else " with other values")
        raise ScanError(
            place.path,
            place.key or None,
            expected=f"{shape} boolean, as the recorded frames",
            found=found,
            remedy="Save it as a boolean array.",
        )
    marked = values.astype(bool)
    good: np.ndarray = ~marked if place.key.rpartition("/")[2] == "bad_pixels" else marked
    return good
