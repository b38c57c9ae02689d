"""Frames of a dask array, which stay in their file until they are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.errors import ScanError
from torchptycho.core.text import format_error

__all__ = ["DaskFrames", "convert_damage"]

# What the readers raise on damaged files.
_DAMAGE = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, EOFError, OverflowError,
    MemoryError, NotImplementedError, AssertionError, ZeroDivisionError, UnicodeError, SyntaxError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class DaskFrames:
    """Frames of a lazy array [..., H, W], whose leading axes count them in their order.

    Arguments:
        array: a dask array.
        path: the file that it reads.
    """

    array: Any
    path: Path
    key: str

    @property
    def shape(self) -> tuple[int, int, int]:
        *lead, height, width = self.array.shape
        return int(np.prod(lead)), height, width

    @property
    def lead_shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape[:-2])

    @property
    def dtype(self) -> np.dtype[Any]:
        native: np.dtype[Any] = np.dtype(self.array.dtype).newbyteorder("=")
        return native

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        for start in range(0, self.shape[0], frames_per_chunk):
            yield self[start : start + frames_per_chunk]

    def __getitem__(self, index: Any) -> np.ndarray:
        wanted = np.arange(self.shape[0])[index]
        flat = np.ravel(wanted)
        with convert_damage(self.path):
            return self._load(flat).reshape(*np.shape(wanted), *self.shape[1:])

    def _load(self, flat: np.ndarray) -> np.ndarray:
        # One thread: data loaders have processes of their own, and HDF5 reads one piece at a time anyway.
        if len(self.lead_shape) == 1:
            frames = self.array[flat].compute(scheduler="single-threaded")
        else:
            frames = self.array.vindex[np.unravel_index(flat, self.lead_shape)].compute(scheduler="single-threaded")
        return np.asarray(frames, self.dtype)


@contextmanager
def convert_damage(path: Path) -> Iterator[None]:
    """Turn what a reader raises on a damaged file into one ScanError."""
    try:
        yield
    except _DAMAGE as error:
        raise ScanError(
            path,
            None,
            expected="an intact file",
            found=f"damaged or unreadable data ({format_error(error)})",
            remedy="Copy or export it again.",
        ) from None
