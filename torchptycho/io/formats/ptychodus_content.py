"""The content of a Ptychodus product: positions, object and numbers, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.errors import ScanError
from torchptycho.io.storage.archive import NpzArchive, is_zip
from torchptycho.io.storage.file_access import read_head
from torchptycho.io.storage.hdf5 import find_dataset, open_hdf5, read_attribute
from torchptycho.io.storage.hdf5_datasets import load_array
from torchptycho.io.units import choose_unit, compute_position_factor, read_unit

__all__ = [
    "DIFFRACTION_FILE",
    "NUMBERS",
    "POSITIONS",
    "ProductContent",
    "find_common_spacing_m",
    "open_content",
    "read_number",
    "read_object",
    "read_pixel_size",
    "read_positions",
    "to_complex",
]

ReadValue = Callable[..., float | str | None]


DIFFRACTION_FILE = "diffraction.h5"


POSITIONS = ("probe_position_indexes", "probe_position_x_m", "probe_position_y_m")


NUMBERS = (
    "focus_object_distance_m", "probe_photon_count", "exposure_time_s", "mass_attenuation_m2_per_kg",
    "tomography_angle_deg", "tilt_angle_deg",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ProductContent:
    """The arrays of a product, and its single values by the names of its NPZ form; None for what is empty."""

    path: Path
    array: Callable[[str], np.ndarray | None]
    value: ReadValue
    unit: Callable[[str], str | None]


@contextmanager
def open_content(path: Path) -> Iterator[ProductContent]:
    if is_zip(read_head(path)):
        archive = NpzArchive(path)

        def from_archive(*names: str) -> float | str | None:
            for name in names:
                if name in archive and name not in ("name", "comments"):
                    values = archive.load(name)
                    if values.size != 1 or not np.isfinite(values).all():
                        found = f"{values.dtype} {values.shape}"
                        raise ScanError(path, name, expected="one finite number", found=found, remedy="Correct it.")
                    return float(values.reshape(-1)[0])
            return None

        def array(name: str) -> np.ndarray | None:
            return archive.load(name) if name in archive and not archive.is_empty(name) else None

        yield ProductContent(path, array, from_archive, lambda name: None)
        return
    with open_hdf5(path) as file:

        def dataset(name: str) -> np.ndarray | None:
            node = find_dataset(file, path, name)
            return None if node is None or 0 in (node.shape or (0,)) else load_array(node, path, name)

        def from_attributes(*names: str) -> float | str | None:
            for name in names:
                node: Any = file
                for owner in ("object", "probe"):
                    if name.startswith(f"{owner}_pixel") or name.startswith(f"{owner}_center"):
                        node, name = find_dataset(file, path, owner), name.removeprefix(f"{owner}_")
                found = None if node is None else read_attribute(node, path, name)
                if found is not None:
                    return found
            return None

        def unit(name: str) -> str | None:
            node = find_dataset(file, path, name)
            return None if node is None else read_unit(node, path)

        yield ProductContent(path, dataset, from_attributes, unit)


def read_number(content: ProductContent, *names: str, default: float | None = None) -> float:
    value = content.value(*names)
    value = default if value is None else value
    if value is None or isinstance(value, str):
        raise ScanError(
            content.path,
            names[0],
            expected="a number",
            found="none" if value is None else repr(value),
            remedy="Export the product again.",
        )
    return float(value)


def read_pixel_size(content: ProductContent, owner: str) -> float:
    height, width = (read_number(content, f"{owner}_pixel_{name}_m") for name in ("height", "width"))
    if not (height > 0 and math.isclose(height, width, rel_tol=1e-3)):
        raise ScanError(
            content.path,
            f"{owner}_pixel_height_m",
            expected="square pixels",
            found=f"{height:g} m x {width:g} m",
            remedy="Resample the product; oblong pixels are not modelled.",
        )
    return height


def read_positions(
    content: ProductContent, asked_unit: str | None, pixel_m: float, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Read distinct indexes, ascending, and their positions (y, x) in metres."""
    arrays = [content.array(name) for name in POSITIONS]
    for name, array in zip(POSITIONS, arrays, strict=True):
        if array is None or array.ndim != 1 or array.dtype.kind not in "iuf" or array.shape != arrays[0].shape:  # type: ignore[union-attr]
            found = "none" if array is None else f"{array.dtype} {array.shape}"
            raise ScanError(
                content.path,
                name,
                expected="one number per position, as many as indexes",
                found=found,
                remedy="Export the product again.",
            )
    raw, x, y = (np.asarray(array) for array in arrays)
    if raw.dtype.kind == "f":
        raise ScanError(
            content.path, POSITIONS[0], expected="integers", found=f"{raw.dtype}", remedy="Export the product again."
        )
    indexes, where, counts = np.unique(raw.astype(np.int64), return_inverse=True, return_counts=True)
    units = (choose_unit(asked_unit, content.unit(name), default="m") for name in POSITIONS[1:])
    x, y = (
        values.astype(np.float64) * compute_position_factor(content.path, name, unit, pixel_m)
        for name, values, unit in zip(POSITIONS[1:], (x, y), units, strict=True)
    )
    positions = np.zeros((len(indexes), 2))
    np.add.at(positions, where, np.stack([y, x], axis=1))
    if (counts > 1).any():
        notes.append(f"{int((counts > 1).sum())} index(es) with several positions: averaged")
    return indexes, positions / counts[:, None]


def read_object(content: ProductContent, notes: list[str]) -> tuple[np.ndarray | None, tuple[int, int]]:
    """Read the object (H, W), or its slices (S, H, W), and its size."""
    array = content.array("object")
    if array is None or array.ndim not in (2, 3):
        found = "none" if array is None else f"{array.shape}"
        raise ScanError(
            content.path,
            "object",
            expected="an object (layers, H, W)",
            found=found,
            remedy="Its size says where the positions are; export the product again.",
        )
    shape = (int(array.shape[-2]), int(array.shape[-1]))
    values = to_complex(content.path, "object", array)
    if array.ndim == 3 and len(array) > 1:
        notes.append(f"an object of {len(array)} slices")
        return values, shape
    return values.reshape(shape), shape


def find_common_spacing_m(values: np.ndarray) -> float | None:
    """Return the distance between neighbouring slices, or None where they are not equally far apart.

    Arguments:
        values: positive; the last of several may be 0 or infinite, as of nothing behind the last slice.
    """
    if values.size == 0 or values.dtype.kind not in "iuf":
        return None
    gaps = values.reshape(-1).astype(np.float64)
    gaps = gaps[np.isfinite(gaps) & (gaps > 0)]
    if not len(gaps) or not np.allclose(gaps, gaps[0], rtol=1e-3):
        return None
    return float(gaps[0])


def to_complex(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fc":
        raise ScanError(
            path,
            key,
            expected="complex numbers",
            found=f"{array.dtype} {array.shape}",
            remedy="Export the product again.",
        )
    with np.errstate(over="ignore"):
        values = array.astype(np.complex64)
    if not np.isfinite(values).all():
        raise ScanError(path, key, expected="finite values", found="NaN or infinity", remedy="Export it again.")
    return values
