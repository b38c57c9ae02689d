"""Which frames of a damaged or unfinished stack can be read."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.io.frames.frame_stacks import random_access_is_slow
from torchptycho.io.frames.npz_frames import count_frames_in

__all__ = ["find_readable"]

_CHUNK_BYTES = 16 * 2**20


def find_readable(frames: Frames) -> Bool[np.ndarray, " m"]:
    """Find the frames that can be read, in one pass.

    In a stack that can only be read forwards all frames after one that cannot be read are lost, too.

    Raises:
        ScanError: a checksum says that some frame is damaged, but not which.
    """
    readable = np.zeros(frames.shape[0], bool)
    start = 0
    try:
        for chunk in frames.chunks(count_frames_in(_CHUNK_BYTES, frames)):
            start += len(chunk)
            readable[:start] = True
    except ScanError as error:
        if error.part == "checksum":
            raise
        # A stream ends where it is damaged.
        for frame in range(start, len(readable)) if not random_access_is_slow(frames) else ():
            readable[frame] = _can_read(frames, frame)
    return readable


def _can_read(frames: Frames, frame: int) -> bool:
    try:
        frames[frame : frame + 1]
    except ScanError:
        return False
    return True
