"""CXI and NXcxi_ptycho files (HDF5). References: CXI file format 1.6 (cxidb.org), NeXus application NXcxi_ptycho."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config.read import MaskSense, ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import wavelength_to_energy_eV
from torchptycho.io.frames.frame_stacks import select_frames
from torchptycho.io.frames.hdf5_frames import open_hdf5_stack
from torchptycho.io.probe_arrays import to_probe_modes
from torchptycho.io.raw_scan import RawScan, build_geometry, check_count, resolve_rows
from torchptycho.io.storage.hdf5 import find_dataset, is_hdf5, list_names, locate_dataset, open_hdf5
from torchptycho.io.storage.hdf5_datasets import load_array, load_complex, load_number
from torchptycho.io.units import Quantity, choose_unit, compute_unit_factor, load_quantity, read_unit

__all__ = ["read_cxi", "sniff_cxi"]

_ENTRY, _DETECTOR = "entry_1", "entry_1/instrument_1/detector_1"
_FRAMES = (f"{_DETECTOR}/data", f"{_ENTRY}/data_1/data")
_TRANSLATION = (
    f"{_ENTRY}/sample_1/geometry_1/translation",
    f"{_ENTRY}/data_1/translation",
    f"{_DETECTOR}/translation",
    f"{_ENTRY}/sample_1/transformation_1/translation",
)
_PROBE = (f"{_ENTRY}/instrument_1/source_1/illumination", f"{_ENTRY}/source_1/illumination")
_MIN_WAVELENGTH_M, _MAX_WAVELENGTH_M = 1e-12, 1e-5
# Bits of the mask that tell something about a pixel without making it bad: in a mask of peaks, corrected, used for
# finding peaks, background subtracted, has signal; 0x1000 marks pixels with signal in files of several writers.
_HARMLESS_BITS = 0x20 | 0x800 | 0x1000 | 0x2000 | 0x4000 | 0x10000


def sniff_cxi(path: Path, head: bytes) -> str | None:
    """Return why this is a CXI file, or None."""
    if not is_hdf5(head):
        return None
    with open_hdf5(path) as file:
        inside = list_names(file, path)
        if "cxi_version" in inside and _ENTRY in inside:
            return f"HDF5 with cxi_version and {_ENTRY}"
        return (
            f"HDF5 with {_FRAMES[0]}" if _ENTRY in inside and find_dataset(file, path, _FRAMES[0]) is not None else None
        )


def read_cxi(path: Path, config: ReadConfig) -> RawScan:
    """Read the first entry of a CXI file.

    Numbers are in the units that their attributes state, else in SI units; the photon energy without a unit is in J or
    eV, whichever is that of a photon.
    Positions are `translation`. It is the motion of the sample, so that the probe moves the other way
    (`translation_sign` -1); its components along the axes of the detector, as `basis_vectors` has them, are the (y, x)
    of the frames. Without basis vectors the rows run along -y and the columns along -x, as the definition says.

    Raises:
        ScanError: no frames or positions, or lengths that cannot be.
    """
    notes: list[str] = []
    frames_slice = parse_frame_slice(config.frames)
    with open_hdf5(path) as file:
        key, dataset = locate_dataset(file, path, *_FRAMES)
        if dataset is None:
            raise ScanError(
                path,
                _FRAMES[0],
                expected="the frames, (M, H, W)",
                found="no such dataset",
                remedy="Perhaps it is a reconstruction; name the file with the frames.",
            )
        stack = open_hdf5_stack(dataset, path, key)
        notes.append(f"frames in {key}, {dataset.shape} {dataset.dtype}" + _describe_storage(dataset, len(stack.files)))
        m, height, width = stack.shape
        rows = resolve_rows(path, key, m, frames_slice)
        slow, fast, pixel_m = _read_basis(file, path, config, notes)
        positions, unit, position_key = _read_translation(file, path, slow, fast, config, notes)
        check_count(path, position_key, len(positions), m, rows, cut=frames_slice is not None)
        energy_eV = config.energy_eV or _read_energy_eV(file, path, notes)
        distance_m = config.distance_m or _read_distance_m(file, path)
        own_sense = config.mask_sense if config.mask is None else "auto"
        probe = _read_probe(file, path, config, (height, width))
        return RawScan(
            path=path,
            format="CXI / NXcxi_ptycho",
            frames=select_frames(stack, rows),
            rows=rows,
            domain="counts",
            positions=positions[rows.start : rows.stop : rows.step],
            unit=unit,
            position_keys=(position_key, position_key),
            probe=probe,
            bad_pixels=_read_bad_pixels(file, path, (height, width), own_sense, notes),
            mask_to_check=None if own_sense != "auto" else "mask",
            truth=_read_object(file, path, notes),
            truth_is_centered=True,
            geometry=build_geometry(path, energy_eV=energy_eV, distance_m=distance_m, detector_pixel_m=pixel_m),
            notes=tuple(notes),
        )


def _describe_storage(dataset: Any, n_files: int) -> str:
    if dataset.is_virtual:
        return f", virtual, from {n_files - 1 or 1} file(s)"
    return f", compressed ({dataset.compression})" if dataset.compression else ""


def _read_basis(
    file: Any, path: Path, config: ReadConfig, notes: list[str]
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Read unit vectors along the detector's rows and columns, and the edge of a pixel in metres."""
    node = find_dataset(file, path, f"{_DETECTOR}/basis_vectors")
    sizes = {
        name: load_quantity(found, path, name, "length", default="m", option="--detector-pixel-m")
        for name in ("y_pixel_size", "x_pixel_size")
        if config.detector_pixel_m is None and (found := find_dataset(file, path, f"{_DETECTOR}/{name}")) is not None
    }
    if node is None:
        y = sizes.get("y_pixel_size", sizes.get("x_pixel_size"))
        x = sizes.get("x_pixel_size", y)
        notes.append("no basis_vectors: rows along -y, columns along -x")
        return np.array([0.0, -1.0, 0.0]), np.array([-1.0, 0.0, 0.0]), _check_square(path, y, x, config)
    vectors = load_array(node, path, "basis_vectors")
    vectors = vectors.astype(np.float64) if vectors.dtype.kind in "iuf" else np.zeros((0, 0))
    vectors = vectors.T if vectors.shape == (3, 2) else vectors
    lengths = np.linalg.norm(vectors, axis=-1)
    if vectors.shape != (2, 3) or not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise ScanError(
            path,
            f"{_DETECTOR}/basis_vectors",
            expected="two vectors of 3 components, (3, 2)",
            found=f"{vectors.tolist()}",
            remedy="Correct them, or leave them out.",
        )
    slow, fast = vectors / lengths[:, None]
    notes.append(f"basis_vectors: rows along {_format_axis(slow)}, columns along {_format_axis(fast)}")
    if config.detector_pixel_m is None and len(sizes) < 2:
        unit = choose_unit(read_unit(node, path), default="m")
        lengths = lengths * compute_unit_factor(path, "basis_vectors", unit, "length", "--detector-pixel-m")
    y, x = sizes.get("y_pixel_size", float(lengths[0])), sizes.get("x_pixel_size", float(lengths[1]))
    return slow, fast, _check_square(path, y, x, config)


