"""Frames in many datasets of HDF5, as detectors write them, and frames that were never written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from torchptycho.core.config import MappingConfig, ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.io import read_scan
from torchptycho.io.frames.views import JoinedFrames
from torchptycho.io.guesses import estimate_probe, fill_masked

N, PER_FILE, FILES = 8, 3, 11
M = PER_FILE * FILES
FRAMES = np.random.default_rng(5).integers(1, 400, (M, N, N)).astype(np.uint32)
PLACES = np.random.default_rng(6).uniform(0, 30, (M, 2))


@pytest.fixture
def master(tmp_path: Path) -> Path:
    """A master file of a detector with links to eleven data files, and positions."""
    path = tmp_path / "scan_master.h5"
    with h5py.File(path, "w") as file:
        for k in range(FILES):
            name = f"scan_data_{k + 1:06d}.h5"
            with h5py.File(tmp_path / name, "w") as part:
                frames = FRAMES[PER_FILE * k : PER_FILE * (k + 1)]
                part.create_dataset("entry/data/data", data=frames, chunks=(1, N, N), compression="gzip")
            file[f"entry/data/data_{k + 1:06d}"] = h5py.ExternalLink(name, "entry/data/data")
        file["entry/instrument/detector/detectorSpecific/nimages"] = PER_FILE
        file["entry/instrument/detector/detectorSpecific/ntrigger"] = FILES
        file["y"], file["x"] = PLACES.T
    return path


def config_for(place: str, **options: Any) -> ReadConfig:
    mapping = MappingConfig(frames=place, positions_y="/y", positions_x="/x", positions_unit="px")
    return ReadConfig(mapping=mapping, guess_probe=True, **options)


@pytest.mark.contract("files.hdf5.series")
@pytest.mark.parametrize("name", ["/entry/data", "/entry", "/entry/data/data_*", "/entry/data/data_0000??"])
def test_group_and_pattern_are_joined_in_order(master: Path, name: str) -> None:
    scan = read_scan(master, config_for(name))
    assert isinstance(scan.frames, JoinedFrames)
    np.testing.assert_array_equal(scan.frames[:], FRAMES)
    np.testing.assert_array_equal(np.concatenate(list(scan.frames.chunks(4))), FRAMES)
    np.testing.assert_array_equal(scan.frames[[30, 2]], FRAMES[[30, 2]])
    assert {Path(file.path).name for file in scan.files} >= {"scan_data_000001.h5", "scan_data_000011.h5"}


@pytest.mark.contract("files.hdf5.series")
def test_default_and_signal_of_nexus_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.nxs"
    with h5py.File(path, "w") as file:
        file.attrs["default"] = "run"
        file.create_group("run").attrs["default"] = "plot"
        file.create_group("run/plot").attrs["signal"] = "counts"
        file["run/plot/counts"], file["y"], file["x"] = FRAMES, *PLACES.T
    np.testing.assert_array_equal(read_scan(path, config_for("/")).frames[:], FRAMES)
    with pytest.raises(ScanError, match="expected a dataset of frames"):
        read_scan(path, config_for("/run/none"))
    with pytest.raises(ScanError, match="found counts there"):
        read_scan(path, config_for("/run/plot/data_*"))


@pytest.mark.contract("files.hdf5.series")
def test_fewer_frames_than_the_detector_announced_are_refused(master: Path) -> None:
    with pytest.raises(ScanError, match="expected 33 frames, nimages x ntrigger of the detector; found 3"):
        read_scan(master, config_for("/entry/data/data_000001"))
    (master.parent / "scan_data_000011.h5").unlink()
    with pytest.raises(ScanError, match=r"scan_data_000011\.h5"):
        read_scan(master, config_for("/entry/data"))
    scan = read_scan(master, config_for("/entry/data", frames=":30"))
    np.testing.assert_array_equal(scan.frames[:], FRAMES[:30])
    np.testing.assert_array_equal(scan.positions_px, PLACES[:30])
    with pytest.raises(ScanError, match=r"scan_data_000011\.h5"):
        read_scan(master, config_for("/entry/data", frames=":31"))


@pytest.mark.contract("files.hdf5.series")
def test_parts_of_other_sizes_are_refused(master: Path) -> None:
    with h5py.File(master, "a") as file:
        file["entry/data/data_000012"] = np.ones((3, N, N + 2), np.uint32)
    with pytest.raises(ScanError, match="expected frames of one size and dtype"):
        read_scan(master, config_for("/entry/data"))


@pytest.mark.contract("files.hdf5.aborted")
@pytest.mark.parametrize("rows_per_piece", [1, 4])
def test_frames_that_were_written_are_read(tmp_path: Path, rows_per_piece: int) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (M, N, N), np.uint32, chunks=(rows_per_piece, N, N // 2), compression="gzip")
        data[:20] = FRAMES[:20]
        data[24:28] = FRAMES[24:28]
        file["y"], file["x"] = PLACES.T
    with pytest.raises(ScanError, match=r"24 of 33 frames: frame 20 .* was never written\. Leave the others out"):
        read_scan(path, config_for("/data"))
    with pytest.raises(ScanError, match="frame 20"):
        read_scan(path, config_for("/data", frames=":21"))
    np.testing.assert_array_equal(read_scan(path, config_for("/data", frames=":20")).frames[:], FRAMES[:20])
    scan = read_scan(path, config_for("/data", frames=":28", drop_frames=(20, 21, 22, 23)))
    np.testing.assert_array_equal(scan.frames[:], np.delete(FRAMES[:28], slice(20, 24), axis=0))
    np.testing.assert_array_equal(scan.positions_px, np.delete(PLACES[:28], slice(20, 24), axis=0))


@pytest.mark.contract("files.hdf5.aborted")
def test_virtual_frames_without_a_source_are_missed_only_where_they_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(tmp_path / "part.h5", "w") as part:
        part["data"] = FRAMES[:20]
    layout = h5py.VirtualLayout((M, N, N), np.uint32)
    layout[:20] = h5py.VirtualSource("part.h5", "data", (20, N, N))
    layout[20:30] = h5py.VirtualSource("gone.h5", "data", (10, N, N))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)
        file["y"], file["x"] = PLACES.T
    with pytest.raises(ScanError, match=r"frames from gone\.h5"):
        read_scan(path, config_for("/data"))
    np.testing.assert_array_equal(read_scan(path, config_for("/data", frames=":20")).frames[:], FRAMES[:20])


@pytest.mark.contract("reading.probe.guess-masked")
def test_guessed_probe_does_not_see_what_is_masked() -> None:
    rows = np.arange(32) - 16.0
    pattern = np.exp(-(rows[:, None] ** 2 + rows**2) / 60)
    mask = np.ones((32, 32), bool)
    mask[14:16] = False
    spoilt = np.where(mask, pattern, 2.0**32)
    good, found = (estimate_probe(one, Geometry())[0] for one in (pattern, fill_masked(spoilt, mask)))
    assert abs(np.vdot(good, found)) > 0.99 * np.linalg.norm(good) * np.linalg.norm(found)
    assert fill_masked(pattern, np.ones_like(mask)) is pattern
