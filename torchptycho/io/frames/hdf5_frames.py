"""Stacks of frames that stay in an HDF5 file and are read along its own chunks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config.read import ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.io.parts import FRAMES_REMEDY, name_part
from torchptycho.io.storage.hdf5 import convert_hdf5_errors, find_dataset, open_hdf5
from torchptycho.io.storage.hdf5_datasets import check_dataset
from torchptycho.io.storage.hdf5_requests import FrameRequest, UnwrittenError

__all__ = ["Hdf5Frames", "open_hdf5_stack"]

_READ_BYTES = 16 * 2**20
_MAX_READ_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Hdf5Frames:
    """Frames of an HDF5 dataset.

    Arguments:
        path, key: the file and the dataset in it, which may be virtual or lie behind a link.
        stored_shape: of the dataset; with more than 3 axes, all but the last two count the frames, in C order.
        order: axes of a 3-D dataset that are frame, row and column.
        frames_per_block: consecutive frames that one chunk of the file holds.
        files: all the files that the values come from.
        grows: more frames may have come since it was looked at; else that is an error.
        scattered: reading a frame may read many others with it: chunks that hold frames of several rows of a raster,
            frames that are interleaved, or a virtual dataset of such.
        unwritten: frames that are not in the file, in place of which HDF5 would give zeros.
    """

    path: Path
    key: str
    stored_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: tuple[int, int, int]
    frames_per_block: int
    files: tuple[Path, ...]
    grows: bool = False
    scattered: bool = False
    unwritten: frozenset[int] = frozenset()

    @property
    def shape(self) -> tuple[int, int, int]:
        if len(self.stored_shape) == 3:
            m, height, width = (self.stored_shape[axis] for axis in self.order)
            return m, height, width
        return math.prod(self.stored_shape[:-2]), self.stored_shape[-2], self.stored_shape[-1]

    @property
    def lead_shape(self) -> tuple[int, ...]:
        """Axes that count the frames."""
        return self.shape[:1] if len(self.stored_shape) == 3 else self.stored_shape[:-2]

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        """Iterate over the stack in order; reads begin where chunks of the file begin."""
        self._refuse_unwritten(range(self.shape[0]))
        step = max(self.frames_per_block, frames_per_chunk // self.frames_per_block * self.frames_per_block)
        if step > frames_per_chunk and step * self._frame_bytes > _MAX_READ_BYTES:
            step = frames_per_chunk
        with self._open_dataset() as dataset:
            for start in range(0, self.shape[0], step):
                block = self._read(dataset, start, min(start + step, self.shape[0]))
                for first in range(0, len(block), frames_per_chunk):
                    yield block[first : first + frames_per_chunk]

    def __getitem__(self, index: Any) -> np.ndarray:
        wanted = np.arange(self.shape[0])[index]
        rows, inverse = np.unique(wanted, return_inverse=True)
        self._refuse_unwritten(rows)
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        longest = max(1, _READ_BYTES // self._frame_bytes)
        with self._open_dataset() as dataset:
            first = 0
            while first < len(rows):
                # Frames within a chunk of the file, or adjacent ones, are read at once if memory allows.
                last = first
                while (
                    last + 1 < len(rows)
                    and rows[last + 1] - rows[last] <= self.frames_per_block
                    and rows[last + 1] - rows[first] < max(longest, self.frames_per_block)
                ):
                    last += 1
                block = self._read(dataset, int(rows[first]), int(rows[last]) + 1)
                out[first : last + 1] = block[rows[first : last + 1] - rows[first]]
                first = last + 1
        return out[inverse].reshape(*np.shape(wanted), *self.shape[1:])

    def _refuse_unwritten(self, rows: range | np.ndarray) -> None:
        missing = self.unwritten and self.unwritten.intersection(np.asarray(rows).tolist())
        if missing:
            raise ScanError(
                self.path,
                self.key,
                expected="all of the frames",
                found=f"no frame {min(missing)} (counted from 0): it was never written",
                remedy="Leave it out with --drop-frames or --frames.",
                part="frames",
            )

    @property
    def block_bytes(self) -> int:
        """Size of the frames of one chunk of the file, unpacked."""
        return self.frames_per_block * self._frame_bytes

    @property
    def _frame_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * self.dtype.itemsize

    @contextmanager
    def _open_dataset(self) -> Iterator[Any]:
        with open_hdf5(self.path) as file:
            with convert_hdf5_errors(self.path, self.key):
                dataset = file[self.key]
                found, shape = f"{dataset.dtype} {dataset.shape}", dataset.shape
            longer = self.grows and self.order[0] == 0 and shape[:1] > self.stored_shape[:1]
            if longer:
                shape = (*self.stored_shape[:1], *shape[1:])
            if (dataset.dtype, shape) != (self.dtype, self.stored_shape):
                raise ScanError(
                    self.path,
                    self.key,
                    expected=f"{self.dtype} {self.stored_shape}",
                    found=f"{found}: it changed since it was opened",
                    remedy="Open it again.",
                )
            yield dataset

    def _read(self, dataset: Any, start: int, stop: int) -> np.ndarray:
        with name_part("frames", FRAMES_REMEDY), convert_hdf5_errors(self.path, self.key):
            if len(self.stored_shape) == 3:
                cut = [slice(None)] * 3
                cut[self.order[0]] = slice(start, stop)
                return np.asarray(np.transpose(dataset[tuple(cut)], self.order))
            lead = self.stored_shape[:-2]
            inner = lead[-1]
            parts = []
            for row in range(start // inner, (stop - 1) // inner + 1):
                outer = tuple(int(i) for i in np.unravel_index(row, lead[:-1]))
                low, high = max(start - row * inner, 0), min(stop - row * inner, inner)
                parts.append(dataset[(*outer, slice(low, high))])
            return np.concatenate(parts)


def open_hdf5_stack(
    dataset: Any,
    path: Path,
    key: str,
    axes: str = "myx",
    config: ReadConfig | None = None,
    first_frame: int | None = None,
) -> Hdf5Frames:
    """Open the frames of a dataset, without reading them.

    Arguments:
        axes: order of the axes of a 3-D dataset: m counts the frames, y the rows, x the columns.
        config: says which frames are wanted; the others need not have been written. None wants all.
        first_frame: number in the scan of the first frame of this dataset, one of several; None for the only one.

    Raises:
        ScanError: not a stack of real frames, or see `check_dataset`.
    """
    request = None if config is None else _request_frames(dataset, axes, config, first_frame)
    files, unwritten = _check_frames(dataset, path, key, request, config)
    shape = tuple(int(length) for length in dataset.shape)
    if len(shape) < 3 or (len(shape) > 3 and axes != "myx"):
        raise ScanError(
            path,
            key,
            expected="a stack of frames (M, H, W)",
            found=f"an array of shape {shape}",
            remedy="A single frame is not a scan; name the stack.",
        )
    if dataset.dtype.kind not in "iuf":
        raise ScanError(
            path, key, expected="integer or real frames", found=f"{dataset.dtype} frames", remedy="Save the counts."
        )
    frame, row, column = (axes.index(axis) for axis in "myx")
    frames_per_block = 1 if dataset.chunks is None else int(dataset.chunks[frame if len(shape) == 3 else -3])
    return Hdf5Frames(
        path=path,
        key=key,
        stored_shape=shape,
        dtype=dataset.dtype,
        order=(frame, row, column),
        frames_per_block=frames_per_block,
        files=tuple(dict.fromkeys((path, *files))),
        scattered=_is_scattered(dataset, path, key, frame),
        unwritten=unwritten,
    )


def _is_scattered(dataset: Any, path: Path, key: str, frame_axis: int) -> bool:
    """Return whether reading one frame may read many others that do not follow it."""
    if not dataset.is_virtual:
        return _has_scattered_chunks(dataset, frame_axis)
    # Sources of one dataset were written alike.
    with convert_hdf5_errors(path, key):
        source = dataset.virtual_sources()[0]
        source_path = Path(dataset.file.filename).parent / source.file_name
        if source.file_name == "." or not source_path.is_file():
            return True
        with open_hdf5(source_path) as file:
            part = find_dataset(file, source_path, source.dset_name)
            if part is None or len(part.shape) < 3 or part.is_virtual or (part.chunks and part.chunks[-3] > 1):
                return True
            return _has_scattered_chunks(part, frame_axis)


def _has_scattered_chunks(dataset: Any, frame_axis: int) -> bool:
    if dataset.chunks is None:
        # Frames that are not the slowest axis lie between each other.
        return len(dataset.shape) == 3 and frame_axis > 0
    return len(dataset.shape) > 3 and max(dataset.chunks[:-3]) > 1


def _check_frames(
    dataset: Any, path: Path, key: str, request: FrameRequest | None, config: ReadConfig | None
) -> tuple[list[Path], frozenset[int]]:
    """Check a dataset as `check_dataset` does; return its files, and frames that were not written and may be left
    out."""
    may_miss = config is not None and config.bad_frames == "leave-out"
    unwritten: frozenset[int] = frozenset()
    while True:
        try:
            return check_dataset(dataset, path, key, wanted=request), unwritten
        except UnwrittenError as error:
            missing = frozenset(error.frames) - unwritten
            if request is None or not may_miss or not missing:
                raise
            unwritten |= missing
            request = dataclasses.replace(request, dropped=request.dropped | missing)


def _request_frames(dataset: Any, axes: str, config: ReadConfig, first_frame: int | None) -> FrameRequest | None:
    if dataset.shape is None or len(dataset.shape) < 3:
        return None
    lead = (axes.index("m"),) if len(dataset.shape) == 3 else tuple(range(len(dataset.shape) - 2))
    m = math.prod(dataset.shape[axis] for axis in lead)
    cut, before = parse_frame_slice(config.frames) or slice(None), first_frame or 0
    rows = range(before + m)[cut]
    # What is counted from the end is not known to one of several datasets.
    from_end = first_frame is not None and any(at is not None and at < 0 for at in (cut.start, cut.stop))
    if config.energy_index is not None or from_end or rows.step < 1:
        return FrameRequest(lead, range(m))
    rest = rows[max(0, -((rows.start - before) // rows.step)) :]
    own = range(rest.start - before, rest.stop - before, rest.step) if rest else range(0)
    dropped = (frame - before for frame in config.drop_frames)
    return FrameRequest(lead, own, frozenset(frame for frame in dropped if frame in own))
