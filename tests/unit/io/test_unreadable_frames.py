"""Frames that cannot be read, or were never written: an error, or left out and listed, in every container."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from torchptycho.core.config import MappingConfig, ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.io import iter_checked_chunks, read_scan

M, N = 24, 32
FRAMES = np.random.default_rng(5).integers(1, 400, (M, N, N)).astype(np.uint32)
PLACES = np.random.default_rng(6).uniform(0, 30, (M, 2))
MAPPING = MappingConfig(frames="data", positions_y="y", positions_x="x", positions_unit="px")


def config_for(**options: object) -> ReadConfig:
    return ReadConfig(mapping=MAPPING, guess_probe=True, **options)  # type: ignore[arg-type]


def flip(path: Path, values: np.ndarray) -> None:
    """Change one byte of these values in a file that stores them as they are."""
    content = bytearray(path.read_bytes())
    content[content.index(values.tobytes()) + values.nbytes // 2] ^= 0xFF
    path.write_bytes(content)


def write_positions(file: h5py.File) -> None:
    file["y"], file["x"] = PLACES.T


@pytest.mark.contract("files.read.unreadable")
def test_damaged_chunk_of_hdf5_costs_its_frames_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=FRAMES, chunks=(2, N, N), fletcher32=True)
        write_positions(file)
    flip(path, FRAMES[10:12])
    with pytest.raises(ScanError, match="--bad-frames leave-out"):
        read_scan(path, config_for()).frames[:]
    scan = read_scan(path, config_for(bad_frames="leave-out"))
    assert scan.left_out == {10: "cannot be read", 11: "cannot be read"}
    np.testing.assert_array_equal(np.concatenate(list(iter_checked_chunks(scan))), np.delete(FRAMES, [10, 11], axis=0))
    np.testing.assert_array_equal(scan.positions_px, np.delete(PLACES, [10, 11], axis=0))


@pytest.mark.contract("files.read.unreadable")
@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_npz_gives_what_is_left_of_it(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.npz"
    save = np.savez_compressed if compressed else np.savez
    save(path, ycoords=PLACES[:, 0], xcoords=PLACES[:, 1], diffraction=FRAMES)
    if compressed:
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
        path.write_bytes(content)
        with pytest.raises(ScanError, match="--bad-frames leave-out"):
            list(read_scan(path, ReadConfig(guess_probe=True, ignore=("checksum",))).frames.chunks(4))
        scan = read_scan(path, ReadConfig(guess_probe=True, bad_frames="leave-out", ignore=("checksum",)))
        assert len(scan.left_out) >= 1
        assert list(scan.left_out) == list(range(scan.n_frames, M))
        np.testing.assert_array_equal(scan.frames[: M // 3], FRAMES[: M // 3])
        return
    flip(path, FRAMES[10])
    with pytest.raises(ScanError, match="--ignore checksum"):
        read_scan(path, ReadConfig(guess_probe=True, bad_frames="leave-out"))
    scan = read_scan(path, ReadConfig(guess_probe=True, ignore=("checksum",)))
    assert sum(len(chunk) for chunk in iter_checked_chunks(scan)) == M
    np.testing.assert_array_equal(scan.frames[11:], FRAMES[11:])


@pytest.mark.contract("files.read.unreadable")
@pytest.mark.parametrize("fill_value", [0, 7])
def test_frames_that_were_never_written_are_left_out(tmp_path: Path, fill_value: int) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (M, N, N), np.uint32, chunks=(1, N, N), fillvalue=fill_value)
        data[:10], data[13:] = FRAMES[:10], FRAMES[13:]
        write_positions(file)
    with pytest.raises(ScanError, match=r"frame 10 .* never written.*--bad-frames leave-out"):
        read_scan(path, config_for())
    scan = read_scan(path, config_for(bad_frames="leave-out"))
    assert list(scan.left_out) == [10, 11, 12]
    np.testing.assert_array_equal(scan.frames[:], np.delete(FRAMES, [10, 11, 12], axis=0))


@pytest.mark.contract("files.hdf5.aborted")
@pytest.mark.contract("files.read.unreadable")
@pytest.mark.parametrize("offset", [0, 3])
def test_unwritten_frames_of_virtual_sources_are_missed_only_where_they_are_wanted(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "a.h5"
    written = 5
    with h5py.File(tmp_path / "part.h5", "w") as part:
        data = part.create_dataset("data", (12 + offset, N, N), np.uint32, chunks=(1, N, N))
        data[offset : offset + written] = FRAMES[12 : 12 + written]
        part["first"] = FRAMES[:12]
    layout = h5py.VirtualLayout((M, N, N), np.uint32)
    layout[:12] = h5py.VirtualSource("part.h5", "first", (12, N, N))
    source = h5py.VirtualSource("part.h5", "data", (12 + offset, N, N))
    layout[12:] = source[offset : offset + 12] if offset else source
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)
        write_positions(file)
    with pytest.raises(ScanError, match="never written"):
        read_scan(path, config_for())
    with pytest.raises(ScanError, match="never written"):
        read_scan(path, config_for(frames=":18"))
    np.testing.assert_array_equal(read_scan(path, config_for(frames=":17")).frames[:], FRAMES[:17])
    scan = read_scan(path, config_for(bad_frames="leave-out"))
    assert list(scan.left_out) == list(range(17, M))
    np.testing.assert_array_equal(scan.frames[:], FRAMES[:17])


@pytest.mark.contract("files.hdf5.aborted")
@pytest.mark.contract("files.read.unreadable")
def test_missing_and_wrong_sources_cost_their_frames_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(tmp_path / "part.h5", "w") as part:
        part["first"], part["text"] = FRAMES[:12], np.array(b"none")
    layout = h5py.VirtualLayout((M, N, N), np.uint32)
    layout[:12] = h5py.VirtualSource("part.h5", "first", (12, N, N))
    layout[12:16] = h5py.VirtualSource("gone.h5", "data", (4, N, N))
    layout[16:20] = h5py.VirtualSource("part.h5", "text", (4, N, N))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)
        write_positions(file)
    with pytest.raises(ScanError, match=r"gone\.h5.*--bad-frames leave-out"):
        read_scan(path, config_for())
    # Frames 20 to 23 have no source at all, which HDF5 would give as zeros.
    with pytest.raises(ScanError, match="never written"):
        read_scan(path, config_for(drop_frames=tuple(range(12, 20))))
    np.testing.assert_array_equal(read_scan(path, config_for(frames=":12")).frames[:], FRAMES[:12])
    scan = read_scan(path, config_for(bad_frames="leave-out"))
    assert list(scan.left_out) == list(range(12, M))


def write_ptyd(path: Path, written: int) -> None:
    with h5py.File(path, "w") as file:
        for number, start in enumerate(range(0, M, 8)):
            if start >= written:
                file.create_group(f"chunks/{number}")
                continue
            data = file.create_dataset(f"chunks/{number}/data", (8, N, N), np.uint32, chunks=(1, N, N))
            data[: written - start] = FRAMES[start : min(start + 8, written)]
            file[f"chunks/{number}/positions"] = PLACES[start : start + 8] * 2e-8
        file["meta/energy"], file["meta/distance"], file["meta/psize"] = 8.0, 1.0, [2.4e-4, 2.4e-4]


@pytest.mark.contract("files.hdf5.aborted")
def test_aborted_ptyd_gives_the_frames_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.ptyd"
    write_ptyd(path, 12)
    with pytest.raises(ScanError, match=r"4 of 8 frames: frame 4"):
        read_scan(path, ReadConfig(guess_probe=True))
    for n in (8, 12):
        scan = read_scan(path, ReadConfig(guess_probe=True, frames=f":{n}"))
        np.testing.assert_array_equal(scan.frames[:], FRAMES[:n])
    with pytest.raises(ScanError, match="frame 4"):
        read_scan(path, ReadConfig(guess_probe=True, frames=":13"))
    with pytest.raises(ScanError, match="frame 4"):
        read_scan(path, ReadConfig(guess_probe=True, frames=":-1"))
