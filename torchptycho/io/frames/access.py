"""How a stack can be read in any order: frame by frame, along the pieces of its file, or not without reading it all."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from torchptycho.core.scan import ArrayFrames, Frames
from torchptycho.io.frames.frame_stacks import CastFrames
from torchptycho.io.frames.hdf5_frames import Hdf5Frames
from torchptycho.io.frames.npz_frames import StoredFrames
from torchptycho.io.frames.processing import ProcessedFrames
from torchptycho.io.frames.shared_frames import SharedFrames
from torchptycho.io.frames.views import JoinedFrames, PickedFrames, WindowFrames

__all__ = ["Access", "classify_access", "is_in_memory", "number_blocks"]

Access = Literal["direct", "blocks", "slow"]
"""`direct`: any frame is read alone. `blocks`: a frame is read with the others of its piece of the file. `slow`:
reading a frame takes much more than its share of a whole pass."""

# Larger pieces are not worth keeping while their frames are used one after the other.
_MAX_BLOCK_BYTES = 32 << 20


def classify_access(frames: Frames) -> Access:
    """Find how frames can be read in any order."""
    if isinstance(frames, JoinedFrames):
        found = {classify_access(part) for part in frames.parts}
        return "slow" if "slow" in found else "blocks" if "blocks" in found else "direct"
    if isinstance(frames, CastFrames | PickedFrames | WindowFrames):
        return classify_access(frames.inner)
    if isinstance(frames, ProcessedFrames):
        # Cropping, binning and corrections again in every pass take longer than reading their results from a disk.
        steps = frames.steps
        plain = steps.binning == 1 and steps.dark is None and steps.flat is None and not steps.clip
        return classify_access(frames.inner) if plain and frames.inner.shape == frames.shape else "slow"
    if isinstance(frames, ArrayFrames):
        return "slow" if _is_interleaved(frames.array) else "direct"
    if isinstance(frames, StoredFrames | SharedFrames):
        return "direct"
    if isinstance(frames, Hdf5Frames) and not frames.scattered:
        if frames.frames_per_block == 1:
            return "direct"
        return "blocks" if frames.block_bytes <= _MAX_BLOCK_BYTES else "slow"
    return "slow"


def number_blocks(frames: Frames) -> Int64[np.ndarray, " m"]:
    """Return the number of the piece of its file in which each frame lies; frames that are read alone are pieces."""
    m = frames.shape[0]
    if isinstance(frames, JoinedFrames):
        numbers, first = [], 0
        for part in frames.parts:
            numbers.append(number_blocks(part) + first)
            first = int(numbers[-1].max(initial=first - 1)) + 1
        return np.concatenate(numbers)
    if isinstance(frames, PickedFrames):
        numbers_inside: np.ndarray = number_blocks(frames.inner)[frames.rows]
        return numbers_inside
    if isinstance(frames, WindowFrames):
        return number_blocks(frames.inner)[frames.start : frames.stop]
    if isinstance(frames, CastFrames | ProcessedFrames):
        return number_blocks(frames.inner)
    if isinstance(frames, Hdf5Frames):
        inner = frames.lead_shape[-1]
        per_row = -(-inner // frames.frames_per_block)
        row, column = np.divmod(np.arange(m), inner)
        numbers_in_file: np.ndarray = row * per_row + column // frames.frames_per_block
        return numbers_in_file
    return np.arange(m)


def is_in_memory(frames: Frames) -> bool:
    """Return whether an array in memory holds the frames, not a file."""
    if isinstance(frames, JoinedFrames):
        return all(is_in_memory(part) for part in frames.parts)
    if isinstance(frames, CastFrames | PickedFrames | WindowFrames):
        return is_in_memory(frames.inner)
    return isinstance(frames, ArrayFrames) and not isinstance(_find_base(frames.array), np.memmap)


def _is_interleaved(array: np.ndarray) -> bool:
    """Return whether the frames of a mapped file do not lie one after the other in it."""
    if not isinstance(_find_base(array), np.memmap):
        return False
    frame, row, column = (abs(stride) for stride in array.strides)
    return frame < max(row, column)


def _find_base(array: Any) -> Any:
    """Return the memory map that an array is a view of, or the array."""
    while not isinstance(array, np.memmap) and isinstance(getattr(array, "base", None), np.ndarray):
        array = array.base
    return array
