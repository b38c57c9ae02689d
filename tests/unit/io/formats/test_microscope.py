"""Files of electron microscopes: frames that stay in their file, calibrated axes, and rasters by option."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan
from torchptycho.io.fingerprint import fingerprint_scan
from torchptycho.io.formats import microscope

ROWS, COLUMNS, N_PX = 5, 6, 32
RASTER: dict[str, Any] = {"raster_step_m": (0.4e-10, 0.5e-10), "raster_shape": (ROWS, COLUMNS)}
BEAM: dict[str, Any] = {"energy_eV": 200e3, "convergence_mrad": 20.0, "guess_probe": True}


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    options: dict[str, Any] = {"n_px": N_PX, "object_px": 64, "probe_kind": "electron", "energy_eV": 200e3}
    places = np.stack(np.meshgrid(20 + 4.0 * np.arange(ROWS), 20 + 4.0 * np.arange(COLUMNS), indexing="ij"), -1)
    scan = simulate(
        {**options, "convergence_mrad": 20.0, "angle_per_pixel_mrad": 2.5, "photons_per_frame": 5e3},
        positions_px=places.reshape(-1, 2),
    )
    return scan.frames[:].astype(np.uint8)


def write_mib(path: Path, frames: np.ndarray) -> Path:
    """Write frames as a Merlin detector does: a header of 384 bytes before each, rows from below, big-endian."""
    n = frames.shape[-1]
    with path.open("wb") as file:
        for number, frame in enumerate(frames, start=1):
            head = (
                f"MQ1,{number:06d},00384,01,{n:04d},{n:04d},U16,   1x1,01,2026-01-01 00:00:00.000000,0.001,0,0,0,"
                "2026-01-01T00:00:00.000000000Z,1000000ns,12,"
            )
            file.write(head.encode().ljust(384) + frame[::-1].astype(">u2").tobytes())
    return path


def write_blockfile(path: Path, frames: np.ndarray) -> Path:
    from rsciio.blockfile import file_writer

    axes = [
        {"name": name, "units": unit, "scale": scale, "offset": 0.0, "size": size, "navigate": size != N_PX}
        for name, unit, scale, size in (
            ("y", "nm", 0.04, ROWS), ("x", "nm", 0.05, COLUMNS), ("ky", "cm", 0.1, N_PX), ("kx", "cm", 0.1, N_PX),
        )
    ]  # fmt: skip
    file_writer(
        str(path),
        {
            "data": frames.reshape(ROWS, COLUMNS, N_PX, N_PX),
            "axes": axes,
            "metadata": {"General": {}, "Signal": {}, "Acquisition_instrument": {"TEM": {"beam_energy": 200.0}}},
            "original_metadata": {},
            "attributes": {"_lazy": False},
        },
    )
    return path


@pytest.mark.contract("files.microscope")
def test_a_merlin_file_needs_a_raster_and_a_voltage(tmp_path: Path, frames: np.ndarray) -> None:
    path = write_mib(tmp_path / "scan.mib", frames)
    scan = read_scan(path, ReadConfig(**BEAM, **RASTER))
    np.testing.assert_array_equal(scan.frames[:], frames)
    np.testing.assert_array_equal(scan.frames[[7, 3]], frames[[7, 3]])
    assert scan.geometry.particle == "electron"
    pixel_m = scan.geometry.object_pixel_m
    assert pixel_m == pytest.approx(2.508e-12 / (N_PX * 2.5e-3), rel=0.02)
    assert pixel_m is not None
    np.testing.assert_allclose(scan.positions_px[COLUMNS] - scan.positions_px[0], [0.4e-10 / pixel_m, 0], atol=1e-9)
    with pytest.raises(ScanError, match="--raster-step-m"):
        read_scan(path, ReadConfig(**BEAM))
    with pytest.raises(ScanError, match="--energy-eV"):
        read_scan(path, ReadConfig(**{**BEAM, "energy_eV": None}, **RASTER))


@pytest.mark.contract("files.microscope")
def test_a_file_with_calibrated_axes_needs_no_raster(tmp_path: Path, frames: np.ndarray) -> None:
    path = write_blockfile(tmp_path / "scan.blo", frames)
    scan = read_scan(path, ReadConfig(**BEAM))
    np.testing.assert_array_equal(scan.frames[:], frames)
    pixel_m = scan.geometry.object_pixel_m
    assert pixel_m is not None
    step = scan.positions_px[COLUMNS + 1] - scan.positions_px[0]
    np.testing.assert_allclose(step * pixel_m, [0.4e-10, 0.5e-10], rtol=1e-5)
    part = read_scan(path, ReadConfig(**BEAM, frames="6:18"))
    np.testing.assert_array_equal(part.frames[:], frames[6:18])
    assert fingerprint_scan(part) != fingerprint_scan(scan)


@pytest.mark.contract("files.microscope")
def test_a_damaged_file_is_one_error(tmp_path: Path, frames: np.ndarray) -> None:
    path = write_mib(tmp_path / "scan.mib", frames)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ScanError, match=r"scan\.mib"):
        read_scan(path, ReadConfig(**BEAM, **RASTER))
    block = write_blockfile(tmp_path / "scan.blo", frames)
    block.write_bytes(block.read_bytes()[:2000])
    with pytest.raises(ScanError, match=r"scan\.blo"):
        read_scan(block, ReadConfig(**BEAM))


@pytest.mark.contract("files.microscope")
def test_a_missing_reader_is_named(tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mib(tmp_path / "scan.mib", frames)
    monkeypatch.setitem(sys.modules, "rsciio.quantumdetector", None)
    with pytest.raises(ScanError, match=r"torchptycho\[electron\]"):
        read_scan(path, ReadConfig(**BEAM, **RASTER))


@pytest.mark.parametrize(
    ("unit", "scale", "expected_m"),
    [
        ("mrad", 2.0, 1.9687e-12 / (64 * 2e-3)),
        ("1/nm", 0.5, 1e-9 / 32),
        ("nm^-1", 0.5, 1e-9 / 32),
        ("A^-1", 0.05, 1e-10 / 3.2),
        ("", 1.0, None),
        ("px", 1.0, None),
        ("cm", 0.1, None),
    ],
)
def test_calibrations_of_the_detector(unit: str, scale: float, expected_m: float | None) -> None:
    axes = [{"units": unit, "scale": scale, "size": 64}] * 2
    found = microscope._read_object_pixel_m(Path("scan.dm4"), axes, 1.9687e-12)
    assert found == (None if expected_m is None else pytest.approx(expected_m))
