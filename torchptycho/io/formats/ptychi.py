"""Data pairs of pty-chi (HDF5): NAME_dp.hdf5 holds the frames, NAME_para.hdf5 positions, probe and object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config.read import ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.io.frames.frame_stacks import select_frames
from torchptycho.io.frames.hdf5_frames import open_hdf5_stack
from torchptycho.io.frames.views import get_lead_shape
from torchptycho.io.parts import POSITIONS_REMEDY, name_part, read_optional
from torchptycho.io.probe_arrays import to_probe_modes
from torchptycho.io.raw_scan import RawScan, align_to_frames, build_geometry, resolve_rows
from torchptycho.io.storage.file_access import read_head
from torchptycho.io.storage.hdf5 import find_dataset, is_hdf5, list_names, open_hdf5, read_attribute
from torchptycho.io.storage.hdf5_datasets import load_array, load_complex
from torchptycho.io.units import choose_unit, compute_position_factor, read_unit

__all__ = ["read_ptychi", "sniff_ptychi"]

_POSITIONS = ("probe_position_y_m", "probe_position_x_m")


def sniff_ptychi(path: Path, head: bytes) -> str | None:
    """Return why this is one half of a pair, or None."""
    if not is_hdf5(head):
        return None
    with open_hdf5(path) as file:
        inside = set(list_names(file, path))
    if "dp" in inside:
        return "HDF5 with dp"
    return "HDF5 with positions in metres, without indexes" if {*_POSITIONS, "probe"} <= inside else None


def read_ptychi(path: Path, config: ReadConfig) -> RawScan:
    """Read both halves of a pair, from either.

    Positions are in metres about the centre of the object: px = m / pixel + round(n / 2).

    Raises:
        ScanError: the other half is not there, or they do not fit together.
    """
    frames_path, parameters_path = _find_pair(path)
    cut = parse_frame_slice(config.frames)
    with name_part("frames"), open_hdf5(frames_path) as file:
        stack = open_hdf5_stack(find_dataset(file, frames_path, "dp"), frames_path, "dp", config=config)
    rows = resolve_rows(frames_path, "dp", stack.shape[0], cut)
    notes: list[str] = []
    with open_hdf5(parameters_path) as file:
        pixel_m = config.object_pixel_m or _read_pixel(file, parameters_path)
        no_object: tuple[None, tuple[int, int]] = (None, (0, 0))
        truth, shape = read_optional("object", config, lambda: _read_object(file, parameters_path), no_object)
        m = stack.shape[0]
        columns = [np.full(len(rows), np.nan)] * 2
        if not config.replaces_positions:
            with name_part("positions", POSITIONS_REMEDY):
                columns = [
                    align_to_frames(
                        parameters_path,
                        key,
                        _read_positions_m(file, parameters_path, key, config, pixel_m),
                        m,
                        rows,
                        config,
                    )
                    for key in _POSITIONS
                ]
        positions_m = np.stack(columns, axis=1)
        probe = None
        if config.probe is None:
            probe = read_optional("probe", config, lambda: _read_probe(file, parameters_path, notes), None)
    return RawScan(
        path=path,
        format="pty-chi",
        frames=select_frames(stack, rows),
        rows=rows,
        domain="counts",
        positions=positions_m / pixel_m + np.round(np.array(shape) / 2),
        unit="px",
        position_keys=_POSITIONS,
        positions_n_px=None if probe is None else probe.shape[-1],
        probe=probe,
        geometry=build_geometry(path, config.particle, object_pixel_m=pixel_m),
        truth=truth,
        notes=(f"frames in {frames_path.name}, positions, probe and object in {parameters_path.name}", *notes),
        lead_shape=get_lead_shape(stack),
        companion_files=(frames_path, parameters_path),
    )


def _find_pair(path: Path) -> tuple[Path, Path]:
    """Find the halves with the frames and with the parameters; the names differ in dp and para."""
    with open_hdf5(path) as file:
        has_frames = "dp" in list_names(file, path)
    kind, other = ("dp", "para") if has_frames else ("para", "dp")
    start, found, end = path.name.rpartition(kind)
    partner = path.with_name(f"{start}{other}{end}")
    if not found or not partner.is_file():
        raise ScanError(
            path,
            None,
            expected=f"the other half of the pair, {partner.name if found else 'NAME_dp and NAME_para'}",
            found="no such file",
            remedy=f"Put it into the same folder, its name with '{other}' in the place of '{kind}'.",
        )
    if not is_hdf5(read_head(partner)):
        raise ScanError(partner, None, expected="HDF5", found="another format", remedy="Export it again.")
    halves = (path, partner) if has_frames else (partner, path)
    with open_hdf5(halves[0]) as file:
        if find_dataset(file, halves[0], "dp") is None:
            raise ScanError(
                halves[0], "dp", expected="the frames, (M, H, W)", found="no such dataset", remedy="Export it again."
            )
    return halves


def _read_positions_m(file: Any, path: Path, key: str, config: ReadConfig, pixel_m: float) -> np.ndarray:
    node = find_dataset(file, path, key)
    values = None if node is None else load_array(node, path, key)
    if values is None or values.dtype.kind not in "iuf" or values.ndim < 1 or values.size != max(values.shape):
        found = "none" if values is None else f"{values.dtype} {values.shape}"
        raise ScanError(path, key, expected="one number per frame", found=found, remedy="Export it again.")
    unit = choose_unit(config.positions_unit, read_unit(node, path), default="m")
    return values.reshape(-1).astype(np.float64) * compute_position_factor(path, key, unit, pixel_m)


def _read_probe(file: Any, path: Path, notes: list[str]) -> np.ndarray | None:
    node = find_dataset(file, path, "probe")
    return None if node is None else to_probe_modes(path, "probe", load_complex(node, path, "probe"), notes=notes)


def _read_pixel(file: Any, path: Path) -> float:
    """Read the edge of an object pixel."""
    remedy = "It says how metres become pixels; export it again, or give it with --object-pixel-m."
    with name_part("object-pixel", remedy):
        node = find_dataset(file, path, "object")
        pixel_m = (
            None if node is None else read_attribute(node, path, "pixel_height_m", "pixel_size_m", "pixel_width_m")
        )
        pixel_m = read_attribute(file, path, "pixel_size_m", "object_pixel_size_m") if pixel_m is None else pixel_m
    if not isinstance(pixel_m, int | float) or not pixel_m > 0:
        raise ScanError(
            path,
            "object",
            expected="an object with its attribute pixel_height_m",
            found="none" if node is None else f"pixel {pixel_m}",
            remedy=remedy,
            part="object-pixel",
        )
    return float(pixel_m)


def _read_object(file: Any, path: Path) -> tuple[np.ndarray | None, tuple[int, int]]:
    """Read the object if it has one slice, and its size."""
    node = find_dataset(file, path, "object")
    if node is None or len(node.shape) not in (2, 3):
        raise ScanError(
            path,
            "object",
            expected="an object (layers, H, W)",
            found="none" if node is None else f"{node.shape}",
            remedy="Its size says where the positions are in it; export it again.",
        )
    values = load_complex(node, path, "object")
    shape = (int(values.shape[-2]), int(values.shape[-1]))
    return values.reshape(shape) if values.size == shape[0] * shape[1] else None, shape
