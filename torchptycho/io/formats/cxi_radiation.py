"""The energy of the photons or electrons in a CXI file."""

from __future__ import annotations

from pathlib import Path

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Particle, energy_to_wavelength_m, wavelength_to_energy_eV
from torchptycho.io.formats.cxi_entry import Entry
from torchptycho.io.frame_positions import choose_energy_value
from torchptycho.io.parts import name_part
from torchptycho.io.storage.hdf5_datasets import load_array, load_text
from torchptycho.io.units import Quantity, choose_unit, compute_unit_factor, read_unit

__all__ = ["read_energy_eV", "read_particle"]

_SOURCES = ("instrument_1/source_1", "source_1")
# In the order in which they are trusted: NeXus has the photon energy at the beamline and the machine's at the source.
_ENERGIES = (
    "instrument_1/beam_1/energy",
    "beam_1/energy",
    "instrument_1/beam_1/incident_energy",
    "instrument_1/beam_1/incident_wavelength",
    "beam_1/wavelength",
    "instrument_1/source_1/wavelength",
    "instrument_1/source_1/energy",
    "source_1/energy",
)
_VOLTAGES = ("instrument_1/source_1/voltage", "source_1/voltage")
_MAX_WAVELENGTH_M = 1e-5
_MIN_WAVELENGTH_M: dict[Particle, float] = {"photon": 1e-12, "electron": 1e-13}


def read_particle(entry: Entry, config: ReadConfig) -> Particle:
    """Read whether photons or electrons are diffracted: by the option, else by what NeXus calls the source's probe."""
    if config.particle is not None:
        return config.particle
    if "energy" in config.ignore:
        return "photon"
    names = (f"{entry.name}/{source}/{name}" for source in _SOURCES for name in ("probe", "type"))
    with name_part("energy", "Or say it with --particle."):
        texts = [load_text(entry.file, entry.path, name) for name in names]
    return "electron" if any("electron" in (text or "").lower() for text in texts) else "photon"


def read_energy_eV(entry: Entry, config: ReadConfig, particle: Particle, notes: list[str]) -> float | None:
    """Read the energy: that of the beamline, else from a wavelength, else what CXI files have at the source.

    Raises:
        ScanError: none of those that are there is one of this particle.
    """
    path = entry.path
    names = (*_ENERGIES, *(_VOLTAGES if particle == "electron" else ()))
    found = {
        name: (choose_energy_value(path, name, load_array(node, path, name), config), read_unit(node, path))
        for name in names
        if (node := entry.find(name)) is not None
    }
    shortest = _MIN_WAVELENGTH_M[particle]
    for name, (value, stated) in found.items():
        for energy_eV, unit in _interpret_energy(path, name, value, stated, particle):
            if shortest <= energy_to_wavelength_m(energy_eV, particle) <= _MAX_WAVELENGTH_M:
                notes.append(f"{particle} energy {energy_eV:.6g} eV from {name} ({value:.6g} {unit})")
                return energy_eV
    if found:
        raise ScanError(
            path,
            f"{entry.name}/instrument_1/source_1/energy",
            expected=f"a {particle} energy whose wavelength is within {shortest:g} to {_MAX_WAVELENGTH_M:g} m",
            found=", ".join(f"{name} = {value:.6g} {unit or ''}".strip() for name, (value, unit) in found.items()),
            remedy="Give it with --energy-eV or --wavelength-m.",
        )
    return None


def _interpret_energy(
    path: Path, name: str, value: float, stated: str | None, particle: Particle
) -> list[tuple[float, str]]:
    """List what a number may be as an energy in eV, and in which unit it is then."""
    if not value > 0:
        return []

    def factor(unit: str, quantity: Quantity) -> float:
        return compute_unit_factor(path, name, unit, quantity, "--energy-eV")

    if name.endswith("wavelength"):
        unit = choose_unit(stated, default="m")
        return [(wavelength_to_energy_eV(value * factor(unit, "length"), particle), unit)]
    if name.endswith("voltage"):
        unit = choose_unit(stated, default="V")
        return [(value * factor(unit, "voltage"), unit)]
    # CXI has joules; NeXus writers put eV.
    units = ("J", "eV") if stated is None else (stated,)
    return [(value * factor(unit, "energy"), unit) for unit in units]
