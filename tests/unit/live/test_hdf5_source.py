"""Files that grow."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from chunks import N

from torchptycho.core.config import MappingConfig, ReadConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.io import read_scan
from torchptycho.live.hdf5_source import GrowingFile
from torchptycho.live.scan_header import Chunk


class TestGrowingFile:
    MAPPING = MappingConfig(frames="/data", positions_y="/where[0]", positions_x="/where[1]", positions_unit="px")

    def taken(self, source: GrowingFile, start: int) -> Chunk:
        """The next frames, however often it has to look."""
        for _ in range(100):
            found = source.fetch(start, 5)
            if len(found.frames):
                return found
        raise AssertionError("no frames")

    @pytest.mark.contract("live.file.complete")
    def test_a_frame_is_taken_when_its_position_is_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torchptycho.live.hdf5_source._POLL_INTERVAL_S", 0.0)
        path = tmp_path / "x.h5"
        reading = ReadConfig(mapping=self.MAPPING, crop_px=N, binning=2, flip_y=True, guess_probe=True)
        source = GrowingFile(path, reading)
        assert source.describe() is None
        assert "there is no" in (source.explain_wait() or "")
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 9, (30, 10, 12)).astype(np.uint16)
        where = rng.uniform(0, 50, (30, 2))
        with h5py.File(path, "w", libver="latest") as file:
            data = file.create_dataset("data", (0, 10, 12), "u2", maxshape=(None, 10, 12), chunks=(1, 10, 12))
            places = file.create_dataset("where", (0, 2), "f8", maxshape=(None, 2), chunks=(8, 2))
            file.swmr_mode = True

            def write(n_frames: int, n_places: int) -> None:
                data.resize(n_frames, axis=0)
                data[:] = frames[:n_frames]
                places.resize(n_places, axis=0)
                places[:] = where[:n_places]
                file.flush()

            # In another process: HDF5 would share the file with its writer in this one.
            write(4, 1)
            assert source.describe() is None
            write(7, 4)
        # The rest of what is looked at is a file that was closed, and one that goes on.
        layout = source.describe()
        assert layout is not None
        assert (layout.n_px, layout.dtype) == (N, np.dtype(np.uint32))
        got = self.taken(source, 0)
        assert len(got.frames) == 4
        assert not got.end
        with h5py.File(path, "r+") as file:
            file["data"].resize(30, axis=0)
            file["data"][:] = frames
            file["where"].resize(30, axis=0)
            file["where"][:] = where
        got = [got]
        while sum(len(part.frames) for part in got) < 30:
            got.append(self.taken(source, sum(len(part.frames) for part in got)))
        whole = read_scan(path, reading)
        np.testing.assert_array_equal(np.concatenate([part.frames for part in got]), whole.frames[:])
        np.testing.assert_array_equal(np.concatenate([part.positions_px for part in got]), whole.positions_px)
        np.testing.assert_array_equal(layout.mask, whole.mask)

    def watched(self, path: Path, frames: np.ndarray, where: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Any:
        """The source of a file whose writer has it open, as far as it says."""
        monkeypatch.setattr("torchptycho.live.hdf5_source._POLL_INTERVAL_S", 0.0)
        monkeypatch.setattr("torchptycho.live.hdf5_source.find_writer", lambda _: "swmr")
        write_stack(path, frames, where)
        source = GrowingFile(path, ReadConfig(mapping=self.MAPPING))
        assert source.describe() is not None
        return source

    @pytest.mark.contract("live.file.closed")
    def test_a_writer_that_closes_between_two_looks_leaves_no_frame_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        frames, where = stack(1, 20)
        source = self.watched(tmp_path / "x.h5", frames[:12], where[:12], monkeypatch)
        assert len(source.fetch(0, 6).frames) == 6
        with h5py.File(tmp_path / "x.h5", "r+") as file:
            file["data"].resize(20, axis=0)
            file["where"].resize(20, axis=0)
            file["data"][:], file["where"][:] = frames, where
        monkeypatch.setattr("torchptycho.live.hdf5_source.find_writer", lambda _: "none")
        # These are all that were there when it was counted last.
        got = [source.fetch(6, 6), source.fetch(12, 6), source.fetch(18, 6)]
        assert [(len(part.frames), part.end) for part in got] == [(6, False), (6, False), (2, True)]
        np.testing.assert_array_equal(np.concatenate([part.frames for part in got]), frames[6:])
        assert source.fetch(20, 6).end

    @pytest.mark.contract("live.file.other")
    @pytest.mark.parametrize(
        ("count", "edge", "in_place"), [(12, 8, False), (20, 8, False), (4, 8, False), (20, 8, True), (20, 10, False)]
    )
    def test_frames_of_another_scan_are_not_mixed_in(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, edge: int, in_place: bool
    ) -> None:
        path = tmp_path / "x.h5"
        frames, where = stack(1, 12)
        source = self.watched(path, frames, where, monkeypatch)
        assert len(source.fetch(0, 8).frames) == 8
        # The same way over the sample, as scans have it.
        others = np.resize(stack(2, count, edge)[0], (count, edge, edge)), np.resize(where, (count, 2))
        write_stack(path if in_place else tmp_path / "new.h5", *others)
        if not in_place:
            (tmp_path / "new.h5").replace(path)
        with pytest.raises(ScanError, match=r"found the first frames of another one.*another --out"):
            source.fetch(8, 20)

    @pytest.mark.contract("live.file.other")
    def test_another_scan_is_seen_though_nothing_new_is_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "x.h5"
        frames, where = stack(1, 12)
        source = self.watched(path, frames, where, monkeypatch)
        assert len(source.fetch(0, 12).frames) == 12
        # Copied anew, it is still the scan.
        write_stack(tmp_path / "copy.h5", frames, where)
        (tmp_path / "copy.h5").replace(path)
        assert len(source.fetch(12, 12).frames) == 0
        assert source.explain_wait() is None
        write_stack(tmp_path / "new.h5", stack(2, 12)[0], where)
        (tmp_path / "new.h5").replace(path)
        with pytest.raises(ScanError, match="found the first frames of another one"):
            source.fetch(12, 12)
        # Nor is one that was cut, whether it is counted or not.
        write_stack(path, frames[:6], where)
        for start, most in ((4, 4), (12, 12)):
            assert len(source.fetch(start, most).frames) == 0
            assert "expected the 12 frames that were there; found 6" in (source.explain_wait() or "")
        write_stack(path, stack(2, 1)[0], where[:1])
        assert len(source.fetch(12, 12).frames) == 0
        assert "expected the 12 frames that were there; found 1" in (source.explain_wait() or "")

    @pytest.mark.contract("live.file.other")
    def test_a_file_that_vanishes_is_told_as_gone_and_comes_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "x.h5"
        source = self.watched(path, *stack(1, 12), monkeypatch)
        path.rename(tmp_path / "away.h5")
        assert not source.fetch(0, 6).end
        assert "that it is gone" in (source.explain_wait() or "")
        (tmp_path / "away.h5").rename(path)
        assert len(source.fetch(0, 6).frames) == 6
        assert source.explain_wait() is None
        clock = SimpleNamespace(now=time.monotonic())
        monkeypatch.setattr("torchptycho.live.hdf5_source.time", SimpleNamespace(monotonic=lambda: clock.now))
        path.unlink()
        # It was not looked at for a while, as when there was no room, and is waited for from now on.
        clock.now += 100
        assert len(source.fetch(6, 6).frames) == 0
        clock.now += 11
        with pytest.raises(ScanError, match="that it is gone"):
            source.fetch(6, 6)

    @pytest.mark.contract("live.file.refused")
    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ScanError, match="expected an HDF5 file; found a folder"):
            GrowingFile(tmp_path, ReadConfig()).describe()

    @pytest.mark.contract("live.file.refused")
    def test_what_does_not_become_a_scan_is_told_in_the_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torchptycho.live.hdf5_source._POLL_INTERVAL_S", 0.0)
        path = tmp_path / "x.h5"
        with h5py.File(path, "w") as file:
            file["other"] = np.zeros(3)
        source = GrowingFile(path, ReadConfig(mapping=self.MAPPING))
        assert source.describe() is None
        assert "data" in (source.explain_wait() or "")
        monkeypatch.setattr("torchptycho.live.hdf5_source._ERROR_TIMEOUT_S", 0.0)
        with pytest.raises(ScanError, match="'data'"):
            source.describe()
        (tmp_path / "x.npz").write_bytes(b"PK")
        with pytest.raises(ScanError, match="expected an HDF5 file"):
            GrowingFile(tmp_path / "x.npz", ReadConfig()).describe()
        with pytest.raises(ConfigError, match="beam_center_px"):
            GrowingFile(path, ReadConfig(beam_center_px="estimated"))


def stack(seed: int, count: int, edge: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 99, (count, edge, edge)).astype(np.uint16), rng.uniform(0, 50, (count, 2))


def write_stack(path: Path, frames: np.ndarray, where: np.ndarray) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("data", data=frames, maxshape=(None, *frames.shape[1:]), chunks=(1, *frames.shape[1:]))
        file.create_dataset("where", data=where, maxshape=(None, 2), chunks=(8, 2))


@pytest.mark.contract("live.file.virtual")
def test_a_virtual_data_set_is_refused_at_once(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["data"] = np.ones((3, N, N), np.uint16)
    layout = h5py.VirtualLayout((6, N, N), np.uint16)
    layout[:3] = h5py.VirtualSource("data.h5", "data", shape=(3, N, N))
    layout[3:] = h5py.VirtualSource("later.h5", "data", shape=(3, N, N))
    with h5py.File(tmp_path / "master.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
        file["where"] = np.arange(12.0).reshape(6, 2)
    source = GrowingFile(tmp_path / "master.h5", ReadConfig(mapping=TestGrowingFile.MAPPING))
    with pytest.raises(ScanError, match="'data': expected frames in the file itself; found a virtual data set"):
        source.describe()
