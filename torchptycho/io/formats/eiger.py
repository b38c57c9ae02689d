"""Master files of EIGER detectors: frames in linked data files, lengths and a mask; no positions and no probe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config.read import ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import wavelength_to_energy_eV
from torchptycho.io.frame_positions import arrange_positions
from torchptycho.io.frames.frame_stacks import select_frames
from torchptycho.io.frames.hdf5_series import open_hdf5_series
from torchptycho.io.frames.views import get_lead_shape
from torchptycho.io.parts import name_part, read_optional
from torchptycho.io.raw_scan import RawScan, build_geometry, resolve_rows
from torchptycho.io.storage.hdf5 import find_dataset, is_group, is_hdf5, list_names, open_hdf5
from torchptycho.io.storage.hdf5_datasets import load_array
from torchptycho.io.units import Quantity, load_quantity

__all__ = ["read_eiger", "sniff_eiger"]

_FRAMES, _DETECTOR = "entry/data", "entry/instrument/detector"
_MASK = f"{_DETECTOR}/detectorSpecific/pixel_mask"
_PHOTON_ENERGY = f"{_DETECTOR}/detectorSpecific/photon_energy"
_WAVELENGTHS = ("entry/instrument/beam/incident_wavelength", "entry/sample/beam/incident_wavelength")
_SERIES = re.compile(r"^data_\d+$")


def sniff_eiger(path: Path, head: bytes) -> str | None:
    """Return why this is the master file of an EIGER detector, or None."""
    if not is_hdf5(head):
        return None
    with open_hdf5(path) as file:
        if "entry" not in list_names(file, path) or not is_group(file, path, _FRAMES):
            return None
        found = any(_SERIES.match(name) for name in list_names(file, path, _FRAMES))
    return f"HDF5 with {_FRAMES}/data_000001" if found else None


def read_eiger(path: Path, config: ReadConfig) -> RawScan:
    """Read frames, lengths and mask of a master file; positions come from options.

    The photon energy is in eV, wavelengths are in angstrom, lengths in m, unless their attributes state another unit.
    Every bit of the mask means bad.

    Raises:
        ScanError: no options for the positions, missing data files, or lengths that cannot be.
    """
    with open_hdf5(path) as file:
        with name_part("frames"):
            in_file = open_hdf5_series(file, path, _FRAMES, "myx", config)
        if not config.replaces_positions:
            raise ScanError(
                path,
                "positions",
                expected="a position for each frame",
                found="none: the detector does not know them",
                remedy="Give them with --positions FILE:Y FILE:X, or a raster with --raster-step-px or "
                "--raster-step-m.",
                part="positions",
            )
        keys = ("raster", "raster")
        stack, positions = arrange_positions(path, in_file, None, keys, config)
        rows = resolve_rows(path, _FRAMES, stack.shape[0], parse_frame_slice(config.frames))
        lengths: dict[str, float | None] = {}
        if not config.states_energy:
            lengths["energy_eV"] = read_optional("energy", config, lambda: _read_energy_eV(file, path), None)
        lengths["distance_m"] = config.distance_m or read_optional(
            "distance", config, lambda: _read_length_m(file, path, "detector_distance", "--distance-m"), None
        )
        lengths["detector_pixel_m"] = config.detector_pixel_m or read_optional(
            "detector-pixel", config, lambda: _read_length_m(file, path, "x_pixel_size", "--detector-pixel-m"), None
        )
        sense = config.mask_sense if config.mask is None else "auto"
        shape = stack.shape[1:]
        bad = read_optional("mask", config, lambda: _read_bad_pixels(file, path, shape, sense), None)
    return RawScan(
        path=path,
        format="EIGER master",
        frames=select_frames(stack, rows),
        rows=rows,
        domain="counts",
        positions=positions[np.asarray(rows)],
        unit="px",
        position_keys=keys,
        bad_pixels=bad,
        mask_to_check=None if sense != "auto" else "pixel_mask",
        geometry=build_geometry(path, config.particle, **lengths),
        lead_shape=get_lead_shape(stack),
        notes=(f"frames in {_FRAMES}, {stack.shape} {stack.dtype}",),
    )


def _read_energy_eV(file: Any, path: Path) -> float | None:
    energy_eV = _load(file, path, _PHOTON_ENERGY, "energy", "eV", "--energy-eV")
    if energy_eV:
        return energy_eV
    for key in _WAVELENGTHS:
        wavelength_m = _load(file, path, key, "length", "angstrom", "--wavelength-m")
        if wavelength_m:
            return wavelength_to_energy_eV(wavelength_m)
    return None


def _read_length_m(file: Any, path: Path, name: str, option: str) -> float | None:
    length_m = _load(file, path, f"{_DETECTOR}/{name}", "length", "m", option)
    return None if length_m is None else abs(length_m)


def _load(file: Any, path: Path, key: str, quantity: Quantity, default: str, option: str) -> float | None:
    node = find_dataset(file, path, key)
    return None if node is None else load_quantity(node, path, key, quantity, default=default, option=option)


def _read_bad_pixels(file: Any, path: Path, shape: tuple[int, int], sense: str) -> np.ndarray | None:
    node = find_dataset(file, path, _MASK)
    if node is None:
        return None
    values = load_array(node, path, _MASK)
    if values.shape != shape or values.dtype.kind not in "biu":
        raise ScanError(
            path,
            _MASK,
            expected=f"{shape} integers, 0 for a good pixel",
            found=f"{values.dtype} {values.shape}",
            remedy="Export a mask of the size of the frames.",
        )
    return np.asarray((values == 0) if sense == "good" else (values != 0))
