"""The spool: received frames on the disk. A killed process leaves whole frames; the next one continues after them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from filelock import Timeout
from jaxtyping import Complex64, Float64, Shaped

from torchptycho.core.config.base import validated_dataclass
from torchptycho.core.errors import StoreError
from torchptycho.core.scan import ArrayFrames, Frames, Scan
from torchptycho.io.frames.views import PickedFrames
from torchptycho.io.storage.file_access import replace_atomically, write_all
from torchptycho.io.storage.locks import hold_lock
from torchptycho.live.scan_header import Chunk, ScanLayout, StreamHeader, parse_json

__all__ = ["LOST", "Spool", "exclusive_receiver"]

LOST = "lost: later frames have arrived, and this one has not"
"""Reason for leaving out a frame whose number is missing among those that arrived."""

_MANIFEST, _FRAMES, _POSITIONS = "spool.json", "frames.raw", "positions.raw"
# One JSON object in each line: numbers of frames, and why they are left out.
_LEFT_OUT = "left_out.jsonl"
_POSITION_BYTES = 16
# Disk space that is kept free for images and status.json.
_SPARE_BYTES = 64 << 20


@validated_dataclass
class _Manifest:
    source: str
    ended: bool
    scan: StreamHeader


@contextlib.contextmanager
def exclusive_receiver(folder: Path) -> Iterator[None]:
    """Hold the lock that allows one process to receive into a folder.

    Raises:
        StoreError: another process holds it.
        OSError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(folder / ".watch.lock"))
        except Timeout:
            raise StoreError(
                f"{folder}: expected a folder that no other process receives into; found a running watch. Choose "
                "another --out, or end the other watch."
            ) from None
        yield


