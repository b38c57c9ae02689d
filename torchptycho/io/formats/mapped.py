"""Files of no known format, read as the configuration describes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from torchptycho.core.config.read import MappingConfig, MaskSense, ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import wavelength_to_energy_eV
from torchptycho.io.array_refs import ArrayRef, parse_array_ref
from torchptycho.io.frames.frame_stacks import select_frames
from torchptycho.io.masks import interpret_mask
from torchptycho.io.probe_arrays import to_probe_modes
from torchptycho.io.raw_scan import RawScan, build_geometry, check_count, resolve_rows
from torchptycho.io.storage.file_access import read_head
from torchptycho.io.units import Quantity, choose_unit, compute_position_factor, compute_unit_factor, is_pixels

__all__ = ["read_mapped"]


_MASK_SENSE: dict[str, MaskSense] = {"auto": "auto", "nonzero": "good", "zero": "bad"}


def read_mapped(path: Path, config: ReadConfig, mapping: MappingConfig) -> RawScan:
    """Read a scan whose parts are where `mapping` says.

    Raises:
        ScanError: a part is not there, or not what it should be.
    """
    read_head(path)

    def place(text: str) -> ArrayRef:
        return parse_array_ref(text, path.parent, path)

    cut = parse_frame_slice(config.frames)
    frames_at = place(mapping.frames)
    stack = frames_at.open_frames(mapping.frames_axes)
    rows = resolve_rows(frames_at.path, frames_at.key, stack.shape[0], cut)
    positions, units = [], []
    for text in (mapping.positions_y, mapping.positions_x):
        vector = _read_vector(place(text), stack.shape[0])
        units.append(choose_unit(config.positions_unit, mapping.positions_unit, place(text).read_unit(), default="m"))
        check_count(place(text).path, place(text).key, len(vector), stack.shape[0], rows, cut=cut is not None)
        positions.append(vector[rows.start : rows.stop : rows.step])
    if units[0] != units[1]:
        positions, units = _convert_to_metres(place(mapping.positions_x), positions, units)
    probe, notes = None, list[str]()
    if mapping.probe is not None and config.probe is None:
        at = place(mapping.probe)
        probe = to_probe_modes(at.path, at.key or at.path.name, at.load(), notes=notes)
    bad, mask_key = None, None
    if mapping.mask is not None:
        at = place(mapping.mask)
        values = at.load()
        asked = _MASK_SENSE[mapping.mask_good]
        own = config.mask_sense if config.mask is None and config.mask_sense != "auto" else asked
        bad, note = interpret_mask(at.path, at.key, values, stack.shape[1:], own)
        mask_key = None if own != "auto" else at.key
        notes.append(note)
    return RawScan(
        path=path,
        format="a mapping",
        frames=select_frames(stack, rows),
        rows=rows,
        domain="counts",
        positions=np.stack(positions, axis=1),
        unit=units[0],
        position_keys=(mapping.positions_y, mapping.positions_x),
        probe=probe,
        bad_pixels=bad,
        mask_to_check=mask_key,
        geometry=build_geometry(path, **_read_lengths(place, config, mapping)),
        notes=(f"frames in {frames_at}", f"positions in {units[0]}", *notes),
        companion_files=tuple(place(text).path for text in _list_refs(mapping)),
    )


def _read_lengths(
    place: Callable[[str], ArrayRef], config: ReadConfig, mapping: MappingConfig
) -> dict[str, float | None]:
    """Read energy, distance and detector pixel, each unless an option replaces it."""

    def read(text: str | None, quantity: Quantity, asked: str | None, default: str, name: str) -> float | None:
        if text is None or getattr(config, name) is not None:
            return None
        at = place(text)
        unit = choose_unit(asked, at.read_unit(), default=default)
        factor = compute_unit_factor(at.path, at.key or None, unit, quantity, f"--{name.replace('_', '-')}")
        return _read_number(at) * factor

    energy_eV = read(mapping.energy, "energy", mapping.energy_unit, "eV", "energy_eV")
    wavelength_m = read(mapping.wavelength, "length", mapping.wavelength_unit, "m", "energy_eV")
    if wavelength_m is not None:
        energy_eV = wavelength_to_energy_eV(wavelength_m)
    distance_m = read(mapping.distance, "length", mapping.distance_unit, "m", "distance_m")
    pixel_m = read(mapping.detector_pixel, "length", mapping.detector_pixel_unit, "m", "detector_pixel_m")
    return {"energy_eV": energy_eV, "distance_m": distance_m, "detector_pixel_m": pixel_m}


def _convert_to_metres(
    place: ArrayRef, positions: list[np.ndarray], units: list[str]
) -> tuple[list[np.ndarray], list[str]]:
    """Convert y and x, which state units of their own, to metres."""
    if any(map(is_pixels, units)):
        raise ScanError(
            place.path,
            place.key or None,
            expected="positions in one unit, or in lengths",
            found=" and ".join(units),
            remedy="Say it with --positions-unit.",
        )
    factors = [compute_position_factor(place.path, place.key, unit, None) for unit in units]
    return [vector * factor for vector, factor in zip(positions, factors, strict=True)], ["m", "m"]


def _list_refs(mapping: MappingConfig) -> list[str]:
    """List all arrays that the mapping names."""
    named = (
        mapping.frames,
        mapping.positions_y,
        mapping.positions_x,
        mapping.probe,
        mapping.mask,
        mapping.energy,
        mapping.wavelength,
        mapping.distance,
        mapping.detector_pixel,
    )
    return [text for text in named if text is not None]


def _read_vector(place: ArrayRef, n_frames: int) -> np.ndarray:
    values = place.load(n_frames)
    if values.dtype.kind not in "iuf" or values.ndim < 1 or values.size != max(values.shape):
        raise ScanError(
            place.path,
            place.key or None,
            expected="one real number per frame",
            found=f"{values.dtype} {values.shape}",
            remedy="Name one column, as PATH[0].",
        )
    return values.reshape(-1).astype(np.float64)


def _read_number(place: ArrayRef) -> float:
    values = place.load()
    number = float(values.astype(np.float64).mean()) if values.dtype.kind in "iuf" else float("nan")
    if not 0 < number < float("inf"):
        raise ScanError(
            place.path,
            place.key or None,
            expected="a positive number",
            found=f"{number}",
            remedy="Correct it, or leave it out of the mapping.",
        )
    return number
