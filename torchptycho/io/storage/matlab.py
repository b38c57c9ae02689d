"""MATLAB files of version 5 to 7.2; those of version 7.3 are HDF5."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from torchptycho.core.errors import ScanError
from torchptycho.core.text import format_error

__all__ = ["is_matlab_5", "list_matlab_arrays", "load_matlab_array"]

_HEAD = b"MATLAB 5.0 MAT"
# Deflate compresses at most 1032:1.
_MAX_RATIO, _SMALL_BYTES = 1032, 64 * 2**20
_NUMERIC = ("double", "single", "logical", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
# Exceptions of SciPy for damaged files.
_DAMAGE = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError, MemoryError,
    NotImplementedError, struct.error, zlib.error,
)  # fmt: skip


def is_matlab_5(head: bytes) -> bool:
    """Return whether a file that begins so is a MATLAB file that is not HDF5."""
    return head.startswith(_HEAD)


@contextmanager
def _convert_matlab_errors(path: Path, key: str | None) -> Iterator[None]:
    from scipy.io.matlab import MatReadError

    try:
        yield
    except ScanError:
        raise
    except (*_DAMAGE, MatReadError) as error:
        raise ScanError(
            path,
            key,
            expected="an intact MATLAB file",
            found=f"damaged or unreadable data ({format_error(error)})",
            remedy="Save it again, perhaps with save('FILE', '-v7.3').",
        ) from None


def list_matlab_arrays(path: Path) -> dict[str, tuple[int, ...]]:
    """List the numeric arrays of a file with their shapes."""
    from scipy.io import whosmat

    with _convert_matlab_errors(path, None):
        return {name: tuple(shape) for name, shape, kind in whosmat(path) if kind in _NUMERIC}


def load_matlab_array(path: Path, key: str) -> np.ndarray:
    """Load one array, its axes in MATLAB's order.

    Raises:
        ScanError: not there, not of numbers, or damaged.
    """
    from scipy.io import loadmat

    names = list_matlab_arrays(path)
    if key not in names:
        raise ScanError(
            path,
            key,
            expected="an array of numbers",
            found=f"none of that name among: {', '.join(names) or 'none'}",
            remedy="Correct the name; what is inside of a struct, save as an array of its own.",
        )
    claimed, on_disk = math.prod(names[key]), path.stat().st_size
    if claimed > max(_SMALL_BYTES, _MAX_RATIO * on_disk):
        raise ScanError(
            path,
            key,
            expected=f"a file that warrants {claimed} values",
            found=f"{on_disk} bytes",
            remedy="The file is damaged or forged; save it again.",
        )
    with _convert_matlab_errors(path, key):
        values = loadmat(path, variable_names=[key], squeeze_me=False)[key]
        return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
