"""CXI files of other shapes: entries of any number, motors, translations in rows, columns and grids."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.io import read_scan

ROWS, COLUMNS, N = 3, 4, 8
M = ROWS * COLUMNS
FRAMES = np.random.default_rng(2).integers(1, 500, (M, N, N)).astype(np.uint16)
Y, X = np.meshgrid(np.arange(ROWS) * 4e-8, np.arange(COLUMNS) * 3e-8, indexing="ij")
TRANSLATION = np.stack([X, Y, 0 * X], axis=-1)
LENGTHS = ReadConfig(energy_eV=8000, distance_m=1.0, detector_pixel_m=5e-5, guess_probe=True)


def write(path: Path, entry: str = "entry_1", frames: Any = FRAMES, **arrays: Any) -> None:
    with h5py.File(path, "a") as file:
        file[f"{entry}/instrument_1/detector_1/data"] = frames
        for name, values in arrays.items():
            file[f"{entry}/sample_1/{name.replace('__', '/')}"] = values


def read(path: Path, **options: Any) -> np.ndarray:
    scan = read_scan(path, dataclasses.replace(LENGTHS, **options))
    assert scan.geometry.object_pixel_m is not None
    np.testing.assert_array_equal(scan.frames[:], FRAMES)
    return scan.positions_px * scan.geometry.object_pixel_m


@pytest.mark.contract("files.cxi.raster")
@pytest.mark.parametrize(
    "translation",
    [TRANSLATION, TRANSLATION.reshape(M, 3), TRANSLATION.reshape(M, 3).T],
    ids=["grid", "rows", "columns"],
)
@pytest.mark.parametrize("frames", [FRAMES, FRAMES.reshape(ROWS, COLUMNS, N, N)], ids=["3 axes", "4 axes"])
def test_translations_of_every_shape(tmp_path: Path, translation: Any, frames: Any) -> None:
    write(tmp_path / "a.cxi", frames=frames, geometry_1__translation=translation)
    np.testing.assert_allclose(read(tmp_path / "a.cxi"), np.stack([Y.ravel(), X.ravel()], axis=1), atol=1e-20)


@pytest.mark.contract("files.cxi.motors")
@pytest.mark.parametrize(
    ("y", "x"), [(Y, X), (Y.reshape(M, 1, 1), X.reshape(M, 1, 1)), (Y[:, 0], X[0])], ids=["grids", "lists", "axes"]
)
def test_motors_are_the_motion_of_the_sample(tmp_path: Path, y: Any, x: Any) -> None:
    write(tmp_path / "a.nxs", transformations__y=y, transformations__x=x)
    np.testing.assert_allclose(read(tmp_path / "a.nxs"), np.stack([Y.ravel(), X.ravel()], axis=1), atol=1e-20)


@pytest.mark.contract("files.cxi.motors")
def test_motors_that_fit_no_frames_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.nxs", transformations__y=Y[:, 0], transformations__x=X.ravel())
    with pytest.raises(ScanError, match="one number per frame, 12, or the axes of a raster"):
        read(tmp_path / "a.nxs")


@pytest.mark.contract("files.cxi.entry")
def test_entry_with_frames_is_read_whatever_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.cxi"
    write(path, "entry_2", geometry_1__translation=TRANSLATION)
    with h5py.File(path, "a") as file:
        file["cxi_version"] = 160
        file["entry_1/title"] = "dark"
    places = read(path)
    write(path, "entry_3", frames=FRAMES[::-1], geometry_1__translation=TRANSLATION)
    with pytest.raises(ScanError, match=r"one entry with frames; found 2: entry_2, entry_3\. Take one with --entry"):
        read(path)
    np.testing.assert_array_equal(read(path, entry="entry_2"), places)
    with pytest.raises(ScanError, match="'entry_1': expected an entry with frames; found entries entry_2, entry_3"):
        read(path, entry="entry_1")


@pytest.mark.contract("files.read.spectrum")
def test_one_energy_of_a_spectrum_in_cxi(tmp_path: Path) -> None:
    path = tmp_path / "a.cxi"
    write(path, frames=np.stack([FRAMES + 1, FRAMES]), geometry_1__translation=TRANSLATION.reshape(M, 3))
    with pytest.raises(ScanError, match="found 2 energies of 12 frames"):
        read(path)
    read(path, energy_index=1)
    with h5py.File(path, "a") as file:
        file["entry_1/instrument_1/beam_1/energy"] = [700.0, 710.0]
    assert (
        read_scan(
            path, ReadConfig(energy_index=1, distance_m=1, detector_pixel_m=5e-5, guess_probe=True)
        ).geometry.energy_eV
        == 710.0
    )
