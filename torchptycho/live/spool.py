"""Frames that have been received, on the disk: a process that is killed leaves whole ones, and the next one goes on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Complex64, Float64, Shaped

from torchptycho.core.config.base import validated_dataclass
from torchptycho.core.errors import StoreError
from torchptycho.core.scan import ArrayFrames, Frames, Scan
from torchptycho.io.frames.views import PickedFrames
from torchptycho.io.storage.file_access import replace_atomically, write_all
from torchptycho.live.scan_header import Chunk, ScanLayout, StreamHeader, parse_json

__all__ = ["Spool", "exclusive_receiver"]

_MANIFEST, _FRAMES, _POSITIONS = "spool.json", "frames.raw", "positions.raw"
_POSITION_BYTES = 16
# Left free beside what is written, for images and what tells how far it is.
_SPARE_BYTES = 64 << 20


@validated_dataclass
class _Manifest:
    source: str
    ended: bool
    scan: StreamHeader


@contextlib.contextmanager
def exclusive_receiver(folder: Path) -> Iterator[None]:
    """Be the only process that receives into a folder.

    Raises:
        StoreError: another process does.
        OSError: it cannot be written to.
    """
    file = folder / ".watch.lock"
    # filelock takes some refusals to make the file for another process, and asks for ever.
    file.touch()
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise StoreError(
            f"{folder}: expected a folder that nobody else receives into; found another watch at work. Choose another "
            "--out, or end that one."
        ) from None
    try:
        yield
    finally:
        lock.release()


class Spool:
    """A folder with frames and positions one after the other, and what all of them share.

    Appended by one thread, read by others. A frame counts when all of it and its position are there, so that whatever
    byte a process was killed at, whole frames are found again. (Of a computer that loses its power that is not said.)

    Arguments:
        folder: that `create` made; see `open_existing`.

    `count` frames can be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / _MANIFEST
        try:
            text = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: expected a readable file; found {error.strerror}.") from None
        told: _Manifest = parse_json(_Manifest, text, str(path), "what a spool holds")
        self.source, self.ended = told.source, told.ended
        self.layout = ScanLayout.from_header(told.scan, str(path))
        self._frames = (folder / _FRAMES).open("ab", buffering=0)
        self._positions = (folder / _POSITIONS).open("ab", buffering=0)
        sizes = [os.fstat(file.fileno()).st_size for file in (self._frames, self._positions)]
        self.count = min(sizes[0] // self.layout.frame_bytes, sizes[1] // _POSITION_BYTES)
        self._truncate()

    @classmethod
    def create(cls, folder: Path, layout: ScanLayout, source: str) -> Spool:
        """An empty one.

        Raises:
            StoreError: there is one already.
            OSError: the folder cannot be written to.
        """
        if (folder / _MANIFEST).exists():
            raise StoreError(f"{folder}: expected no spool; found one. Choose another --out.")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (_FRAMES, _POSITIONS):
            (folder / name).write_bytes(b"")
        _write_manifest(folder, layout, source, ended=False)
        return cls(folder)

    @classmethod
    def open_existing(cls, folder: Path) -> Spool | None:
        """The one in a folder; None where there is none.

        Raises:
            StoreError: it cannot be read.
            ScanError: it is none.
        """
        return cls(folder) if (folder / _MANIFEST).exists() else None

    def close(self) -> None:
        self._frames.close()
        self._positions.close()

    def drop(self) -> None:
        """Remove it from the disk."""
        self.close()
        shutil.rmtree(self.folder)

    def require_same_scan(self, layout: ScanLayout | None, source: str) -> None:
        """Refuse frames of another scan, and remember under which name the source of this one is found now.

        Arguments:
            layout: what the source tells of its scan; None when it does not answer, and its name alone has to do.

        Raises:
            StoreError: what differs is named.
        """
        if layout is None:
            if source != self.source:
                raise StoreError(
                    f"{self.folder}: 'source': expected {self.source}, of which the {self.count} frames are that are "
                    f"there; found {source}, which does not answer. Name the former, or another --out."
                )
            return
        found = layout.find_difference(self.layout)
        if found is not None:
            name, theirs, mine = found
            raise StoreError(
                f"{self.folder}: '{name}': expected {mine}, as the {self.count} frames that are there; found {theirs}. "
                "It is another scan: name another --out, or move this one away."
            )
        if source != self.source:
            _write_manifest(self.folder, self.layout, source, ended=self.ended)
            self.source = source

    def append(self, chunk: Chunk) -> None:
        """Write frames; they count when all of them are there, and none of them otherwise.

        Raises:
            StoreError: the disk is full, or cannot be written to.
        """
        needed = chunk.frames.nbytes + chunk.positions_px.nbytes
        free = shutil.disk_usage(self.folder).free
        if free < needed + _SPARE_BYTES:
            raise StoreError(self._explain_full_disk(needed, f"{free}"))
        try:
            write_all(self._frames, np.ascontiguousarray(chunk.frames))
            write_all(self._positions, np.ascontiguousarray(chunk.positions_px))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._truncate()
            raise StoreError(self._explain_full_disk(needed, error.strerror or str(error))) from error
        self.count += len(chunk.frames)

    def record_end(self, *, ended: bool = True) -> None:
        """Remember whether the source has said that no frame comes any more."""
        _write_manifest(self.folder, self.layout, self.source, ended=ended)
        self.ended = ended

    def read_rows(self, start: int, stop: int) -> tuple[Shaped[np.ndarray, "k n n"], Float64[np.ndarray, "k 2"]]:
        """Frames and positions, in memory."""
        n_px, dtype = self.layout.n_px, self.layout.dtype
        frames = np.fromfile(self._frames.name, dtype, (stop - start) * n_px**2, offset=start * self.layout.frame_bytes)
        positions = np.fromfile(self._positions.name, "<f8", 2 * (stop - start), offset=start * _POSITION_BYTES)
        return frames.reshape(stop - start, n_px, n_px), positions.reshape(stop - start, 2).astype(np.float64)

    def make_scan(self, probe: Complex64[np.ndarray, "p n n"], left_out: dict[int, str]) -> Scan:
        """All frames but those that are left out, and why, as a scan; frames stay where they are.

        Arguments:
            probe: that the scan gets, as none was received.

        Raises:
            StoreError: there are none.
        """
        n_px = self.layout.n_px
        if self.count <= len(left_out):
            raise StoreError(
                f"{self.folder}: expected frames; found {self.count} of which {len(left_out)} cannot be used."
            )
        stack = np.memmap(self._frames.name, self.layout.dtype, "r", shape=(self.count, n_px, n_px))
        positions_px = np.fromfile(self._positions.name, "<f8", 2 * self.count).reshape(self.count, 2)
        keep = ~np.isin(np.arange(self.count), list(left_out))
        frames: Frames = ArrayFrames(stack)
        if not keep.all():
            frames = PickedFrames(frames, np.flatnonzero(keep))
        photons = self.layout.photons_per_frame
        return Scan(
            frames=frames,
            domain=self.layout.domain,
            positions_px=positions_px[keep].astype(np.float64),
            probe=probe,
            mask=self.layout.mask,
            scan_id=np.zeros(int(keep.sum()), np.int64),
            geometry=self.layout.geometry,
            source=self.source,
            metadata={} if photons is None else {"photons_per_frame": photons},
            notes=(f"received from {self.source}",),
            left_out=dict(left_out),
        )

    def _truncate(self) -> None:
        """Down to whole frames."""
        os.truncate(self._frames.fileno(), self.count * self.layout.frame_bytes)
        os.truncate(self._positions.fileno(), self.count * _POSITION_BYTES)

    def _explain_full_disk(self, needed: int, found: str) -> str:
        return (
            f"{self.folder}: expected room for {needed} bytes, with {_SPARE_BYTES} to spare; found {found}. Free some: "
            f"the {self.count} frames that are there are whole, and the same command goes on after them."
        )


def _write_manifest(folder: Path, layout: ScanLayout, source: str, *, ended: bool) -> None:
    with replace_atomically(folder / _MANIFEST) as file:
        file.write(json.dumps({"source": source, "ended": ended, "scan": layout.to_dict()}).encode())
