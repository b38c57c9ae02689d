"""Room on the disk: known before it is needed, reserved before it is mapped, and kept once it is written."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tensordict import MemoryMappedTensor, TensorDict
from torch import Tensor

from torchptycho.core.config import RunConfig
from torchptycho.core.errors import StoreError
from torchptycho.core.scan import Scan
from torchptycho.io.storage.file_access import write_all

__all__ = [
    "BackgroundWriter",
    "check_new_folder",
    "check_space",
    "convert_os_errors",
    "create_parent_folders",
    "estimate_store_bytes",
    "reserve_space",
    "sync_directory_entries",
    "sync_folder",
]

_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BLOCK_BYTES = 1 << 20
_SYNC_BYTES = 32 << 20
# Largest number of arrays that wait to be written.
_MAX_PENDING_WRITES = 2
# Bytes per frame in addition to its pixels: position, scan, and its entries in the lists of groups.
_FRAME_BYTES = 16 + 8 + 8 + 8
# Bytes of a member of a group (index and offset), and of a group (centre).
_MEMBER_BYTES, _GROUP_BYTES = 8 + 8, 16


def estimate_store_bytes(scans: Sequence[Scan], config: RunConfig) -> int:
    """Estimate the size of a store of these scans, slightly too large."""
    n_frames, n_px = sum(scan.n_frames for scan in scans), scans[0].n_px
    truths = (array for scan in scans for array in (scan.truth, scan.truth_patches) if array is not None)
    # Each held-out frame has its own group, in addition to the requested ones.
    n_groups = max(n_frames, config.group.n_groups or 0) + n_frames
    modes = max(len(scan.probe) for scan in scans)
    return int(
        sum(scan.n_frames * (n_px**2 * scan.frames.dtype.itemsize + _FRAME_BYTES) for scan in scans)
        + n_groups * (config.group.gridsize**2 * _MEMBER_BYTES + _GROUP_BYTES)
        + len(scans) * n_px**2 * (8 * modes + 1)
        + sum(array.nbytes for array in truths)
        + _BLOCK_BYTES
    )


def check_space(path: Path, needed: int) -> None:
    """Refuse to write if the disk has too little space.

    Raises:
        StoreError: with the bytes that are needed and those that are free.
    """
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise StoreError(
            f"{path}: expected {needed} bytes of free space; found {free}. Free some, or choose a folder on another "
            "disk."
        )


def check_new_folder(path: Path, needed: int) -> None:
    """Check the space for a folder that does not exist yet, as `check_space` does, without creating it or its parents.

    Raises:
        StoreError: the folder cannot be created, or there is too little space.
    """
    first = next(folder for folder in path.absolute().parents if folder.exists())
    if not first.is_dir() or not os.access(first, os.W_OK | os.X_OK):
        fault = "a folder that cannot be written to" if first.is_dir() else "a file"
        raise StoreError(f"{path}: expected a place that can be written to; found {fault} ({first}). Choose another.")
    check_space(first / path.name, needed)


@contextlib.contextmanager
def convert_os_errors(path: Path, needed: int) -> Iterator[None]:
    """Convert errors of the operating system at `path` to a StoreError with the reason.

    Raises:
        StoreError: the disk is full, or the folder cannot be written to.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in _DISK_FULL_ERRNOS:
            raise StoreError(
                f"{path}: expected room for {needed} bytes; found none left ({why}). Free some, or choose a folder on "
                "another disk; nothing was kept."
            ) from error
        raise StoreError(
            f"{path}: expected a place that can be written to; found: {why} ({error.filename or path.parent}). Check "
            "the permissions of the folder, or choose another; nothing was written."
        ) from error


@contextlib.contextmanager
def create_parent_folders(path: Path) -> Iterator[None]:
    """Create the folders above `path`; remove those that had to be made when the block fails."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def reserve_space(tensors: TensorDict, folder: Path) -> None:
    """Take the room that `tensors.memmap(folder)` is going to write to.

    It writes through a memory map, and a disk that is full would then end the process.

    Raises:
        OSError: the disk is full.
    """
    for key, tensor in tensors.items(include_nested=True, leaves_only=True):
        names = (key,) if isinstance(key, str) else key
        file = folder.joinpath(*names[:-1], f"{names[-1]}.memmap")
        assert isinstance(tensor, Tensor)
        if isinstance(tensor, MemoryMappedTensor) or not tensor.nbytes:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as stream:
            _allocate(stream, tensor.nbytes)


def _allocate(stream: io.BufferedWriter, n_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, n_bytes)
        return
    for start in range(0, n_bytes, _BLOCK_BYTES):
        stream.write(bytes(min(_BLOCK_BYTES, n_bytes - start)))


class BackgroundWriter:
    """Writes arrays to a stream and syncs them to disk, while the next ones are computed.

    Otherwise the disk has nothing to do until all is written, and then the program has nothing to do.
    """

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream = stream
        self._unsynced_bytes = 0
        self._writer, self._syncer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._pending_writes: deque[Future[None]] = deque()
        self._pending_sync: Future[None] | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._pending_writes:
                self._pending_writes.popleft().result()
        finally:
            self._writer.shutdown(cancel_futures=True)
            self._syncer.shutdown()
        if self._pending_sync is not None and kind is None:
            self._pending_sync.result()

    def write(self, values: np.ndarray) -> None:
        """Queue a C-contiguous array, which must not be changed afterwards; the queue is short.

        Raises:
            OSError: the disk is full, or failed, at an earlier array; at the last ones the block ends with it.
        """
        while len(self._pending_writes) >= _MAX_PENDING_WRITES:
            self._pending_writes.popleft().result()
        self._pending_writes.append(self._writer.submit(self._write, values))

    def _write(self, values: np.ndarray) -> None:
        write_all(self._stream, values)
        self._unsynced_bytes += values.nbytes
        if self._unsynced_bytes >= _SYNC_BYTES and (self._pending_sync is None or self._pending_sync.done()):
            if self._pending_sync is not None:
                self._pending_sync.result()
            self._pending_sync = self._syncer.submit(_sync_data, self._stream.fileno())
            self._unsynced_bytes = 0


def _sync_data(descriptor: int) -> None:
    getattr(os, "fdatasync", os.fsync)(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until all that is in a folder would survive a power cut.

    Raises:
        OSError: the disk failed, or is full after all.
    """
    inside = list(folder.rglob("*"))
    for file in inside:
        if file.is_file():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
    for each in (*inside, folder):
        if each.is_dir():
            sync_directory_entries(each)


def sync_directory_entries(folder: Path) -> None:
    """Sync the entries of a folder to disk, if the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
