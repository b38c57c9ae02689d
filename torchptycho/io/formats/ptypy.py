"""Data files of PtyPy (.ptyd, HDF5). Reference: PtyPy documentation, "Ptypy data structure"."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config.read import OptionalPart, ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.io.frames.frame_stacks import select_frames
from torchptycho.io.frames.hdf5_frames import Hdf5Frames, open_hdf5_stack
from torchptycho.io.frames.views import JoinedFrames
from torchptycho.io.parts import POSITIONS_REMEDY, name_part, read_optional
from torchptycho.io.raw_scan import RawScan, align_to_frames, build_geometry, resolve_rows
from torchptycho.io.storage.hdf5 import find_dataset, is_hdf5, list_names, open_hdf5
from torchptycho.io.storage.hdf5_datasets import load_array, load_text
from torchptycho.io.units import Quantity, choose_unit, compute_unit_factor, read_unit

__all__ = ["read_ptyd", "sniff_ptyd"]

# What the numbers of `meta` are, in which unit PtyPy has them, the option that replaces them, and the part they are.
_NUMBERS: dict[str, tuple[Quantity, str, str, OptionalPart]] = {
    "energy": ("energy", "keV", "energy_eV", "energy"),
    "distance": ("length", "m", "distance_m", "distance"),
    "psize": ("length", "m", "detector_pixel_m", "detector-pixel"),
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
        positions, units, masks = [], [], ["meta/weight2d", "common/weight2d"]
        cut = parse_frame_slice(config.frames)
        for name in names:
            so_far = sum(stack.shape[0] for stack in stacks)
            try:
                stack, places, unit = _read_chunk(file, path, name, config, so_far if len(names) > 1 else None)
            except ScanError:
                # Chunks that were never written do not matter beyond the frames that are asked for.
                if cut is None or cut.stop is None or not 0 < cut.stop <= so_far:
                    raise
                break
            stacks.append(stack)
            positions.append(places)
            units.append(unit)
            masks.append(f"chunks/{name}/weights")
        if len({(stack.shape[1:], stack.dtype) for stack in stacks}) != 1:
            raise ScanError(
                path,
                "chunks",
                expected="frames of one size and dtype",
                found=", ".join(f"{s.dtype} {s.shape}" for s in stacks),
                remedy="Export it again.",
            )
        shape = stacks[0].shape[1:]
        bad = read_optional("mask", config, lambda: _find_zero_weights(file, path, masks, shape), None)
        numbers = {
            option: read_optional(part, config, functools.partial(_read_number, file, path, name), None)
            for name, (_, _, option, part) in _NUMBERS.items()
            if getattr(config, option) is None and not (option == "energy_eV" and config.states_energy)
        }
        propagation = None
        if config.propagation == "auto":
            with name_part("propagation", "Or say it with --propagation."):
                propagation = load_text(file, path, "info/propagation")
    frames: Frames = stacks[0] if len(stacks) == 1 else JoinedFrames(tuple(stacks))
    m = frames.shape[0]
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
        lead_shape=frames.shape[:1],
        notes=tuple(notes),
    )


def _read_chunk(
    file: Any, path: Path, name: str, config: ReadConfig, first_frame: int | None
) -> tuple[Hdf5Frames, np.ndarray, str]:
    """Open the frames of a chunk, and read their positions and the unit of these."""
    key = f"chunks/{name}/data"
    with name_part("frames"):
        data = find_dataset(file, path, key)
        if data is None:
            raise _make_missing_error(path, key)
        stack = open_hdf5_stack(data, path, key, config=config, first_frame=first_frame)
    m = stack.shape[0]
    if config.replaces_positions:
        return stack, np.full((m, 2), np.nan), "px"
    key = f"chunks/{name}/positions"
    with name_part("positions", POSITIONS_REMEDY):
        places = find_dataset(file, path, key)
        if places is None:
            raise _make_missing_error(path, key)
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
        return stack, align_to_frames(path, key, values.astype(np.float64), m, range(m), ReadConfig()), unit


def _make_missing_error(path: Path, key: str) -> ScanError:
    return ScanError(
        path,
        key,
        expected="a dataset",
        found="none",
        remedy="Let PtyPy save the data with its positions (save='append').",
    )


def _find_zero_weights(file: Any, path: Path, keys: list[str], shape: tuple[int, int]) -> np.ndarray | None:
    """Find the pixels whose weight is 0 in any frame of any of these datasets; None where there are none of them."""
    bad: np.ndarray | None = None
    for key in keys:
        bad = _add_zero_weights(file, path, key, shape, bad)
    return bad


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
    quantity, default, option, _ = _NUMBERS[name]
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
