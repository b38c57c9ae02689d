"""A scan in an HDF5 file that is still being written."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import time
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Shaped

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.scan import Frames, Scan
from torchptycho.io.array_refs import parse_array_ref
from torchptycho.io.formats.mapped import read_mapped
from torchptycho.io.formats.registry import recognise
from torchptycho.io.frames.frame_stacks import CastFrames
from torchptycho.io.frames.hdf5_frames import Hdf5Frames
from torchptycho.io.frames.processing import ProcessedFrames
from torchptycho.io.frames.views import PickedFrames
from torchptycho.io.raw_scan import RawScan
from torchptycho.io.scan_builder import build_scan
from torchptycho.io.scan_geometry import convert_positions
from torchptycho.io.storage.hdf5 import MAGIC, convert_hdf5_errors, find_dataset, find_writer, open_hdf5
from torchptycho.live.scan_header import Chunk, ScanLayout

__all__ = ["GrowingFile"]

_log = logging.getLogger(__name__)

# A writer may be between two steps that belong together; what stays wrong for so long is wrong.
_ERROR_TIMEOUT_S = 10.0
_FIRST_FRAMES = 64
_POLL_INTERVAL_S = 0.05


class _ScanReplacedError(ScanError):
    """Which does not go by itself."""


class GrowingFile:
    """Frames of a CXI or NXcxi_ptycho file, or of any HDF5 file with a mapping, as they come; see `read_scan`.

    The file is opened anew at each look, in SWMR mode when it is written so. A frame is taken when its position is
    there. The scan is over when a file that was written in SWMR mode has been closed, or when it does not grow any more
    for `idle_s`. Frames that are taken are those of the scan that was described: its first two are compared each time.
    Stacks must be extended as frames come, (M, H, W) along their first axis: in one that has its full size from the
    beginning, what is missing cannot be told from frames without a count.

    Arguments:
        path: need not be there yet.
        reading: as for the finished file; what needs all frames, `find_bad_pixels`, is left out with a warning.

    Raises:
        ConfigError: the beam centre is to be estimated.
    """

    idle_s: float | None = 30.0

    def __init__(self, path: Path, reading: ReadConfig) -> None:
        if reading.beam_center_px == "estimated":
            raise ConfigError(
                "beam_center_px: expected a pixel (y, x), as a mean pattern of all frames is not there yet; found "
                "'estimated'. Train or reconstruct with the pixel that `inspect` tells."
            )
        if reading.find_bad_pixels:
            _log.warning("%s: find_bad_pixels needs all frames, and is left out while the scan grows", path)
        self.name = os.path.abspath(path)
        self._path = path
        # No probe is needed, and which frames are used is the watch's affair.
        self._reading = dataclasses.replace(
            reading,
            find_bad_pixels=False,
            bad_frames="refuse",
            frames=None,
            drop_frames=(),
            probe=None,
            guess_probe=False,
            probe_defocus_m=0.0,
        )
        self._scan: Scan | None = None
        self._scan_digest = ""
        self._inode: tuple[int, int] | None = None
        self._raw_scan: RawScan | None = None
        self._positions_px = np.zeros((0, 2))
        self._had_writer = False
        self._last_success_s = time.monotonic()
        self._last_poll_s = 0.0
        self._wait_reason: str | None = None

    def describe(self) -> ScanLayout | None:
        if self._throttle():
            return None
        if not self._path.exists():
            self._wait_reason, self._last_success_s = f"there is no {self._path} yet", time.monotonic()
            return None
        if self._path.is_dir():
            raise ScanError(
                self._path, None, expected="an HDF5 file", found="a folder", remedy="Name the file inside it."
            )
        try:
            inode = self._read_inode()
            scan = self._read_first_frames()
            word = self._digest_scan(scan)
        except ScanError as error:
            # Before the first frames there is nothing wrong with a file that somebody writes.
            if find_writer(self._path) != "none":
                self._last_success_s = time.monotonic()
            self._tolerate(error)
            return None
        self._scan, self._scan_digest, self._inode, self._wait_reason = scan, word, inode, None
        return ScanLayout(
            scan=f"{self.name} {word}",
            n_px=scan.n_px,
            dtype=scan.frames.dtype,
            domain=scan.domain,
            mask=scan.mask,
            geometry=scan.geometry,
            photons_per_frame=scan.photons_per_frame,
        )

    def fetch(self, start: int, at_most: int) -> Chunk:
        assert self._scan is not None
        empty = np.zeros((0, *self._scan.frames.shape[1:]), self._scan.frames.dtype)
        nothing = Chunk(frames=empty, positions_px=np.zeros((0, 2)), end=False)
        if start >= len(self._positions_px) and self._throttle():
            return nothing
        # Asked before the frames are counted: what was written until it was closed is there then. An earlier count says
        # nothing about a file that has been closed since.
        writing = find_writer(self._path) != "none"
        self._had_writer |= writing
        closed = self._had_writer and not writing
        try:
            known = len(self._positions_px)
            n = known if writing and start + at_most <= known else self._count_frames()
            shape = self._read_shape()
            n = min(n, shape[0])
            if n < known:
                if n >= 2:
                    self._require_same()
                raise ScanError(
                    self._path,
                    None,
                    expected=f"the {known} frames that were there",
                    found=f"{n}",
                    remedy="Write each scan to a file of its own, and watch another one with another --out.",
                )
            if n > known:
                self._positions_px = convert_positions(self._read(n), self._scan)
            stop = max(start, min(n, start + at_most))
            stack = dataclasses.replace(self._stack, stored_shape=shape)
            frames = _replace_stack(self._scan.frames, stack)[start:stop] if stop > start else empty
            # After all was read: then it was all of the same scan.
            if stop > start or closed or self._read_inode() != self._inode:
                self._require_same()
        except _ScanReplacedError:
            raise
        except ScanError as error:
            self._tolerate(error)
            return nothing
        self._wait_reason = None
        return Chunk(
            frames=np.ascontiguousarray(frames), positions_px=self._positions_px[start:stop], end=stop >= n and closed
        )

    def explain_wait(self) -> str | None:
        return self._wait_reason

    def close(self, received: int) -> None:
        """Nothing is open between two looks."""

    def _throttle(self) -> bool:
        now = time.monotonic()
        if now < self._last_poll_s + _POLL_INTERVAL_S:
            return True
        self._last_poll_s = now
        return False

    def _tolerate(self, error: ScanError) -> None:
        """An error that may go by itself, until it has not for too long."""
        if not self._path.exists():
            error = ScanError(
                self._path,
                None,
                expected="the file that is watched",
                found="that it is gone",
                remedy="Put it back and go on with the same command; what was received is safe.",
            )
        now = time.monotonic()
        if self._wait_reason is None:
            # Nobody may have looked for long, as when there was no room for more frames.
            self._last_success_s = now
        self._wait_reason = str(error)
        if now >= self._last_success_s + _ERROR_TIMEOUT_S:
            raise error

    def _read_inode(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _digest_scan(self, scan: Scan) -> str:
        """What tells the scan in the file from another one of the same name."""
        positions_px = convert_positions(self._read(2), scan)[:2]
        stack = dataclasses.replace(self._stack, stored_shape=self._read_shape())
        return _hash_frames(positions_px, _replace_stack(scan.frames, stack)[:2])

    def _require_same(self) -> None:
        assert self._scan is not None
        inode = self._read_inode()
        if self._digest_scan(self._scan) != self._scan_digest:
            raise self._make_replaced_error()
        # A file that was copied anew is another one, with the same scan.
        self._inode = inode

    def _make_replaced_error(self) -> ScanError:
        return _ScanReplacedError(
            self._path,
            None,
            expected="more frames of the scan that is watched",
            found="the first frames of another one, which has begun under this name",
            remedy="Watch it with another --out; what was received is safe.",
        )

    def _read_first_frames(self) -> Scan:
        with self._path.open("rb") as file:
            head = file.read(len(MAGIC))
        if head != MAGIC:
            raise ScanError(
                self._path,
                None,
                expected="an HDF5 file, as one that grows",
                found=f"another, beginning with {head!r}",
                remedy="A scan that is complete is for `reconstruct`; `replay` plays it to a watch.",
            )
        self._raw_scan = self._read(2)
        n = min(self._count_frames(), _FIRST_FRAMES)
        recorded = self._read(n)
        edge = min(recorded.frames.shape[1:])
        # No probe is needed and no object, which could move the positions.
        own = recorded.probe if recorded.probe is not None else np.ones((1, edge, edge), np.complex64)
        bare = dataclasses.replace(recorded, probe=own, truth=None, truth_patches=None, nominal_positions_px=None)
        scan = build_scan(bare, "it grows", self._reading)
        self._raw_scan = recorded
        return scan

    def _read(self, n: int) -> RawScan:
        """The first n frames and positions."""
        config = dataclasses.replace(self._reading, frames=f":{n}")
        if config.mapping is not None:
            recorded = read_mapped(self._path, config, config.mapping)
        else:
            recorded = recognise(self._path)[0].read(self._path, config)
        stack = _find_hdf5_stack(recorded.frames)
        if stack is None or stack.path != self._path or len(stack.stored_shape) != 3 or stack.order[0] != 0:
            raise ScanError(
                self._path,
                None,
                expected="one stack of frames (M, H, W) in the file itself",
                found=recorded.format,
                remedy="Reconstruct it when it is complete, or stream its frames.",
            )
        return recorded

    @property
    def _stack(self) -> Hdf5Frames:
        assert self._raw_scan is not None
        stack = _find_hdf5_stack(self._raw_scan.frames)
        assert stack is not None
        return dataclasses.replace(stack, grows=True)

    def _read_shape(self) -> tuple[int, ...]:
        known = self._stack
        with open_hdf5(self._path) as file, convert_hdf5_errors(self._path, known.key):
            dataset = file[known.key]
            shape, dtype = tuple(int(length) for length in dataset.shape), dataset.dtype
        if (shape[1:], dtype) != (known.stored_shape[1:], known.dtype):
            raise self._make_replaced_error()
        return shape

    def _count_frames(self) -> int:
        """Frames whose positions are there."""
        assert self._raw_scan is not None
        counts = [self._read_shape()[0]]
        for text in set(self._raw_scan.position_keys):
            place = parse_array_ref(text, self._path.parent, self._path)
            if place.path != self._path:
                counts.append(place.load().size)
                continue
            with open_hdf5(self._path) as file:
                dataset = find_dataset(file, self._path, place.key)
                shape = (0,) if dataset is None else dataset.shape
            # One column of several, or a vector; in CXI the components lie along the last axis.
            columns = len(shape) > 1 and (place.entry is not None or self._reading.mapping is None)
            counts.append(math.prod(shape[:-1] if columns else shape))
        return min(counts)


def _find_hdf5_stack(frames: Frames) -> Hdf5Frames | None:
    while isinstance(frames, CastFrames | PickedFrames | ProcessedFrames):
        frames = frames.inner
    return frames if isinstance(frames, Hdf5Frames) else None


def _replace_stack(frames: Frames, stack: Hdf5Frames) -> Frames:
    """All frames of a stack, as some of them were made into those of a scan."""
    if isinstance(frames, ProcessedFrames):
        return dataclasses.replace(frames, inner=_replace_stack(frames.inner, stack))
    if isinstance(frames, CastFrames):
        return dataclasses.replace(frames, inner=_replace_stack(frames.inner, stack))
    return _replace_stack(frames.inner, stack) if isinstance(frames, PickedFrames) else stack


def _hash_frames(positions_px: Float64[np.ndarray, "2 2"], frames: Shaped[np.ndarray, "2 n n"]) -> str:
    first = np.ascontiguousarray(positions_px).tobytes() + np.ascontiguousarray(frames).tobytes()
    return hashlib.sha256(first).hexdigest()[:16]
