"""Units of the numbers in files, from the `units` attribute of an HDF5 dataset or from an option, to m, eV, s, rad."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, Literal

from torchptycho.core.errors import ScanError
from torchptycho.io.storage.hdf5 import read_attribute
from torchptycho.io.storage.hdf5_datasets import load_number

__all__ = [
    "Quantity",
    "choose_unit",
    "compute_position_factor",
    "compute_unit_factor",
    "is_pixels",
    "load_quantity",
    "read_unit",
]

Quantity = Literal["length", "energy", "angle", "time", "voltage"]

_BASE = {"length": "m", "energy": "eV", "angle": "rad", "time": "s", "voltage": "V"}
_EXAMPLES = {
    "length": "m, mm, um, nm or angstrom",
    "energy": "eV, keV or J",
    "angle": "rad or deg",
    "time": "s or ms",
    "voltage": "V or kV",
}
# Angstrom is written A, where the SI has the ampere.
_OTHER_NAMES = {"A": "angstrom", "Angstroem": "angstrom", "Ang": "angstrom"}
# One word: an expression could be anything, and take any time.
_WORD = re.compile(r"[^\W\d]{1,40}")
_NO_UNIT = ("", "1", "none", "dimensionless", "arbitrary", "any")
_PIXELS = ("px", "pixel", "pixels")


@functools.cache
def _build_registry() -> Any:
    # Imported where a file states a unit: it takes a third of a second.
    import pint

    registry: Any = pint.UnitRegistry(cache_folder=None)
    # Names in capitals are looked up in small letters, too: KeV.
    registry.define("@alias electron_volt = ev")
    return registry


def read_unit(node: Any, path: Path) -> str | None:
    """Read the unit that an HDF5 dataset states in its attribute `units`; None when it states none."""
    attribute = read_attribute(node, path, "units", "unit")
    text = "" if attribute is None else str(attribute).strip(" \t\n\0()[]")
    return None if text.lower() in _NO_UNIT else text


def compute_unit_factor(path: str | Path, key: str | None, unit: str, quantity: Quantity, option: str) -> float:
    """Compute what a number in this unit is multiplied by to be in m, eV, rad, s or V.

    Arguments:
        option: what gives the value, or its unit, in another way; for the message.

    Raises:
        ScanError: the unit is not known, or it is one of something else.
    """
    base = _BASE[quantity]
    if unit == base:
        return 1.0
    registry = _build_registry()
    # Angles have no dimension, and neither have counts.
    wanted = registry.Unit("rad" if quantity == "angle" else base)
    for name in dict.fromkeys((unit, _OTHER_NAMES.get(unit, unit), unit.lower())):
        found = _parse_unit(name)
        if found is None or not found.is_compatible_with(wanted):
            continue
        if quantity == "angle" and not _is_angle(found):
            continue
        return float(registry.Quantity(1.0, found).to(wanted).magnitude)
    raise ScanError(
        path,
        key,
        expected=f"a unit of {quantity}, such as {_EXAMPLES[quantity]}",
        found=f"'{unit[:40]}'",
        remedy=f"Correct it, or say it with {option}.",
    )


def _parse_unit(name: str) -> Any:
    import pint

    if not _WORD.fullmatch(name):
        return None
    try:
        unit = _build_registry().Unit(name)
    except (pint.errors.PintError, ValueError):
        return None
    # A screen's pixel is a length for pint.
    return None if "pixel" in str(unit) else unit


def _is_angle(unit: Any) -> bool:
    return any(name in str(unit) for name in ("radian", "degree", "arc", "turn", "gradian"))


def choose_unit(*stated: str | None, default: str) -> str:
    """Choose the first unit that is stated."""
    return next((unit for unit in stated if unit is not None), default)


def load_quantity(node: Any, path: Path, key: str, quantity: Quantity, *, default: str, option: str) -> float:
    """Load one number (of one per frame, their mean) and convert it by the dataset's own unit, else by the default.

    Raises:
        ScanError: no real number, or an unknown unit.
    """
    unit = choose_unit(read_unit(node, path), default=default)
    return load_number(node, path, key) * compute_unit_factor(path, key, unit, quantity, option)


def compute_position_factor(path: str | Path, key: str, unit: str, pixel_m: float | None) -> float:
    """Compute what positions in this unit, px for object pixels, are multiplied by to be in metres.

    Raises:
        ScanError: the unit is not known, or it is no length.
    """
    if is_pixels(unit):
        assert pixel_m is not None
        return pixel_m
    return compute_unit_factor(path, key, unit, "length", "--positions-unit")


def is_pixels(unit: str) -> bool:
    """Return whether a unit of positions is the object pixel."""
    return unit.lower() in _PIXELS
