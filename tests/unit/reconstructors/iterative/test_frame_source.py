"""Frames that stay where they are while a scan is refined: the same image, in bounded memory, each byte read once."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.config.read import MappingConfig, ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan, write_scan
from torchptycho.io.frames.access import classify_access, number_blocks
from torchptycho.io.frames.selection import pick_frames
from torchptycho.reconstructors.iterative import frame_source, refine
from torchptycho.reconstructors.iterative.frame_source import FrameOrder, plan_frames, read_ahead
from torchptycho.reconstructors.iterative.problem import Problem, open_problem

QUICK = RefineConfig(epochs=2, batch_size=8, patience=None, polish=0.5)
MAPPING = MappingConfig(frames="a", positions_y="p[0]", positions_x="p[1]", positions_unit="px")


@pytest.fixture(scope="module")
def scan() -> Scan:
    made = simulate(
        SimulateConfig(
            n_px=16, object_px=48, n_frames=40, photons_per_frame=1e5, simulation_seed=3, probe_defocus_waves=0.5
        )
    )
    mask = made.mask.copy()
    mask[3, 4] = False
    frames = made.frames[:].copy()
    frames[:, 3, 4] = 12_345  # must not be seen, wherever the frames come from
    return dataclasses.replace(made, frames=ArrayFrames(frames), mask=mask)


def stored_in(form: str, scan: Scan, folder: Path) -> Scan:
    """The same scan with its frames in another place."""
    frames = scan.frames[:]
    if form == "array":
        return scan
    if form == "npy":
        np.save(folder / "frames.npy", frames)
        return dataclasses.replace(scan, frames=ArrayFrames(np.load(folder / "frames.npy", mmap_mode="r")))
    if form.startswith("npz"):
        path = folder / "scan.npz"
        (np.savez if form == "npz" else np.savez_compressed)(
            path,
            diffraction=frames,
            ycoords=scan.positions_px[:, 0],
            xcoords=scan.positions_px[:, 1],
            probeGuess=scan.probe[0],
        )
        return dataclasses.replace(scan, frames=read_scan(path).frames)
    chunks = {"hdf5": None, "hdf5 by frame": (1, 16, 16), "hdf5 pieces": (6, 16, 16)}[form]
    with h5py.File(folder / "scan.h5", "w") as file:
        file.create_dataset("a", data=frames, chunks=chunks, compression=None if chunks is None else "lzf")
        file["p"] = scan.positions_px
    config = ReadConfig(mapping=MAPPING, guess_probe=True)
    return dataclasses.replace(scan, frames=read_scan(folder / "scan.h5", config).frames)


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No frames are few enough to be kept in memory."""
    monkeypatch.setattr(frame_source, "MAX_MEMORY_BYTES", 0)


