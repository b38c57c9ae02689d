"""HDF5 datasets, read with suspicion: what a dataset claims is compared with what its file stores before it is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.errors import ScanError
from torchptycho.io.storage.hdf5 import convert_hdf5_errors, find_dataset, open_hdf5
from torchptycho.io.storage.hdf5_chunks import find_chunk_fault

__all__ = ["check_dataset", "load_array", "load_complex", "load_number", "load_text"]


# Deflate compresses at most 1032:1; other filters may compress more, so small arrays are always accepted.
_MAX_RATIO = 1032


_SMALL_BYTES = 64 * 2**20


_MAX_VIRTUAL_DEPTH = 4


# h5py itself turns pairs named r, i into complex numbers.
_COMPLEX_NAMES = (("real", "imag"), ("re", "im"), ("r", "i"), ("real", "imaginary"))


def check_dataset(dataset: Any, path: Path, key: str, depth: int = 0) -> list[Path]:
    """Refuse a dataset that cannot hold what it claims.

    Returns:
        the files that its values come from.

    Raises:
        ScanError: no numbers, empty, never written, larger than its file allows, or from files that are missing.
    """
    with convert_hdf5_errors(path, key):
        shape = dataset.shape
        if dataset.dtype.kind not in "biufc" and not _is_complex_pair(dataset.dtype):
            found = "text or objects" if dataset.dtype.kind in "OSUV" else f"{dataset.dtype}"
            raise ScanError(path, key, expected="numbers", found=found, remedy="Save it as a numeric array.")
        if shape is None or 0 in shape:
            raise ScanError(
                path, key, expected="values", found=f"an empty dataset of shape {shape}", remedy="Export it again."
            )
        if dataset.external:
            raise ScanError(
                path,
                key,
                expected="values in HDF5 files",
                found=f"values in the raw file {dataset.external[0][0]}",
                remedy="Export it with the values inside, or with a virtual dataset.",
            )
        file_path = Path(dataset.file.filename)
        if dataset.is_virtual:
            return [file_path, *_check_virtual(dataset, file_path, path, key, depth)]
        stored, claimed = dataset.id.get_storage_size(), math.prod(shape) * dataset.dtype.itemsize
        on_disk = file_path.stat().st_size
        if stored > on_disk:
            raise _make_size_error(path, key, f"a file with room for {stored} bytes of data", f"{on_disk} bytes")
        if dataset.chunks is None:
            if stored < claimed:
                raise _make_unwritten_error(path, key, f"{stored} of {claimed} bytes")
            return [file_path]
        _check_chunks(dataset, path, key, stored, on_disk, file_path)
        return [file_path]


def _check_chunks(dataset: Any, path: Path, key: str, stored: int, on_disk: int, file_path: Path) -> None:
    counts = [-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    wanted, written = math.prod(counts), dataset.id.get_num_chunks()
    if written < wanted:
        raise _make_unwritten_error(path, key, f"{written} of {wanted} pieces")
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if chunk_bytes > max(_SMALL_BYTES, _MAX_RATIO * on_disk):
        raise _make_size_error(path, key, f"a file that warrants pieces of {chunk_bytes} bytes", f"{on_disk} bytes")
    fault = find_chunk_fault(dataset, file_path, chunk_bytes)
    if fault is not None:
        raise _make_size_error(path, key, "whole pieces", fault)
    if not dataset.id.get_create_plist().get_nfilters() and stored < wanted * chunk_bytes:
        raise _make_size_error(path, key, f"{wanted * chunk_bytes} bytes", f"{stored}")


def _check_virtual(dataset: Any, file_path: Path, path: Path, key: str, depth: int) -> list[Path]:
    if depth >= _MAX_VIRTUAL_DEPTH:
        raise ScanError(
            path,
            key,
            expected=f"virtual datasets at most {_MAX_VIRTUAL_DEPTH} deep",
            found="more of them",
            remedy="Copy the frames into one dataset.",
        )
    files: list[Path] = []
    covered = 0
    for source in dataset.virtual_sources():
        n_points = source.vspace.get_select_npoints()
        covered = covered + n_points if covered >= 0 and n_points >= 0 else -1
        name = source.file_name
        if "%b" in name or "%b" in source.dset_name:
            covered = -1
            continue
        file = file_path if name == "." else file_path.parent / name
        if not file.is_file():
            raise ScanError(
                path,
                key,
                expected=f"frames from {name}",
                found="no such file",
                remedy=f"Put it where {file_path.name} looks for it: {file}. HDF5 would give zeros in its place.",
            )
        if file not in files:
            files.append(file)
            if file == file_path:
                _check_source(dataset.file, source.dset_name, path, key, depth)
            else:
                with open_hdf5(file) as opened:
                    _check_source(opened, source.dset_name, path, key, depth)
    if 0 <= covered < math.prod(dataset.shape):
        raise _make_unwritten_error(path, key, f"sources for {covered} of {math.prod(dataset.shape)} values")
    return files


def _check_source(file: Any, name: str, path: Path, key: str, depth: int) -> None:
    source = find_dataset(file, Path(file.filename), name)
    if source is None:
        raise ScanError(
            path, key, expected=f"'{name}' in {file.filename}", found="no such dataset", remedy="Export the file again."
        )
    check_dataset(source, path, key, depth + 1)


def _make_size_error(path: Path, key: str, claim: str, found: str) -> ScanError:
    return ScanError(
        path,
        key,
        expected=f"{claim}",
        found=found,
        remedy="The file is damaged or forged; copy or export it again.",
    )


def _make_unwritten_error(path: Path, key: str, what: str) -> ScanError:
    return ScanError(
        path,
        key,
        expected="all of the data",
        found=f"{what}: the rest was never written",
        remedy="Wait until the scan is complete, or export the part that is there.",
    )


def load_array(dataset: Any, path: Path, key: str) -> np.ndarray:
    """Load a whole dataset, C-ordered and in native byte order.

    Raises:
        ScanError: see `check_dataset`; also when it is larger than its file warrants.
    """
    with convert_hdf5_errors(path, key):
        files = check_dataset(dataset, path, key)
        claimed = math.prod(dataset.shape) * dataset.dtype.itemsize
        on_disk = sum(file.stat().st_size for file in files)
        if claimed > max(_SMALL_BYTES, _MAX_RATIO * on_disk):
            raise _make_size_error(path, key, f"a file that warrants {claimed} bytes", f"{on_disk} bytes")
        values = dataset[()]
        if _is_complex_pair(values.dtype):
            real, imaginary = (values[name] for name in values.dtype.names)
            return np.ascontiguousarray(real + 1j * imaginary)
        return np.asarray(values, dtype=values.dtype.newbyteorder("="), order="C")


def _is_complex_pair(dtype: np.dtype[Any]) -> bool:
    """Return whether values are pairs of a real and an imaginary part, as MATLAB and others write complex numbers."""
    names = tuple(name.lower() for name in dtype.names or ())
    fields = [dtype[name] for name in dtype.names or ()]
    return names in _COMPLEX_NAMES and all(field.kind == "f" and not field.shape for field in fields)


def load_complex(dataset: Any, path: Path, key: str) -> np.ndarray:
    """Load a dataset of complex (or real) numbers as complex64.

    Raises:
        ScanError: of another kind, or not finite.
    """
    values = load_array(dataset, path, key)
    if values.dtype.kind not in "cf":
        found = f"{values.dtype} {values.shape}"
        raise ScanError(path, key, expected="complex numbers", found=found, remedy="Save the wave, not an image of it.")
    with np.errstate(over="ignore"):
        values = values.astype(np.complex64)
    if not np.isfinite(values).all():
        raise ScanError(path, key, expected="finite values", found="NaN or infinity", remedy="Export it again.")
    return values


def load_number(dataset: Any, path: Path, key: str) -> float:
    """Load one number; of one per frame, their mean.

    Raises:
        ScanError: not a real number.
    """
    values = load_array(dataset, path, key)
    number = float(values.astype(np.float64).mean()) if values.dtype.kind in "iuf" else math.nan
    if not math.isfinite(number):
        found = f"{values.dtype} {values.shape}"
        raise ScanError(path, key, expected="a finite number", found=found, remedy="Correct it, or leave it out.")
    return number


def load_text(file: Any, path: Path, name: str) -> str | None:
    """Load a text; None when there is none of that name."""
    node = find_dataset(file, path, name)
    if node is None or node.shape != () or node.dtype.kind not in "OS":
        return None
    with convert_hdf5_errors(path, name):
        value = node[()]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
