"""HDF5 files, read with suspicion: what a dataset claims is held against what its file stores, before it is read."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from torchptycho.core.errors import ScanError
from torchptycho.core.text import format_error

__all__ = [
    "MAGIC",
    "convert_hdf5_errors",
    "find_dataset",
    "find_writer",
    "is_dataset",
    "is_group",
    "is_hdf5",
    "list_array_names",
    "list_names",
    "locate_dataset",
    "open_hdf5",
    "read_attribute",
]

MAGIC = b"\x89HDF\r\n\x1a\n"
# MATLAB writes HDF5 after its own header.
_MATLAB_HEAD = b"MATLAB 7.3 MAT"

_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError, OverflowError, MemoryError)


def _import_h5py() -> Any:
    # Importing hdf5plugin registers the filters of detectors (bitshuffle, LZ4, Blosc, Zstandard) with HDF5.
    importlib.import_module("hdf5plugin")
    return importlib.import_module("h5py")


@contextmanager
def convert_hdf5_errors(path: Path, key: str | None) -> Iterator[None]:
    """Turn whatever HDF5 raises on damaged data into one ScanError."""
    try:
        yield
    except ScanError:
        raise
    except _DAMAGE as error:
        reason = format_error(error)
        remedy = "Copy or export the file again; when it is still being written, wait for the end of the scan."
        if "filter" in reason:
            remedy = "Its compression is none of those that hdf5plugin brings; write it with gzip or bitshuffle."
        raise ScanError(
            path,
            key,
            expected="intact HDF5 data" if key else "an intact HDF5 file",
            found=f"damaged, truncated or unreadable data ({reason})",
            remedy=remedy,
        ) from None


def find_writer(path: Path) -> Literal["none", "exclusive", "swmr"]:
    """Find who has a file open for writing, as far as the file says: a process, or one in SWMR mode, which others may
    read.

    Only files of HDF5's latest format say so (superblock 3), which SWMR needs. The mark of a killed writer stays.
    """
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return "none"
    if len(head) < 12 or not head.startswith(MAGIC) or head[8] != 3 or not head[11] & 1:
        return "none"
    return "swmr" if head[11] & 4 else "exclusive"


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open an `h5py.File` read-only; one that grows in SWMR mode is opened at its present length.

    Raises:
        ScanError: damaged or truncated.
    """
    with convert_hdf5_errors(path, None):
        file = _import_h5py().File(path, "r", locking=False, swmr=find_writer(path) == "swmr")
    try:
        yield file
    finally:
        with convert_hdf5_errors(path, None):
            file.close()


def is_hdf5(head: bytes) -> bool:
    """Return whether a file that begins so is HDF5, MATLAB's version 7.3 included."""
    return head.startswith((MAGIC, _MATLAB_HEAD))


def is_dataset(node: Any) -> bool:
    return isinstance(node, _import_h5py().Dataset)


def is_group(file: Any, path: Path, name: str) -> bool:
    """Return whether the file has a group of that name."""
    with convert_hdf5_errors(path, name):
        return isinstance(file.get(name), _import_h5py().Group)


def list_names(file: Any, path: Path, name: str = "/") -> list[str]:
    """List what a group of the file holds; nothing when it is no group."""
    with convert_hdf5_errors(path, name):
        group = file.get(name)
        return list(group) if isinstance(group, _import_h5py().Group) else []


def list_array_names(file: Any, path: Path) -> dict[str, tuple[int, ...]]:
    """List all datasets of at least two axes with their shapes, without following links."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, node: Any) -> None:
        if is_dataset(node) and len(node.shape or ()) > 1:
            shapes[name] = tuple(node.shape)

    with convert_hdf5_errors(path, None):
        file.visititems(add)
    return shapes


def read_attribute(node: Any, path: Path, *names: str) -> float | str | None:
    """Read the first of these attributes that is there: a finite number or a text.

    Raises:
        ScanError: it is neither.
    """
    for name in names:
        with convert_hdf5_errors(path, name):
            if name not in node.attrs:
                continue
            value = node.attrs[name]
            value = (
                value.item()
                if isinstance(value, np.generic) or (np.size(value) == 1 and hasattr(value, "item"))
                else value
            )
            value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            if isinstance(value, str) or (isinstance(value, bool | int | float) and math.isfinite(value)):
                return value
            raise ScanError(
                path,
                name,
                expected="a finite number or a text",
                found=f"{str(value)[:40]}",
                remedy="Correct it, or leave it out.",
            )
    return None


def find_dataset(group: Any, path: Path, *names: str) -> Any:
    """Find the first of these datasets that is there, or None; errors as for `locate_dataset`."""
    return locate_dataset(group, path, *names)[1]


def locate_dataset(group: Any, path: Path, *names: str) -> tuple[str, Any]:
    """Find the first of these names under which there is a dataset; return name and dataset, or ("", None).

    The dataset's own name would be that in another file when a link leads there.

    Raises:
        ScanError: a link of such a name leads nowhere; the missing file is named.
    """
    h5py = _import_h5py()
    for name in names:
        with convert_hdf5_errors(path, name):
            link = _follow_link(group, name)
            if link is None:
                continue
            node = group.get(name)
            if node is None:
                raise _make_link_error(path, name, link)
            if isinstance(node, h5py.Dataset):
                # A type without a NumPy equivalent is reported here as a fault of the file.
                _ = node.dtype, node.shape
                return name.strip("/"), node
    return "", None


def _follow_link(group: Any, name: str) -> Any:
    """Return the link of that name, or the one on the way to it that leads nowhere; None when there is no such name."""
    node = group
    parts = [part for part in name.split("/") if part]
    for depth, part in enumerate(parts):
        if not hasattr(node, "get") or is_dataset(node):
            return None
        link = node.get(part, getlink=True) if part in node or _has_link(node, part) else None
        if link is None:
            return None
        following = node.get(part)
        if following is None or depth == len(parts) - 1:
            return link
        node = following
    return None


def _has_link(group: Any, name: str) -> bool:
    # `in` is False for a broken link.
    return bool(group.id.links.exists(name.encode()))


def _make_link_error(path: Path, name: str, link: Any) -> ScanError:
    file = getattr(link, "filename", None)
    target = f"'{getattr(link, 'path', '?')}'" + (f" in {file}" if file else "")
    where = path.parent / file if file else None
    remedy = (
        f"Put {file} next to {path.name}." if where is not None and not where.exists() else "Export the file again."
    )
    return ScanError(path, name, expected="data", found=f"a link to {target}, which is not there", remedy=remedy)