def _format_axis(vector: np.ndarray) -> str:
    return f"({', '.join(f'{value:.3g}' for value in vector + 0.0)})"


def _check_square(path: Path, y: float | None, x: float | None, config: ReadConfig) -> float | None:
    if config.detector_pixel_m is not None or y is None or x is None:
        return config.detector_pixel_m
    if not (y > 0 and x > 0 and math.isclose(y, x, rel_tol=1e-3)):
        raise ScanError(
            path,
            "y_pixel_size', 'x_pixel_size",
            expected="square detector pixels",
            found=f"{y:.6g} m x {x:.6g} m",
            remedy="Correct the file, or give --detector-pixel-m; oblong pixels are not modelled.",
        )
    return y


def _read_distance_m(file: Any, path: Path) -> float | None:
    node = find_dataset(file, path, f"{_DETECTOR}/distance")
    if node is None:
        return None
    return abs(load_quantity(node, path, "distance", "length", default="m", option="--distance-m"))


def _read_translation(
    file: Any, path: Path, slow: np.ndarray, fast: np.ndarray, config: ReadConfig, notes: list[str]
) -> tuple[np.ndarray, str, str]:
    """Read positions of the probe, their unit, and where they come from."""
    key, node = locate_dataset(file, path, *_TRANSLATION)
    if node is None:
        raise ScanError(
            path,
            _TRANSLATION[0],
            expected="the translation of each frame, (M, 3) in metres",
            found="no such dataset",
            remedy="Add it, or describe the file in a mapping.",
        )
    moved = load_array(node, path, key)
    moved = moved.reshape(-1, moved.shape[-1]) if moved.ndim > 2 else moved
    if moved.dtype.kind not in "iuf" or moved.ndim != 2 or moved.shape[1] not in (2, 3):
        raise ScanError(
            path,
            key,
            expected="(M, 3) real, x, y, z in metres",
            found=f"{moved.dtype} {moved.shape}",
            remedy="Correct it.",
        )
    moved = np.pad(moved.astype(np.float64), ((0, 0), (0, 3 - moved.shape[1])))
    probe_path = config.translation_sign * moved
    how = (
        "the sample moves, the probe goes the other way"
        if config.translation_sign < 0
        else "taken for the probe's motion"
    )
    unit = choose_unit(config.positions_unit, read_unit(node, path), default="m")
    notes.append(f"positions from {key} in {unit}: {how}")
    return np.stack([probe_path @ slow, probe_path @ fast], axis=1), unit, key


