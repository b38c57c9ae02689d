"""Images of the detector that an option names: dark, flat, mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from torchptycho.core.config.read import MaskSense
from torchptycho.core.errors import ScanError
from torchptycho.io.array_refs import ArrayRef, parse_array_ref
from torchptycho.io.masks import interpret_mask

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


def load_detector_mask(
    text: str, shape: tuple[int, int], sense: MaskSense
) -> tuple[Bool[np.ndarray, "h w"], ArrayRef, str]:
    """Load the bad pixels of the mask that `FILE:KEY` names, where it is, and a sentence about it.

    Raises:
        ScanError: not there, of another size than the frames, or no numbers.
    """
    place = parse_array_ref(text, Path())
    bad, note = interpret_mask(place.path, place.key, place.load(), shape, sense)
    return bad, place, note
