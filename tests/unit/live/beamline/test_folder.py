"""Files of one frame each: their order, those that are incomplete or missing, and those that are no frames."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import tifffile

from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.live.beamline.detector import DetectorFrame, DetectorHeader
from torchptycho.live.beamline.folder import FrameFolder, is_folder_pattern

IMAGE = np.arange(48, dtype=np.uint16).reshape(6, 8)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that the test sets forward; files are as old as they are."""
    clock = SimpleNamespace(now=1000.0)
    told = SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda s: None, time=time.time)
    monkeypatch.setattr("torchptycho.live.beamline.folder.time", told)
    return clock


def save(path: Path, image: np.ndarray = IMAGE) -> None:
    if path.suffix == ".tif":
        tifffile.imwrite(path, image)
    elif path.suffix == ".npy":
        np.save(path, image)
    else:
        with h5py.File(path, "w") as file:
            file["entry/data"] = image[None]


def read_all(source: FrameFolder, clock: SimpleNamespace, seconds: float) -> list[DetectorFrame]:
    found = []
    for _ in range(round(seconds / 0.2) + 1):
        found += [event for event in source.read(100) if isinstance(event, DetectorFrame)]
        clock.now += 0.2
    return found


@pytest.mark.contract("live.folder.files")
@pytest.mark.parametrize(("ending", "key"), [("tif", ""), ("npy", ""), ("h5", ":/entry/data")])
def test_frames_come_in_the_order_of_their_numbers(
    tmp_path: Path, clock: SimpleNamespace, ending: str, key: str
) -> None:
    source = FrameFolder(f"{tmp_path}/a_*.{ending}{key}")
    assert read_all(source, clock, 0) == []
    assert "there is no file" in (source.explain_wait() or "")
    for number in (12, 9, 10, 11):
        save(tmp_path / f"a_{number}.{ending}", IMAGE + number)
    save(tmp_path / f"b_13.{ending}")
    source = FrameFolder(f"{tmp_path}/a_*.{ending}{key}")
    assert isinstance(source.read(1)[0], DetectorHeader)
    found = read_all(source, clock, 3)
    assert [frame.number for frame in found] == [0, 1, 2, 3]
    for frame in found:
        np.testing.assert_array_equal(frame.image, IMAGE + 9 + frame.number)


@pytest.mark.contract("live.folder.files")
def test_a_file_that_grows_or_is_incomplete_is_waited_for(tmp_path: Path, clock: SimpleNamespace) -> None:
    path = tmp_path / "a_0.npy"
    save(path)
    whole = path.read_bytes()
    source = FrameFolder(f"{tmp_path}/a_*.npy")
    for size in range(0, len(whole), 40):
        path.write_bytes(whole[:size])
        assert read_all(source, clock, 0.2) == []
    # Long unchanged and still incomplete: it is tried again.
    assert read_all(source, clock, 2) == []
    assert "cannot be read so far" in (source.explain_wait() or "")
    path.write_bytes(whole)
    (frame,) = read_all(source, clock, 1)
    np.testing.assert_array_equal(frame.image, IMAGE)


@pytest.mark.contract("live.folder.missing")
def test_a_missing_number_is_waited_for_and_then_passed_over(tmp_path: Path, clock: SimpleNamespace) -> None:
    for number in (0, 1, 3):
        save(tmp_path / f"a_{number}.npy")
    source = FrameFolder(f"{tmp_path}/a_*.npy")
    assert [frame.number for frame in read_all(source, clock, 6)] == [0, 1]
    assert source.explain_wait() == "file 2 is missing while 3 is there"
    assert [frame.number for frame in read_all(source, clock, 8)] == [3]
    # Too late: its place has been given up.
    save(tmp_path / "a_2.npy")
    save(tmp_path / "a_4.npy")
    assert [frame.number for frame in read_all(source, clock, 2)] == [4]


@pytest.mark.contract("live.folder.missing")
def test_the_first_number_is_settled_after_a_moment_and_a_smaller_one_is_an_error_then(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    save(tmp_path / "a_7.npy")
    source = FrameFolder(f"{tmp_path}/a_*.npy")
    assert read_all(source, clock, 0.5) == []
    save(tmp_path / "a_6.npy")
    assert [frame.number for frame in read_all(source, clock, 3)] == [0, 1]
    save(tmp_path / "a_5.npy")
    with pytest.raises(ScanError, match="expected no number below 6, which is frame 0; found 5, later than that"):
        read_all(source, clock, 1)


@pytest.mark.contract("live.folder.refused")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: (folder / "a_x.npy").write_bytes(b"x"), "expected a number in its name"),
        (lambda folder: [save(folder / name) for name in ("a_1.npy", "a_01.npy")], "one file for each number"),
        (lambda folder: (folder / "a_0.npy").write_bytes(b"no image"), "expected an image"),
        (lambda folder: save(folder / "a_0.npy", np.ones((2, 3, 4))), r"one image of integers.*\(2, 3, 4\)"),
        (lambda folder: save(folder / "a_0.npy", np.ones((3, 4), complex)), "found complex128"),
    ],
)
def test_files_that_are_no_frames_are_refused(
    tmp_path: Path, clock: SimpleNamespace, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path)
    with pytest.raises(ScanError, match=words):
        read_all(FrameFolder(f"{tmp_path}/a_*.npy"), clock, 12)


@pytest.mark.contract("live.folder.refused")
@pytest.mark.parametrize("pattern", ["raw/*.txt", "raw*/a_*.tif", "raw/*.h5", "raw/*.tif:/entry/data"])
def test_patterns_that_name_no_frames_are_refused(pattern: str) -> None:
    assert is_folder_pattern(pattern)
    with pytest.raises(ConfigError, match=r"expected (files of one frame each|the dataset of HDF5 files)"):
        FrameFolder(pattern)
