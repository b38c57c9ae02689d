"""Data files of PtyPy (.ptyd, HDF5). Reference: PtyPy documentation, "Ptypy data structure"."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config.read import ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.io.frames.frame_stacks import select_frames
from torchptycho.io.frames.hdf5_frames import Hdf5Frames, open_hdf5_stack
from torchptycho.io.frames.views import JoinedFrames
from torchptycho.io.raw_scan import RawScan, align_to_frames, build_geometry, resolve_rows
from torchptycho.io.storage.hdf5 import find_dataset, is_hdf5, list_names, open_hdf5
from torchptycho.io.storage.hdf5_datasets import load_array, load_text
from torchptycho.io.units import Quantity, choose_unit, compute_unit_factor, read_unit

__all__ = ["read_ptyd", "sniff_ptyd"]

# What the numbers of `meta` are, in which unit PtyPy has them, and the option that replaces them.
_NUMBERS: dict[str, tuple[Quantity, str, str]] = {
    "energy": ("energy", "keV", "energy_eV"),
    "distance": ("length", "m", "distance_m"),
    "psize": ("length", "m", "detector_pixel_m"),
}


def sniff_ptyd(path: Path, head: bytes) -> str | None:
    """Return why this is a .ptyd file, or None."""
    if not is_hdf5(head):
        return None
    with open_hdf5(path) as file:
        inside = list_names(file, path)
        if "chunks" not in inside or not {"meta", "info"} & set(inside):
            return None
        first = list_names(file, path, "chunks")
    return "HDF5 with chunks and meta" if first else None


def read_ptyd(path: Path, config: ReadConfig) -> RawScan:
    """Read frames and positions of all chunks, in the order of their numbers.

    Positions are in metres as (y, x). A pixel whose weight is 0 in any frame, or in the weight that all share,
    is masked.
    The energy is in keV. Where a dataset states its unit in the attribute `units`, that is taken.

    Raises:
        ScanError: a chunk without frames or positions, or lengths that cannot be.
    """
    notes: list[str] = []
    with open_hdf5(path) as file:
        names = list_names(file, path, "chunks")
        names = sorted(names, key=lambda name: (len(name), name))
        stacks: list[Hdf5Frames] = []
        positions, units = [], []
        bad: np.ndarray | None = None
        for name in names:
            stack, places, unit = _read_chunk(file, path, name, config)
            stacks.append(stack)
            positions.append(places)
            units.append(unit)
            bad = _add_zero_weights(file, path, f"chunks/{name}/weights", stack.shape[1:], bad)
        if len({(stack.shape[1:], stack.dtype) for stack in stacks}) != 1:
            raise ScanError(
                path,
                "chunks",
                expected="frames of one size and dtype",
                found=", ".join(f"{s.dtype} {s.shape}" for s in stacks),
                remedy="Export it again.",
            )
        for key in ("meta/weight2d", "common/weight2d"):
            bad = _add_zero_weights(file, path, key, stacks[0].shape[1:], bad)
        numbers = {
            option: _read_number(file, path, name)
            for name, (_, _, option) in _NUMBERS.items()
            if getattr(config, option) is None and not (option == "energy_eV" and config.states_energy)
        }
        propagation = load_text(file, path, "info/propagation")
    frames: Frames = stacks[0] if len(stacks) == 1 else JoinedFrames(tuple(stacks))
    m = frames.shape[0]
    cut = parse_frame_slice(config.frames)
    rows = resolve_rows(path, "chunks", m, cut)
    notes.append(f"{len(stacks)} chunk(s) with {m} frames")
    if bad is not None:
        notes.append(f"{int(bad.sum())} pixel(s) of weight 0 masked")
    return RawScan(
        path=path,
        format="PtyPy .ptyd",
        frames=select_frames(frames, rows),
        rows=rows,
        domain="counts",
        positions=np.concatenate(positions)[rows.start : rows.stop : rows.step],
        unit=units[0],
        position_keys=("chunks/positions", "chunks/positions"),
        bad_pixels=bad,
        mask_to_check=None if config.mask is None and config.mask_sense != "auto" else "weights",
        geometry=build_geometry(path, config.particle, **numbers),
        far_field=propagation is None or "near" not in propagation,
        notes=tuple(notes),
    )


def _read_chunk(file: Any, path: Path, name: str, config: ReadConfig) -> tuple[Hdf5Frames, np.ndarray, str]:
    data, places = (find_dataset(file, path, f"chunks/{name}/{key}") for key in ("data", "positions"))
    for node, key in ((data, "data"), (places, "positions")):
        if node is None:
            raise ScanError(
                path,
                f"chunks/{name}/{key}",
                expected="a dataset",
                found="none",
                remedy="Let PtyPy save the data with its positions (save='append').",
            )
    stack = open_hdf5_stack(data, path, f"chunks/{name}/data")
    key = f"chunks/{name}/positions"
    values = load_array(places, path, key)
    if values.ndim != 2 or values.shape[1] != 2 or values.dtype.kind not in "iuf":
        raise ScanError(
            path,
            key,
            expected="(M, 2) real, (y, x) in metres",
            found=f"{values.dtype} {values.shape}",
            remedy="Export it again.",
        )
    unit = choose_unit(config.positions_unit, read_unit(places, path), default="m")
    m = stack.shape[0]
    return stack, align_to_frames(path, key, values.astype(np.float64), m, range(m), ReadConfig()), unit


def _add_zero_weights(
    file: Any, path: Path, key: str, shape: tuple[int, int], bad: np.ndarray | None
) -> np.ndarray | None:
    node = find_dataset(file, path, key)
    if node is None or node.shape is None or 0 in node.shape or tuple(node.shape[-2:]) != shape:
        return bad
    if node.dtype.kind not in "biuf":
        raise ScanError(path, key, expected="real weights", found=f"{node.dtype}", remedy="Export it again.")
    if len(node.shape) == 3 and node.dtype.kind != "b":
        here = np.zeros(shape, bool)
        for chunk in open_hdf5_stack(node, path, key).chunks(8):
            here |= ~(chunk > 0).all(axis=0)
    else:
        weights = load_array(node, path, key).reshape(-1, *shape)
        here = np.array(~(weights > 0).all(axis=0))
    return here if bad is None else bad | here


def _read_number(file: Any, path: Path, name: str) -> float | None:
    """Read a positive number of `meta`, else of `info`, in eV or m; both values of a pair must be equal."""
    node = find_dataset(file, path, f"meta/{name}", f"info/{name}")
    if node is None or node.dtype.kind not in "iuf" or node.shape is None or 0 in node.shape:
        return None
    quantity, default, option = _NUMBERS[name]
    unit = choose_unit(read_unit(node, path), default=default)
    factor = compute_unit_factor(path, f"meta/{name}", unit, quantity, f"--{option.replace('_', '-')}")
    values = load_array(node, path, name).astype(np.float64).reshape(-1)
    if not (
        np.isfinite(values).all() and (values > 0).all() and math.isclose(values.min(), values.max(), rel_tol=1e-3)
    ):
        raise ScanError(
            path,
            f"meta/{name}",
            expected="a positive number, or equal ones",
            found=f"{values.tolist()}",
            remedy="Correct the file; oblong pixels are not modelled.",
        )
    return float(values[0]) * factor