@pytest.mark.contract("refine.frames.same")
@pytest.mark.parametrize(
    ("form", "place"),
    [
        ("array", "array"),
        ("npy", "file"),
        ("npz", "file"),
        ("npz compressed", "copy"),
        ("hdf5", "file"),
        ("hdf5 by frame", "file"),
    ],
)
@pytest.mark.parametrize("method", ["rpie", "gradient"])
def test_frames_give_the_same_image_from_a_file_as_from_memory(
    form: str, place: str, method: Any, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(QUICK, method=method)
    kept = refine(scan, config=config, device="cpu")
    monkeypatch.setattr(frame_source, "MAX_MEMORY_BYTES", 0)
    elsewhere = stored_in(form, scan, tmp_path)
    assert plan_frames(elsewhere, torch.device("cpu")).place == place
    image = refine(elsewhere, config=config, device="cpu", scratch=tmp_path)
    assert np.array_equal(image.object, kept.object)
    assert image.history["misfit"] == kept.history["misfit"]
    assert not list(tmp_path.glob(".torchptycho-*"))


@pytest.mark.contract("refine.frames.same")
def test_few_frames_are_kept_as_floats_more_in_their_dtype_and_yet_more_not_at_all(
    scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_bytes = scan.n_frames * 16 * 16 * 2
    scan, cpu = stored_in("npz", scan, tmp_path), torch.device("cpu")
    assert scan.frames.dtype == np.uint16
    for bound, place, dtype in (
        (2 * n_bytes, "memory", "float32"),
        (2 * n_bytes - 1, "memory", "uint16"),
        (n_bytes - 1, "file", "uint16"),
    ):
        monkeypatch.setattr(frame_source, "MAX_MEMORY_BYTES", bound)
        plan = plan_frames(scan, cpu)
        assert (plan.place, str(plan.dtype)) == (place, dtype)
        assert plan.n_bytes == (0 if place == "file" else n_bytes * (2 if dtype == "float32" else 1))
        assert plan_frames(scan, cpu, n_held=scan.n_frames // 2).place == "memory"


class TestPieces:
    @pytest.mark.contract("refine.frames.pieces")
    def test_the_image_is_found_in_their_order_too(self, scan: Scan, tmp_path: Path, streamed: None) -> None:
        pieces = stored_in("hdf5 pieces", scan, tmp_path)
        assert plan_frames(pieces, torch.device("cpu")).place == "blocks"
        config = dataclasses.replace(QUICK, epochs=10)
        found, plain = refine(pieces, config=config, device="cpu"), refine(scan, config=config, device="cpu")
        assert found.history["misfit"][-1] < 1.3 * plain.history["misfit"][-1]

    @pytest.mark.contract("refine.frames.pieces")
    def test_every_frame_comes_once_and_near_the_others_of_its_piece(
        self, scan: Scan, tmp_path: Path, streamed: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(frame_source, "_WINDOW_BYTES", 10 * 16 * 16 * 2)
        pieces = stored_in("hdf5 pieces", scan, tmp_path)
        order = FrameOrder(pieces.frames)
        first, again, other = (order.draw(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        for drawn in (first, other):
            assert torch.equal(drawn.sort().values, torch.arange(40))
            at = drawn.argsort()
            spread = [int(at[start : start + 6].max() - at[start : start + 6].min()) for start in range(0, 40, 6)]
            assert max(spread) < 10 + 6  # the window, and the length of a piece
            assert max(spread) > 6  # they are mixed with those of other pieces
        assert FrameOrder(scan.frames).blocks is None

    @pytest.mark.contract("refine.frames.pieces")
    @pytest.mark.parametrize("picked", [False, True])
    def test_batches_hold_their_frames(self, picked: bool, scan: Scan, tmp_path: Path, streamed: None) -> None:
        pieces = stored_in("hdf5 pieces", scan, tmp_path)
        if picked:
            rows = np.delete(np.arange(40), [0, 7, 20])
            pieces, scan = pick_frames(pieces, rows), pick_frames(scan, rows)
        with open_problem(pieces) as problem, open_problem(scan) as plain:
            batches = torch.tensor_split(problem.draw_order(torch.Generator().manual_seed(0)), 5)
            for index, counts in problem.iterate_counts(batches):
                assert torch.equal(counts, plain.load_counts(index))
            assert torch.equal(problem.load_counts(batches[0]), plain.load_counts(batches[0]))

    @pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="bytes read are counted by Linux's /proc")
    @pytest.mark.contract("refine.frames.pieces")
    @pytest.mark.parametrize("per_chunk", [1, 16])
    def test_a_pass_reads_the_file_once(
        self, per_chunk: int, tmp_path: Path, streamed: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(frame_source, "_WINDOW_BYTES", 64 * 32 * 32 * 2)
        rng, path, m = np.random.default_rng(0), tmp_path / "scan.h5", 1000
        with h5py.File(path, "w") as file:
            values = rng.integers(0, 60_000, (m, 32, 32)).astype(np.uint16)  # they do not compress
            file.create_dataset("a", data=values, chunks=(per_chunk, 32, 32), compression="gzip", compression_opts=1)
            file["p"] = rng.uniform(0, 60, (m, 2))
        scan = read_scan(path, ReadConfig(mapping=MAPPING, guess_probe=True))
        with open_problem(scan) as problem:
            order = problem.draw_order(torch.Generator().manual_seed(0))
            in_order, at_random = (
                count_bytes_read(problem, torch.split(rows, 24)) / path.stat().st_size
                for rows in (order, torch.randperm(m, generator=torch.Generator().manual_seed(0))[:200])
            )
        assert 0.9 < in_order <= 1.2
        # A fifth of the frames, and yet nearly all pieces of 16.
        assert at_random > (0.9 if per_chunk > 1 else 0.19)


def count_bytes_read(problem: Problem, batches: tuple[torch.Tensor, ...]) -> int:
    def read_count() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read_count()
    for _ in problem.iterate_counts(batches):
        pass
    return read_count() - before


class TestAccess:
    @pytest.mark.contract("refine.frames.access")
    @pytest.mark.parametrize(
        ("shape", "chunks", "axes", "expected"),
        [
            ((12, 8, 8), None, "myx", "direct"),
            ((12, 8, 8), (1, 8, 8), "myx", "direct"),
            ((12, 8, 8), (5, 4, 8), "myx", "blocks"),
            ((8, 8, 12), None, "yxm", "slow"),
            ((3, 4, 8, 8), (1, 2, 8, 8), "myx", "blocks"),
            ((3, 4, 8, 8), (3, 1, 8, 8), "myx", "slow"),
        ],
    )
    def test_hdf5_is_read_as_it_is_stored(
        self, shape: tuple[int, ...], chunks: tuple[int, ...] | None, axes: str, expected: str, tmp_path: Path
    ) -> None:
        rng = np.random.default_rng(0)
        with h5py.File(tmp_path / "scan.h5", "w") as file:
            file.create_dataset("a", data=rng.poisson(9, shape).astype(np.uint16), chunks=chunks)
            file["p"] = rng.uniform(0, 20, (12, 2))
        mapping = dataclasses.replace(MAPPING, frames_axes=axes) if axes != "myx" else MAPPING
        frames = read_scan(tmp_path / "scan.h5", ReadConfig(mapping=mapping, guess_probe=True)).frames
        assert classify_access(frames) == expected
        numbers = number_blocks(frames).tolist()
        if shape == (3, 4, 8, 8) and expected == "blocks":
            assert numbers == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        if chunks == (5, 4, 8):
            assert numbers == [0] * 5 + [1] * 5 + [2] * 2

    @pytest.mark.contract("refine.frames.access")
    def test_frames_that_have_to_be_computed_are_copied(self, scan: Scan, tmp_path: Path, streamed: None) -> None:
        write_scan(scan, tmp_path / "scan.npz")
        cropped = read_scan(tmp_path / "scan.npz", ReadConfig(crop_px=8))
        assert plan_frames(cropped, torch.device("cpu")).place == "copy"
        interleaved = np.lib.format.open_memmap(tmp_path / "frames.npy", "w+", np.uint16, (16, 16, 40))
        assert classify_access(ArrayFrames(np.moveaxis(interleaved, 2, 0))) == "slow"


@pytest.mark.contract("refine.frames.changed")
def test_a_file_that_changes_meanwhile_is_refused(scan: Scan, tmp_path: Path, streamed: None) -> None:
    stored_in("npz", scan, tmp_path)
    with open_problem(read_scan(tmp_path / "scan.npz")) as problem:
        batches = torch.arange(40).split(10)
        list(problem.iterate_counts(batches))
        os.utime(tmp_path / "scan.npz")
        with pytest.raises(ScanError, match="expected a file that stays as it was"):
            list(problem.iterate_counts(batches))


@pytest.mark.contract("refine.frames.memory")
def test_at_most_three_batches_wait() -> None:
    read: list[int] = []
    reading = read_ahead(lambda item: read.append(item) or item, range(20))
    seen = [next(reading) for _ in range(5)]
    reading.close()
    assert seen == list(range(5))
    assert len(read) <= 5 + 3


MEASURE = """
import re, sys, threading, time
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from torchptycho.core.config import RefineConfig
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.reconstructors.iterative import frame_source, refine
frame_source.MAX_MEMORY_BYTES, frame_source._READ_BYTES = 0, 1 << 18
def now():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
def scan_of(count):
    path = Path(sys.argv[1]) / f"{count}.npy"
    many = np.lib.format.open_memmap(path, "w+", np.uint16, (count, 64, 64))
    few = np.random.default_rng(0).poisson(100, (64, 64, 64)).astype(np.uint16)
    for start in range(0, count, 64):
        many[start : start + 64] = few[: count - start]
    places = np.random.default_rng(1).uniform(0, 64, (count, 2))
    places[:2] = [[0, 0], [64, 64]]
    return Scan(frames=ArrayFrames(np.load(path, mmap_mode="r")), domain="counts", positions_px=places,
                probe=np.ones((1, 64, 64), np.complex64), mask=np.ones((64, 64), bool),
                scan_id=np.zeros(count, np.int64))
config = RefineConfig(epochs=1, batch_size=32, patience=None)
peak, done = [0], []
def watch():
    while not done:
        peak[0] = max(peak[0], now()); time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
for count in (64, 256, 4096):
    peak[0] = 0
    refine(scan_of(count), config=config, device="cpu", judge=False)
    print(peak[0])
done.append(1); thread.join()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux's /proc")
@pytest.mark.contract("refine.frames.memory")
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    # What is freed goes back to the system at once, so that it does not count.
    glibc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    path = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | glibc | path).stdout
    # The first one pays for what is loaded once.
    _, few, many = (int(line) for line in answer.split())
    assert (many - few) / (4096 - 256) < 0.2 * 64 * 64 * 2
