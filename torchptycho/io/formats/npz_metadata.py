"""The entry `_metadata` of scans in NPZ files: versions, lengths and units."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from torchptycho.core.config.read import OptionalPart, ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.io.parts import describe_replacement
from torchptycho.io.raw_scan import build_geometry

__all__ = ["FORMAT", "FORMAT_VERSION", "LENGTHS", "RESERVED", "parse_geometry", "parse_unit", "refuse_newer_format"]

FORMAT, FORMAT_VERSION = "torchptycho-scan", 1
LENGTHS = tuple(Geometry().lengths)
LENGTH_PARTS: dict[str, OptionalPart] = {
    "energy_eV": "energy", "wavelength_m": "energy", "distance_m": "distance", "detector_pixel_m": "detector-pixel",
}  # fmt: skip
# Entries of `_metadata` that become fields of the scan and are removed, so that they cannot contradict the fields
# later.
RESERVED = (
    "domain", "probe_is_calibrated", "frames_axis", "positions_unit", "particle", "wavelength_m", "format",
    "format_version", "propagation", *LENGTHS,
)  # fmt: skip


def refuse_newer_format(path: Path, metadata: dict[str, Any]) -> None:
    """Refuse a file that a later version of this package wrote.

    Raises:
        ScanError: naming both versions.
    """
    version = metadata.get("format_version", 0)
    if metadata.get("format") == FORMAT and not (isinstance(version, int) and version <= FORMAT_VERSION):
        raise ScanError(
            path,
            "_metadata",
            expected=f"{FORMAT} version {FORMAT_VERSION} or older",
            found=f"version {version}",
            remedy="Update torchptycho.",
        )


def parse_geometry(path: Path, metadata: dict[str, Any], config: ReadConfig) -> Geometry:
    """Parse lengths from the metadata; the photon numbers that stay there are checked along with them."""
    replaced = {key for key in (*LENGTHS, "wavelength_m") if getattr(config, key, None) not in (None, "estimated")}
    if config.states_energy:
        replaced |= {"energy_eV", "wavelength_m"}
    known = {
        key: metadata[key]
        for key in (*LENGTHS, "wavelength_m")
        if metadata.get(key) is not None and key not in replaced and LENGTH_PARTS.get(key) not in config.ignore
    }
    doses = {key: metadata[key] for key in ("nphotons", "photons_per_frame") if metadata.get(key) is not None}
    for key, value in (known | doses).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            unit = key.rsplit("_", 1)[-1] if key in known else "photons"
            raise ScanError(
                path,
                "_metadata",
                expected=f"'{key}' to be a positive number in {unit}",
                found=f"{value!r}",
                remedy=f"Correct it. {describe_replacement(LENGTH_PARTS.get(key, 'metadata'))}",
                part=LENGTH_PARTS.get(key, "metadata"),
            )
    propagation: Literal["far", "near"] = "far"
    if config.propagation == "auto":
        propagation = metadata.get("propagation", "far")
    if propagation not in ("far", "near"):
        raise ScanError(
            path,
            "_metadata",
            expected='\'propagation\' to be "far" or "near"',
            found=f"{propagation!r}",
            remedy="Correct it, or say it with --propagation.",
        )
    particle = metadata.get("particle") if config.particle is None else None
    if particle not in (None, "photon", "electron"):
        raise ScanError(
            path,
            "_metadata",
            expected='\'particle\' to be "photon" or "electron"',
            found=f"{particle!r}",
            remedy="Correct it, or say it with --particle.",
        )
    lengths = {key: float(value) for key, value in known.items()}
    geometry = build_geometry(path, config.particle or particle, **lengths)
    return dataclasses.replace(geometry, propagation=propagation)


def parse_unit(path: Path, metadata: dict[str, Any]) -> str | None:
    """Parse the unit of the positions from the metadata."""
    unit = metadata.get("positions_unit")
    if unit is not None and not isinstance(unit, str):
        raise ScanError(
            path,
            "_metadata",
            expected="'positions_unit' to be the name of a unit, such as um",
            found=f"{unit!r}",
            remedy="Correct it, or say it with --positions-unit.",
        )
    return unit
