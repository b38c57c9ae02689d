"""Which frames of an HDF5 dataset are wanted, and which of them its file or the sources of a virtual dataset have."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.errors import ScanError

# H5S_SEL_ALL, whose bounds HDF5 does not tell.
_WHOLE = 3

__all__ = ["FrameRequest", "UnwrittenError", "VirtualCoverage"]


@dataclasses.dataclass(frozen=True)
class FrameRequest:
    """The frames of a stack that are wanted, so that the others need not have been written.

    Arguments:
        axes: of the dataset, that count its frames in C order.
        rows: numbers of the frames, without `dropped`.
    """

    axes: tuple[int, ...]
    rows: range
    dropped: frozenset[int] = frozenset()


class UnwrittenError(ScanError):
    """Frames that are wanted were never written, or their file is missing.

    Arguments:
        frames: their numbers in the dataset, as far as they are known.
    """

    def __init__(
        self,
        source: str | Path,
        key: str | None,
        *,
        expected: str,
        found: str,
        remedy: str,
        part: str | None = None,
        frames: tuple[int, ...] = (),
    ) -> None:
        super().__init__(source, key, expected=expected, found=found, remedy=remedy, part=part)
        self.frames = frames

    def shift(self, by: int) -> UnwrittenError:
        """Return the same error with other numbers of the frames."""
        return UnwrittenError(
            self.source,
            self.key,
            expected=self.expected,
            found=self.found,
            remedy=self.remedy,
            part=self.part,
            frames=tuple(frame + by for frame in self.frames),
        )


class VirtualCoverage:
    """Which frames of a virtual dataset have sources."""

    def __init__(self, dataset: Any, request: FrameRequest) -> None:
        self._lead = tuple(dataset.shape[axis] for axis in request.axes)
        self._axes, self._wanted = request.axes, np.zeros(math.prod(self._lead), bool)
        self._wanted[request.rows.start : request.rows.stop : request.rows.step] = True
        self._wanted[list(request.dropped)] = False
        self._points = np.zeros(self._lead)
        self._per_frame = math.prod(dataset.shape) // math.prod(self._lead)

    def _cut(self, source: Any) -> tuple[slice, ...]:
        first, last = source.vspace.get_select_bounds()
        return tuple(slice(int(first[axis]), int(last[axis]) + 1) for axis in self._axes)

    def list_needed(self, source: Any) -> tuple[int, ...]:
        """List the wanted frames that come from a source."""
        numbers = np.arange(self._wanted.size).reshape(self._lead)[self._cut(source)]
        return tuple(numbers[self._wanted.reshape(self._lead)[self._cut(source)]].tolist())

    def translate(self, source: Any, shape: tuple[int, ...]) -> tuple[FrameRequest | None, int]:
        """Translate what is wanted to the frames of a source that holds consecutive ones along one axis.

        Arguments:
            shape: of the dataset that is the source.

        Returns:
            the request, None where the source holds another selection, all of which is wanted then; and the number of
            the source's frame 0 here.
        """
        cut, axis = self._cut(source)[0], self._axes[0]
        if len(self._axes) != 1 or axis >= len(shape):
            return None, 0
        first, last = 0, shape[axis] - 1
        if source.src_space.get_select_type() != _WHOLE:
            low, high = source.src_space.get_select_bounds()
            first, last = (int(low[axis]), int(high[axis])) if axis < len(low) else (0, -1)
        if last - first != cut.stop - 1 - cut.start:
            return None, 0
        rows = np.flatnonzero(self._wanted[cut]) + first
        if not len(rows):
            return FrameRequest((axis,), range(0)), cut.start - first
        span = range(int(rows[0]), int(rows[-1]) + 1)
        return FrameRequest((axis,), span, frozenset(span) - frozenset(rows.tolist())), cut.start - first

    def add(self, source: Any, n_points: int) -> None:
        part = self._points[self._cut(source)]
        part += n_points / part.size

    def find_written_frames(self) -> np.ndarray:
        return np.flatnonzero(self._points.reshape(-1) >= self._per_frame)
