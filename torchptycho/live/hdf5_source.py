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
from torchptycho.io.near_field import refuse_near_field
from torchptycho.io.raw_scan import RawScan
from torchptycho.io.scan_builder import build_scan
from torchptycho.io.scan_geometry import convert_positions
from torchptycho.io.storage.hdf5 import MAGIC, convert_hdf5_errors, find_dataset, find_writer, open_hdf5
from torchptycho.live.frame_stacks import replace_stack
from torchptycho.live.scan_header import Chunk, ScanLayout

__all__ = ["GrowingFile"]

_log = logging.getLogger(__name__)

# A file that is being written may be inconsistent for a moment; an error that lasts this long is raised.
_ERROR_TIMEOUT_S = 10.0
_FIRST_FRAMES = 64
_POLL_INTERVAL_S = 0.05


class _ScanReplacedError(ScanError):
    """Another scan has taken the file's name; waiting does not help."""


class _VirtualDatasetError(ScanError):
    """The frames are in other files, which do not say here how many are written; waiting does not help."""


class GrowingFile:
    """Source of the frames of a CXI or NXcxi_ptycho file, or of any HDF5 file with a mapping, while it is written.

    The file is opened for each poll, in SWMR mode if it is written in SWMR mode. A frame is read when its position
    exists too. The scan is over when a file that was written in SWMR mode is closed, or when the file has not grown for
    `idle_s`. The first two frames are compared at each poll, so that no frames of another scan are read. The stack of
    frames, (M, H, W), has to be extended along its first axis as frames come: in a stack that has its full size from
    the beginning, missing frames and frames without counts look the same.

    Arguments:
        path: the file; it may be created later.
        reading: as for the finished file; `find_bad_pixels`, which needs all frames, is ignored with a warning.

    Raises:
        ConfigError: the centre of the diffraction patterns is to be estimated.
    """

    idle_s: float | None = 30.0

    def __init__(self, path: Path, reading: ReadConfig) -> None:
        if reading.beam_center_px == "estimated":
            raise ConfigError(
                "beam_center_px: expected a pixel (y, x), because the mean pattern of all frames does not exist yet; "
                "found 'estimated'. Train or reconstruct with the pixel that `inspect` reports."
            )
        if reading.find_bad_pixels:
            _log.warning("%s: find_bad_pixels needs all frames and is ignored while the scan grows", path)
        self.name = os.path.abspath(path)
        self._path = path
        # No probe is needed, and the watch selects the frames.
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
        """Read the layout from the first frames; return None until they exist.

        Raises:
            ScanError: the path is a folder, the file has not become a scan in 10 s, or it says that it is near-field.
        """
        if not self._is_poll_due():
            return None
        self._last_poll_s = time.monotonic()
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
            digest = self._digest_scan(scan)
        except _VirtualDatasetError:
            raise
        except ScanError as error:
            # A file that is being written may have no frames yet.
            if find_writer(self._path) != "none":
                self._last_success_s = time.monotonic()
            self._tolerate(error)
            return None
        if scan.geometry.propagation == "near":
            refuse_near_field(scan)
        self._scan, self._scan_digest, self._inode, self._wait_reason = scan, digest, inode, None
        return ScanLayout(
            scan=f"{self.name} {digest}",
            n_px=scan.n_px,
            dtype=scan.frames.dtype,
            domain=scan.domain,
            mask=scan.mask,
            geometry=scan.geometry,
            photons_per_frame=scan.photons_per_frame,
        )

    def fetch(self, start: int, at_most: int) -> Chunk:
        """Read the frames from number `start` on that have a position, `at_most` of them.

        Raises:
            ScanError: another scan has taken the file's name, or the file has been unreadable for 10 s.
        """
        assert self._scan is not None
        empty = np.zeros((0, *self._scan.frames.shape[1:]), self._scan.frames.dtype)
        nothing = Chunk(frames=empty, positions_px=np.zeros((0, 2)), end=False)
        if start >= len(self._positions_px):
            if not self._is_poll_due():
                return nothing
            self._last_poll_s = time.monotonic()
        # Checked before the frames are counted, so that a closed file has all of its frames. A count from before the
        # file was closed would be too small.
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
            frames = replace_stack(self._scan.frames, stack)[start:stop] if stop > start else empty
            # After reading, so that all of the chunk is known to belong to the same scan.
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
        """Do nothing: the file is open only during a poll."""

    def _is_poll_due(self) -> bool:
        return time.monotonic() >= self._last_poll_s + _POLL_INTERVAL_S

    def _tolerate(self, error: ScanError) -> None:
        """Record an error that may be temporary; raise it when it has lasted for `_ERROR_TIMEOUT_S`."""
        if not self._path.exists():
            error = ScanError(
                self._path,
                None,
                expected="the file that is watched",
                found="that it is gone",
                remedy="Put it back and repeat the same command; the received frames are safe.",
            )
        now = time.monotonic()
        if self._wait_reason is None:
            # The first error after a success; the last poll may be long ago if the spool was full.
            self._last_success_s = now
        self._wait_reason = str(error)
        if now >= self._last_success_s + _ERROR_TIMEOUT_S:
            raise error

    def _read_inode(self) -> tuple[int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_dev, stat.st_ino

    def _digest_scan(self, scan: Scan) -> str:
        """Compute a digest of the first two frames and positions, which identifies the scan in the file."""
        positions_px = convert_positions(self._read(2), scan)[:2]
        stack = dataclasses.replace(self._stack, stored_shape=self._read_shape())
        return _hash_frames(positions_px, replace_stack(scan.frames, stack)[:2])

    def _require_same(self) -> None:
        assert self._scan is not None
        inode = self._read_inode()
        if self._digest_scan(self._scan) != self._scan_digest:
            raise self._make_replaced_error()
        # A new copy of the file has another inode and holds the same scan.
        self._inode = inode

    def _make_replaced_error(self) -> ScanError:
        return _ScanReplacedError(
            self._path,
            None,
            expected="more frames of the scan that is watched",
            found="the first frames of another one, which has begun under this name",
            remedy="Watch it with another --out; the received frames are safe.",
        )

    def _read_first_frames(self) -> Scan:
        with self._path.open("rb") as file:
            head = file.read(len(MAGIC))
        if head != MAGIC:
            raise ScanError(
                self._path,
                None,
                expected="an HDF5 file, the format that can be watched",
                found=f"another, beginning with {head!r}",
                remedy="Use `reconstruct` for a complete scan, or `replay` to play it to a watch.",
            )
        self._raw_scan = self._read(2)
        n = min(self._count_frames(), _FIRST_FRAMES)
        recorded = self._read(n)
        edge = min(recorded.frames.shape[1:])
        # A scan needs a probe, which is not used here. An object could move the positions and is left out.
        probe = recorded.probe if recorded.probe is not None else np.ones((1, edge, edge), np.complex64)
        bare = dataclasses.replace(recorded, probe=probe, truth=None, truth_patches=None, nominal_positions_px=None)
        scan = build_scan(bare, "it grows", self._reading)
        self._raw_scan = recorded
        return scan

    def _read(self, n: int) -> RawScan:
        """Read the first n frames and positions."""
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
            if dataset.is_virtual:
                # HDF5 gives zeros for frames whose file is not there or is being written.
                raise _VirtualDatasetError(
                    self._path,
                    known.key,
                    expected="frames in the file itself",
                    found="a virtual data set, in which frames that are not written yet read as zeros",
                    remedy="Watch the file that the frames are written to, or the stream of the detector; use "
                    "`reconstruct` when the scan is complete.",
                )
        if (shape[1:], dtype) != (known.stored_shape[1:], known.dtype):
            raise self._make_replaced_error()
        return shape

    def _count_frames(self) -> int:
        """Count the frames that have a position."""
        assert self._raw_scan is not None
        counts = [self._read_shape()[0]]
        for text in set(self._raw_scan.position_keys):
            ref = parse_array_ref(text, self._path.parent, self._path)
            if ref.path != self._path:
                counts.append(ref.load().size)
                continue
            with open_hdf5(self._path) as file:
                dataset = find_dataset(file, self._path, ref.key)
                shape = (0,) if dataset is None else dataset.shape
            # One column of several, or a vector; in CXI the components lie along the last axis.
            columns = len(shape) > 1 and (ref.entry is not None or self._reading.mapping is None)
            counts.append(math.prod(shape[:-1] if columns else shape))
        return min(counts)


def _find_hdf5_stack(frames: Frames) -> Hdf5Frames | None:
    while isinstance(frames, CastFrames | PickedFrames | ProcessedFrames):
        frames = frames.inner
    return frames if isinstance(frames, Hdf5Frames) else None


def _hash_frames(positions_px: Float64[np.ndarray, "2 2"], frames: Shaped[np.ndarray, "2 n n"]) -> str:
    first = np.ascontiguousarray(positions_px).tobytes() + np.ascontiguousarray(frames).tobytes()
    return hashlib.sha256(first).hexdigest()[:16]
