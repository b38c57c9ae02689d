"""Positions that an option names in place of those of the scan file."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.io.array_refs import ArrayRef, parse_array_ref
from torchptycho.io.parts import name_part
from torchptycho.io.raw_scan import RawScan, align_to_frames
from torchptycho.io.units import choose_unit, compute_position_factor, is_pixels

__all__ = ["GivenPositions", "load_given_positions", "replace_positions"]

_POSITIONS_ALONE = "Correct the list, or leave out --positions."


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GivenPositions:
    """Positions y and x of `ReadConfig.positions`, in arrays of any shape and in one unit.

    Arguments:
        unit: px for object pixels, or a unit of length.
        keys: where they come from, (y, x).
    """

    y: Float64[np.ndarray, "..."]
    x: Float64[np.ndarray, "..."]
    unit: str
    keys: tuple[str, str]


def load_given_positions(config: ReadConfig, n_frames: int | None = None) -> GivenPositions | None:
    """Load the positions that an option names; None where there is no such option.

    Arguments:
        n_frames: number of frames in the scan file, as for `ArrayRef.load`.

    Raises:
        ScanError: they are not there, no real numbers, or in units that cannot be brought together.
    """
    if config.positions is None:
        return None
    with name_part("positions", _POSITIONS_ALONE):
        places = [parse_array_ref(text, Path()) for text in config.positions]
        y, x = (_load_numbers(place, n_frames) for place in places)
        units = [choose_unit(config.positions_unit, place.read_unit(), default="m") for place in places]
        if units[0] != units[1]:
            y, x = (
                _convert_to_metres(place, values, unit)
                for place, values, unit in zip(places, (y, x), units, strict=True)
            )
            units = ["m", "m"]
    keys = (config.positions[0], config.positions[1])
    return GivenPositions(y=y, x=x, unit=units[0], keys=keys)


def _load_numbers(place: ArrayRef, n_frames: int | None) -> Float64[np.ndarray, "..."]:
    values = place.load(n_frames)
    if values.dtype.kind not in "iuf" or values.ndim < 1:
        raise ScanError(
            place.path,
            place.key or None,
            expected="one real number per frame",
            found=f"{values.dtype} {values.shape}",
            remedy="Name the columns of y and of x, as --positions list.csv:y list.csv:x.",
        )
    return values.astype(np.float64)


def _convert_to_metres(place: ArrayRef, values: np.ndarray, unit: str) -> np.ndarray:
    if is_pixels(unit):
        raise ScanError(
            place.path,
            place.key or None,
            expected="positions in one unit, or in lengths",
            found=f"{unit} for one of them",
            remedy="Say it with --positions-unit.",
        )
    return values * compute_position_factor(place.path, place.key, unit, None)


def replace_positions(recorded: RawScan, config: ReadConfig, notes: list[str]) -> RawScan:
    """Return the scan with the positions that an option names, where one does.

    A reader that knows several axes of frames has arranged them by itself (`arrange_positions`).

    Raises:
        ScanError: their number is not that of the frames, or see `load_given_positions`.
    """
    n_in_file = math.prod(recorded.lead_shape) if recorded.lead_shape is not None else None
    given = load_given_positions(config, n_in_file)
    if given is None:
        return recorded
    aligned = recorded.positions
    if np.isnan(aligned).all():
        rows = np.asarray(recorded.rows)
        n = recorded.frames.shape[0] if n_in_file is None else n_in_file
        with name_part("positions", _POSITIONS_ALONE):
            columns = [
                align_to_frames(recorded.path, key, values.reshape(-1), n, rows, config)
                for key, values in zip(given.keys, (given.y, given.x), strict=True)
            ]
        aligned = np.stack(columns, axis=1)
    notes.append(f"positions of {given.keys[0]} and {given.keys[1]}, in {given.unit}")
    return dataclasses.replace(
        recorded,
        positions=aligned,
        unit=given.unit,
        position_keys=given.keys,
        nominal_positions_px=None,
        truth=None,
        truth_slices=None,
    )
