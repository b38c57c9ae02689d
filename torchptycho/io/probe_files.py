"""The illumination in files of its own: NPZ, NPY, HDF5 of any program, MATLAB."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Complex64

from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry, Particle
from torchptycho.io.array_refs import NPY_MAGIC, ArrayRef, map_npy, parse_array_ref
from torchptycho.io.probe_arrays import to_probe_modes
from torchptycho.io.raw_scan import build_geometry
from torchptycho.io.storage.archive import NpzArchive
from torchptycho.io.storage.file_access import read_head
from torchptycho.io.storage.hdf5 import (
    find_dataset,
    is_hdf5,
    list_array_names,
    list_names,
    locate_dataset,
    open_hdf5,
    read_attribute,
)
from torchptycho.io.storage.hdf5_datasets import load_array
from torchptycho.io.storage.matlab import is_matlab_5, list_matlab_arrays, load_matlab_array

__all__ = ["PROBE_REMEDY", "ProbeFile", "load_probe", "parse_probe_ref", "read_probe_file"]

PROBE_REMEDY = "one with --probe FILE, or begin with one from the mean pattern: --guess-probe."
"""What to give where there is no probe."""

_NAMES = ("probeGuess", "probe", "probes", "probe_guess", "illumination")
_HDF5_NAMES = (
    *_NAMES, "entry_1/image_1/data", "entry_1/instrument_1/source_1/illumination", "entry_1/source_1/illumination",
    "reconstruction/p/probes", "outputs/probes",
)  # fmt: skip
_PTYPY_PROBES = "content/probe"
_PIXEL_NAMES = ("object_pixel_m", "probe_pixel_height_m", "object_pixel_height_m")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ProbeFile:
    """The probe in a file.

    Arguments:
        path, key: where it was found.
        modes: [P, a, a] of any edge.
        pixel_m: edge of its pixels, or None when the file does not say.
        may_be_transposed: it is from MATLAB's HDF5, which turns the order of all axes around; some programs that write
            such files turn them back.
        notes: how the array was understood.
    """

    path: Path
    key: str
    modes: Complex64[np.ndarray, "p a a"]
    pixel_m: float | None = None
    may_be_transposed: bool = False
    notes: tuple[str, ...] = ()


def read_probe_file(source: str | Path, n_px: int | None = None) -> ProbeFile:
    """Read the probe in a file: the array that `FILE:KEY` names; else `probeGuess`, `probe` or another name that
    programs give it; else the only array of the file.

    Arguments:
        n_px: expected edge, which decides between orders of axes that look alike.

    Raises:
        ScanError: no probe in the file, or one that is dark or not finite.
    """
    path, key = parse_probe_ref(source)
    head = read_head(path)
    notes: list[str] = []
    if is_hdf5(head):
        with open_hdf5(path) as file:
            return _read_hdf5_probe(file, path, key, n_px)
    if is_matlab_5(head):
        key = key or _choose_array(path, list_matlab_arrays(path), _NAMES)
        modes = to_probe_modes(path, key, load_matlab_array(path, key), n_px, notes)
        return ProbeFile(path=path, key=key, modes=modes, notes=tuple(notes))
    if head.startswith(NPY_MAGIC):
        modes = to_probe_modes(path, path.name, np.array(map_npy(path)), n_px, notes)
        return ProbeFile(path=path, key=path.name, modes=modes, notes=tuple(notes))
    archive = NpzArchive(path)
    if key:
        values = ArrayRef(path, key).load()
    else:
        key = _choose_array(path, _list_members(archive), _NAMES)
        values = archive.load(key)
    modes = to_probe_modes(path, key, values, n_px, notes)
    pixel_m = _read_archive_pixel(archive, modes.shape[-1])
    return ProbeFile(path=path, key=key, modes=modes, pixel_m=pixel_m, notes=tuple(notes))


def parse_probe_ref(source: str | Path) -> tuple[Path, str]:
    """Parse `FILE` or `FILE:KEY`; a file whose name has a colon is taken by its whole name."""
    path = Path(source)
    if path.exists() or ":" not in str(source):
        return path, ""
    place = parse_array_ref(str(source), Path())
    return place.path, place.key


def load_probe(archive: NpzArchive, key: str, n_px: int | None, notes: list[str] | None = None) -> np.ndarray:
    """Load the probe [P, a, a] under `key` of an open archive; n_px as for `to_probe_modes`."""
    return to_probe_modes(archive.path, key, archive.load(key), n_px, notes)


def _list_members(archive: NpzArchive) -> dict[str, tuple[int, ...]]:
    """List the arrays with at least two axes."""
    keys = [key for key in archive.keys if not key.startswith("_") and not archive.is_empty(key)]
    shapes = {key: archive.inspect_member(key).shape for key in keys}
    return {key: shape for key, shape in shapes.items() if len(shape) > 1}


def _choose_array(path: Path, arrays: dict[str, tuple[int, ...]], names: tuple[str, ...]) -> str:
    """Choose the array that is the probe, by its name, or because there is no other.

    Raises:
        ScanError: none has such a name, and there are several.
    """
    key = next((name for name in names if name in arrays), None)
    if key is None and len(arrays) == 1:
        key = next(iter(arrays))
    if key is None:
        raise ScanError(
            path,
            names[0],
            expected=f"a probe under one of {', '.join(names)}",
            found=f"none of these among: {', '.join(arrays) or 'no arrays'}",
            remedy=f"Name it, as --probe {path.name}:KEY, or save it as 'probe', (P, N, N) complex.",
        )
    return key


def _read_archive_pixel(archive: NpzArchive, edge: int) -> float | None:
    """Read the pixel size of an image, of a product, or of a scan with the lengths of its experiment."""
    for name in _PIXEL_NAMES:
        if name in archive:
            return _to_length(archive.load(name).reshape(-1)[0])
    metadata = archive.load_metadata()
    lengths = {name: _to_length(metadata.get(name)) for name in (*Geometry().lengths, "wavelength_m")}
    particle: Particle = "electron" if metadata.get("particle") == "electron" else "photon"
    propagation: Literal["far", "near"] = "near" if metadata.get("propagation") == "near" else "far"
    geometry = build_geometry(Path(archive.path), particle, **lengths)
    return dataclasses.replace(geometry, propagation=propagation).with_object_pixel(edge).object_pixel_m


def _to_length(value: Any) -> float | None:
    """Return a positive number, or None for anything else."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return float(value) if is_number and 0 < float(value) < np.inf else None


