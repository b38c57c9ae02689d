"""Which frame lies where: lists, grids, axes and rasters; stacks of several axes; energies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from torchptycho.core.config import MappingConfig, ReadConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.io import read_scan
from torchptycho.io.frames.frame_stacks import to_file_rows
from torchptycho.io.frames.npz_frames import StoredFrames

ROWS, COLUMNS, N = 3, 4, 8
M = ROWS * COLUMNS
FRAMES = np.random.default_rng(2).integers(1, 500, (M, N, N)).astype(np.uint16)
GRID = np.meshgrid(np.arange(ROWS) * 2.0, np.arange(COLUMNS) * 1.5, indexing="ij")
PLACES = np.stack([axis.reshape(-1) for axis in GRID], axis=1)
PROBE = np.ones((N, N), np.complex64)
AXES = MappingConfig(frames="frames.npy", positions_y="y.npy", positions_x="x.npy", positions_unit="px")


def save_npz(path: Path, y: Any, x: Any, frames: Any = FRAMES, **more: Any) -> Path:
    np.savez(path, diffraction=frames, ycoords=y, xcoords=x, probeGuess=PROBE, **more)
    return path


def save_npy(folder: Path, **arrays: Any) -> Path:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder / f"{next(iter(arrays))}.npy"


@pytest.mark.contract("files.read.raster")
@pytest.mark.parametrize("frames", [FRAMES, FRAMES.reshape(ROWS, COLUMNS, N, N)], ids=["3 axes", "4 axes"])
@pytest.mark.parametrize(
    ("y", "x"),
    [
        (PLACES[:, 0], PLACES[:, 1]),
        (PLACES[:, :1], PLACES[None, :, 1]),
        tuple(GRID),
        (GRID[0][:, 0], GRID[1][0]),
    ],
    ids=["lists", "columns", "grids", "axes"],
)
def test_lists_grids_and_axes_are_the_same_positions(tmp_path: Path, frames: Any, y: Any, x: Any) -> None:
    mapped = ReadConfig(mapping=AXES, guess_probe=True)
    for scan in (
        read_scan(save_npz(tmp_path / "a.npz", y, x, frames)),
        read_scan(save_npy(tmp_path, frames=frames, y=y, x=x), mapped),
    ):
        np.testing.assert_array_equal(scan.positions_px, PLACES)
        np.testing.assert_array_equal(scan.frames[:], FRAMES)
        np.testing.assert_array_equal(np.concatenate(list(scan.frames.chunks(5))), FRAMES)


@pytest.mark.contract("files.read.raster")
def test_raster_in_an_archive_stays_where_it_lies(tmp_path: Path) -> None:
    frames = FRAMES.reshape(ROWS, COLUMNS, N, N)
    assert isinstance(read_scan(save_npz(tmp_path / "a.npz", *GRID, frames)).frames, StoredFrames)
    with pytest.raises(ScanError, match="in Fortran order"):
        read_scan(save_npz(tmp_path / "f.npz", *GRID, np.asfortranarray(frames)))


@pytest.mark.contract("files.read.raster")
def test_grid_in_another_order_than_the_frames_is_refused(tmp_path: Path) -> None:
    frames = FRAMES.reshape(ROWS, COLUMNS, N, N)
    with pytest.raises(ScanError, match="expected a grid of positions"):
        read_scan(save_npz(tmp_path / "a.npz", GRID[0].T, GRID[1].T, frames))


@pytest.mark.contract("files.read.raster")
def test_raster_of_the_options_takes_the_place_of_positions(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, diffraction=FRAMES, probeGuess=PROBE)
    with pytest.raises(ScanError, match="--raster-step-px"):
        read_scan(path)
    with pytest.raises(ScanError, match="--raster-shape"):
        read_scan(path, ReadConfig(raster_step_px=(2.0, 1.5)))
    found = read_scan(path, ReadConfig(raster_step_px=(2.0, 1.5), raster_shape=(ROWS, COLUMNS)))
    np.testing.assert_allclose(found.positions_px, PLACES)
    snake = read_scan(path, ReadConfig(raster_step_px=(2.0, 1.5), raster_shape=(ROWS, COLUMNS), raster_snake=True))
    assert snake.positions_px[COLUMNS].tolist() == [2.0, 1.5 * (COLUMNS - 1)]
    turned = read_scan(
        path, ReadConfig(raster_step_px=(2.0, 1.5), raster_shape=(ROWS, COLUMNS), raster_rotation_deg=90.0)
    )
    np.testing.assert_allclose(turned.positions_px, np.stack([PLACES[:, 1], -PLACES[:, 0]], axis=1), atol=1e-12)
    frames = save_npy(tmp_path, frames=FRAMES.reshape(ROWS, COLUMNS, N, N))
    raster = ReadConfig(
        mapping=MappingConfig(frames="frames.npy"), guess_probe=True, raster_step_m=(4e-8, 3e-8),
        energy_eV=8000, distance_m=1.0, detector_pixel_m=5e-5,
    )  # fmt: skip
    scan = read_scan(frames, raster)
    assert scan.geometry.object_pixel_m is not None
    np.testing.assert_allclose(scan.positions_px * scan.geometry.object_pixel_m, PLACES * 2e-8)
    with pytest.raises(ScanError, match="positions_y and positions_x"):
        read_scan(frames, ReadConfig(mapping=MappingConfig(frames="frames.npy"), guess_probe=True))


@pytest.mark.contract("files.read.raster")
@pytest.mark.parametrize(
    "options",
    [{"raster_step_px": (1, 1), "raster_step_m": (1, 1)}, {"raster_shape": (3, 3)}, {"raster_snake": True}],
)
def test_raster_options_that_contradict_are_refused(options: Any) -> None:
    with pytest.raises(ConfigError, match="raster"):
        ReadConfig(**options)


def save_spectrum(path: Path, *, shape: tuple[int, ...] = (M,), per_energy: bool = False) -> tuple[Path, ReadConfig]:
    """Frames at three energies, those of energy k brighter by k."""
    stack = np.stack([FRAMES + k for k in range(3)]).reshape(3, *shape, N, N)
    y, x = (np.stack([one + k for k in range(3)]) if per_energy else one for one in PLACES.T)
    with h5py.File(path, "w") as file:
        file["data"], file["y"], file["x"], file["energy"] = stack, y, x, [700.0, 708.0, 720.0]
    mapping = MappingConfig(frames="/data", positions_y="/y", positions_x="/x", positions_unit="px", energy="/energy")
    return path, ReadConfig(mapping=mapping, guess_probe=True)


@pytest.mark.contract("files.read.spectrum")
@pytest.mark.parametrize("shape", [(M,), (ROWS, COLUMNS)], ids=str)
def test_one_energy_of_a_spectrum_is_chosen(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path, config = save_spectrum(tmp_path / "s.h5", shape=shape)
    with pytest.raises(ScanError, match=r"found 3 energies of 12 frames each.*--energy-index N, from 0 to 2"):
        read_scan(path, config)
    with pytest.raises(ScanError, match="an energy 3"):
        read_scan(path, dataclasses.replace(config, energy_index=3))
    scan = read_scan(path, dataclasses.replace(config, energy_index=1))
    np.testing.assert_array_equal(scan.frames[:], FRAMES + 1)
    np.testing.assert_array_equal(np.concatenate(list(scan.frames.chunks(5))), FRAMES + 1)
    np.testing.assert_array_equal(scan.positions_px, PLACES)
    assert scan.geometry.energy_eV == 708.0
    assert to_file_rows(scan.frames, [4]) == [4]


@pytest.mark.contract("files.read.spectrum")
def test_positions_of_every_energy_belong_to_their_energy(tmp_path: Path) -> None:
    path, config = save_spectrum(tmp_path / "s.h5", per_energy=True)
    with pytest.raises(ScanError, match="3 energies"):
        read_scan(path, config)
    scan = read_scan(path, dataclasses.replace(config, energy_index=2))
    np.testing.assert_array_equal(scan.positions_px, PLACES + 2)
    np.testing.assert_array_equal(scan.frames[:], FRAMES + 2)


@pytest.mark.contract("files.read.spectrum")
def test_energies_that_differ_are_not_averaged(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        file["data"], file["y"], file["x"] = FRAMES, PLACES[:, 0], PLACES[:, 1]
        file["energy"], file["steady"] = np.linspace(700, 720, M), np.linspace(700, 700.1, M)
    config = ReadConfig(mapping=MappingConfig(
        frames="/data", positions_y="/y", positions_x="/x", positions_unit="px", energy="/energy"
    ), guess_probe=True)  # fmt: skip
    with pytest.raises(ScanError, match="expected one energy; found 12 from 700 to 720"):
        read_scan(path, config)
    assert read_scan(path, dataclasses.replace(config, energy_eV=710.0)).geometry.energy_eV == 710.0
    assert config.mapping is not None
    steady = dataclasses.replace(config, mapping=dataclasses.replace(config.mapping, energy="/steady"))
    assert read_scan(path, steady).geometry.energy_eV == pytest.approx(700.05)
    with pytest.raises(ScanError, match="expected frames at several energies"):
        read_scan(path, dataclasses.replace(steady, energy_index=0))


@pytest.mark.contract("files.read.counts")
def test_list_without_the_dropped_frames_fits_the_others(tmp_path: Path) -> None:
    dropped = (3, 7)
    kept = np.delete(np.arange(M), dropped)
    path = save_npz(tmp_path / "a.npz", *PLACES[kept].T, scan_index=np.arange(len(kept)))
    with pytest.raises(ScanError, match="Which 2 frame"):
        read_scan(path)
    with pytest.raises(ScanError, match="not of 1 with --drop-frames"):
        read_scan(path, ReadConfig(drop_frames=(3,)))
    scan = read_scan(path, ReadConfig(drop_frames=dropped))
    np.testing.assert_array_equal(scan.positions_px, PLACES[kept])
    np.testing.assert_array_equal(scan.frames[:], FRAMES[kept])
    np.testing.assert_array_equal(scan.scan_id, np.arange(len(kept)))
    # A list with an entry for every frame loses those of the dropped ones.
    full = read_scan(save_npz(tmp_path / "b.npz", *PLACES.T), ReadConfig(drop_frames=dropped))
    np.testing.assert_array_equal(full.positions_px, PLACES[kept])


@pytest.mark.contract("files.read.no-position")
@pytest.mark.parametrize("options", [{"drop_frames": (2, 5)}, {"bad_frames": "leave-out"}], ids=str)
def test_frames_without_a_position_are_left_out_before_they_are_judged(tmp_path: Path, options: Any) -> None:
    places = PLACES.copy()
    places[2, 0], places[5] = np.nan, np.nan
    mapped = ReadConfig(mapping=AXES, guess_probe=True)
    files = [
        (save_npz(tmp_path / "a.npz", *places.T), ReadConfig()),
        (save_npy(tmp_path, frames=FRAMES, y=places[:, 0], x=places[:, 1]), mapped),
    ]
    kept = np.delete(np.arange(M), (2, 5))
    for path, config in files:
        with pytest.raises(ScanError, match=r"2 frames: 2, 5 .*--bad-frames leave-out, or with --drop-frames 2 5\."):
            read_scan(path, config)
        scan = read_scan(path, dataclasses.replace(config, **options))
        np.testing.assert_array_equal(scan.positions_px, PLACES[kept])
        np.testing.assert_array_equal(scan.frames[:], FRAMES[kept])
        assert sorted(scan.left_out) == [2, 5]
    # They are named by the numbers of the file.
    with pytest.raises(ScanError, match=r"1 frame: 5 "):
        read_scan(files[0][0], ReadConfig(frames="3:"))