class Spool:
    """A folder with frames and positions in the order of arrival, and a manifest with the layout of their scan.

    One thread appends, others read. A frame counts when all of it and its position are written, so that a process that
    is killed at any byte leaves whole frames. (This does not hold after a loss of power.)

    Arguments:
        folder: that `create` made; see `open_existing`.

    `count` frames can be read; `n_stored` frames are on the disk, of which the last may have no position so far.
    `left_out` names frames that the source knows to be of no use, and the reasons.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / _MANIFEST
        try:
            text = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: expected a readable file; found {error.strerror}.") from None
        manifest: _Manifest = parse_json(_Manifest, text, str(path), "the manifest of a spool")
        self.source, self.ended = manifest.source, manifest.ended
        self.layout = ScanLayout.from_header(manifest.scan, str(path))
        self._frames = (folder / _FRAMES).open("ab", buffering=0)
        self._positions = (folder / _POSITIONS).open("ab", buffering=0)
        sizes = [os.fstat(file.fileno()).st_size for file in (self._frames, self._positions)]
        self.count = min(sizes[0] // self.layout.frame_bytes, sizes[1] // _POSITION_BYTES)
        self.n_stored = self.count
        self.left_out = _load_left_out(folder / _LEFT_OUT, self.count)
        self._truncate()

    @classmethod
    def create(cls, folder: Path, layout: ScanLayout, source: str) -> Spool:
        """Create an empty spool.

        Raises:
            StoreError: the folder holds a spool already.
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
        """Open the spool in a folder; return None if there is none.

        Raises:
            StoreError: it cannot be read.
            ScanError: its manifest is invalid.
        """
        return cls(folder) if (folder / _MANIFEST).exists() else None

    @property
    def n_lost(self) -> int:
        """Frames that never arrived although later ones did."""
        return sum(why == LOST for why in list(self.left_out.values()))

    def close(self) -> None:
        """Close its files."""
        self._frames.close()
        self._positions.close()

    def drop(self) -> None:
        """Remove it from the disk."""
        self.close()
        shutil.rmtree(self.folder)

    def require_same_scan(self, layout: ScanLayout | None, source: str) -> None:
        """Raise an error for another scan; record the present name of the source for the same scan.

        Arguments:
            layout: as the source describes its scan; None if the source does not answer, and only its name is compared.

        Raises:
            StoreError: the scans differ; the message names the first difference.
        """
        if layout is None:
            if source != self.source:
                raise StoreError(
                    f"{self.folder}: 'source': expected {self.source}, from which the {self.count} frames in the spool "
                    f"came; found {source}, which does not answer. Name that source, or another --out."
                )
            return
        difference = layout.find_difference(self.layout)
        if difference is not None:
            name, source_value, spool_value = difference
            raise StoreError(
                f"{self.folder}: '{name}': expected {spool_value}, as for the {self.count} frames in the spool; found "
                f"{source_value}. It is another scan: name another --out, or move this one away."
            )
        if source != self.source:
            _write_manifest(self.folder, self.layout, source, ended=self.ended)
            self.source = source

    def append(self, chunk: Chunk) -> None:
        """Write all frames and positions of a chunk, or none of them if writing fails.

        Raises:
            StoreError: the disk is full or cannot be written to.
        """
        needed = chunk.frames.nbytes + chunk.positions_px.nbytes
        free = shutil.disk_usage(self.folder).free
        if free < needed + _SPARE_BYTES:
            raise StoreError(self._explain_full_disk(needed, f"{free}"))
        try:
            if chunk.left_out:
                self._record_left_out(chunk.left_out)
            write_all(self._frames, np.ascontiguousarray(chunk.frames))
            write_all(self._positions, np.ascontiguousarray(chunk.positions_px))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._truncate()
            raise StoreError(self._explain_full_disk(needed, error.strerror or str(error))) from error
        self.n_stored += len(chunk.frames)
        self.count += len(chunk.positions_px)
        assert self.count <= self.n_stored

    def give_up_positions(self, reason: str) -> None:
        """Leave out the frames on the disk that have no position.

        Raises:
            StoreError: the disk is full or cannot be written to.
        """
        rows = range(self.count, self.n_stored)
        if rows:
            missing = np.full((len(rows), 2), np.nan)
            self.append(
                Chunk(
                    frames=Chunk.empty(self.layout).frames,
                    positions_px=missing,
                    end=False,
                    left_out=dict.fromkeys(rows, reason),
                )
            )

    def record_end(self, *, ended: bool = True) -> None:
        """Record in the manifest whether the source has reported the end of the scan."""
        _write_manifest(self.folder, self.layout, self.source, ended=ended)
        self.ended = ended

    def read_rows(self, start: int, stop: int) -> tuple[Shaped[np.ndarray, "k n n"], Float64[np.ndarray, "k 2"]]:
        """Read frames and positions [start, stop) into memory."""
        n_px, dtype = self.layout.n_px, self.layout.dtype
        frames = np.fromfile(self._frames.name, dtype, (stop - start) * n_px**2, offset=start * self.layout.frame_bytes)
        positions = np.fromfile(self._positions.name, "<f8", 2 * (stop - start), offset=start * _POSITION_BYTES)
        return frames.reshape(stop - start, n_px, n_px), positions.reshape(stop - start, 2).astype(np.float64)

    def make_scan(self, probe: Complex64[np.ndarray, "p n n"], left_out: dict[int, str]) -> Scan:
        """Make a scan of all frames except `left_out`; the frames stay on the disk as a memory map.

        Arguments:
            probe: of the scan, because none was received.
            left_out: numbers of the frames to leave out, and the reasons.

        Raises:
            StoreError: no frame is left.
        """
        # Once: another thread appends meanwhile.
        n_px, count = self.layout.n_px, self.count
        if count <= len(left_out):
            raise StoreError(f"{self.folder}: expected frames; found {count}, of which {len(left_out)} cannot be used.")
        stack = np.memmap(self._frames.name, self.layout.dtype, "r", shape=(count, n_px, n_px))
        positions_px = np.fromfile(self._positions.name, "<f8", 2 * count).reshape(count, 2)
        keep = ~np.isin(np.arange(count), list(left_out))
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

    def _record_left_out(self, left_out: dict[int, str]) -> None:
        # A line that a killed process has not completed is not read, and its frames have no position in that case.
        with (self.folder / _LEFT_OUT).open("a", encoding="utf-8") as file:
            file.write(json.dumps(left_out) + "\n")
        self.left_out |= left_out

    def _truncate(self) -> None:
        """Cut both files to whole frames."""
        os.truncate(self._frames.fileno(), self.n_stored * self.layout.frame_bytes)
        os.truncate(self._positions.fileno(), self.count * _POSITION_BYTES)

    def _explain_full_disk(self, needed: int, found: str) -> str:
        return (
            f"{self.folder}: expected room for {needed} bytes, with {_SPARE_BYTES} to spare; found {found}. Free some: "
            f"the {self.count} frames in the spool are whole, and the same command continues after them."
        )


def _load_left_out(path: Path, count: int) -> dict[int, str]:
    """Load the reasons of the first `count` frames, up to a line that was not completed."""
    found: dict[int, str] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                found |= {int(frame): str(why) for frame, why in dict(json.loads(line)).items() if int(frame) < count}
    return found


def _write_manifest(folder: Path, layout: ScanLayout, source: str, *, ended: bool) -> None:
    with replace_atomically(folder / _MANIFEST) as file:
        file.write(json.dumps({"source": source, "ended": ended, "scan": layout.to_dict()}).encode())
