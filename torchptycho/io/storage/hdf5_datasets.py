"""HDF5 datasets, read with suspicion: what a dataset claims is compared with what its file stores before it is read."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.errors import ScanError
from torchptycho.io.storage.hdf5 import convert_hdf5_errors, find_dataset, open_hdf5
from torchptycho.io.storage.hdf5_chunks import find_chunk_fault
from torchptycho.io.storage.hdf5_requests import FrameRequest, UnwrittenError, VirtualCoverage

__all__ = ["check_dataset", "load_array", "load_complex", "load_number", "load_text"]


# Deflate compresses at most 1032:1; other filters may compress more, so small arrays are always accepted.
_MAX_RATIO = 1032


_SMALL_BYTES = 64 * 2**20


_MAX_VIRTUAL_DEPTH = 4


_MAX_COUNTED_FRAMES = 10_000_000


# h5py itself turns pairs named r, i into complex numbers.
_COMPLEX_NAMES = (("real", "imag"), ("re", "im"), ("r", "i"), ("real", "imaginary"))


def check_dataset(dataset: Any, path: Path, key: str, depth: int = 0, wanted: FrameRequest | None = None) -> list[Path]:
    """Refuse a dataset that cannot hold what it claims.

    Arguments:
        wanted: the part of it that is read; None for all.

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
            return [file_path, *_check_virtual(dataset, file_path, path, key, depth, wanted)]
        stored, claimed = dataset.id.get_storage_size(), math.prod(shape) * dataset.dtype.itemsize
        on_disk = file_path.stat().st_size
        if stored > on_disk:
            raise _make_size_error(path, key, f"a file with room for {stored} bytes of data", f"{on_disk} bytes")
        if dataset.chunks is None:
            if stored < claimed:
                raise _make_unwritten_error(path, key, f"{stored} of {claimed} bytes")
            return [file_path]
        _check_chunks(dataset, path, key, stored, file_path, wanted)
        return [file_path]


