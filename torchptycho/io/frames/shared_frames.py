"""Frames that other processes can open: an array in memory cannot be sent to them without a copy for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.scan import ArrayFrames, Frames
from torchptycho.io.frames.frame_stacks import CastFrames
from torchptycho.io.frames.hdf5_frames import Hdf5Frames
from torchptycho.io.frames.npz_frames import StoredFrames, ZippedFrames, count_frames_in
from torchptycho.io.frames.processing import ProcessedFrames
from torchptycho.io.frames.thinning import ThinnedFrames
from torchptycho.io.frames.tiff_frames import TiffFrames
from torchptycho.io.frames.views import JoinedFrames, PickedFrames, WindowFrames

__all__ = ["SharedFrames", "share_frames"]

_CHUNK_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class SharedFrames:
    """Frames one after the other in a plain file, mapped by each process when it reads them.

    Arguments:
        path: the file.
        shape, dtype: of all frames.
        offset: where they begin, in bytes.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int = 0

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        for start in range(0, self.shape[0], frames_per_chunk):
            yield self[start : start + frames_per_chunk]

    def __getitem__(self, index: Any) -> np.ndarray:
        array = np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape)
        return np.asarray(array[index])


def share_frames(frames: Frames, path: Path) -> Frames:
    """Return frames that can be sent to other processes: themselves, or a copy of what an array holds.

    Arguments:
        path: of the copy, which is made when it is needed.
    """
    array = frames.array if isinstance(frames, ArrayFrames) else None
    if isinstance(array, np.memmap) and not isinstance(array.base, np.ndarray) and array.flags.c_contiguous:
        return SharedFrames(Path(str(array.filename)), frames.shape, array.dtype, array.offset)
    if _can_be_sent(frames):
        return frames
    with path.open("wb", buffering=0) as file:
        for chunk in frames.chunks(count_frames_in(_CHUNK_BYTES, frames)):
            np.ascontiguousarray(chunk, frames.dtype).tofile(file)
    return SharedFrames(path, frames.shape, frames.dtype)


def _can_be_sent(frames: Frames) -> bool:
    """Return whether other processes can open the file that these frames are in."""
    if isinstance(frames, JoinedFrames):
        return all(_can_be_sent(part) for part in frames.parts)
    if isinstance(frames, CastFrames | PickedFrames | WindowFrames | ProcessedFrames | ThinnedFrames):
        return _can_be_sent(frames.inner)
    return isinstance(frames, StoredFrames | ZippedFrames | Hdf5Frames | TiffFrames | SharedFrames)