def _read_hdf5_probe(file: Any, path: Path, key: str, n_px: int | None) -> ProbeFile:
    notes: list[str] = []
    storage = ""
    if key:
        name, node = locate_dataset(file, path, key)
        if node is None:
            raise ScanError(
                path, key, expected="a dataset", found="none of that name", remedy="List them with h5ls -r FILE."
            )
    else:
        name, node = locate_dataset(file, path, *_HDF5_NAMES)
    if node is None:
        storage = _find_ptypy_storage(file, path)
        arrays = {} if storage else list_array_names(file, path)
        name = f"{storage}/data" if storage else _choose_array(path, arrays, _HDF5_NAMES)
        node = find_dataset(file, path, name)
    modes = to_probe_modes(path, name, load_array(node, path, name), n_px, notes)

    def read_pixel(owner: Any, *names: str) -> float | None:
        return None if owner is None else _to_length(read_attribute(owner, path, *names))

    pixel_m = read_pixel(node, "pixel_height_m", "pixel_width_m")
    # In a pair of pty-chi only the object states the pixel.
    pixel_m = pixel_m or read_pixel(find_dataset(file, path, "object"), "pixel_height_m", "pixel_width_m")
    if storage and (sizes := find_dataset(file, path, f"{storage}/_psize")) is not None:
        pixel_m = _to_length(load_array(sizes, path, f"{storage}/_psize").reshape(-1)[0])
    is_matlab = read_attribute(node, path, "MATLAB_class") is not None
    return ProbeFile(path=path, key=name, modes=modes, pixel_m=pixel_m, may_be_transposed=is_matlab, notes=tuple(notes))


def _find_ptypy_storage(file: Any, path: Path) -> str:
    """Find the probe of a PtyPy reconstruction; its storages are named after the scan."""
    names = list_names(file, path, _PTYPY_PROBES)
    if len(names) > 1:
        raise ScanError(
            path,
            _PTYPY_PROBES,
            expected="the probe of one scan",
            found=f"{', '.join(names)}",
            remedy=f"Name one, as --probe {path.name}:{_PTYPY_PROBES}/{names[0]}/data.",
        )
    return f"{_PTYPY_PROBES}/{names[0]}" if names else ""
