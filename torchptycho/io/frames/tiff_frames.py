"""Stacks of frames in TIFF files: one file of many pages, or many files in the order of their numbers."""

from __future__ import annotations

import dataclasses
import logging
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.core.text import format_error
from torchptycho.io.frames.npz_frames import ViewFrames

__all__ = ["TiffFrames", "is_tiff", "list_numbered_files", "open_tiff_stack"]

_HEADS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_MAX_RATIO, _SMALL_BYTES = 1032, 64 * 2**20
# What tifffile raises on damaged files, or on a compression for which a package is missing.
_DAMAGE = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, EOFError, OverflowError,
    MemoryError, NotImplementedError, AssertionError, ZeroDivisionError, struct.error, zlib.error,
)  # fmt: skip


def is_tiff(head: bytes) -> bool:
    return head.startswith(_HEADS)


def list_numbered_files(pattern: Path) -> tuple[Path, ...]:
    """List the files that a name with * or ? stands for, by the numbers in their names: frame_2 before frame_10.

    Raises:
        ScanError: there are none.
    """
    files = [path for path in pattern.parent.glob(pattern.name) if path.is_file()]
    if not files:
        raise ScanError(
            pattern, None, expected="files of such names", found="none", remedy="Check the folder and the name."
        )
    parts = {path: re.split(r"(\d+)", path.name) for path in files}
    return tuple(sorted(files, key=lambda path: [int(part) if part.isdigit() else part for part in parts[path]]))


@dataclasses.dataclass(frozen=True, eq=False)
class TiffFrames:
    """Frames that are pages of one TIFF file, or one page in each of many, and are read when they are needed."""

    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    @property
    def key(self) -> str:
        return self.files[0].name

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        for start in range(0, self.shape[0], frames_per_chunk):
            yield self[start : start + frames_per_chunk]

    def __getitem__(self, index: Any) -> np.ndarray:
        wanted = np.arange(self.shape[0])[index]
        out = np.empty((wanted.size, *self.shape[1:]), self.dtype)
        if len(self.files) == 1:
            with _open_tiff(self.files[0]) as file:
                pages = file.pages if len(file.series) > 1 else file.series[0].pages
                for at, row in enumerate(np.ravel(wanted).tolist()):
                    out[at] = self._check(self.files[0], pages[row].asarray())
        else:
            for at, row in enumerate(np.ravel(wanted).tolist()):
                with _open_tiff(self.files[row]) as file:
                    out[at] = self._check(self.files[row], file.pages[0].asarray())
        return out.reshape(*np.shape(wanted), *self.shape[1:])

    def _check(self, path: Path, image: np.ndarray) -> np.ndarray:
        if image.shape != self.shape[1:] or image.dtype != self.dtype:
            raise ScanError(
                path,
                None,
                expected=f"{self.dtype} {self.shape[1:]}, as in the first",
                found=f"{image.dtype} {image.shape}",
                remedy="Leave out what is no frame.",
            )
        return image


def open_tiff_stack(files: tuple[Path, ...]) -> Frames:
    """Open the frames in these files; what lies in one piece is mapped, the rest read page by page.

    Raises:
        ScanError: damaged, not of real numbers, or several stacks in one file.
    """
    path = files[0]
    with _open_tiff(path) as file:
        series = file.series[0]
        shape, dtype, offset = tuple(series.shape), np.dtype(series.dtype).newbyteorder("="), series.dataoffset
        stored = dtype.newbyteorder(file.byteorder)
        on_disk, colours, n_series = path.stat().st_size, series.keyframe.samplesperpixel, len(file.series)
        if n_series > 1 and {(tuple(each.shape), each.dtype) for each in file.series} == {(shape[-2:], series.dtype)}:
            # Pages that were written one by one.
            shape, offset, n_series = (n_series, *shape[-2:]), None, 1
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    if dtype.kind not in "iuf" or len(shape) < 2 or colours != 1 or (n_series > 1 and len(files) == 1):
        found = f"{dtype} {shape}" + (f" and {n_series - 1} more stacks" if n_series > 1 else "")
        raise ScanError(
            path,
            None,
            expected="one stack of integer or real frames (M, H, W)",
            found=found,
            remedy="Save the frames alone, without previews, as grey values.",
        )
    if n_bytes > max(_SMALL_BYTES, _MAX_RATIO * on_disk):
        raise ScanError(
            path,
            None,
            expected=f"a file that warrants {n_bytes} bytes of frames",
            found=f"{on_disk} bytes",
            remedy="The file is damaged or forged; export it again.",
        )
    if len(files) > 1:
        if int(np.prod(shape[:-2])) != 1:
            raise ScanError(
                path, None, expected="one frame in each of several files", found=f"{shape}", remedy="Name one file."
            )
        return TiffFrames(files, (len(files), *shape[-2:]), dtype)
    n_frames = int(np.prod(shape[:-2]))
    if offset is not None and offset + n_bytes <= on_disk:
        array = np.memmap(path, stored, mode="r", offset=offset, shape=(n_frames, *shape[-2:]))
        return ViewFrames(array, key=path.name)
    return TiffFrames(files, (n_frames, *shape[-2:]), dtype)


class _Complaints(logging.Handler):
    """Gathers the errors that tifffile logs and does not raise."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _open_tiff(path: Path) -> Iterator[Any]:
    """Open a TIFF file; whatever goes wrong while it is read becomes one ScanError."""
    import tifffile

    complaints = _Complaints()
    log = logging.getLogger("tifffile")
    log.addHandler(complaints)
    try:
        with tifffile.TiffFile(path) as file:
            yield file
            if complaints.messages:
                # Of a truncated file it gives what is left.
                raise ValueError(complaints.messages[0])
    except ScanError:
        raise
    except (*_DAMAGE, tifffile.TiffFileError) as error:
        reason = format_error(error)
        remedy = "Copy or export it again."
        if "imagecodecs" in reason:
            remedy = "Install imagecodecs (pip install imagecodecs), or save it without compression."
        raise ScanError(
            path, None, expected="an intact TIFF file", found=f"damaged or unreadable data ({reason})", remedy=remedy
        ) from None
    finally:
        log.removeHandler(complaints)
