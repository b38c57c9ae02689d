"""Reconstructions in NPZ files, and the objects of other programs' HDF5 files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.coverage import find_outside_zeros, find_unmeasured
from torchptycho.core.errors import ScanError
from torchptycho.core.inputs import as_path
from torchptycho.core.reconstruction import MIN_COVERAGE, Reconstruction
from torchptycho.io.formats.ptychodus_content import find_common_spacing_m
from torchptycho.io.probe_files import load_probe
from torchptycho.io.probe_variation import load_variation, read_product_variation
from torchptycho.io.storage.archive import NpzArchive, write_array
from torchptycho.io.storage.file_access import dump_json, read_head, replace_atomically
from torchptycho.io.storage.hdf5 import is_hdf5, list_names, locate_dataset, open_hdf5, read_attribute
from torchptycho.io.storage.hdf5_datasets import load_array, load_complex

__all__ = ["read_reconstruction", "write_reconstruction"]

_FORMAT, _FORMAT_VERSION = "torchptycho-reconstruction", 1
# Maps that an image may have.
_MAP_KEYS = ("spread", "amplitude_sigma", "phase_sigma_rad")
# The key of this package, and that of a Ptychodus product saved as NPZ.
_PIXEL_KEYS = ("object_pixel_m", "object_pixel_height_m")


def write_reconstruction(reconstruction: Reconstruction | str | Path, path: str | Path) -> None:
    """Write a reconstruction as NPZ; the file appears only when it is whole.

    Arrays: `object`, `coverage`, `valid`, `origin_px`, `object_pixel_m` (when known), `_metadata` (JSON: provenance and
    history), of a thick object, whose `object` is (S, H, W), `slice_spacing_m`, of a
    stitched image `spread`, and of a refinement `probe`, `ycoords` and `xcoords` (refined positions),
    `background`, `opr_modes` and `opr_weights`, `frame_scale`; `ycoords_given` and `xcoords_given`
    (positions as the scan gave them); with error bars `amplitude_sigma` and `phase_sigma_rad`.

    Raises:
        ScanError: the provenance is not plain data, or the place cannot be written to.
    """
    path = as_path(path, "path")
    if not isinstance(reconstruction, Reconstruction):
        reconstruction = read_reconstruction(
            as_path(reconstruction, "reconstruction", "a Reconstruction or the path of an image file")
        )
    metadata = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "provenance": reconstruction.provenance,
        "history": reconstruction.history,
    }
    arrays = {
        "object": reconstruction.object.astype(np.complex64, copy=False),
        "coverage": reconstruction.coverage.astype(np.float32, copy=False),
        "valid": reconstruction.valid.astype(bool, copy=False),
        "origin_px": np.array(reconstruction.origin_px, np.int64),
        "_metadata": np.array(dump_json(metadata, path, "provenance")),
    }
    if reconstruction.object_pixel_m is not None:
        arrays["object_pixel_m"] = np.array(reconstruction.object_pixel_m, np.float64)
    for key in _MAP_KEYS:
        if getattr(reconstruction, key) is not None:
            arrays[key] = getattr(reconstruction, key).astype(np.float32, copy=False)
    if reconstruction.slice_spacing_m is not None:
        arrays["slice_spacing_m"] = np.array(reconstruction.slice_spacing_m, np.float64)
    if reconstruction.probe is not None:
        arrays["probe"] = reconstruction.probe.astype(np.complex64, copy=False)
    if reconstruction.positions_px is not None:
        arrays["ycoords"], arrays["xcoords"] = reconstruction.positions_px.astype(np.float64).T
    if reconstruction.given_positions_px is not None:
        arrays["ycoords_given"], arrays["xcoords_given"] = reconstruction.given_positions_px.astype(np.float64).T
    for key in ("opr_modes", "opr_weights", "frame_scale"):
        values = getattr(reconstruction, key)
        if values is not None:
            arrays[key] = values.astype(np.complex64 if key == "opr_modes" else np.float32, copy=False)
    if reconstruction.background is not None:
        arrays["background"] = reconstruction.background.astype(np.float32, copy=False)
    with replace_atomically(path) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            write_array(archive, key, array)


def read_reconstruction(path: str | Path) -> Reconstruction:
    """Read a reconstruction, or any NPZ with a complex `object` (else `objectGuess`: a scan that brings its truth),
    (H, W) or the slices of a thick one (S, H, W).

    Of HDF5 files the object of a Ptychodus product, of a pty-chi pair, of a CXI file (`image_2`) and of a PtyPy
    reconstruction (`.ptyr`) are read.

    What a foreign file lacks is filled in: coverage 1 everywhere, origin (0, 0), and as valid what reaches
    `MIN_COVERAGE`. An `object` without `coverage` and `valid` is valid where a frame changed it, and
    the truth of a scan wherever it is not 0 out to the edge.

    Raises:
        ScanError: no object, or arrays that do not fit it.
    """
    path = as_path(path, "path", "the path of an image file")
    if is_hdf5(read_head(path)):
        return _read_hdf5(path)
    archive = NpzArchive(path)
    key = next((name for name in ("object", "objectGuess") if name in archive), None)
    if key is None:
        raise archive.make_missing_error("object", "a complex object (H, W)")
    values = _load_object(archive, key)
    shape = values.shape[-2:]
    first = values if values.ndim == 2 else values[0]
    # A scan's own arrays of these names would describe the scan, not its object.
    is_image = key == "object"
    coverage = np.ones(shape, np.float32)
    if is_image and "coverage" in archive:
        coverage = _load_like_object(archive, "coverage", shape, "f").astype(np.float32)
        valid = coverage >= MIN_COVERAGE
    else:
        valid = ~(find_unmeasured(first) if is_image else find_outside_zeros(first))
    if is_image and "valid" in archive:
        valid = _load_like_object(archive, "valid", shape, "b")
    metadata = archive.load_metadata()
    spacing_m = _load_pixel_size(archive, "slice_spacing_m") if "slice_spacing_m" in archive else None
    if not is_image and isinstance(stated := metadata.get("slice_spacing_m"), int | float):
        spacing_m = float(stated)
    history: dict[str, list[float]] = {}
    refined = False
    if metadata.get("format") == _FORMAT:
        version = metadata.get("format_version")
        if not isinstance(version, int) or version > _FORMAT_VERSION:
            raise ScanError(
                path,
                "_metadata",
                expected=f"{_FORMAT} version {_FORMAT_VERSION} or older",
                found=f"version {version}",
                remedy="Update torchptycho.",
            )
        refined, history = True, metadata.get("history", {})
        metadata = metadata.get("provenance", {})
    return Reconstruction(
        object=values,
        coverage=coverage,
        valid=valid,
        origin_px=_load_origin(archive) if is_image and "origin_px" in archive else (0, 0),
        object_pixel_m=next((_load_pixel_size(archive, name) for name in _PIXEL_KEYS if name in archive), None),
        slice_spacing_m=spacing_m if values.ndim == 3 else None,
        provenance=metadata,
        **{key: _load_map(archive, key, shape) for key in _MAP_KEYS if refined and key in archive},
        probe=_load_probe(archive) if refined and "probe" in archive else None,
        **(load_variation(archive) if refined else {}),
        positions_px=_load_positions(archive) if refined and "ycoords" in archive else None,
        given_positions_px=_load_positions(archive, "_given") if refined and "ycoords_given" in archive else None,
        background=archive.load("background").astype(np.float32) if refined and "background" in archive else None,
        history=history,
    )


def _read_hdf5(path: Path) -> Reconstruction:
    """Read the object, of a thick one all slices, and the probe of a product with `opr_weights`.

    A product's pixel [0, 0] is the one that its positions count from.
    """
    with open_hdf5(path) as file:
        key, node = locate_dataset(file, path, "object", "entry_1/image_2/data")
        variation = {} if node is None else read_product_variation(file, path)
        storage = None if node is not None else _find_ptypy_storage(file, path)
        if storage is not None:
            key, node = locate_dataset(file, path, f"{storage}/data")
        if node is None:
            raise ScanError(
                path,
                "object",
                expected="a complex object (H, W)",
                found="no such dataset",
                remedy="Name a product, a CXI file with image_2, a .ptyr file, or an NPZ with 'object'.",
            )
        values = load_complex(node, path, key)
        spacing_m = _read_spacing(file, path)
        pixel_m = read_attribute(node, path, "pixel_height_m")
        origin_px = (0, 0)
        if storage is not None:
            pixel_m, origin_px = _read_ptypy_grid(file, path, storage)
    shape = values.shape[-2:]
    is_thick = values.ndim == 3 and len(values) > 1 and storage is None
    if len(shape) != 2 or not (is_thick or values.size == shape[0] * shape[1]):
        raise ScanError(
            path,
            key,
            expected="a complex object (H, W), or its slices (S, H, W)",
            found=f"{values.dtype} {values.shape}",
            remedy="Save one of them.",
        )
    values = values if is_thick else values.reshape(shape)
    return Reconstruction(
        object=values,
        coverage=np.ones(shape, np.float32),
        valid=~find_unmeasured(values[0] if is_thick else values),
        origin_px=origin_px,
        slice_spacing_m=spacing_m if is_thick else None,
        object_pixel_m=float(pixel_m) if isinstance(pixel_m, int | float) and pixel_m > 0 else None,
        **variation,
    )


def _read_spacing(file: Any, path: Path) -> float | None:
    """Read the distance between the slices of a product; None where they are not equally far apart."""
    key, node = locate_dataset(file, path, "object_layer_spacing_m")
    if node is None or 0 in (node.shape or (0,)):
        return None
    return find_common_spacing_m(load_array(node, path, key))


def _find_ptypy_storage(file: Any, path: Path) -> str | None:
    """Find where a PtyPy reconstruction keeps its object; its storages are named after the scan."""
    names = list_names(file, path, "content/obj")
    if len(names) > 1:
        raise ScanError(
            path,
            "content/obj",
            expected="the object of one scan",
            found=f"{', '.join(names)}",
            remedy="Save one of them as an NPZ with 'object'.",
        )
    return f"content/obj/{names[0]}" if names else None


def _read_ptypy_grid(file: Any, path: Path, storage: str) -> tuple[float | None, tuple[int, int]]:
    """Read the edge of a pixel in metres, and the (y, x) of pixel [0, 0] in pixels; PtyPy stores both in metres."""
    grid = {}
    for name in ("_psize", "_origin"):
        key, node = locate_dataset(file, path, f"{storage}/{name}")
        if node is None:
            continue
        values = load_array(node, path, key).astype(np.float64).reshape(-1)
        if values.size != 2 or not np.isfinite(values).all():
            raise ScanError(
                path,
                key,
                expected="two numbers in metres",
                found=f"{values[:3]}",
                remedy="Save the reconstruction again.",
            )
        grid[name] = values
    pixel_m = grid.get("_psize", np.zeros(2))
    if pixel_m.min() <= 0:
        return None, (0, 0)
    y, x = np.rint(grid.get("_origin", np.zeros(2)) / pixel_m).astype(int).tolist()
    return float(pixel_m[0]), (y, x)


def _load_probe(archive: NpzArchive) -> np.ndarray:
    member = archive.inspect_member("probe")
    if len(member.shape) != 3 or member.shape[1] != member.shape[2]:
        remedy = "Save the modes as one stack, or leave them out."
        raise ScanError(archive.path, "probe", expected="modes (P, N, N)", found=str(member.shape), remedy=remedy)
    return load_probe(archive, "probe", member.shape[1])


def _load_positions(archive: NpzArchive, suffix: str = "") -> np.ndarray:
    keys = (f"ycoords{suffix}", f"xcoords{suffix}")
    columns = [archive.load(key).astype(np.float64) for key in keys]
    if columns[0].ndim != 1 or columns[0].shape != columns[1].shape:
        found = f"{columns[0].shape} and {columns[1].shape}"
        remedy = "Save one number per frame under each key, or leave both out."
        raise ScanError(archive.path, ", ".join(keys), expected="two arrays (M,)", found=found, remedy=remedy)
    return np.stack(columns, axis=-1)


def _load_object(archive: NpzArchive, key: str) -> np.ndarray:
    member = archive.inspect_member(key)
    shape = member.shape[1:] if len(member.shape) == 3 and member.shape[0] == 1 else member.shape
    if len(shape) not in (2, 3) or member.dtype.kind != "c":
        raise ScanError(
            archive.path,
            key,
            expected="a complex object (H, W), or its slices (S, H, W)",
            found=f"{member.dtype} {member.shape}",
            remedy="Save amplitude * exp(1j * phase) under this key.",
        )
    with np.errstate(over="ignore"):
        values = archive.load(key).reshape(shape).astype(np.complex64)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        remedy = "Set them to 0, and mark them False in 'valid'."
        raise ScanError(archive.path, key, expected="finite values", found=f"{bad} that are not", remedy=remedy)
    return values


def _load_like_object(archive: NpzArchive, key: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    member = archive.inspect_member(key)
    if member.shape != shape or member.dtype.kind != kind:
        expected = f"{'real' if kind == 'f' else 'boolean'} {shape}, as the object"
        found, remedy = f"{member.dtype} {member.shape}", "Correct it or leave it out."
        raise ScanError(archive.path, key, expected=expected, found=found, remedy=remedy)
    return archive.load(key)


def _load_map(archive: NpzArchive, key: str, shape: tuple[int, ...]) -> np.ndarray:
    return _load_like_object(archive, key, shape, "f").astype(np.float32)


def _load_origin(archive: NpzArchive) -> tuple[int, int]:
    member = archive.inspect_member("origin_px")
    if member.shape != (2,) or member.dtype.kind not in "iu":
        found = f"{member.dtype} {member.shape}"
        remedy = "Save the (y, x) position of pixel [0, 0] as two integers."
        raise ScanError(archive.path, "origin_px", expected="two integers (y, x)", found=found, remedy=remedy)
    y, x = archive.load("origin_px").tolist()
    return (y, x)


def _load_pixel_size(archive: NpzArchive, key: str) -> float:
    member = archive.inspect_member(key)
    value = float(archive.load(key).reshape(-1)[0]) if member.shape in ((), (1,)) and member.dtype.kind == "f" else 0.0
    if not 0 < value < float("inf"):
        remedy = "Correct it or leave it out."
        found = f"{member.dtype} {member.shape}"
        raise ScanError(archive.path, key, expected="one positive number in metres", found=found, remedy=remedy)
    return value
