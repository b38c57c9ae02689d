"""Locks of folders between processes, which a killed process does not keep."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from torchptycho.io.storage.file_access import make_draft_path

__all__ = ["hold_lock"]

# On file systems without locks, filelock uses the existence of a file instead. It waits two seconds for its owner to
# sign the file, and takes over that of a process that was killed.
_STALE_AFTER_S = 3.0


@contextlib.contextmanager
def hold_lock(file: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock while the block runs; its file is removed then.

    The operating system releases the lock when a process ends, however it ends, and the file that a killed process
    leaves is taken over.

    Arguments:
        on_wait: called once before waiting for another process; None does not wait.

    Raises:
        filelock.Timeout: another process holds it, and `on_wait` is None.
        OSError: the folder cannot be written to.
    """
    # If the file cannot be created, filelock may retry for ever, as if another process had just removed it.
    draft = make_draft_path(file)
    draft.touch()
    draft.unlink()
    lock = FileLock(file)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flock not supported")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if on_wait is None and type(lock) is FileLock:
                raise
            if on_wait is not None:
                on_wait()
            lock.acquire(timeout=-1 if on_wait is not None else _STALE_AFTER_S)
    try:
        yield
    finally:
        _release(lock)


def _release(lock: BaseFileLock) -> None:
    # While the lock is held: a process that waits for the removed file then creates a new one and asks again. Without
    # locks of the file system, filelock has put another class in this one's place, which removes its file itself.
    if type(lock) is FileLock:
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
    lock.release()