def _check_chunks(
    dataset: Any, path: Path, key: str, stored: int, file_path: Path, request: FrameRequest | None
) -> None:
    on_disk = file_path.stat().st_size
    counts = [-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    wanted, written = math.prod(counts), dataset.id.get_num_chunks()
    if written < wanted:
        if request is None:
            raise _make_unwritten_error(path, key, f"{written} of {wanted} pieces")
        m = math.prod(dataset.shape[axis] for axis in request.axes)
        _check_written(_find_written_frames(dataset, counts, request), m, path, key, request)
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if chunk_bytes > max(_SMALL_BYTES, _MAX_RATIO * on_disk):
        raise _make_size_error(path, key, f"a file that warrants pieces of {chunk_bytes} bytes", f"{on_disk} bytes")
    fault = find_chunk_fault(dataset, file_path, chunk_bytes)
    if fault is not None:
        raise _make_size_error(path, key, "whole pieces", fault)
    if not dataset.id.get_create_plist().get_nfilters() and stored < written * chunk_bytes:
        raise _make_size_error(path, key, f"{written * chunk_bytes} bytes", f"{stored}")


def _find_written_frames(dataset: Any, counts: list[int], request: FrameRequest) -> np.ndarray:
    """Find the frames all of whose pieces are in the file, in memory for these alone: a file may claim any number."""
    axes = request.axes
    pieces: Counter[tuple[int, ...]] = Counter()

    def count(piece: Any) -> None:
        pieces[tuple(int(piece.chunk_offset[axis]) for axis in axes)] += 1

    dataset.id.chunk_iter(count)
    per_block = math.prod(counts) // math.prod(counts[axis] for axis in axes)
    lead = [dataset.shape[axis] for axis in axes]
    found = [np.zeros(0, np.int64)]
    for first, n in pieces.items():
        if n == per_block:
            ends = [min(at + dataset.chunks[axis], dataset.shape[axis]) for at, axis in zip(first, axes, strict=True)]
            block = np.meshgrid(*(np.arange(at, end) for at, end in zip(first, ends, strict=True)), indexing="ij")
            found.append(np.ravel_multi_index([axis.reshape(-1) for axis in block], lead))
    return np.sort(np.concatenate(found))


def _check_written(written: np.ndarray, n_frames: int, path: Path, key: str, request: FrameRequest) -> None:
    """Check that all frames that are wanted are among those that were written, which are in order."""
    rows = request.rows
    n = len(written)
    gaps = np.flatnonzero(written != np.arange(n))
    first = int(gaps[0]) if len(gaps) else n
    remedy = f"Take what is there with --frames :{n}." if first == n > 1 else "Leave the others out with --drop-frames."
    missing: tuple[int, ...] = ()
    if len(rows) - len(request.dropped) <= n or n_frames <= _MAX_COUNTED_FRAMES:
        wanted = np.setdiff1d(np.arange(rows.start, rows.stop, rows.step), list(request.dropped))
        missing = tuple(wanted[~np.isin(wanted, written)].tolist())
        if not missing:
            return
    raise UnwrittenError(
        path,
        key,
        expected="all of the frames",
        found=f"{n} of {n_frames} frames: frame {first} (counted from 0) was never written",
        remedy=f"{remedy} Or --bad-frames leave-out does. While the scan goes on, wait until it is complete.",
        part="frames",
        frames=missing,
    )


def _check_virtual(
    dataset: Any, file_path: Path, path: Path, key: str, depth: int, request: FrameRequest | None
) -> list[Path]:
    if depth >= _MAX_VIRTUAL_DEPTH:
        raise ScanError(
            path,
            key,
            expected=f"virtual datasets at most {_MAX_VIRTUAL_DEPTH} deep",
            found="more of them",
            remedy="Copy the frames into one dataset.",
        )
    files: list[Path] = []
    whole: set[tuple[Path, str]] = set()
    covered = 0
    m = 0 if request is None else math.prod(dataset.shape[axis] for axis in request.axes)
    # What follows keeps an entry for each frame, and a file may claim any number of them.
    there = None if request is None or m > _MAX_COUNTED_FRAMES else VirtualCoverage(dataset, request)
    for source in dataset.virtual_sources():
        n_points = source.vspace.get_select_npoints()
        covered = covered + n_points if covered >= 0 and n_points >= 0 else -1
        name = source.file_name
        if "%b" in name or "%b" in source.dset_name:
            covered = -1
            continue
        file = file_path if name == "." else file_path.parent / name
        files += [file] if file.is_file() and file not in files else []
        if (file, source.dset_name) not in whole:
            try:
                is_whole = _check_source(dataset, source, file, path, key, depth, there)
            except ScanError as error:
                needed = () if there is None else there.list_needed(source)
                if there is not None and not needed:
                    covered = covered - n_points if covered >= 0 and n_points >= 0 else -1
                    continue
                raise _make_source_error(error, needed) from None
            if is_whole:
                whole.add((file, source.dset_name))
        if there is not None:
            there.add(source, n_points)
    if 0 <= covered < math.prod(dataset.shape):
        if there is not None and request is not None:
            _check_written(there.find_written_frames(), m, path, key, request)
            return files
        raise _make_unwritten_error(path, key, f"sources for {covered} of {math.prod(dataset.shape)} values")
    return files


def _check_source(
    dataset: Any, source: Any, file: Path, path: Path, key: str, depth: int, there: VirtualCoverage | None
) -> bool:
    """Check what a virtual dataset has from a source, and return whether all of that source is in its file."""
    own = Path(dataset.file.filename)
    if not file.is_file():
        raise ScanError(
            path,
            key,
            expected=f"frames from {source.file_name}",
            found="no such file",
            remedy=f"Put it where {own.name} looks for it: {file}. HDF5 would give zeros in its place.",
        )
    with contextlib.nullcontext(dataset.file) if file == own else open_hdf5(file) as opened:
        values = find_dataset(opened, file, source.dset_name)
        if values is None:
            expected = f"'{source.dset_name}' in {file}"
            raise ScanError(path, key, expected=expected, found="no such dataset", remedy="Export the file again.")
        try:
            check_dataset(values, path, key, depth + 1)
        except ScanError:
            wanted, shift = (None, 0) if there is None else there.translate(source, values.shape or ())
            if wanted is None:
                raise
            try:
                check_dataset(values, path, key, depth + 1, wanted)
            except UnwrittenError as error:
                raise error.shift(shift) from None
            return False
    return True


def _make_source_error(error: ScanError, needed: tuple[int, ...]) -> ScanError:
    """Make the error about a source of a virtual dataset, with the frames that are not there because of it."""
    known = isinstance(error, UnwrittenError) and error.frames
    return UnwrittenError(
        error.source,
        error.key,
        expected=error.expected,
        found=error.found,
        remedy=error.remedy
        if known or not needed
        else f"{error.remedy} Or leave out its frames with --bad-frames leave-out.",
        part="frames",
        frames=error.frames if isinstance(error, UnwrittenError) and error.frames else needed,
    )


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
