"""Stacks of frames in NPZ files: read where they lie when stored plainly, streamed when compressed."""

from __future__ import annotations

import dataclasses
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
from torchptycho.io.storage.archive import Member, NpzArchive, convert_zip_errors, fill

__all__ = ["NpzFrames", "StoredFrames", "ViewFrames", "ZippedFrames", "count_frames_in", "open_stack"]

_CHUNK_BYTES = 16 * 2**20


def count_frames_in(n_bytes: int, frames: Frames) -> int:
    """Return how many frames of this stack fit into a number of bytes, at least one."""
    _, height, width = frames.shape
    return max(1, n_bytes // (height * width * frames.dtype.itemsize))


class NpzFrames:
    """What the stacks in an NPZ share: bytes in the order (frame, row, column), or (frame, column, row).

    Arguments:
        lead_shape: axes that count the frames.
        verify: hold the values against the archive's checksum, where a whole pass reads them from the file itself.
    """

    def __init__(
        self,
        member: Member,
        shape: tuple[int, int, int],
        *,
        transposed: bool,
        lead_shape: tuple[int, ...] | None = None,
        verify: bool = True,
    ) -> None:
        self.member, self._stored_shape, self._transposed, self._verify = member, shape, transposed, verify
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
        if self._verify and crc.result() != self.member.crc:
            raise ScanError(
                self.member.path,
                self.key,
                expected=f"data with the checksum {self.member.crc:08x}",
                found=f"{crc.result():08x}: the data changed since they were written",
                remedy="Copy or export the file again. Or take the values as they are with --ignore checksum.",
                part="checksum",
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
        with self._explain_damage(), self.member.open_values() as stream:
            for start in range(0, m, frames_per_chunk):
                chunk = np.empty((min(frames_per_chunk, m - start), height, width), self.dtype)
                done = 0
                try:
                    for frame in chunk:
                        with convert_zip_errors(self.member.path, self.key):
                            fill(stream, frame)
                        done += 1
                except ScanError:
                    # Frames in front of the damage are good.
                    if done:
                        yield self._orient(chunk[:done])
                    raise
                yield self._orient(chunk)

    @contextmanager
    def _explain_damage(self) -> Iterator[None]:
        """Name what helps: the checksum is known only with the last frame, which is lost with it."""
        try:
            yield
        except ScanError as error:
            known = "Bad CRC" in error.found and self._verify
            how = "--bad-frames leave-out"
            raise ScanError(
                error.source,
                error.key,
                expected=error.expected,
                found=error.found,
                remedy=f"{error.remedy} Or read what is left with {f'--ignore checksum and {how}' if known else how}.",
                part="checksum" if known else "frames",
            ) from None

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


def open_stack(archive: NpzArchive, member: Member, frame_axis: int, *, verify: bool = True) -> Frames:
    """Open the stack in a member whose frames lie along `frame_axis` (0, or 2 in old files), without reading it.

    With more than three axes, all but the last two count the frames, in C order.
    Only a compressed stack whose frames do not lie one after the other in the file is read into memory.

    Arguments:
        verify: as for `NpzFrames`.
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
        return kind(member, stored, transposed=False, lead_shape=lead, verify=verify)
    # In C order the first axis is the slowest in the file, in Fortran order the last one.
    if (order, frame_axis) in {("C", 0), ("F", 2)}:
        a, b, c = member.shape
        shape, transposed = ((a, b, c), False) if order == "C" else ((c, b, a), True)
        kind = ZippedFrames if member.file_offset is None else StoredFrames
        return kind(member, shape, transposed=transposed, verify=verify)
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
