"""Master files of EIGER detectors, without a mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.io import read_scan

N_PX, EACH, FILES = 16, 5, 3
ENERGY_EV = 8e3
RASTER: dict[str, Any] = {"raster_step_m": (1e-7, 2e-7), "raster_shape": (3, 5), "guess_probe": True}


def write_master(folder: Path, *, wavelength: bool = False) -> Path:
    rng = np.random.default_rng(0)
    detector = "entry/instrument/detector"
    y, x = np.mgrid[:N_PX, :N_PX] - N_PX // 2
    pattern = 200 * np.exp(-(y**2 + x**2) / 8)
    for number in range(1, FILES + 1):
        frames = rng.poisson(pattern, (EACH, N_PX, N_PX)).astype(np.uint32)
        frames[:, 0] = 2**32 - 1
        with h5py.File(folder / f"scan_data_{number:06d}.h5", "w") as file:
            file["entry/data/data"] = frames
    path = folder / "scan_master.h5"
    with h5py.File(path, "w") as file:
        for number in range(1, FILES + 1):
            link = h5py.ExternalLink(f"scan_data_{number:06d}.h5", "entry/data/data")
            file[f"entry/data/data_{number:06d}"] = link
        file[f"{detector}/detector_distance"] = 2.0
        file[f"{detector}/x_pixel_size"] = 75.0
        file[f"{detector}/x_pixel_size"].attrs["units"] = "um"
        mask = np.zeros((N_PX, N_PX), np.uint32)
        mask[0] = 1
        file[f"{detector}/detectorSpecific/pixel_mask"] = mask
        file[f"{detector}/detectorSpecific/nimages"] = EACH * FILES
        if wavelength:
            file["entry/instrument/beam/incident_wavelength"] = 12398.4198 / ENERGY_EV
        else:
            file[f"{detector}/detectorSpecific/photon_energy"] = ENERGY_EV
    return path


@pytest.mark.contract("files.eiger")
@pytest.mark.parametrize("wavelength", [False, True])
def test_a_master_file_is_read_with_its_lengths(tmp_path: Path, wavelength: bool) -> None:
    scan = read_scan(write_master(tmp_path, wavelength=wavelength), ReadConfig(**RASTER))
    assert scan.frames.shape == (EACH * FILES, N_PX, N_PX)
    with h5py.File(tmp_path / "scan_data_000002.h5") as file:
        second = file["entry/data/data"][:]
    np.testing.assert_array_equal(scan.frames[[6]], second[1:2])
    geometry = scan.geometry
    assert geometry.energy_eV == pytest.approx(ENERGY_EV)
    assert (geometry.distance_m, geometry.detector_pixel_m) == (2.0, pytest.approx(75e-6))
    assert not scan.mask[0].any()
    assert scan.mask[1:].all()
    assert geometry.object_pixel_m is not None
    np.testing.assert_allclose(scan.positions_px[6] * geometry.object_pixel_m, [1e-7, 2e-7])


@pytest.mark.contract("files.eiger")
def test_positions_come_from_a_list(tmp_path: Path) -> None:
    path = write_master(tmp_path)
    with pytest.raises(ScanError, match="--positions FILE:Y FILE:X"):
        read_scan(path, ReadConfig(guess_probe=True))
    places_um = np.stack([np.arange(15) * 0.1, np.arange(15) % 4 * 0.2], axis=1)
    np.savetxt(tmp_path / "list.csv", places_um, delimiter=",", header="y_um,x_um", comments="")
    listed = (f"{tmp_path}/list.csv:y_um", f"{tmp_path}/list.csv:x_um")
    scan = read_scan(path, ReadConfig(guess_probe=True, positions=listed, positions_unit="um"))
    assert scan.geometry.object_pixel_m is not None
    np.testing.assert_allclose(scan.positions_px * scan.geometry.object_pixel_m, places_um * 1e-6, atol=1e-12)
    part = read_scan(path, ReadConfig(guess_probe=True, positions=listed, positions_unit="um", frames="3:12"))
    np.testing.assert_allclose(part.positions_px, scan.positions_px[3:12])


@pytest.mark.contract("files.eiger")
def test_missing_data_files_are_named(tmp_path: Path) -> None:
    path = write_master(tmp_path)
    (tmp_path / "scan_data_000003.h5").unlink()
    with pytest.raises(ScanError, match="data_000003"):
        read_scan(path, ReadConfig(**RASTER))
    stopped = read_scan(
        path, ReadConfig(guess_probe=True, raster_step_m=(1e-7, 2e-7), raster_shape=(3, 5), frames=":10")
    )
    assert stopped.n_frames == 10
