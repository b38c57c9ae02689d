"""Stacks made of other stacks as they are read: some of their frames, or several one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from torchptycho.core.scan import Frames

__all__ = ["JoinedFrames", "PickedFrames", "WindowFrames", "get_lead_shape"]


@dataclasses.dataclass(frozen=True, eq=False)
class PickedFrames:
    """The frames `rows` (ascending) of another stack.

    Arguments:
        streamed: scattered frames of the inner stack are dear, so that `chunks` goes through all of it.
    """

    inner: Frames
    rows: np.ndarray
    streamed: bool = False

    @property
    def key(self) -> str:
        return str(getattr(self.inner, "key", "frames"))

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.rows), *self.inner.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.inner.dtype

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        if not self.streamed:
            for start in range(0, len(self.rows), frames_per_chunk):
                yield self.inner[_as_slice(self.rows[start : start + frames_per_chunk])]
            return
        start = 0
        for chunk in self.inner.chunks(frames_per_chunk):
            first, last = np.searchsorted(self.rows, (start, start + len(chunk)))
            if last > first:
                yield chunk[self.rows[first:last] - start]
            start += len(chunk)
            if last == len(self.rows):
                return

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.inner[self.rows[index]]


def _as_slice(rows: np.ndarray) -> np.ndarray | slice:
    """Return rows at even distances as a slice, which files read faster."""
    steps = np.diff(rows)
    if not len(steps) or (steps != steps[0]).any():
        return rows
    return slice(int(rows[0]), int(rows[-1]) + 1, int(steps[0]))


@dataclasses.dataclass(frozen=True, eq=False)
class WindowFrames:
    """The frames start to stop of another stack, which are counted from 0.

    Arguments:
        lead_shape: axes that count them.
        streamed: scattered frames of the inner stack are dear, so that `chunks` goes through all before them.
    """

    inner: Frames
    start: int
    stop: int
    lead_shape: tuple[int, ...]
    streamed: bool = False

    @property
    def key(self) -> str:
        return str(getattr(self.inner, "key", "frames"))

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.stop - self.start, *self.inner.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.inner.dtype

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        if not self.streamed:
            for start in range(self.start, self.stop, frames_per_chunk):
                yield self.inner[start : min(start + frames_per_chunk, self.stop)]
            return
        done = 0
        for chunk in self.inner.chunks(frames_per_chunk):
            first, last = max(self.start - done, 0), min(self.stop - done, len(chunk))
            if first < last:
                yield chunk[first:last]
            done += len(chunk)
            if done >= self.stop:
                return

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.inner[np.arange(self.start, self.stop)[index]]


def get_lead_shape(frames: Frames) -> tuple[int, ...]:
    """Return the axes of a stack that count its frames: one, or several as of a raster (ny, nx, H, W)."""
    return tuple(getattr(frames, "lead_shape", None) or frames.shape[:1])


@dataclasses.dataclass(frozen=True, eq=False)
class JoinedFrames:
    """Stacks of one size and dtype, one after the other."""

    parts: tuple[Frames, ...]

    @property
    def key(self) -> str:
        return str(getattr(self.parts[0], "key", "frames"))

    @property
    def shape(self) -> tuple[int, int, int]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].dtype

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        for part in self.parts:
            yield from part.chunks(frames_per_chunk)

    def __getitem__(self, index: Any) -> np.ndarray:
        wanted = np.arange(self.shape[0])[index]
        flat = np.ravel(wanted)
        out = np.empty((flat.size, *self.shape[1:]), self.dtype)
        start = 0
        for part in self.parts:
            here = np.flatnonzero((flat >= start) & (flat < start + part.shape[0]))
            if here.size:
                out[here] = part[flat[here] - start]
            start += part.shape[0]
        return out.reshape(*np.shape(wanted), *self.shape[1:])