def _read_energy_eV(file: Any, path: Path, notes: list[str]) -> float | None:
    """Read the photon energy: that of the beamline, else from a wavelength, else what CXI files have at the source."""
    found = {
        name: (load_number(node, path, name), read_unit(node, path))
        for name in (
            "instrument_1/beam_1/energy",
            "beam_1/energy",
            "instrument_1/beam_1/incident_energy",
            "instrument_1/source_1/wavelength",
            "instrument_1/source_1/energy",
            "source_1/energy",
        )
        if (node := find_dataset(file, path, f"{_ENTRY}/{name}")) is not None
    }
    for name, (value, stated) in found.items():
        for energy, unit in _interpret_energy(path, name, value, stated):
            if _MIN_WAVELENGTH_M <= wavelength_to_energy_eV(1.0) / energy <= _MAX_WAVELENGTH_M:
                notes.append(f"photon energy {energy:.6g} eV from {name} ({value:.6g} {unit})")
                return energy
    if found:
        raise ScanError(
            path,
            f"{_ENTRY}/instrument_1/source_1/energy",
            expected=f"a photon energy whose wavelength is within {_MIN_WAVELENGTH_M:g} to {_MAX_WAVELENGTH_M:g} m",
            found=", ".join(f"{name} = {value:.6g} {unit or ''}".strip() for name, (value, unit) in found.items()),
            remedy="Give it with --energy-eV.",
        )
    return None


def _interpret_energy(path: Path, name: str, value: float, stated: str | None) -> list[tuple[float, str]]:
    """List what a number may be as a photon energy in eV, and in which unit it is then."""
    if not value > 0:
        return []

    def factor(unit: str, quantity: Quantity) -> float:
        return compute_unit_factor(path, f"{_ENTRY}/{name}", unit, quantity, "--energy-eV")

    if name.endswith("wavelength"):
        unit = choose_unit(stated, default="m")
        return [(wavelength_to_energy_eV(value * factor(unit, "length")), unit)]
    # CXI has joules; NeXus writers put eV.
    units = ("J", "eV") if stated is None else (stated,)
    return [(value * factor(unit, "energy"), unit) for unit in units]


def _read_bad_pixels(
    file: Any, path: Path, shape: tuple[int, int], asked: MaskSense, notes: list[str]
) -> np.ndarray | None:
    key, node = locate_dataset(file, path, f"{_DETECTOR}/mask", f"{_DETECTOR}/pixel_mask")
    if node is None:
        return None
    if node.dtype.kind not in "biu" or tuple(node.shape[-2:]) != shape or len(node.shape) not in (2, 3):
        raise ScanError(
            path,
            key,
            expected=f"{shape} integers, 0 for a good pixel",
            found=f"{node.dtype} {node.shape}",
            remedy="Export a mask of the size of the frames.",
        )
    if len(node.shape) == 3:
        bad = np.zeros(shape, bool)
        for chunk in (
            open_hdf5_stack(node, path, key).chunks(8) if node.dtype.kind != "b" else [load_array(node, path, key)]
        ):
            bad |= _is_bad(chunk, key, asked).any(axis=0)
        notes.append(f"{key}: one mask per frame; a pixel that is bad in any of them is masked in all")
    else:
        bad = _is_bad(load_array(node, path, key), key, asked)
    notes.append(f"{key}: {int(bad.sum())} pixel(s) {'masked' if asked != 'auto' else 'with a bit that means bad'}")
    if bad.all():
        raise ScanError(
            path,
            key,
            expected="some good pixels (0)",
            found="none",
            remedy="Perhaps the mask is inverted: in CXI 0 is good.",
        )
    return bad


def _is_bad(mask: np.ndarray, key: str, asked: MaskSense) -> np.ndarray:
    if asked != "auto":
        return np.asarray((mask == 0) if asked == "good" else (mask != 0))
    # Every bit of NeXus' pixel_mask means bad.
    if mask.dtype.kind == "b" or key.endswith("pixel_mask"):
        return np.asarray(mask != 0)
    bad: np.ndarray = (mask.astype(np.int64) & ~np.int64(_HARMLESS_BITS)) != 0
    return bad


def _read_probe(file: Any, path: Path, config: ReadConfig, shape: tuple[int, int]) -> np.ndarray | None:
    """Read the illumination, or `image_1` when it is a wave of the size of the frames."""
    if config.probe is not None:
        return None
    key, node = locate_dataset(file, path, *_PROBE)
    if node is None:
        key, node = locate_dataset(file, path, f"{_ENTRY}/image_1/data")
        if node is None or node.dtype.kind != "c" or tuple(node.shape[-2:]) != shape:
            return None
    return to_probe_modes(path, key, load_complex(node, path, key))


def _read_object(file: Any, path: Path, notes: list[str]) -> np.ndarray | None:
    """`image_2`, a reconstruction of one slice."""
    key = f"{_ENTRY}/image_2/data"
    node = find_dataset(file, path, key)
    if node is None or node.dtype.kind != "c":
        return None
    values = load_complex(node, path, key)
    values = values.reshape(values.shape[-2:]) if values.ndim > 2 and math.prod(values.shape[:-2]) == 1 else values
    if values.ndim != 2:
        notes.append(f"{key} has {values.shape}: an object of several slices is left out")
        return None
    notes.append(f"object in {key}, its middle taken for the middle of the positions")
    return values
