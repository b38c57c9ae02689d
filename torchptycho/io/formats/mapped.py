"""Files of no known format, read as the configuration describes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from torchptycho.core.config.read import MappingConfig, MaskSense, OptionalPart, ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.io.array_refs import ArrayRef, parse_array_ref
from torchptycho.io.frame_positions import arrange_positions, choose_energy_value
from torchptycho.io.frames.frame_stacks import select_frames
from torchptycho.io.frames.views import get_lead_shape
from torchptycho.io.masks import interpret_mask
from torchptycho.io.parts import POSITIONS_REMEDY, name_part, read_optional
from torchptycho.io.probe_arrays import to_probe_modes
from torchptycho.io.raw_scan import RawScan, align_to_frames, build_geometry, resolve_rows
from torchptycho.io.storage.file_access import read_head
from torchptycho.io.units import Quantity, choose_unit, compute_position_factor, compute_unit_factor, is_pixels

__all__ = ["read_mapped"]


_PARTS: dict[str, OptionalPart] = {
    "energy_eV": "energy", "distance_m": "distance", "detector_pixel_m": "detector-pixel",
}  # fmt: skip
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
    with name_part("frames"):
        stack = frames_at.open_frames(mapping.frames_axes, config)
    with name_part("positions", POSITIONS_REMEDY):
        given, keys, unit = _read_places(place, path, config, mapping, stack)
    stack, positions = arrange_positions(path, stack, given, keys, config, _count_energies(place, config, mapping))
    m = stack.shape[0]
    rows = resolve_rows(frames_at.path, frames_at.key, m, cut)
    with name_part("positions", POSITIONS_REMEDY):
        positions = align_to_frames(path, "', '".join(dict.fromkeys(keys)), positions, m, rows, config)
    probe, notes = None, list[str]()
    if mapping.probe is not None and config.probe is None:
        probe_at = place(mapping.probe)
        probe = read_optional("probe", config, lambda: _read_probe(probe_at, notes), None)
    bad, mask_key = None, None
    if mapping.mask is not None:
        mask_at = place(mapping.mask)
        asked = _MASK_SENSE[mapping.mask_good]
        mask_sense = config.mask_sense if config.mask is None and config.mask_sense != "auto" else asked
        read = read_optional(
            "mask",
            config,
            lambda: interpret_mask(mask_at.path, mask_at.key, mask_at.load(), stack.shape[1:], mask_sense),
            None,
        )
        if read is not None:
            bad, note = read
            mask_key = None if mask_sense != "auto" else mask_at.key
            notes.append(note)
    particle = config.particle or mapping.particle or ("electron" if mapping.voltage is not None else "photon")
    return RawScan(
        path=path,
        format="a mapping",
        frames=select_frames(stack, rows),
        rows=rows,
        domain="counts",
        positions=positions,
        unit=unit,
        position_keys=keys,
        probe=probe,
        bad_pixels=bad,
        mask_to_check=mask_key,
        geometry=build_geometry(path, particle, **_read_lengths(place, config, mapping)),
        notes=(f"frames in {frames_at}", f"positions in {unit}", *notes),
        lead_shape=get_lead_shape(stack),
        companion_files=tuple(place(text).path for text in _list_refs(mapping)),
    )


def _read_probe(at: ArrayRef, notes: list[str]) -> np.ndarray:
    return to_probe_modes(at.path, at.key or at.path.name, at.load(), notes=notes)


def _read_places(
    place: Callable[[str], ArrayRef], path: Path, config: ReadConfig, mapping: MappingConfig, stack: Frames
) -> tuple[tuple[np.ndarray, np.ndarray] | None, tuple[str, str], str]:
    """Read positions (y, x), None for those of a raster; return where they come from, and their unit."""
    if config.replaces_positions:
        return None, ("raster", "raster"), "px"
    if mapping.positions_y is None or mapping.positions_x is None:
        raise ScanError(
            path,
            "mapping",
            expected="positions_y and positions_x",
            found="not both",
            remedy="Name them, give them with --positions Y X, or describe a raster with --raster-step-px or "
            "--raster-step-m.",
        )
    keys = (mapping.positions_y, mapping.positions_x)
    positions = [_read_positions(place(key), stack) for key in keys]
    units = [
        choose_unit(config.positions_unit, mapping.positions_unit, place(key).read_unit(), default="m") for key in keys
    ]
    if units[0] != units[1]:
        positions, units = _convert_to_metres(place(keys[1]), positions, units)
    return (positions[0], positions[1]), keys, units[0]


def _count_energies(place: Callable[[str], ArrayRef], config: ReadConfig, mapping: MappingConfig) -> int:
    """Count the different energies that the file states."""
    text = mapping.energy or mapping.wavelength or mapping.voltage
    if text is None or config.states_energy:
        return 1
    values = read_optional("energy", config, lambda: _read_numbers(place(text)), np.ones(1))
    return len(set(values.reshape(-1).tolist()))


def _read_lengths(
    place: Callable[[str], ArrayRef], config: ReadConfig, mapping: MappingConfig
) -> dict[str, float | None]:
    """Read energy, distance and detector pixel, each unless an option replaces it."""

    def read(text: str | None, quantity: Quantity, asked: str | None, default: str, name: str) -> float | None:
        if text is None or getattr(config, name) is not None or (name == "energy_eV" and config.states_energy):
            return None
        at = place(text)

        def load() -> float:
            unit = choose_unit(asked, at.read_unit(), default=default)
            factor = compute_unit_factor(at.path, at.key or None, unit, quantity, f"--{name.replace('_', '-')}")
            if name == "energy_eV":
                return choose_energy_value(at.path, at.key, _read_numbers(at), config) * factor
            return _read_number(at) * factor

        return read_optional(_PARTS[name], config, load, None)

    energy_eV = read(mapping.energy, "energy", mapping.energy_unit, "eV", "energy_eV")
    voltage_V = read(mapping.voltage, "voltage", mapping.voltage_unit, "V", "energy_eV")
    energy_eV = voltage_V if energy_eV is None else energy_eV
    wavelength_m = read(mapping.wavelength, "length", mapping.wavelength_unit, "m", "energy_eV")
    distance_m = read(mapping.distance, "length", mapping.distance_unit, "m", "distance_m")
    pixel_m = read(mapping.detector_pixel, "length", mapping.detector_pixel_unit, "m", "detector_pixel_m")
    return {
        "energy_eV": energy_eV,
        "wavelength_m": wavelength_m,
        "distance_m": distance_m,
        "detector_pixel_m": pixel_m,
    }


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
        mapping.voltage,
        mapping.distance,
        mapping.detector_pixel,
    )
    return [text for text in named if text is not None]


def _read_positions(place: ArrayRef, stack: Frames) -> np.ndarray:
    values = place.load(stack.shape[0])
    is_table = values.ndim == 2 and values.shape[0] == stack.shape[0] and values.shape[1] > 1
    if values.dtype.kind not in "iuf" or values.ndim < 1 or is_table:
        raise ScanError(
            place.path,
            place.key or None,
            expected="one real number per frame",
            found=f"{values.dtype} {values.shape}",
            remedy="Name one column, as PATH[0].",
        )
    return values.astype(np.float64)


def _read_numbers(place: ArrayRef) -> np.ndarray:
    values = place.load()
    if values.dtype.kind not in "iuf" or not ((values > 0) & np.isfinite(values)).all():
        raise ScanError(
            place.path,
            place.key or None,
            expected="positive numbers",
            found=f"{values.dtype} {values.reshape(-1)[:3].tolist()}",
            remedy="Correct them, or give --energy-eV.",
        )
    return values.astype(np.float64)


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
