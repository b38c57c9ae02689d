"""Stacks of frames that stay in their file: read where they lie when stored plainly, streamed when compressed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import math
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.errors import ScanError
from torchptycho.core.scan import ArrayFrames, Frames
from torchptycho.io.frames.hdf5_frames import Hdf5Frames
from torchptycho.io.frames.processing import ProcessedFrames
from torchptycho.io.frames.thinning import ThinnedFrames
from torchptycho.io.frames.tiff_frames import TiffFrames
from torchptycho.io.frames.views import JoinedFrames, PickedFrames, WindowFrames
from torchptycho.io.storage.archive import Member, NpzArchive, convert_zip_errors, fill

__all__ = [
    "CastFrames",
    "NpzFrames",
    "StoredFrames",
    "ZippedFrames",
    "count_frames_in",
    "find_backing_files",
    "open_stack",
    "random_access_is_slow",
    "sample_frames",
    "select_frames",
    "to_file_rows",
]

_CHUNK_BYTES = 16 * 2**20
_MAX_SAMPLED = 16


def count_frames_in(n_bytes: int, frames: Frames) -> int:
    """Return how many frames of this stack fit into a number of bytes, at least one."""
    _, height, width = frames.shape
    return max(1, n_bytes // (height * width * frames.dtype.itemsize))


class NpzFrames:
    """What the stacks in an NPZ share: bytes in the order (frame, row, column), or (frame, column, row).

    Arguments:
        lead_shape: axes that count the frames.
    """

    def __init__(
        self,
        member: Member,
        shape: tuple[int, int, int],
        *,
        transposed: bool,
        lead_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.member, self._stored_shape, self._transposed = member, shape, transposed
        self.lead_shape = lead_shape or shape[:1]

    @property
    def key(self) -> str:
        return self.member.key

    @property
    def shape(self) -> tuple[int, int, int]:
        m, first, second = self._stored_shape
        return (m, second, first) if self._transposed else (m, first, second)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.member.dtype

    def _orient(self, stack: np.ndarray) -> np.ndarray:
        return stack.swapaxes(-1, -2) if self._transposed else stack


class StoredFrames(NpzFrames):
    """Frames of an uncompressed NPZ, read where they lie; a whole pass verifies the archive's checksum.

    Read, not mapped: a file that is cut short meanwhile is then an error, and not the end of the process.
    """

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        m, height, width = self._stored_shape
        # The sum of a chunk takes as long as reading it, so it is computed in parallel with its use.
        crc: Future[int] = Future()
        crc.set_result(self.member.header_crc)
        with self._open_values() as stream, ThreadPoolExecutor(1) as checksum_thread:
            for start in range(0, m, frames_per_chunk):
                chunk = np.empty((min(frames_per_chunk, m - start), height, width), self.dtype)
                fill(stream, chunk)
                chunk.flags.writeable = False
                crc = checksum_thread.submit(zlib.crc32, chunk.data, crc.result())
                yield self._orient(chunk)
        if crc.result() != self.member.crc:
            raise ScanError(
                self.member.path,
                self.key,
                expected=f"data with the checksum {self.member.crc:08x}",
                found=f"{crc.result():08x}: the data changed since they were written",
                remedy="Copy or export the file again.",
            )

    def __getitem__(self, index: Any) -> np.ndarray:
        m, height, width = self._stored_shape
        wanted = np.arange(m)[index]
        rows = np.ravel(wanted)
        out = np.empty((rows.size, height, width), self.dtype)
        # Consecutive frames are read at once.
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
        runs = list(itertools.pairwise([*starts, rows.size]))
        with self._open_values() as stream:
            begin = stream.tell()
            for first, last in runs:
                stream.seek(begin + int(rows[first]) * height * width * self.dtype.itemsize)
                fill(stream, out[first:last])
        return self._orient(out).reshape(*np.shape(wanted), *self.shape[1:])

    @contextmanager
    def _open_values(self) -> Iterator[io.RawIOBase]:
        assert self.member.file_offset is not None
        with convert_zip_errors(self.member.path, self.key), self.member.path.open("rb", buffering=0) as stream:
            stream.seek(self.member.file_offset)
            yield stream


class ZippedFrames(NpzFrames):
    """Frames of a compressed NPZ. Only forward reading is possible: `chunks` is cheap, scattered indices are not."""

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        m, height, width = self._stored_shape
        with self.member.open_values() as stream:
            for start in range(0, m, frames_per_chunk):
                chunk = np.empty((min(frames_per_chunk, m - start), height, width), self.dtype)
                fill(stream, chunk)
                yield self._orient(chunk)

    def __getitem__(self, index: Any) -> np.ndarray:
        wanted = np.arange(self.shape[0])[index]
        flat = np.ravel(wanted)
        out = np.empty((flat.size, *self.shape[1:]), self.dtype)
        last, start = int(flat.max(initial=-1)), 0
        if last >= 0:
            for chunk in self.chunks(min(last + 1, count_frames_in(_CHUNK_BYTES, self))):
                here = np.flatnonzero((flat >= start) & (flat < start + len(chunk)))
                out[here] = chunk[flat[here] - start]
                start += len(chunk)
                if start > last:
                    break
        return out.reshape(*np.shape(wanted), *self.shape[1:])


@dataclasses.dataclass(frozen=True, eq=False)
class ViewFrames(ArrayFrames):
    """Frames whose axes lie in another order in the file; a view of the file's map, or a copy in memory."""

    key: str = "diffraction"
    lead_shape: tuple[int, ...] | None = None

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        for chunk in super().chunks(frames_per_chunk):
            self._refuse_truncated()
            yield chunk

    def __getitem__(self, index: Any) -> np.ndarray:
        self._refuse_truncated()
        return super().__getitem__(index)

    def _refuse_truncated(self) -> None:
        """Refuse a file that is shorter than its header says: reading beyond the end of a mapped file would end the
        process."""
        array = self.array
        if not isinstance(array, np.memmap) or array.filename is None:
            return
        path, needed = Path(array.filename), array.offset + array.nbytes
        n_bytes = path.stat().st_size if path.is_file() else 0
        if n_bytes < needed:
            raise ScanError(
                path,
                self.key,
                expected=f"{needed} bytes, as when it was opened",
                found=f"{n_bytes}",
                remedy="Wait until it is written completely, and read it again.",
            )


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
    if isinstance(frames, CastFrames | PickedFrames | ProcessedFrames | ThinnedFrames):
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
    if isinstance(frames, ViewFrames) and isinstance(frames.array, np.memmap) and frames.array.filename is not None:
        return (Path(frames.array.filename),), f"{frames.key}{frames.array.strides}"
    return None


