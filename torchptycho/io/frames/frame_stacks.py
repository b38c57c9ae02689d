"""Stacks of frames that stay in their file: where they come from, and which of them are taken."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.scan import Frames
from torchptycho.io.frames.dask_frames import DaskFrames
from torchptycho.io.frames.hdf5_frames import Hdf5Frames
from torchptycho.io.frames.npz_frames import NpzFrames, ViewFrames, ZippedFrames
from torchptycho.io.frames.processing import ProcessedFrames
from torchptycho.io.frames.thinning import ThinnedFrames
from torchptycho.io.frames.tiff_frames import TiffFrames
from torchptycho.io.frames.views import JoinedFrames, PickedFrames, WindowFrames

__all__ = [
    "CastFrames",
    "find_backing_files",
    "random_access_is_slow",
    "sample_frames",
    "select_frames",
    "to_file_rows",
]

_MAX_SAMPLED = 16


@dataclasses.dataclass(frozen=True, eq=False)
class CastFrames:
    """Another stack, converted as it is read."""

    inner: Frames
    dtype: np.dtype[Any]

    @property
    def key(self) -> str:
        return str(getattr(self.inner, "key", "diffraction"))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.inner.shape

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        for chunk in self.inner.chunks(frames_per_chunk):
            yield self._cast(chunk)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._cast(self.inner[index])

    def _cast(self, values: np.ndarray) -> np.ndarray:
        # Values out of range become infinite, which the checks report with the frame.
        with np.errstate(over="ignore"):
            return values.astype(self.dtype)


def find_backing_files(frames: Frames) -> tuple[tuple[Path, ...], str] | None:
    """Find the files that these frames are read from, and which part of each.

    None for frames in memory, and for all that did not come from here: a view of a file's map may have been turned.
    """
    if isinstance(frames, JoinedFrames):
        parts = [find_backing_files(part) for part in frames.parts]
        if any(part is None for part in parts):
            return None
        return tuple(file for part in parts if part for file in part[0]), ";".join(part[1] for part in parts if part)
    if isinstance(frames, CastFrames | PickedFrames | WindowFrames | ProcessedFrames | ThinnedFrames):
        inner = find_backing_files(frames.inner)
        if inner is None:
            return None
        how = ""
        if isinstance(frames, PickedFrames):
            how = hashlib.sha256(np.ascontiguousarray(frames.rows, np.int64).tobytes()).hexdigest()
        elif isinstance(frames, WindowFrames):
            how = f"{frames.start}:{frames.stop}"
        elif isinstance(frames, ProcessedFrames):
            how = f"{frames.steps.fingerprint()}{frames.domain}"
        return inner[0], f"{inner[1]}{how}"
    if isinstance(frames, NpzFrames):
        return (frames.member.path,), frames.key
    if isinstance(frames, Hdf5Frames):
        return frames.files, f"{frames.key}{frames.order}"
    if isinstance(frames, TiffFrames):
        return frames.files, "pages"
    if isinstance(frames, DaskFrames):
        return (frames.path,), f"{frames.key}{frames.lead_shape}"
    if isinstance(frames, ViewFrames) and isinstance(frames.array, np.memmap) and frames.array.filename is not None:
        return (Path(frames.array.filename),), f"{frames.key}{frames.array.strides}"
    return None


def random_access_is_slow(frames: Frames) -> bool:
    """Return whether reading single frames means reading all those before."""
    if isinstance(frames, JoinedFrames):
        return any(random_access_is_slow(part) for part in frames.parts)
    if isinstance(frames, CastFrames | PickedFrames | WindowFrames | ProcessedFrames | ThinnedFrames):
        return random_access_is_slow(frames.inner)
    return isinstance(frames, ZippedFrames)


def to_file_rows(frames: Frames, indices: list[int]) -> list[int]:
    """Convert frame numbers to those of the file."""
    if isinstance(frames, CastFrames | ProcessedFrames | ThinnedFrames):
        return to_file_rows(frames.inner, indices)
    if isinstance(frames, PickedFrames):
        return to_file_rows(frames.inner, [int(frames.rows[i]) for i in indices])
    return indices


def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that values of a file get in memory: float32, complex64, or the detector's own integers."""
    return np.dtype({"f": np.float32, "c": np.complex64}.get(dtype.kind, dtype.newbyteorder("=")))


def sample_frames(frames: Frames) -> Iterator[np.ndarray]:
    """Read up to 16 frames [H, W], one by one: evenly spread, or the first ones where that is slow."""
    few = min(frames.shape[0], _MAX_SAMPLED)
    if random_access_is_slow(frames):
        for chunk in itertools.islice(frames.chunks(1), few):
            yield chunk[0]
        return
    for row in np.unique(np.linspace(0, frames.shape[0] - 1, few).astype(np.int64)):
        yield frames[row : row + 1][0]


def select_frames(frames: Frames, rows: range) -> Frames:
    """Select the frames `rows` of a stack, in working dtype; return the stack itself when nothing changes."""
    selected = frames
    if rows != range(frames.shape[0]):
        selected = PickedFrames(frames, np.asarray(rows), streamed=random_access_is_slow(frames))
    dtype = working_dtype(frames.dtype)
    return selected if dtype == frames.dtype else CastFrames(selected, dtype)
