"""What arrays a file holds, whether it is a scan or not."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchptycho.core.errors import ScanError
from torchptycho.io.array_refs import NPY_MAGIC, map_npy
from torchptycho.io.storage.archive import NpzArchive, is_zip
from torchptycho.io.storage.file_access import read_head
from torchptycho.io.storage.hdf5 import convert_hdf5_errors, is_dataset, is_hdf5, list_names, open_hdf5
from torchptycho.io.storage.hdf5_datasets import load_array
from torchptycho.io.storage.matlab import is_matlab_5, list_matlab_arrays, load_matlab_array

__all__ = ["StoredArray", "list_arrays"]

_MAX_ARRAYS, _MAX_DEPTH, _MAX_READ_BYTES = 200, 12, 64 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredArray:
    """An array in a file.

    Arguments:
        name: its path or key.
        shape, dtype: as its header says; None where that is damaged.
        fault: why it cannot be read; None when it can, and for large arrays when their header is good.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str | None
    fault: str | None = None

    def __str__(self) -> str:
        where = self.name if self.shape is None else f"{self.name} {self.shape} {self.dtype}"
        return f"{where}: {self.fault}" if self.fault else where


def list_arrays(path: Path) -> list[StoredArray]:
    """List the arrays of a file, the first 200; none for a file of another kind. Those of at most 64 MiB are read.

    Raises:
        ScanError: there is no such file, or it is damaged as a whole.
    """
    head = read_head(path)
    if is_hdf5(head):
        with open_hdf5(path) as file:
            found: list[StoredArray] = []
            _list_group(file, path, "", found, 0)
            return found
    if is_zip(head):
        archive = NpzArchive(path)
        return [_describe_member(archive, key) for key in archive.keys[:_MAX_ARRAYS]]
    if head.startswith(NPY_MAGIC):
        array = map_npy(path)
        return [StoredArray(name=path.name, shape=array.shape, dtype=str(array.dtype))]
    if is_matlab_5(head):
        return [
            StoredArray(
                name=name,
                shape=shape,
                dtype="numbers",
                fault=_find_fault(functools.partial(load_matlab_array, path, name)),
            )
            for name, shape in list_matlab_arrays(path).items()
        ][:_MAX_ARRAYS]
    return []


def _describe_member(archive: NpzArchive, key: str) -> StoredArray:
    try:
        member = archive.inspect_member(key)
    except ScanError as error:
        return StoredArray(name=key, shape=None, dtype=None, fault=error.found)
    fault = None
    if math.prod(member.shape) * member.dtype.itemsize <= _MAX_READ_BYTES:
        fault = _find_fault(lambda: archive.load(key))
    return StoredArray(name=key, shape=member.shape, dtype=str(member.dtype), fault=fault)


def _find_fault(read: Callable[[], Any]) -> str | None:
    try:
        read()
    except ScanError as error:
        return error.found
    return None


def _list_group(file: Any, path: Path, folder: str, found: list[StoredArray], depth: int) -> None:
    try:
        names = list_names(file, path, folder or "/")
    except ScanError as error:
        found.append(StoredArray(name=folder or "/", shape=None, dtype=None, fault=error.found))
        return
    for name in names:
        if len(found) >= _MAX_ARRAYS:
            return
        place = f"{folder}/{name}"
        try:
            with convert_hdf5_errors(path, place):
                node = file.get(place)
                shape = tuple(node.shape or ()) if is_dataset(node) else None
                dtype = str(node.dtype) if shape is not None else None
        except ScanError as error:
            found.append(StoredArray(name=place, shape=None, dtype=None, fault=error.found))
            continue
        if node is None:
            found.append(StoredArray(name=place, shape=None, dtype=None, fault="a link to what is not there"))
        elif shape is not None:
            fault = None
            if node.dtype.kind in "biufc" and math.prod(shape) * node.dtype.itemsize <= _MAX_READ_BYTES:
                fault = _find_fault(functools.partial(load_array, node, path, place))
            found.append(StoredArray(name=place, shape=shape, dtype=dtype, fault=fault))
        elif depth < _MAX_DEPTH:
            _list_group(file, path, place, found, depth + 1)
