"""CXI and NXcxi_ptycho files (HDF5). References: CXI file format 1.6 (cxidb.org), NeXus application NXcxi_ptycho."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config.read import MaskSense, ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.io.formats.cxi_entry import DETECTOR, FRAMES, Entry, choose_entry, list_entries
from torchptycho.io.formats.cxi_positions import read_basis, read_positions
from torchptycho.io.formats.cxi_radiation import read_energy_eV, read_particle
from torchptycho.io.frame_positions import arrange_positions
from torchptycho.io.frames.frame_stacks import select_frames
from torchptycho.io.frames.hdf5_frames import open_hdf5_stack
from torchptycho.io.frames.views import get_lead_shape
from torchptycho.io.parts import POSITIONS_REMEDY, name_part, read_optional
from torchptycho.io.probe_arrays import to_probe_modes
from torchptycho.io.raw_scan import RawScan, align_to_frames, build_geometry, resolve_rows
from torchptycho.io.storage.hdf5 import is_hdf5, list_names, open_hdf5
from torchptycho.io.storage.hdf5_datasets import load_array, load_complex
from torchptycho.io.units import load_quantity

__all__ = ["read_cxi", "sniff_cxi"]

_PROBE = ("instrument_1/source_1/illumination", "source_1/illumination")
# Mask bits that do not make a pixel bad: in a mask of peaks, corrected, used for finding peaks, background subtracted,
# has signal; 0x1000 marks pixels with signal in files of several writers.
_HARMLESS_BITS = 0x20 | 0x800 | 0x1000 | 0x2000 | 0x4000 | 0x10000


def sniff_cxi(path: Path, head: bytes) -> str | None:
    """Return why this is a CXI file, or None."""
    if not is_hdf5(head):
        return None
    with open_hdf5(path) as file:
        inside = list_names(file, path)
        if "cxi_version" in inside and "entry_1" in inside:
            return "HDF5 with cxi_version and entry_1"
        entries = list_entries(file, path)
        return f"HDF5 with {entries[0]}/{DETECTOR}/data" if entries else None


def read_cxi(path: Path, config: ReadConfig) -> RawScan:
    """Read an entry of a CXI file.

    Numbers are in the units that their attributes state, else in SI units; the photon energy without a unit is in J or
    eV, whichever is that of a photon.
    Positions are `translation`, or the motors x and y. It is the motion of the sample, so that the probe moves the
    other way (`translation_sign` -1); its components along the axes of the detector, as `basis_vectors` has them, are
    the (y, x) of the frames. Without basis vectors the rows run along -y and the columns along -x, as the definition
    says.

    Raises:
        ScanError: no frames or positions, several entries of which none is chosen, or lengths that cannot be.
    """
    notes: list[str] = []
    with open_hdf5(path) as file:
        entry = choose_entry(file, path, config, notes)
        key, dataset = entry.locate(*FRAMES)
        if dataset is None:
            raise ScanError(
                path,
                f"{entry.name}/{FRAMES[0]}",
                expected="the frames, (M, H, W)",
                found="no such dataset",
                remedy="Perhaps it is a reconstruction; name the file with the frames.",
                part="frames",
            )
        with name_part("frames"):
            in_file = open_hdf5_stack(dataset, path, key, config=config)
        notes.append(
            f"frames in {key}, {dataset.shape} {dataset.dtype}" + _describe_storage(dataset, len(in_file.files))
        )
        height, width = in_file.shape[1:]
        slow, fast, pixel_m = read_basis(entry, config, notes)
        positions_given, unit, position_key = None, "px", "raster"
        if not config.replaces_positions:
            with name_part("positions", POSITIONS_REMEDY):
                positions_given, unit, position_key = read_positions(entry, in_file, slow, fast, config, notes)
        keys = (position_key, position_key)
        stack, positions = arrange_positions(path, in_file, positions_given, keys, config)
        m = stack.shape[0]
        rows = resolve_rows(path, key, m, parse_frame_slice(config.frames))
        with name_part("positions", POSITIONS_REMEDY):
            positions = align_to_frames(path, position_key, positions, m, rows, config)
        particle = read_particle(entry, config)
        energy_eV = None
        if not config.states_energy:
            energy_eV = read_optional("energy", config, lambda: read_energy_eV(entry, config, particle, notes), None)
        distance_m = config.distance_m or read_optional("distance", config, lambda: _read_distance_m(entry), None)
        own_sense = config.mask_sense if config.mask is None else "auto"
        shape = (height, width)
        probe = read_optional("probe", config, lambda: _read_probe(entry, config, shape), None)
        return RawScan(
            path=path,
            format="CXI / NXcxi_ptycho",
            frames=select_frames(stack, rows),
            rows=rows,
            domain="counts",
            positions=positions,
            unit=unit,
            position_keys=keys,
            probe=probe,
            bad_pixels=read_optional(
                "mask", config, lambda: _read_bad_pixels(entry, (height, width), own_sense, notes), None
            ),
            mask_to_check=None if own_sense != "auto" else "mask",
            truth=read_optional("object", config, lambda: _read_object(entry, notes), None),
            truth_is_centered=True,
            geometry=build_geometry(
                path, particle, energy_eV=energy_eV, distance_m=distance_m, detector_pixel_m=pixel_m
            ),
            lead_shape=get_lead_shape(stack),
            notes=tuple(notes),
        )


def _describe_storage(dataset: Any, n_files: int) -> str:
    if dataset.is_virtual:
        return f", virtual, from {n_files - 1 or 1} file(s)"
    return f", compressed ({dataset.compression})" if dataset.compression else ""


def _read_distance_m(entry: Entry) -> float | None:
    node = entry.find(f"{DETECTOR}/distance")
    if node is None:
        return None
    return abs(load_quantity(node, entry.path, "distance", "length", default="m", option="--distance-m"))


def _read_bad_pixels(entry: Entry, shape: tuple[int, int], asked: MaskSense, notes: list[str]) -> np.ndarray | None:
    path = entry.path
    key, node = entry.locate(f"{DETECTOR}/mask", f"{DETECTOR}/pixel_mask")
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


def _read_probe(entry: Entry, config: ReadConfig, shape: tuple[int, int]) -> np.ndarray | None:
    """Read the illumination, or `image_1` when it is a wave of the size of the frames."""
    path = entry.path
    if config.probe is not None:
        return None
    key, node = entry.locate(*_PROBE)
    if node is None:
        key, node = entry.locate("image_1/data")
        if node is None or node.dtype.kind != "c" or tuple(node.shape[-2:]) != shape:
            return None
    return to_probe_modes(path, key, load_complex(node, path, key))


def _read_object(entry: Entry, notes: list[str]) -> np.ndarray | None:
    """`image_2`, a reconstruction of one slice."""
    path = entry.path
    key, node = entry.locate("image_2/data")
    if node is None or node.dtype.kind != "c":
        return None
    values = load_complex(node, path, key)
    values = values.reshape(values.shape[-2:]) if values.ndim > 2 and math.prod(values.shape[:-2]) == 1 else values
    if values.ndim != 2:
        notes.append(f"{key} has {values.shape}: an object of several slices is left out")
        return None
    notes.append(f"object in {key}, its middle taken for the middle of the positions")
    return values
