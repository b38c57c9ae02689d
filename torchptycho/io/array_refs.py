"""Arrays named by a text: `FILE:/path`, `FILE.npy`, a column `FILE.csv:x`; `[k]` takes one entry of the last axis."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.io.frames.hdf5_series import open_hdf5_series
from torchptycho.io.frames.npz_frames import ViewFrames, open_stack
from torchptycho.io.frames.tiff_frames import is_tiff, list_numbered_files, open_tiff_stack
from torchptycho.io.storage.archive import Member, NpzArchive, convert_zip_errors, is_zip, read_array_header
from torchptycho.io.storage.file_access import read_head
from torchptycho.io.storage.hdf5 import find_dataset, is_hdf5, open_hdf5
from torchptycho.io.storage.hdf5_datasets import load_array
from torchptycho.io.text_tables import read_text_column
from torchptycho.io.units import read_unit

__all__ = ["NPY_MAGIC", "ArrayRef", "map_npy", "parse_array_ref"]

NPY_MAGIC = b"\x93NUMPY"

# Files that hold one array, which needs no name.
_ONE_ARRAY = (".npy", ".tif", ".tiff")
_WILDCARD = re.compile(r"[*?]")
_ENTRY = re.compile(r"^(.*)\[(\d+)\]$")


@dataclasses.dataclass(frozen=True)
class ArrayRef:
    """One array of one file."""

    path: Path
    key: str
    entry: int | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.key}" if self.key else str(self.path)

    def load(self, n_frames: int | None = None) -> np.ndarray:
        """Load the array into memory.

        Arguments:
            n_frames: number of frames that a column of a table belongs to. Where its rows are fewer, and as many when
                those are counted that are commented out, these get NaN: they are of frames that were recorded.

        Raises:
            ScanError: it is not there, or its file is damaged.
        """
        head = read_head(self.path)
        if is_hdf5(head):
            with open_hdf5(self.path) as file:
                values = load_array(self._find_dataset(file), self.path, self.key)
        elif is_zip(head):
            values = self._open_archive().load(self.key)
        elif head.startswith(NPY_MAGIC):
            values = np.array(map_npy(self.path))
        elif is_tiff(head):
            stack = open_tiff_stack((self.path,))
            values = stack[:] if stack.shape[0] > 1 else stack[:][0]
        else:
            return self._load_column(n_frames)
        if self.entry is None:
            return values
        if not values.ndim or self.entry >= values.shape[-1]:
            raise ScanError(
                self.path,
                self.key,
                expected=f"entry {self.entry} along the last axis",
                found=f"an array of shape {values.shape}",
                remedy="Count entries from 0.",
            )
        return values[..., self.entry]

    def read_unit(self) -> str | None:
        """Read the unit that a dataset in HDF5 states, or the header of a table; None in other files."""
        head = read_head(self.path)
        if not is_hdf5(head):
            is_table = not (is_zip(head) or is_tiff(head) or head.startswith(NPY_MAGIC))
            return read_text_column(self.path, self.key, self.entry).unit if is_table else None
        with open_hdf5(self.path) as file:
            return read_unit(self._find_dataset(file), self.path)

    def open_frames(self, axes: str = "myx", config: ReadConfig = ReadConfig()) -> Frames:  # noqa: B008 -- frozen
        """Open the frames of a stack, or of several in HDF5, which stay in their files.

        Arguments:
            axes: their order in the file: m counts the frames, y the rows, x the columns.
            config: says which frames are wanted; the others need not be there.

        Raises:
            ScanError: it is not there, or no stack of real frames.
        """
        if self.entry is not None:
            raise ScanError(
                self.path,
                self.key or None,
                expected="a whole stack of frames",
                found=f"one entry, [{self.entry}]",
                remedy=f"Leave the brackets out; --energy-index {self.entry} takes one energy of a stack (E, M, H, W).",
            )
        files = list_numbered_files(self.path) if _WILDCARD.search(self.path.name) else (self.path,)
        head = read_head(files[0])
        if is_tiff(head):
            stack = open_tiff_stack(files)
            return (
                stack
                if axes == "myx"
                else ViewFrames(np.transpose(stack[:], [axes.index(a) for a in "myx"]), key=self.path.name)
            )
        if len(files) > 1:
            raise ScanError(
                self.path,
                None,
                expected="TIFF files, where several are named",
                found=f"{files[0].name} of another format",
                remedy="Join them into one file.",
            )
        if is_hdf5(head):
            with open_hdf5(self.path) as file:
                return open_hdf5_series(file, self.path, self.key, axes, config)
        if is_zip(head):
            archive = self._open_archive()
            member = archive.inspect_member(self.key)
            _check_stack(self.path, self.key, member.shape, member.dtype)
            if axes in ("myx", "yxm") or len(member.shape) > 3:
                _refuse_turned_raster(self.path, self.key, member.shape, axes)
                return open_stack(archive, member, axes.index("m"))
            return ViewFrames(np.transpose(_map_member(archive, member), [axes.index(a) for a in "myx"]), key=self.key)
        if head.startswith(NPY_MAGIC):
            array = map_npy(self.path)
            _check_stack(self.path, self.key, array.shape, array.dtype)
            if array.ndim > 3:
                _refuse_turned_raster(self.path, self.path.name, array.shape, axes)
                return _open_raster(array, self.path.name)
            return ViewFrames(np.transpose(array, [axes.index(a) for a in "myx"]), key=self.path.name)
        raise ScanError(
            self.path,
            self.key or None,
            expected="frames in HDF5, NPZ, NPY or TIFF",
            found="another format",
            remedy="Convert them with numpy.save.",
        )

    def _load_column(self, n_frames: int | None) -> np.ndarray:
        column = read_text_column(self.path, self.key, self.entry)
        is_left_out = len(column.values) + len(column.commented) == n_frames
        return column.with_commented() if column.commented and is_left_out else column.values

    def _open_archive(self) -> NpzArchive:
        archive = NpzArchive(self.path)
        if self.key not in archive:
            raise archive.make_missing_error(self.key, "an array", "Or correct the name.")
        return archive

    def _find_dataset(self, file: object) -> object:
        dataset = find_dataset(file, self.path, self.key)
        if dataset is None:
            raise ScanError(
                self.path,
                self.key,
                expected="a dataset",
                found="none of that name",
                remedy="List what the file holds with h5dump -n or h5ls -r.",
            )
        return dataset


def parse_array_ref(text: str, folder: Path, scan: Path | None = None) -> ArrayRef:
    """Parse a text that names an array.

    Arguments:
        folder: that relative names of files start from.
        scan: file that a path without a file is in; None when there is none, and the text is a file's name.
    """
    matched = _ENTRY.match(text)
    entry = None if matched is None else int(matched[2])
    bare = text if matched is None else matched[1]
    name, colon, key = bare.partition(":")
    if not colon and scan is not None and not name.lower().endswith(_ONE_ARRAY):
        return ArrayRef(scan, bare.strip("/"), entry)
    name = name.replace("{stem}", scan.stem) if scan is not None else name
    return ArrayRef(folder / Path(name).expanduser(), key.strip("/"), entry)


def map_npy(path: Path) -> np.ndarray:
    """Map the array of a .npy file read-only.

    Raises:
        ScanError: damaged, pickled, or smaller than its header says.
    """
    with convert_zip_errors(path, None, "NumPy (.npy)"):
        with path.open("rb") as stream:
            shape, fortran_order, dtype = read_array_header(stream)
            offset = stream.tell()
        if dtype.hasobject or dtype.kind not in "biufc" or 0 in shape:
            raise ScanError(
                path,
                None,
                expected="an array of numbers",
                found="an object array (a Python pickle; it was not opened)" if dtype.hasobject else f"{dtype} {shape}",
                remedy="Save it again as a numeric array.",
            )
        claimed, there = math.prod(shape) * dtype.itemsize, path.stat().st_size - offset
        if claimed > there:
            raise ScanError(
                path,
                None,
                expected=f"{claimed} bytes for {dtype} {shape}",
                found=f"{there} bytes",
                remedy="The file is truncated; copy or export it again.",
            )
        order = "F" if fortran_order else "C"
        return np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order=order)  # type: ignore[call-overload, no-any-return]


def _map_member(archive: NpzArchive, member: Member) -> np.ndarray:
    if member.file_offset is None:
        return archive.load(member.key)
    order = "F" if member.fortran_order else "C"
    return np.memmap(  # type: ignore[call-overload, no-any-return]
        member.path, member.dtype, mode="r", offset=member.file_offset, shape=member.shape, order=order
    )


def _check_stack(path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) < 3 or dtype.kind not in "iuf":
        raise ScanError(
            path,
            key or None,
            expected="a stack of integer or real frames (M, H, W) or (rows, columns, H, W)",
            found=f"{dtype} {shape}",
            remedy="Name another array, or reshape it.",
        )


def _open_raster(array: np.ndarray, key: str) -> Frames:
    """View an array whose axes, all but the last two, count the frames.

    Raises:
        ScanError: its memory is in Fortran order, so that its frames would have to be copied.
    """
    if not array.flags.c_contiguous:
        raise ScanError(
            key,
            None,
            expected="frames of several axes in C order",
            found=f"{array.shape} in Fortran order",
            remedy="Save numpy.ascontiguousarray of it.",
        )
    return ViewFrames(array.reshape(-1, *array.shape[-2:]), key=key, lead_shape=array.shape[:-2])


def _refuse_turned_raster(path: Path, key: str, shape: tuple[int, ...], axes: str) -> None:
    if axes != "myx" and len(shape) > 3:
        raise ScanError(
            path,
            key,
            expected="frames (rows, columns, H, W) for frames_axes myx",
            found=f"{shape} for {axes}",
            remedy="Leave frames_axes out, or transpose the array.",
        )
