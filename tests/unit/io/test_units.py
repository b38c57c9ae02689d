"""Units of lengths and energies: what files state, what options say, and positions that are in another unit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scan_files import (
    FRAMES,
    LENGTHS,
    POSITIONS_M,
    M,
    N,
    fill_cxi,
    fill_patterns,
    fill_product,
    fill_ptychi_parameters,
    fill_ptyd,
)

from torchptycho.analysis.inspection import inspect_scan
from torchptycho.core.config import MappingConfig, ReadConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.io import read_scan
from torchptycho.io.units import compute_unit_factor

GUESS = ReadConfig(guess_probe=True)
PIXEL_M = Geometry(**LENGTHS).with_object_pixel(N).object_pixel_m
DETECTOR = "entry_1/instrument_1/detector_1"
TRANSLATION = "entry_1/sample_1/geometry_1/translation"
ENERGY = "entry_1/instrument_1/beam_1/energy"
EV_IN_J = 1.602176634e-19


def _fill_ptychi(file: Any) -> None:
    file["dp"] = FRAMES.astype(np.float32)


def write(path: Path, fill: Callable[[Any], None], numbers: dict[str, tuple[Any, Any]]) -> Path:
    """Write a file as `fill` makes it, with these datasets (value, unit) in place of its own."""
    with h5py.File(path, "w") as file:
        fill(file)
        for name, (value, unit) in numbers.items():
            if name in file:
                del file[name]
            file[name] = value
            if unit is not None:
                file[name].attrs["units"] = unit
    return path


def steps_px(path: Path, config: ReadConfig = GUESS) -> np.ndarray:
    return np.diff(read_scan(path, config).positions_px, axis=0)


STEPS_PX = np.diff(POSITIONS_M, axis=0) / PIXEL_M
MOVED_M = np.pad(POSITIONS_M[:, ::-1], ((0, 0), (0, 1)))

CXI = {
    "energy in keV": {ENERGY: (8.0, "keV")},
    "energy in KeV, as bytes": {ENERGY: (8.0, np.bytes_("KeV"))},
    "energy in J": {ENERGY: (8000 * EV_IN_J, "J")},
    "energy in eV": {ENERGY: (8000.0, "eV")},
    "energy of each frame": {ENERGY: (np.full(M, 8.0), "keV")},
    "wavelength": {"entry_1/instrument_1/source_1/wavelength": (1.239841984332002 / 0.8, "A")},
    "distance in mm": {f"{DETECTOR}/distance": (1000.0, "mm")},
    "distance in metres by name": {f"{DETECTOR}/distance": (-1.0, "metre")},
    "pixel in um": {f"{DETECTOR}/x_pixel_size": (50.0, "µm"), f"{DETECTOR}/y_pixel_size": (50.0, "micron")},
    "translation in um": {TRANSLATION: (MOVED_M * 1e6, "um")},
    "translation in nm": {TRANSLATION: (MOVED_M * 1e9, "nm")},
    "translation of two columns in mm": {TRANSLATION: (MOVED_M[:, :2] * 1e3, "MM")},
    "a unit of nothing": {TRANSLATION: (MOVED_M, "")},
}


@pytest.mark.contract("files.units")
@pytest.mark.parametrize("name", CXI)
def test_cxi_is_read_in_the_units_that_it_states(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "scan.cxi", fill_cxi, CXI[name])
    if name == "wavelength":
        with h5py.File(path, "a") as file:
            del file["entry_1/instrument_1/source_1/energy"]
    scan = read_scan(path, GUESS)
    assert scan.geometry.energy_eV == pytest.approx(8000.0)
    assert scan.geometry.object_pixel_m == pytest.approx(PIXEL_M)
    np.testing.assert_allclose(np.diff(scan.positions_px, axis=0), STEPS_PX, atol=1e-9)


@pytest.mark.contract("files.units")
def test_basis_vectors_in_micrometres_give_the_pixel(tmp_path: Path) -> None:
    vectors = np.array([[0, -50.0], [-50.0, 0], [0, 0]])
    path = write(tmp_path / "scan.cxi", fill_cxi, {f"{DETECTOR}/basis_vectors": (vectors, "um")})
    with h5py.File(path, "a") as file:
        del file[f"{DETECTOR}/x_pixel_size"], file[f"{DETECTOR}/y_pixel_size"]
    assert read_scan(path, GUESS).geometry.detector_pixel_m == pytest.approx(5e-5)


@pytest.mark.contract("files.units")
def test_ptyd_product_and_pair_are_read_in_the_units_that_they_state(tmp_path: Path) -> None:
    chunks = {f"chunks/{i}/positions": (POSITIONS_M[4 * i : 4 * i + 4] * 1e6, "um") for i in range(2)}
    numbers = {"meta/energy": (8000.0, "eV"), "meta/distance": (100.0, "cm"), "meta/psize": ([50.0, 50.0], "um")}
    ptyd = write(tmp_path / "scan.ptyd", fill_ptyd, {**chunks, **numbers})
    scan = read_scan(ptyd, GUESS)
    assert scan.geometry.object_pixel_m == pytest.approx(PIXEL_M)
    np.testing.assert_allclose(np.diff(scan.positions_px, axis=0), STEPS_PX, atol=1e-9)
    in_mm = {f"probe_position_{axis}_m": (POSITIONS_M[:, i] * 1e3, "mm") for i, axis in enumerate("yx")}
    write(tmp_path / "diffraction.h5", fill_patterns, {})
    product = write(tmp_path / "product.h5", fill_product, in_mm)
    np.testing.assert_allclose(steps_px(product), np.diff(POSITIONS_M[:-1], axis=0) / 2e-8, atol=1e-9)
    write(tmp_path / "s_dp.hdf5", _fill_ptychi, {})
    pair = write(tmp_path / "s_para.hdf5", fill_ptychi_parameters, in_mm)
    np.testing.assert_allclose(steps_px(pair), np.diff(POSITIONS_M, axis=0) / 2e-8, atol=1e-9)
    # An option has the last word.
    in_cm = steps_px(pair, ReadConfig(positions_unit="cm"))
    np.testing.assert_allclose(in_cm, np.diff(POSITIONS_M, axis=0) * 10 / 2e-8, atol=1e-9)


UNKNOWN = {
    TRANSLATION: ("--positions-unit", ReadConfig(guess_probe=True, positions_unit="m")),
    f"{DETECTOR}/distance": ("--distance-m", ReadConfig(guess_probe=True, distance_m=1.0)),
    f"{DETECTOR}/y_pixel_size": ("--detector-pixel-m", ReadConfig(guess_probe=True, detector_pixel_m=5e-5)),
    "entry_1/instrument_1/source_1/energy": ("--energy-eV", ReadConfig(guess_probe=True, energy_eV=8000.0)),
}


@pytest.mark.contract("files.units")
@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("unit", ["furlong per", "counts", "9**9**9", "NX_LENGTH", "pixel", "degC", "s"])
def test_an_unknown_unit_is_named_with_the_option_that_helps(tmp_path: Path, name: str, unit: str) -> None:
    path = write(tmp_path / "scan.cxi", fill_cxi, {})
    with h5py.File(path, "a") as file:
        file[name].attrs["units"] = unit
    option, config = UNKNOWN[name]
    if not (unit == "pixel" and name == TRANSLATION):
        with pytest.raises(ScanError, match=rf"found '{unit.replace('*', '.')}'.*{option}"):
            read_scan(path, GUESS)
    assert read_scan(path, config).geometry.object_pixel_m == pytest.approx(PIXEL_M)


@pytest.mark.contract("files.units")
def test_angles_and_times_are_not_taken_for_counts() -> None:
    assert compute_unit_factor("f", "k", "deg", "angle", "-") == pytest.approx(np.pi / 180)
    assert compute_unit_factor("f", "k", "ms", "time", "-") == pytest.approx(1e-3)
    assert compute_unit_factor("f", "k", "kV", "voltage", "-") == pytest.approx(1e3)
    with pytest.raises(ScanError, match="a unit of angle"):
        compute_unit_factor("f", "k", "count", "angle", "-")


def mapped(**changes: Any) -> ReadConfig:
    names = {"frames": "f", "positions_y": "y", "positions_x": "x", "distance": "z", "detector_pixel": "d"}
    return ReadConfig(guess_probe=True, mapping=MappingConfig(**{**names, "energy": "e", **changes}))


def write_raw(path: Path, numbers: dict[str, tuple[Any, Any]]) -> Path:
    si = {
        "f": (FRAMES, None),
        "y": (POSITIONS_M[:, 0], None),
        "x": (POSITIONS_M[:, 1], None),
        "z": (1.0, None),
        "d": (5e-5, None),
        "e": (8000.0, None),
    }
    return write(path, lambda file: None, {**si, **numbers})


RAW: dict[str, tuple[dict[str, tuple[Any, Any]], dict[str, Any]]] = {
    "SI": ({}, {}),
    "attributes": (
        {"y": (POSITIONS_M[:, 0] * 1e6, "um"), "x": (POSITIONS_M[:, 1] * 1e9, "nm"), "z": (1e3, "mm")},
        {},
    ),
    "attributes of energy and pixel": ({"e": (8.0, "keV"), "d": (50.0, "um")}, {}),
    "mapping overrules attributes": (
        {"z": (100.0, "mm"), "d": (50.0, None), "e": (8.0, None)},
        {"distance_unit": "cm", "detector_pixel_unit": "um", "energy_unit": "keV"},
    ),
    "wavelength": ({"w": (0.1549802480415, "nm")}, {"energy": None, "wavelength": "w"}),
    "wavelength with a unit in the mapping": (
        {"w": (1.549802480415, None)},
        {"energy": None, "wavelength": "w", "wavelength_unit": "angstrom"},
    ),
}


@pytest.mark.contract("files.mapping.units")
@pytest.mark.parametrize("name", RAW)
def test_a_mapping_reads_attributes_and_has_units_of_its_own(tmp_path: Path, name: str) -> None:
    numbers, changes = RAW[name]
    path = write_raw(tmp_path / "raw.h5", numbers)
    scan = read_scan(path, mapped(**changes))
    assert scan.geometry.object_pixel_m == pytest.approx(PIXEL_M)
    np.testing.assert_allclose(np.diff(scan.positions_px, axis=0), STEPS_PX, atol=1e-9)


@pytest.mark.contract("files.mapping.units")
def test_a_mapping_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of energy, wavelength, voltage; found energy, wavelength"):
        mapped(wavelength="w")
    path = write_raw(tmp_path / "raw.h5", {"y": (POSITIONS_M[:, 0], "px"), "x": (POSITIONS_M[:, 1], "um")})
    with pytest.raises(ScanError, match=r"expected positions in one unit.*found px and um"):
        read_scan(path, mapped())
    with pytest.raises(ScanError, match=r"found 'sec'.*--energy-eV"):
        read_scan(write_raw(tmp_path / "s.h5", {}), mapped(energy_unit="sec"))


SIDE, STEP_PX, EDGE = 6, 4.0, 32
GRID = np.indices((SIDE, SIDE)).reshape(2, -1).T * STEP_PX + np.random.default_rng(1).uniform(-0.3, 0.3, (SIDE**2, 2))


def write_npz(path: Path, positions: np.ndarray, **metadata: Any) -> Path:
    rows, columns = np.indices((EDGE, EDGE)) - EDGE // 2
    probe = (np.hypot(rows, columns) < 6).astype(np.complex64)
    frames = np.random.default_rng(2).poisson(20, (SIDE**2, EDGE, EDGE)).astype(np.uint16)
    text = np.array(json.dumps(metadata))
    y, x = positions.T
    np.savez(path, diffraction=frames, ycoords=y, xcoords=x, probeGuess=probe, _metadata=text)
    return path


@pytest.mark.contract("reading.positions-unit")
def test_npz_positions_in_a_length_follow_the_metadata_or_the_option(tmp_path: Path) -> None:
    pixel_m = Geometry(**LENGTHS).with_object_pixel(EDGE).object_pixel_m
    assert pixel_m is not None
    for unit, factor in (("nm", 1e9), ("um", 1e6), ("mm", 1e3), ("m", 1.0), ("angstrom", 1e10)):
        stated = write_npz(tmp_path / "a.npz", GRID * pixel_m * factor, positions_unit=unit, **LENGTHS)
        asked = write_npz(tmp_path / "b.npz", GRID * pixel_m * factor, **LENGTHS)
        for scan in (read_scan(stated), read_scan(asked, ReadConfig(positions_unit=unit))):
            np.testing.assert_allclose(scan.positions_px, GRID, atol=1e-6)
            assert inspect_scan(scan).positions_unit == unit
            assert inspect_scan(scan).usable
    with pytest.raises(ScanError, match="'positions_unit' to be the name of a unit"):
        read_scan(write_npz(tmp_path / "c.npz", GRID, positions_unit=3))


@pytest.mark.contract("inspect.scale")
@pytest.mark.parametrize(("unit", "factor"), [("nm", 1e9), ("um", 1e6), ("mm", 1e3), ("m", 1.0)])
def test_the_unit_of_lengths_that_were_read_as_pixels_is_named(tmp_path: Path, unit: str, factor: float) -> None:
    pixel_m = 2e-8
    path = write_npz(tmp_path / "scan.npz", GRID * pixel_m * factor, object_pixel_m=pixel_m)
    with pytest.raises(ScanError) as caught:
        read_scan(path)
    assert f"read with --positions-unit {unit}." in str(caught.value)


@pytest.mark.contract("inspect.scale")
def test_fields_that_cannot_be_are_not_usable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert inspect_scan(read_scan(write_npz(tmp_path / "good.npz", GRID))).usable
    assert not caplog.text
    with pytest.raises(ScanError, match=r"found 0\.2. px, read in px\. They look like lengths"):
        read_scan(write_npz(tmp_path / "less_than_a_pixel.npz", GRID / 80))
    covered = inspect_scan(read_scan(write_npz(tmp_path / "covered.npz", GRID / 4)))
    assert not covered.usable
    assert "The probe covers the whole scan" in covered.problems[0]
    assert "--positions-unit" in covered.problems[0]
    # Lengths that do not belong to one another: the energy in keV.
    lengths = {**LENGTHS, "energy_eV": 8.0}
    pixel_m = Geometry(**LENGTHS).with_object_pixel(EDGE).object_pixel_m
    assert pixel_m is not None
    path = write_npz(tmp_path / "keV.npz", GRID * pixel_m, positions_unit="m", **lengths)
    with pytest.raises(ScanError, match=r"read in m\..*energy 8 eV \(--energy-eV\), distance 1 m \(--distance-m\)"):
        read_scan(path)


@pytest.mark.contract("inspect.scale")
def test_a_scan_that_has_just_begun_is_not_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "scan.npz", GRID / 16)
    assert read_scan(path, ReadConfig(frames=":4")).n_frames == 4
