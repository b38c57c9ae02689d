"""Positions in CXI files, along the axes of the detector."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.io.formats.cxi_entry import DETECTOR, Entry
from torchptycho.io.frame_positions import fit_grid
from torchptycho.io.parts import read_optional
from torchptycho.io.storage.hdf5_datasets import load_array
from torchptycho.io.units import choose_unit, compute_unit_factor, load_quantity, read_unit

__all__ = ["read_basis", "read_positions"]

_TRANSLATION = (
    "sample_1/geometry_1/translation",
    "data_1/translation",
    f"{DETECTOR}/translation",
    "sample_1/transformation_1/translation",
)
# Groups with the motors x and y by themselves, as NXcxi_ptycho has them.
_MOTORS = ("sample_1/transformations", "sample_1/geometry_1", "data_1", "data")


def read_basis(entry: Entry, config: ReadConfig, notes: list[str]) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Read unit vectors along the detector's rows and columns, and the edge of a pixel in metres."""
    path = entry.path
    sizes: dict[str, float] = read_optional("detector-pixel", config, lambda: _read_pixel_sizes(entry, config), {})
    basis = read_optional("basis-vectors", config, lambda: _read_vectors(entry), None)
    if basis is None:
        y = sizes.get("y_pixel_size", sizes.get("x_pixel_size"))
        x = sizes.get("x_pixel_size", y)
        notes.append("no basis_vectors: rows along -y, columns along -x")
        return np.array([0.0, -1.0, 0.0]), np.array([-1.0, 0.0, 0.0]), _check_square(path, y, x, config)
    vectors, lengths, stated = basis
    slow, fast = vectors / lengths[:, None]
    notes.append(f"basis_vectors: rows along {_format_axis(slow)}, columns along {_format_axis(fast)}")
    if "detector-pixel" in config.ignore:
        return slow, fast, config.detector_pixel_m
    if config.detector_pixel_m is None and len(sizes) < 2:
        unit = choose_unit(stated, default="m")
        lengths = lengths * compute_unit_factor(path, "basis_vectors", unit, "length", "--detector-pixel-m")
    y, x = sizes.get("y_pixel_size", float(lengths[0])), sizes.get("x_pixel_size", float(lengths[1]))
    return slow, fast, _check_square(path, y, x, config)


def _read_pixel_sizes(entry: Entry, config: ReadConfig) -> dict[str, float]:
    return {
        name: load_quantity(found, entry.path, name, "length", default="m", option="--detector-pixel-m")
        for name in ("y_pixel_size", "x_pixel_size")
        if config.detector_pixel_m is None and (found := entry.find(f"{DETECTOR}/{name}")) is not None
    }


def _read_vectors(entry: Entry) -> tuple[np.ndarray, np.ndarray, str | None] | None:
    """Read the vectors along rows and columns, their lengths, and the unit that they state; None without them."""
    path = entry.path
    node = entry.find(f"{DETECTOR}/basis_vectors")
    if node is None:
        return None
    vectors = load_array(node, path, "basis_vectors")
    vectors = vectors.astype(np.float64) if vectors.dtype.kind in "iuf" else np.zeros((0, 0))
    vectors = vectors.T if vectors.shape == (3, 2) else vectors
    lengths = np.linalg.norm(vectors.reshape(-1, 3) if vectors.size % 3 == 0 else np.zeros((1, 3)), axis=-1)
    if vectors.shape != (2, 3) or not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise ScanError(
            path,
            f"{entry.name}/{DETECTOR}/basis_vectors",
            expected="two vectors of 3 components, (3, 2)",
            found=f"{vectors.tolist()}",
            remedy="Correct them, or leave them out.",
        )
    return vectors, lengths, read_unit(node, path)


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
            part="detector-pixel",
        )
    return y


def read_positions(
    entry: Entry, stack: Frames, slow: np.ndarray, fast: np.ndarray, config: ReadConfig, notes: list[str]
) -> tuple[tuple[np.ndarray, np.ndarray], str, str]:
    """Read positions of the probe along rows and columns, in arrays of any shape; their unit, and their place."""
    key, moved, stated = _read_motion(entry, stack)
    probe_path = config.translation_sign * moved
    how = (
        "the sample moves, the probe goes the other way"
        if config.translation_sign < 0
        else "taken for the probe's motion"
    )
    unit = choose_unit(config.positions_unit, stated, default="m")
    notes.append(f"positions from {key} in {unit}: {how}")
    return (probe_path @ slow, probe_path @ fast), unit, key


def _read_motion(entry: Entry, stack: Frames) -> tuple[str, np.ndarray, str | None]:
    """Read where from, the motion as [..., 3] in x, y, z, and the unit that it states."""
    path = entry.path
    key, node = entry.locate(*_TRANSLATION)
    if node is None:
        return _read_motors(entry, stack)
    moved = load_array(node, path, key)
    # Some writers have one row for each axis.
    if moved.ndim == 2 and moved.shape[0] in (2, 3) and moved.shape[1] not in (2, 3):
        moved = moved.T
    if moved.dtype.kind not in "iuf" or moved.ndim < 2 or moved.shape[-1] not in (2, 3):
        raise ScanError(
            path,
            key,
            expected="(M, 3) real, x, y, z in metres",
            found=f"{moved.dtype} {moved.shape}",
            remedy="Correct it.",
        )
    missing = [(0, 0)] * (moved.ndim - 1) + [(0, 3 - moved.shape[-1])]
    return key, np.pad(moved.astype(np.float64), missing), read_unit(node, path)


def _read_motors(entry: Entry, stack: Frames) -> tuple[str, np.ndarray, str | None]:
    path = entry.path
    motors = [[entry.locate(f"{group}/{axis}") for axis in "yx"] for group in _MOTORS]
    both = next((pair for pair in motors if all(node is not None for _, node in pair)), None)
    if both is None:
        raise ScanError(
            path,
            f"{entry.name}/{_TRANSLATION[0]}",
            expected="the translation of each frame, (M, 3) in metres",
            found="no such dataset",
            remedy="Add it, describe the file in a mapping, or a raster with --raster-step-m.",
        )
    (key, y_node), (x_key, x_node) = both
    y, x = (np.squeeze(load_array(node, path, name)) for name, node in both)
    units = {read_unit(node, path) for node in (y_node, x_node)}
    if y.dtype.kind not in "iuf" or x.dtype.kind not in "iuf" or len(units) > 1:
        raise ScanError(
            path,
            f"{key}', '{x_key}",
            expected="real numbers in one unit",
            found=f"{y.dtype} and {x.dtype}, units {', '.join(map(str, units))}",
            remedy="Correct them, or describe the file in a mapping.",
        )
    y, x = fit_grid(y.astype(np.float64), x.astype(np.float64), stack.shape[0]) or (y, x)
    if y.shape != x.shape:
        raise ScanError(
            path,
            f"{key}', '{x_key}",
            expected=f"one number per frame, {stack.shape[0]}, or the axes of a raster",
            found=f"{y.shape} and {x.shape}",
            remedy="Describe the file in a mapping.",
        )
    return key, np.stack([x, y, np.zeros(y.shape)], axis=-1), units.pop()
