"""Write access to a store: one process at a time, into a draft that no reader takes for the store."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout

from torchptycho.core.errors import StoreError
from torchptycho.io.storage.locks import hold_lock

__all__ = ["exclusive_writer", "remove_stale_drafts", "replace_store", "temporary_store"]

_log = logging.getLogger(__name__)


def _resolve_store_path(path: Path) -> Path:
    """Return the folder itself: under two names, a link's among them, there would be two locks.

    Raises:
        StoreError: it has no name that others could be made from.
    """
    path = Path(os.path.realpath(path))
    if not path.name:
        raise StoreError(f"{path}: expected a folder for a store; found the root of the file system.")
    return path


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def exclusive_writer(path: Path) -> Iterator[None]:
    """Be the only process that writes the store `path` while the block runs; wait for another one to end first.

    The operating system releases the lock whenever a process ends. Remains of killed processes are removed.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = _resolve_store_path(path)

    def warn() -> None:
        _log.warning("%s: another process is preparing it; waiting for it to end", path)

    with hold_lock(_lock_path(path), on_wait=warn):
        _remove_drafts(path)
        yield


@contextlib.contextmanager
def temporary_store(path: Path) -> Iterator[Path]:
    """Create a folder next to `path` that is removed when the block ends, unless it was renamed.

    Named by hand rather than by tempfile, so that the umask decides who may read the store.
    """
    path = _resolve_store_path(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def replace_store(draft: Path, path: Path) -> None:
    """Give a complete store its name; an earlier one goes, and is a stale draft if this process is killed."""
    path = _resolve_store_path(path)
    if not path.exists():
        os.replace(draft, path)
        return
    with temporary_store(path) as old:
        # A folder takes the place of an empty one only.
        os.replace(path, old)
        os.replace(draft, path)


def remove_stale_drafts(path: Path) -> None:
    """Remove the remains of killed processes next to a store, if no process writes and permissions allow it."""
    path = _resolve_store_path(path)
    if not _lock_path(path).exists():
        return
    with contextlib.suppress(OSError, Timeout), hold_lock(_lock_path(path)):
        _remove_drafts(path)


def _remove_drafts(path: Path) -> None:
    for draft in path.parent.glob(f".{_escape_glob(path.name)}.{'[0-9a-f]' * 8}"):
        _log.info("%s: removing the remains of an interrupted preparation", draft)
        shutil.rmtree(draft, ignore_errors=True)


def _escape_glob(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
