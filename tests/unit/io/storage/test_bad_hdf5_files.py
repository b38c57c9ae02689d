"""Bad HDF5 files: each gives one error of ours, and none takes memory that its file does not warrant."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from scan_files import FRAMES, M, N, fill_cxi, make_cases, write_files

from torchptycho.analysis.inspection import inspect_scan
from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.io import iter_checked_chunks, read_scan

CXI = next(case for case in make_cases() if case.name == "cxi")
GUESS = ReadConfig(guess_probe=True)
DATA = "entry_1/instrument_1/detector_1/data"


def refusal(path: Path, config: ReadConfig = GUESS) -> str:
    with pytest.raises(ScanError) as caught:
        for _ in iter_checked_chunks(read_scan(path, config)):
            pass
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def with_frames(path: Path, make: Any) -> Path:
    with h5py.File(path, "w") as file:
        fill_cxi(file, make)
    return path


@pytest.mark.contract("files.hdf5.truncated")
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_named_as_such(tmp_path: Path, kept: float) -> None:
    content = CXI.files["scan.cxi"]
    (tmp_path / "scan.cxi").write_bytes(content[: int(kept * len(content))])
    assert "truncated" in refusal(tmp_path / "scan.cxi")


@pytest.mark.contract("files.hdf5.bomb")
@pytest.mark.parametrize("place", [DATA, "entry_1/sample_1/geometry_1/translation"])
@pytest.mark.parametrize("shape", [(10**9, 1024, 1024), (10**6, 8, 8), (6, 10**6, 10**5)])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_claim_of_terabytes_is_refused_before_memory_is_taken(
    tmp_path: Path, place: str, shape: tuple[int, ...], chunked: bool
) -> None:
    (tmp_path / "scan.cxi").write_bytes(CXI.files["scan.cxi"])
    with h5py.File(tmp_path / "scan.cxi", "r+") as file:
        del file[place]
        file.create_dataset(place, shape, "f4", chunks=True if chunked else None)
        if chunked:
            file[place][0, 0, 0] = 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "never written" in refusal(tmp_path / "scan.cxi")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@pytest.mark.contract("files.hdf5.bomb")
@pytest.mark.parametrize("filters", [hdf5plugin.Bitshuffle(cname="lz4"), hdf5plugin.LZ4(), hdf5plugin.Blosc()])
def test_a_piece_that_claims_to_unpack_to_gigabytes_is_refused(tmp_path: Path, filters: Any) -> None:
    def make(detector: Any) -> None:
        detector.create_dataset("data", data=FRAMES, chunks=(2, N, N), **filters)

    path = with_frames(tmp_path / "scan.cxi", make)
    with h5py.File(path) as file:
        piece = file[DATA].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    # The size is big-endian at 0 (bitshuffle, LZ4), or little-endian at 4 (Blosc).
    content[piece.byte_offset + 4] = 0x4E
    path.write_bytes(bytes(content))
    assert "a piece that claims to unpack to" in refusal(path)


@pytest.mark.contract("files.hdf5.unwritten")
def test_frames_that_were_never_written_are_not_taken_for_dark_ones(tmp_path: Path) -> None:
    def half(detector: Any) -> None:
        detector.create_dataset("data", (M, N, N), "u2", chunks=(1, N, N))
        detector["data"][:3] = FRAMES[:3]

    assert "3 of 6 frames: frame 3 (counted from 0) was never written" in refusal(with_frames(tmp_path / "a.cxi", half))

    def virtual(detector: Any) -> None:
        layout = h5py.VirtualLayout((M, N, N), "u2")
        layout[:4] = h5py.VirtualSource("part.h5", "data", (4, N, N))
        detector.create_virtual_dataset("data", layout)

    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["data"] = FRAMES[:4]
    assert "4 of 6 frames: frame 4" in refusal(with_frames(tmp_path / "b.cxi", virtual))


@pytest.mark.contract("files.hdf5.raw")
def test_values_in_a_raw_file_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(FRAMES.tobytes())

    def raw(detector: Any) -> None:
        detector.create_dataset(
            "data", FRAMES.shape, FRAMES.dtype, external=[(str(tmp_path / "secret"), 0, FRAMES.nbytes)]
        )

    assert "values in the raw file" in refusal(with_frames(tmp_path / "scan.cxi", raw))


@pytest.mark.contract("files.hdf5.values")
def test_nan_negative_dark_saturated_and_repeated_values_have_an_outcome(tmp_path: Path) -> None:
    frames = FRAMES.astype(np.float32)
    frames[2, 3, 4] = np.nan
    path = with_frames(tmp_path / "nan.cxi", lambda detector: detector.create_dataset("data", data=frames))
    assert "NaN or infinity in 1 frame: 2" in refusal(path)
    dark = FRAMES.copy()
    dark[4], dark[1:, 2, 5] = 0, 65_535
    path = with_frames(tmp_path / "dark.cxi", lambda detector: detector.create_dataset("data", data=dark))
    with h5py.File(path, "r+") as file:
        file["entry_1/sample_1/geometry_1/translation"][1] = file["entry_1/sample_1/geometry_1/translation"][0]
    summary = inspect_scan(read_scan(path))
    assert summary.n_saturated_pixels == 1
    assert summary.n_duplicate_positions == 1
    assert summary.dim_frames == [0]
    again = inspect_scan(read_scan(path, ReadConfig(find_bad_pixels=True)))
    assert (again.n_saturated_pixels, again.dim_frames) == (0, [4])
    zero = with_frames(tmp_path / "zero.cxi", lambda detector: detector.create_dataset("data", data=0 * FRAMES))
    assert "all zero" in refusal(zero)


@pytest.mark.contract("files.hdf5.changed")
def test_a_file_that_changes_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    with write_files(CXI.files, tmp_path):
        scan = read_scan(tmp_path / "scan.cxi")
        with h5py.File(tmp_path / "scan.cxi", "r+") as file:
            del file[DATA]
            file[DATA] = FRAMES[:4]
        with pytest.raises(ScanError, match="it changed since it was opened"):
            scan.frames[0]
