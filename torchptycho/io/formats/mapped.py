"""Files of no known format, read as the configuration describes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from torchptycho.core.config.read import MappingConfig, ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.io.array_refs import ArrayRef, parse_array_ref
from torchptycho.io.frames.frame_stacks import select_frames
from torchptycho.io.probe_arrays import to_probe_modes
from torchptycho.io.raw_scan import RawScan, build_geometry, check_count, resolve_rows
from torchptycho.io.storage.file_access import read_head

__all__ = ["read_mapped"]

_METRES = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "nm": 1e-9}
_EV = {"eV": 1.0, "keV": 1e3, "J": 1 / 1.602176634e-19}


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
    positions = []
    for text in (mapping.positions_y, mapping.positions_x):
        vector = _read_vector(place(text))
        check_count(place(text).path, place(text).key, len(vector), stack.shape[0], rows, cut=cut is not None)
        positions.append(vector[rows.start : rows.stop : rows.step])
    probe, notes = None, list[str]()
    if mapping.probe is not None and config.probe is None:
        at = place(mapping.probe)
        probe = to_probe_modes(at.path, at.key or at.path.name, at.load(), notes=notes)
    bad = None
    if mapping.mask is not None:
        at = place(mapping.mask)
        values = at.load()
        if values.ndim != 2 or values.dtype.kind not in "biuf":
            raise ScanError(
                at.path,
                at.key,
                expected="a mask (H, W)",
                found=f"{values.dtype} {values.shape}",
                remedy="Name another array.",
            )
        bad = (values == 0) if mapping.mask_good == "nonzero" else (values != 0)
    energy, distance, pixel = (
        None if text is None else _read_number(place(text))
        for text in (mapping.energy, mapping.distance, mapping.detector_pixel)
    )
    pixels = mapping.positions_unit == "px"
    return RawScan(
        path=path,
        format="a mapping",
        frames=select_frames(stack, rows),
        rows=rows,
        domain="counts",
        positions=np.stack(positions, axis=1) * _METRES.get(mapping.positions_unit, 1.0),
        unit="px" if pixels else "m",
        position_keys=(mapping.positions_y, mapping.positions_x),
        probe=probe,
        bad_pixels=bad,
        geometry=build_geometry(
            path,
            energy_eV=None if energy is None else energy * _EV[mapping.energy_unit],
            distance_m=distance,
            detector_pixel_m=pixel,
        ),
        notes=(f"frames in {frames_at}", f"positions in {mapping.positions_unit}", *notes),
        companion_files=tuple(place(text).path for text in _list_refs(mapping)),
    )


def _list_refs(mapping: MappingConfig) -> list[str]:
    """List all arrays that the mapping names."""
    named = (
        mapping.frames,
        mapping.positions_y,
        mapping.positions_x,
        mapping.probe,
        mapping.mask,
        mapping.energy,
        mapping.distance,
        mapping.detector_pixel,
    )
    return [text for text in named if text is not None]


def _read_vector(place: ArrayRef) -> np.ndarray:
    values = place.load()
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
