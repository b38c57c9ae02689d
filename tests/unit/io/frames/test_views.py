"""Stacks made of other stacks: every way to read a frame gives the same frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from torchptycho.core.config import SimulateConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import ArrayFrames
from torchptycho.data.simulation import simulate
from torchptycho.io.frames.selection import pick_frames
from torchptycho.io.frames.thinning import ThinnedFrames, are_whole_numbers, thin
from torchptycho.io.frames.views import JoinedFrames, PickedFrames, WindowFrames, get_lead_shape

STACK = np.arange(13 * 4 * 4, dtype=np.uint16).reshape(13, 4, 4)


class Streamed:
    """A stack whose chunks are counted, and whose frames are not to be read one by one."""

    key = "entry/data"
    shape = (13, 4, 4)
    dtype = STACK.dtype
    lead_shape = (13,)

    def __init__(self) -> None:
        self.frames_read = 0

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        for start in range(0, 13, frames_per_chunk):
            part = STACK[start : start + frames_per_chunk]
            self.frames_read += len(part)
            yield part

    def __getitem__(self, index: Any) -> np.ndarray:
        raise AssertionError("read out of order")


@pytest.mark.parametrize("size", [1, 3, 5, 13, 20])
@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 4, 6, 8], [1, 2, 7, 11], [5], [12], list(range(13))])
def test_picked_frames_are_the_rows_of_the_stack(rows: list[int], size: int) -> None:
    wanted = np.array(rows)
    direct = PickedFrames(ArrayFrames(STACK), wanted)
    chunks = list(direct.chunks(size))
    assert all(len(chunk) <= size for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks), STACK[wanted])
    np.testing.assert_array_equal(direct[:], STACK[wanted])
    np.testing.assert_array_equal(direct[-1], STACK[rows[-1]])
    inner = Streamed()
    streamed = PickedFrames(inner, wanted, streamed=True)
    np.testing.assert_array_equal(np.concatenate(list(streamed.chunks(size))), STACK[wanted])
    # Nothing is read beyond the chunk of the last row.
    assert inner.frames_read == min(13, (rows[-1] // size + 1) * size)
    assert (streamed.shape, streamed.dtype, streamed.key) == ((len(rows), 4, 4), STACK.dtype, "entry/data")


@pytest.mark.parametrize("size", [1, 3, 5, 13])
@pytest.mark.parametrize(("start", "stop"), [(0, 13), (0, 4), (4, 9), (5, 6), (10, 13)])
def test_a_window_is_a_part_of_the_stack(start: int, stop: int, size: int) -> None:
    window = WindowFrames(ArrayFrames(STACK), start, stop, (stop - start,))
    chunks = list(window.chunks(size))
    assert all(0 < len(chunk) <= size for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks), STACK[start:stop])
    np.testing.assert_array_equal(window[:], STACK[start:stop])
    np.testing.assert_array_equal(window[-1], STACK[stop - 1])
    inner = Streamed()
    streamed = WindowFrames(inner, start, stop, (stop - start,), streamed=True)
    chunks = list(streamed.chunks(size))
    assert all(len(chunk) for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks), STACK[start:stop])
    assert inner.frames_read == min(13, -(-stop // size) * size)
    assert (streamed.shape, streamed.dtype, streamed.key) == ((stop - start, 4, 4), STACK.dtype, "entry/data")
    assert get_lead_shape(streamed) == (stop - start,)


def test_joined_stacks_follow_each_other() -> None:
    parts = (ArrayFrames(STACK[:4]), ArrayFrames(STACK[4:5]), ArrayFrames(STACK[5:]))
    joined = JoinedFrames(parts)
    assert (joined.shape, joined.dtype) == (STACK.shape, STACK.dtype)
    for index in (slice(None), 4, -1, slice(3, 6), np.array([12, 0, 4, 4, 5]), np.array([[3, 4], [5, 1]])):
        np.testing.assert_array_equal(joined[index], STACK[index])
    np.testing.assert_array_equal(np.concatenate(list(joined.chunks(3))), STACK)
    assert [len(chunk) for chunk in joined.chunks(3)] == [3, 1, 1, 3, 3, 2]
    assert JoinedFrames((Streamed(), Streamed())).key == "entry/data"
    assert get_lead_shape(ArrayFrames(STACK)) == (13,)


def test_a_scan_keeps_what_belongs_to_the_picked_frames() -> None:
    scan = simulate(SimulateConfig(n_px=16, object_px=40, n_frames=13, probe_defocus_waves=1))
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(13, 16, 16)).astype(np.complex64)
    scan = dataclasses.replace(
        scan,
        scan_id=np.arange(13) // 5,
        truth_patches=patches,
        nominal_positions_px=scan.positions_px + rng.normal(size=(13, 2)),
    )
    rows = np.array([1, 4, 11])
    part = pick_frames(scan, rows)
    assert part.nominal_positions_px is not None
    assert scan.nominal_positions_px is not None
    np.testing.assert_array_equal(part.frames[:], scan.frames[rows])
    np.testing.assert_array_equal(part.positions_px, scan.positions_px[rows])
    np.testing.assert_array_equal(part.scan_id, [0, 0, 2])
    np.testing.assert_array_equal(part.truth_patches, patches[rows])
    np.testing.assert_array_equal(part.nominal_positions_px, scan.nominal_positions_px[rows])
    without = dataclasses.replace(scan, truth_patches=None, nominal_positions_px=None)
    assert pick_frames(without, rows).truth_patches is None
    assert pick_frames(without, rows).nominal_positions_px is None
    assert part.source == scan.source


@pytest.mark.contract("held-out.photons.stream")
@pytest.mark.parametrize("held_out", [False, True])
def test_thinned_frames_are_the_same_in_any_order(held_out: bool) -> None:
    mask = np.ones((4, 4), bool)
    mask[1, 2] = False
    thinned = ThinnedFrames(ArrayFrames(STACK), 0.6, 5, held_out, mask)
    kept = np.stack([thin(frame, 0.6, 5, row) for row, frame in enumerate(STACK[:, mask])])
    expected = np.zeros_like(STACK)
    expected[:, mask] = STACK[:, mask] - kept if held_out else kept
    assert expected.dtype == thinned.dtype == thinned[:].dtype
    for index in (slice(None), 4, -1, slice(3, 6), np.array([12, 0, 4, 4]), np.array([[3, 4], [5, 1]])):
        np.testing.assert_array_equal(thinned[index], expected[index])
    for size in (1, 4, 13):
        np.testing.assert_array_equal(np.concatenate(list(thinned.chunks(size))), expected)
    assert (thinned.shape, thinned.key) == (STACK.shape, "frames")
    assert ThinnedFrames(Streamed(), 0.6, 5, held_out, mask).key == "entry/data"


@pytest.mark.contract("held-out.photons")
@pytest.mark.parametrize("dtype", ["u2", "i4", "f4", "f8"])
def test_photons_are_kept_one_by_one(dtype: str) -> None:
    counts = np.full(4000, 9, dtype)
    kept = thin(counts, 0.25, 3, 7)
    assert kept.dtype == counts.dtype
    assert are_whole_numbers(kept)
    assert 0 <= kept.min() < kept.max() <= 9
    assert kept.mean() == pytest.approx(0.25 * 9, abs=5 * (9 * 0.25 * 0.75 / 4000) ** 0.5)
    np.testing.assert_array_equal(kept, thin(counts, 0.25, 3, 7))
    assert (kept != thin(counts, 0.25, 4, 7)).any()
    assert (kept != thin(counts, 0.25, 3, 8)).any()


@pytest.mark.parametrize(
    ("values", "whole"),
    [
        (np.array([0, 65535], np.uint16), True),
        (np.array([True, False]), True),
        (np.array([0, 5], np.int32), True),
        (np.array([0, -1], np.int32), False),
        (np.array([0.0, 3.0]), True),
        (np.array([-0.0, 2.0**61]), True),
        (np.array([0.5, 3.0]), False),
        (np.array([-2.0, 3.0]), False),
        (np.array([2.0**62, 3.0]), False),
        (np.array([np.nan, 3.0]), False),
        (np.array([np.inf, 3.0]), False),
    ],
)
def test_counts_are_whole_numbers_of_at_least_zero(values: np.ndarray, whole: bool) -> None:
    assert are_whole_numbers(values) is whole


@pytest.mark.contract("held-out.refused")
def test_a_frame_of_other_values_is_named_by_its_number() -> None:
    frames = STACK.astype(np.float32)
    frames[6, 0, 0] = 0.5
    thinned = ThinnedFrames(ArrayFrames(frames), 0.6, 5, False, np.ones((4, 4), bool), source="scan.npz")
    for read in (lambda: thinned[np.array([2, 6])], lambda: list(thinned.chunks(4))):
        with pytest.raises(ScanError, match=r"scan\.npz.*other values in frame 6"):
            read()
