"""Frames of an NPZ: every index gives the same frame, in one piece or in many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchptycho.io import read_scan
from torchptycho.io.frames import npz_frames
from torchptycho.io.frames.frame_stacks import find_backing_files
from torchptycho.io.frames.npz_frames import StoredFrames, ZippedFrames
from torchptycho.io.frames.selection import pick_frames
from torchptycho.io.frames.views import PickedFrames

FRAMES = np.random.default_rng(0).integers(0, 500, (13, 16, 16)).astype(np.uint16)


def save(path: Path, *, compressed: bool) -> Path:
    rng = np.random.default_rng(1)
    write = np.savez_compressed if compressed else np.savez
    write(
        path,
        diffraction=FRAMES,
        ycoords=rng.uniform(0, 20, 13),
        xcoords=rng.uniform(0, 20, 13),
        probeGuess=np.ones((16, 16), np.complex64),
    )
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("frames_at_once", [1, 4, 13])
def test_any_index_gives_the_frames_of_the_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool, frames_at_once: int
) -> None:
    monkeypatch.setattr(npz_frames, "_CHUNK_BYTES", frames_at_once * 16 * 16 * 2)
    scan = read_scan(save(tmp_path / "scan.npz", compressed=compressed))
    stack = scan.frames
    # Scattered frames of a compressed file are not read one by one.
    picked = pick_frames(scan, np.array([1, 5, 12])).frames
    assert isinstance(picked, PickedFrames)
    assert picked.streamed is compressed
    np.testing.assert_array_equal(np.concatenate(list(picked.chunks(2))), FRAMES[[1, 5, 12]])
    assert isinstance(stack, ZippedFrames if compressed else StoredFrames)
    assert (stack.shape, stack.dtype, stack.key) == (FRAMES.shape, FRAMES.dtype, "diffraction")
    for index in (
        slice(None), 0, 4, -1, slice(3, 9, 2), np.array([12, 0, 4, 4]), np.array([[3, 4], [11, 1]]), np.array([], int),
    ):  # fmt: skip
        np.testing.assert_array_equal(stack[index], FRAMES[index])
    for size in (1, 4, 13, 20):
        chunks = list(stack.chunks(size))
        np.testing.assert_array_equal(np.concatenate(chunks), FRAMES)
        assert [len(chunk) for chunk in chunks] == [min(size, 13 - start) for start in range(0, 13, size)]
    assert find_backing_files(stack) is not None