def random_access_is_slow(frames: Frames) -> bool:
    """Return whether reading single frames means reading all those before."""
    if isinstance(frames, JoinedFrames):
        return any(random_access_is_slow(part) for part in frames.parts)
    if isinstance(frames, CastFrames | PickedFrames | ProcessedFrames | ThinnedFrames):
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


def open_stack(archive: NpzArchive, member: Member, frame_axis: int) -> Frames:
    """Open the stack in a member whose frames lie along `frame_axis` (0, or 2 in old files), without reading it.

    With more than three axes, all but the last two count the frames, in C order.

    Only a compressed stack whose frames do not lie one after the other in the file is read into memory.
    """
    order = "F" if member.fortran_order else "C"
    if len(member.shape) > 3:
        lead = member.shape[:-2]
        if order == "F":
            raise ScanError(
                member.path,
                member.key,
                expected="frames of several axes in C order",
                found=f"{member.shape} in Fortran order",
                remedy="Save numpy.ascontiguousarray of it.",
            )
        kind = ZippedFrames if member.file_offset is None else StoredFrames
        stored = (math.prod(lead), member.shape[-2], member.shape[-1])
        return kind(member, stored, transposed=False, lead_shape=lead)
    # In C order the first axis is the slowest in the file, in Fortran order the last one.
    if (order, frame_axis) in {("C", 0), ("F", 2)}:
        a, b, c = member.shape
        shape, transposed = ((a, b, c), False) if order == "C" else ((c, b, a), True)
        kind = ZippedFrames if member.file_offset is None else StoredFrames
        return kind(member, shape, transposed=transposed)
    if member.file_offset is None:
        array = archive.load(member.key)
    else:
        array = np.memmap(
            member.path,
            member.dtype,
            mode="r",
            offset=member.file_offset,
            shape=member.shape,
            order="F" if member.fortran_order else "C",
        )
    return ViewFrames(np.moveaxis(array, frame_axis, 0), key=member.key)
