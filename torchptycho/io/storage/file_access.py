"""What holds for a file of any format: whether it can be opened, what it seems to be, how it is replaced."""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.errors import ScanError

__all__ = ["dump_json", "make_draft_path", "make_format_error", "read_head", "replace_atomically", "write_all"]

_HEAD_BYTES = 16
_UNSUPPORTED = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file of another layout", "Say where its frames and positions are: section "
     "'mapping' of a --config file."),
    (b"\x93NUMPY", "a single NumPy array (.npy)", "Say where its positions are: section 'mapping' of a --config file."),
    (b"MATLAB", "a MATLAB file", "Export it to NPZ, for example with scipy.io.loadmat and numpy.savez_compressed."),
    (b"II*\x00", "a TIFF image", "Say where its positions are: section 'mapping' of a --config file."),
    (b"MM\x00*", "a TIFF image", "Say where its positions are: section 'mapping' of a --config file."),
    (b"\x80", "perhaps a Python pickle", "Pickles are never opened, because they can run code; export to NPZ."),
)  # fmt: skip


def write_all(file: io.RawIOBase, values: np.ndarray) -> None:
    """Write all bytes of a C-contiguous array into an unbuffered file, of which a single write may take a part only.

    Raises:
        OSError: the disk is full, or failed.
    """
    view = memoryview(values.reshape(-1).view(np.uint8).data)
    done = 0
    while done < len(view):
        done += file.write(view[done:]) or 0


def read_head(path: Path) -> bytes:
    """Read the first bytes of a file, which decide its format; its name does not.

    Raises:
        ScanError: nothing there, a folder, empty, or unreadable.
    """
    try:
        if path.is_dir():
            raise ScanError(path, None, expected="a file", found="a folder", remedy="Name one file inside it.")
        if not path.exists():
            parent = path.parent
            remedy = "Check the spelling of the path." if parent.is_dir() else f"There is no folder {parent} either."
            raise ScanError(path, None, expected="a file", found="nothing of that name", remedy=remedy)
        if not path.is_file():
            raise ScanError(
                path, None, expected="a regular file", found="a device or a pipe", remedy="Copy the data to a file."
            )
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise ScanError(
            path, None, expected="a readable file", found=f"{error.strerror}", remedy="Check its permissions."
        ) from None
    if not head:
        raise ScanError(
            path, None, expected="an NPZ file", found="an empty file (0 bytes)", remedy="Copy or export it again."
        )
    return head


def make_format_error(path: Path, head: bytes, formats: Sequence[str] = ()) -> ScanError:
    """Make the error for a file of a format that cannot be read, with the remedy where the format is recognised.

    Arguments:
        formats: what could have been read in its place; none for NPZ alone.
    """
    expected = f"a scan file ({', '.join(formats)})" if formats else "an NPZ file (a zip archive)"
    for magic, what, remedy in _UNSUPPORTED:
        if head.startswith(magic):
            return ScanError(path, None, expected=expected, found=what, remedy=remedy)
    return ScanError(
        path,
        None,
        expected=expected,
        found=f"other content, beginning with {head[:8]!r}",
        remedy="Export the scan to NPZ (see 'Which files' in the README), or describe it in the section 'mapping' of a "
        "--config file.",
    )


def make_draft_path(path: Path) -> Path:
    """Choose the name next to `path` under which it is written until it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def replace_atomically(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a stream that becomes the file `path` when the block ends without an error, and leaves no trace otherwise.

    Raises:
        ScanError: the folder does not exist or cannot be written to, or the disk is full.
    """
    if not path.parent.is_dir():
        raise ScanError(path, None, expected="an existing folder", found=f"no folder {path.parent}", remedy="Make it.")
    if path.is_dir():
        raise ScanError(path, None, expected="the name of a file", found="a folder", remedy="Add a file name.")
    # In the same folder, because a rename is atomic only within one file system; opened by hand rather than by
    # tempfile, so that the umask decides who may read the result.
    temporary = make_draft_path(path)
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ScanError(
            path,
            None,
            expected="a place that can be written to",
            found=f"{error.strerror or error}",
            remedy="Check the free space and the permissions of the folder; nothing was written.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def dump_json(values: dict[str, Any], source: str | Path, key: str) -> str:
    """Convert plain data to JSON, NumPy scalars, arrays and paths included.

    Raises:
        ScanError: something has no JSON form (NaN included, which other readers refuse).
    """
    try:
        return json.dumps(values, default=_to_plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ScanError(
            source,
            key,
            expected="plain data (str, finite numbers, bool, None, lists, dicts)",
            found=f"something else ({error})",
            remedy="Convert or remove it before writing.",
        ) from None


def _to_plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not plain data")
