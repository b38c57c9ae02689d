"""Electrons and photons: wavelengths, and what files, mappings and options say about them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scan_files import (
    FRAMES,
    LENGTHS,
    POSITIONS_M,
    PROBE,
    M,
    N,
    fill_cxi,
    fill_patterns,
    fill_product,
    fill_ptyd,
    make_npz_arrays,
)

from torchptycho.analysis.inspection import inspect_scan
from torchptycho.core.config import MappingConfig, ReadConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.geometry import Geometry, energy_to_wavelength_m, wavelength_to_energy_eV
from torchptycho.io import read_scan, write_scan
from torchptycho.live.scan_header import ScanLayout, StreamHeader, parse_json

# Tables of electron microscopy, in picometres.
ELECTRONS_PM = {30e3: 6.979, 80e3: 4.176, 100e3: 3.701, 200e3: 2.508, 300e3: 1.969}
SOURCE = "entry_1/instrument_1/source_1"
GUESS = ReadConfig(guess_probe=True)


def pixel_of(wavelength_m: float) -> float:
    return wavelength_m * LENGTHS["distance_m"] / (N * LENGTHS["detector_pixel_m"])


def write_cxi(path: Path, **sources: Any) -> Path:
    with h5py.File(path, "w") as file:
        fill_cxi(file)
        del file[f"{SOURCE}/energy"]
        for name, (value, unit) in sources.items():
            file[f"{SOURCE}/{name}"] = value
            if unit:
                file[f"{SOURCE}/{name}"].attrs["units"] = unit
    return path


@pytest.mark.contract("reading.particle")
@pytest.mark.parametrize("energy_eV", ELECTRONS_PM)
def test_electrons_have_the_relativistic_wavelength(energy_eV: float) -> None:
    wavelength_m = energy_to_wavelength_m(energy_eV, "electron")
    assert wavelength_m * 1e12 == pytest.approx(ELECTRONS_PM[energy_eV], rel=5e-4)
    assert wavelength_to_energy_eV(wavelength_m, "electron") == pytest.approx(energy_eV)
    assert wavelength_to_energy_eV(energy_to_wavelength_m(energy_eV)) == pytest.approx(energy_eV)
    assert Geometry(energy_eV=energy_eV, particle="electron").wavelength_m == wavelength_m
    assert repr(Geometry(energy_eV=8.0)) == (
        "Geometry(energy_eV=8.0, distance_m=None, detector_pixel_m=None, object_pixel_m=None)"
    )
    assert "electron" in repr(Geometry(particle="electron"))


def mapped(path: Path, numbers: dict[str, tuple[float, str | None]], **mapping: Any) -> ReadConfig:
    with h5py.File(path, "w") as file:
        file["f"], file["p"], file["y"], file["x"] = FRAMES, PROBE, *POSITIONS_M.T
        for name, (value, unit) in numbers.items():
            file[name] = value
            if unit:
                file[name].attrs["units"] = unit
    places = MappingConfig(frames="f", probe="p", positions_y="y", positions_x="x", **mapping)
    return ReadConfig(mapping=places, distance_m=1.0, detector_pixel_m=5e-5)


MAPPINGS: dict[str, tuple[dict[str, tuple[float, str | None]], dict[str, Any]]] = {
    "particle and energy": ({"e": (300.0, None)}, {"energy": "e", "energy_unit": "keV", "particle": "electron"}),
    "voltage": ({"v": (3e5, None)}, {"voltage": "v"}),
    "voltage in kV by attribute": ({"v": (300.0, "kV")}, {"voltage": "v"}),
    "voltage in kV": ({"v": (300.0, None)}, {"voltage": "v", "voltage_unit": "kV"}),
    "wavelength": ({"w": (1.9687, "pm")}, {"wavelength": "w", "particle": "electron"}),
    "wavelength of whatever": ({"w": (0.019687, "angstrom")}, {"wavelength": "w"}),
}


@pytest.mark.contract("reading.particle")
@pytest.mark.parametrize("name", MAPPINGS)
def test_a_mapping_names_electrons(tmp_path: Path, name: str) -> None:
    numbers, mapping = MAPPINGS[name]
    scan = read_scan(tmp_path / "s.h5", mapped(tmp_path / "s.h5", numbers, **mapping))
    assert scan.geometry.object_pixel_m == pytest.approx(pixel_of(1.9687e-12), rel=1e-4)
    np.testing.assert_allclose(
        np.diff(scan.positions_px, axis=0), np.diff(POSITIONS_M, axis=0) / pixel_of(1.9687e-12), rtol=1e-4, atol=1e-9
    )


@pytest.mark.contract("reading.particle")
def test_contradictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of energy, wavelength, voltage; found energy, voltage"):
        MappingConfig(frames="f", positions_y="y", positions_x="x", energy="e", voltage="v")
    with pytest.raises(ConfigError, match="a voltage is that of electrons"):
        MappingConfig(frames="f", positions_y="y", positions_x="x", voltage="v", particle="photon")
    with pytest.raises(ConfigError, match="an energy or a wavelength; found both"):
        ReadConfig(energy_eV=1.0, wavelength_m=1.0)
    arrays = make_npz_arrays()
    arrays["_metadata"] = np.array(json.dumps({"particle": "proton"}))
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(ScanError, match=r"'particle' to be .*found 'proton'"):
        read_scan(tmp_path / "s.npz")


@pytest.mark.contract("reading.particle")
def test_options_name_electrons_in_every_format(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.ptyd", "w") as file:
        fill_ptyd(file)
        file["meta/energy"][()] = 300.0
    arrays = make_npz_arrays() | {"_metadata": np.array(json.dumps(LENGTHS | {"energy_eV": 3e5}))}
    np.savez(tmp_path / "s.npz", **arrays)
    cxi = write_cxi(tmp_path / "s.cxi", energy=(300.0, "keV"))
    raw = mapped(tmp_path / "s.h5", {"e": (3e5, None)}, energy="e")
    for path, config in (
        (cxi, GUESS),
        (tmp_path / "s.ptyd", GUESS),
        (tmp_path / "s.npz", GUESS),
        (tmp_path / "s.h5", raw),
    ):
        for changes in ({"particle": "electron"}, {"wavelength_m": 1.9687e-12}):
            scan = read_scan(path, dataclasses.replace(config, **changes))
            pixel_m = scan.geometry.with_object_pixel(N).object_pixel_m
            assert pixel_m == pytest.approx(pixel_of(1.9687e-12), rel=1e-4)


CXI = {
    "probe is electron": {"probe": ("electron", None), "energy": (300.0, "keV")},
    "voltage": {"probe": ("electron", None), "voltage": (300.0, "kV")},
    "voltage in volts": {"type": ("Electron gun", None), "voltage": (3e5, None)},
    "energy in J": {"probe": ("electron", None), "energy": (3e5 * 1.602176634e-19, None)},
    "wavelength": {"probe": ("electron", None), "wavelength": (1.9687, "pm")},
}


@pytest.mark.contract("reading.particle")
@pytest.mark.parametrize("name", CXI)
def test_cxi_says_what_its_source_emits(tmp_path: Path, name: str) -> None:
    scan = read_scan(write_cxi(tmp_path / "s.cxi", **CXI[name]), GUESS)
    assert scan.geometry.particle == "electron"
    assert scan.geometry.energy_eV == pytest.approx(3e5, rel=1e-4)
    assert scan.geometry.object_pixel_m == pytest.approx(pixel_of(1.9687e-12), rel=1e-4)


@pytest.mark.contract("reading.particle")
def test_electrons_survive_being_written(tmp_path: Path) -> None:
    scan = read_scan(write_cxi(tmp_path / "s.cxi", **CXI["voltage"]))
    write_scan(scan, tmp_path / "s.npz")
    again = read_scan(tmp_path / "s.npz")
    assert again.geometry == scan.geometry
    write_scan(scan, tmp_path / "s.h5")
    # Products know photons alone: those of the same wavelength.
    product = read_scan(tmp_path / "s.h5").geometry
    assert product.wavelength_m == pytest.approx(scan.geometry.wavelength_m)
    layout = ScanLayout(
        scan="s", n_px=N, dtype=scan.frames.dtype, domain="counts", mask=scan.mask, geometry=scan.geometry
    )
    header = parse_json(StreamHeader, json.dumps(layout.to_dict()), "s", "a header")
    assert ScanLayout.from_header(header, "s").geometry == scan.geometry


@pytest.mark.contract("reading.particle")
def test_photons_of_an_electron_microscope_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scan = read_scan(write_cxi(tmp_path / "s.cxi", energy=(300.0, "keV")))
    summary = inspect_scan(scan)
    assert "--particle electron" in caplog.text
    assert "4.133 pm. If they are electrons, of 1.969 pm" in summary.problems[-1]
    assert (summary.particle, summary.energy_eV) == ("photon", pytest.approx(3e5))
    caplog.clear()
    read_scan(write_cxi(tmp_path / "e.cxi", **CXI["voltage"]))
    read_scan(write_cxi(tmp_path / "x.cxi", energy=(12.0, "keV")))
    read_scan(write_cxi(tmp_path / "w.cxi", energy=(300.0, "keV")), ReadConfig(wavelength_m=2e-12))
    assert "--particle" not in caplog.text


@pytest.mark.contract("reading.particle")
def test_a_product_read_as_electrons_uses_its_energy(tmp_path: Path) -> None:
    for name, fill in (("product.h5", fill_product), ("diffraction.h5", fill_patterns)):
        with h5py.File(tmp_path / name, "w") as file:
            fill(file)
    scan = read_scan(tmp_path / "product.h5", ReadConfig(particle="electron"))
    assert scan.geometry.wavelength_m == pytest.approx(energy_to_wavelength_m(8000.0, "electron"))
    assert scan.n_frames == M - 1
