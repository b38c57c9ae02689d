"""Electron scans without lengths: the bright-field disc calibrates the detector, an aperture makes the probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchptycho.core.config import ReadConfig, SimulateConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan, write_scan
from torchptycho.io.electron_calibration import find_bright_field_disc
from torchptycho.io.guesses import compute_mean_pattern

ELECTRONS = {"particle": "electron", "energy_eV": 80e3, "guess_probe": True}


@pytest.fixture(scope="module")
def scan() -> Scan:
    return simulate(
        SimulateConfig(
            n_px=64,
            object_px=96,
            n_frames=36,
            position_kind="raster",
            probe_kind="electron",
            energy_eV=80e3,
            convergence_mrad=21.0,
            angle_per_pixel_mrad=1.5,
            probe_defocus_m=15e-9,
            aberrations=("C30=1e-4",),
        )
    )


@pytest.fixture(scope="module")
def bare(scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("electrons") / "bare.npz"
    y, x = scan.positions_px.T
    np.savez(path, diffraction=scan.frames[:], xcoords=x, ycoords=y)
    return path


@pytest.mark.contract("electron.disc")
def test_the_disc_is_found(scan: Scan) -> None:
    disc = find_bright_field_disc(compute_mean_pattern(scan.frames, "counts"), scan.mask)
    assert disc is not None
    assert disc.radius_px == pytest.approx(14.0, rel=0.01)
    assert disc.center_px == pytest.approx((32.0, 32.0), abs=0.3)


@pytest.mark.contract("electron.disc")
def test_what_leaves_the_frame_is_no_disc() -> None:
    mask = np.ones((32, 32), bool)
    assert find_bright_field_disc(np.ones((32, 32)), mask) is None
    assert find_bright_field_disc(np.zeros((32, 32)), mask) is None


@pytest.mark.contract("electron.disc")
def test_the_disc_calibrates_the_detector_and_the_aperture_makes_the_probe(scan: Scan, bare: Path) -> None:
    read = read_scan(
        bare, ReadConfig(**ELECTRONS, convergence_mrad=21.0, probe_defocus_m=15e-9, aberrations=("C30=1e-4",))
    )
    assert scan.geometry.object_pixel_m is not None
    assert read.geometry.object_pixel_m == pytest.approx(scan.geometry.object_pixel_m, rel=0.01)
    assert read.geometry.particle == "electron"
    found, true = read.probe[0], scan.probe[0]
    alike = abs(np.vdot(found, true)) ** 2 / (np.vdot(found, found).real * np.vdot(true, true).real)
    assert alike > 0.98
    assert any("bright-field disc" in note for note in read.notes)
    assert any(note.startswith("probe guessed from a round aperture") for note in read.notes)


@pytest.mark.contract("electron.disc")
def test_binned_and_cropped_frames_keep_their_lengths(scan: Scan, bare: Path) -> None:
    options: dict[str, Any] = {**ELECTRONS, "angle_per_pixel_mrad": 1.5}
    assert scan.geometry.object_pixel_m is not None
    pixel_m = scan.geometry.object_pixel_m
    assert read_scan(bare, ReadConfig(**options)).geometry.object_pixel_m == pytest.approx(pixel_m)
    binned = read_scan(bare, ReadConfig(**options, binning=2))
    assert (binned.n_px, binned.geometry.object_pixel_m) == (32, pytest.approx(pixel_m))
    cropped = read_scan(bare, ReadConfig(**options, crop_px=48))
    assert cropped.geometry.object_pixel_m == pytest.approx(pixel_m * 64 / 48)


@pytest.mark.contract("electron.disc")
def test_the_calibration_of_a_file_stays_and_a_disc_that_disagrees_is_reported(
    scan: Scan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_scan(scan, tmp_path / "own.npz")
    own = scan.geometry.object_pixel_m
    agreed = read_scan(tmp_path / "own.npz", ReadConfig(convergence_mrad=21.0))
    assert agreed.geometry.object_pixel_m == pytest.approx(own)
    assert "bright-field disc" not in caplog.text
    wrong = read_scan(tmp_path / "own.npz", ReadConfig(convergence_mrad=30.0))
    assert wrong.geometry.object_pixel_m == pytest.approx(own)
    assert "says 2.1" in caplog.text
    assert "--angle-per-pixel-mrad" in caplog.text


@pytest.mark.contract("electron.disc")
def test_missing_and_double_inputs_are_named(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="--energy-eV"):
        read_scan(bare, ReadConfig(guess_probe=True, convergence_mrad=21.0))
    with pytest.raises(ConfigError, match="--convergence-mrad"):
        ReadConfig(guess_probe=True, aberrations=("C30=1e-3",))
    with pytest.raises(ConfigError, match="the same number"):
        ReadConfig(guess_probe=True, convergence_mrad=21.0, probe_defocus_m=1e-9, aberrations=("C10=1e-9",))
    with pytest.raises(ConfigError, match="angle_per_pixel_mrad"):
        ReadConfig(angle_per_pixel_mrad=1.0, distance_m=1.0)
    flat = tmp_path / "flat.npz"
    with np.load(bare) as arrays:
        np.savez(flat, **{**arrays, "diffraction": np.full((36, 64, 64), 7, np.uint16)})
    with pytest.raises(ScanError, match="--angle-per-pixel-mrad"):
        read_scan(flat, ReadConfig(**ELECTRONS, convergence_mrad=21.0))
