"""What becomes of a store when its preparation is killed, has no room, is not alone, or its source changes."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import prepare_processes
import pytest
from prepare_processes import (
    CONTEXT,
    make_config,
    prepare_and_pause,
    prepare_concurrently,
    prepare_file,
    prepare_until_killed,
    prepare_with_file_size_limit,
    start_process,
)
from scan_files import make_cases

from torchptycho.core.config import GroupConfig, PrepareConfig, ReadConfig, RunConfig, SimulateConfig
from torchptycho.core.errors import ScanError, StoreError
from torchptycho.core.scan import ArrayFrames
from torchptycho.data import disk
from torchptycho.data import prepare as store_preparing
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.io import read_scan, write_scan
from torchptycho.io.frames.hdf5_frames import Hdf5Frames
from torchptycho.io.frames.npz_frames import StoredFrames, ZippedFrames

M, N, KILLS = 30, 32, 20
SCAN = simulate(SimulateConfig(n_px=N, object_px=72, n_frames=M, photons_per_frame=1e4))
FRAMES = SCAN.frames[:]

needs_fork = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(),
    reason="processes are forked from a server",
)


@pytest.fixture
def scan_file(tmp_path: Path) -> Path:
    """A stored NPZ in a folder that holds nothing else."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_scan(SCAN, folder / "scan.npz", compressed=False)
    return folder / "scan.npz"


def content(store: Path) -> dict[str, bytes]:
    """Every file of a store, without the names that are drawn for its folders."""
    drawn = re.compile(rb"\b[0-9a-f]{12}\b|(?<=\"manifest_sha256\": \")\w+")
    found = {}
    for file in store.rglob("*"):
        if file.is_file():
            name = drawn.sub(b"NAME", str(file.relative_to(store)).encode()).decode()
            found[name] = drawn.sub(b"NAME", file.read_bytes()) if file.suffix == ".json" else file.read_bytes()
    return found


def names_beside(path: Path) -> list[str]:
    return sorted(item.name for item in path.parent.iterdir())


@needs_fork
@pytest.mark.contract("data.store.killed")
def test_killed_twenty_times_it_is_there_as_a_whole_or_not_at_all(scan_file: Path) -> None:
    store = scan_file.with_name("store")

    def run(line: int | None) -> int | None:
        hear, tell = CONTEXT.Pipe(duplex=False)
        process = start_process(prepare_until_killed, line, scan_file, store, tell)
        process.join()
        assert process.exitcode in (0, -9)
        return int(hear.recv()) if process.exitcode == 0 else None

    n_lines = run(None)
    assert n_lines is not None
    expected = content(store)
    shutil.rmtree(store)
    draw = random.Random(6)
    whole = drafts = 0
    for kill in range(KILLS):
        assert run(1 + int((kill + draw.random()) / KILLS * n_lines)) is None
        left = [name for name in names_beside(scan_file) if name.startswith(".store.") and name != ".store.lock"]
        # What the one before had left is gone.
        assert len(left) <= 1
        drafts += len(left)
        if store.exists():
            np.testing.assert_array_equal(Store.open(store).frames.parts[0].numpy(), FRAMES)
            shutil.rmtree(store)
            whole += 1
    # The moments were such that something could have gone wrong.
    assert drafts >= KILLS // 4
    assert whole < KILLS
    prepare_file(scan_file, store, make_config())
    assert content(store) == expected
    assert names_beside(scan_file) == ["scan.npz", "store"]


@pytest.mark.contract("data.store.killed")
def test_what_a_killed_one_left_is_removed_when_a_whole_store_is_reopened(scan_file: Path) -> None:
    store = scan_file.with_name("st[o]re")
    prepare_file(scan_file, store, make_config())
    (store.with_name(".st[o]re.lock")).touch()
    (store.with_name(".st[o]re.0123abcd") / "tensors").mkdir(parents=True)
    (store.with_name(".store.0123abcd")).mkdir()
    prepare_file(scan_file, store, make_config())
    assert names_beside(scan_file) == [".store.0123abcd", "scan.npz", "st[o]re"]


@pytest.mark.contract("data.store.durable")
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are read from Linux's /proc")
def test_every_file_is_on_the_disk_before_the_store_has_its_name(
    scan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    at_rename: set[str] = set()
    sync, replace = os.fsync, os.replace

    def watched_sync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        if Path(target).name == "store":
            at_rename.update(str(Path(name).relative_to(source)) for name in synced)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "replace", watched_replace)
    store = scan_file.with_name("store")
    prepare_file(scan_file, store, make_config())
    assert at_rename >= {str(item.relative_to(store)) for item in store.rglob("*")} | {"."}
    assert synced[-1] == str(store.parent)


@needs_fork
@pytest.mark.contract("data.store.concurrent")
@pytest.mark.parametrize("end", ["same", "other options", "killed"])
def test_of_two_processes_one_writes_and_the_other_waits_and_uses_it(scan_file: Path, end: str) -> None:
    store = scan_file.with_name("store")
    began, go_on, waits = CONTEXT.Event(), CONTEXT.Event(), CONTEXT.Event()
    (hear_first, tell_first), (hear_second, tell_second) = CONTEXT.Pipe(duplex=False), CONTEXT.Pipe(duplex=False)
    first = start_process(prepare_and_pause, scan_file, store, 0.2, began, go_on, tell_first)
    assert began.wait(60)
    other = start_process(
        prepare_concurrently, scan_file, store, 0.3 if end == "other options" else 0.2, waits, tell_second
    )
    assert waits.wait(60)
    if end == "killed":
        first.kill()
    else:
        go_on.set()
        assert hear_first.recv() is None
    told = hear_second.recv()
    if end == "other options":
        assert told is not None
        assert "prepare.val_fraction (0.2 then, 0.3 now)" in told
    else:
        assert told is None
    for process in (first, other):
        process.join()
    np.testing.assert_array_equal(Store.open(store).frames.parts[0].numpy(), FRAMES)
    assert names_beside(scan_file) == ["scan.npz", "store"]


@needs_fork
@pytest.mark.contract("data.store.full-disk")
@pytest.mark.parametrize(("largest_file", "what"), [(20_000, "frames"), (35_000, "tables")])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(scan_file: Path, largest_file: int, what: str) -> None:
    small = dataclasses.replace(SCAN, frames=ArrayFrames(FRAMES.clip(0, 255).astype(np.uint8)))
    assert SCAN.truth is not None
    assert small.frames[:].nbytes < 35_000 < SCAN.truth.nbytes
    write_scan(small, scan_file)
    hear, tell = CONTEXT.Pipe(duplex=False)
    process = start_process(prepare_with_file_size_limit, largest_file, scan_file, scan_file.with_name("store"), tell)
    told = hear.recv()
    process.join()
    assert process.exitcode == 0
    assert told is not None
    assert "\n" not in told
    assert told.startswith(f"StoreError: {scan_file.with_name('store')}: expected room for "), told
    assert "bytes; found none left (File too large)" in told
    assert names_beside(scan_file) == ["scan.npz"]


@pytest.mark.contract("data.store.full-disk")
def test_too_little_space_is_known_before_anything_is_written(scan_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scan_file.with_name("store")
    prepare_file(scan_file, path, make_config())
    size = sum(file.stat().st_size for file in path.rglob("*.memmap") if file.is_file())
    needed = disk.estimate_store_bytes([read_scan(scan_file)], make_config())
    assert size <= needed < size + (2 << 20)
    shutil.rmtree(path)
    usage = type(shutil.disk_usage(path.parent))
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    monkeypatch.setattr(store_preparing, "temporary_store", None)
    with pytest.raises(StoreError, match=rf"store: expected {needed} bytes of free space; found 1000\. Free some"):
        prepare_file(scan_file, path, make_config())
    assert names_beside(scan_file) == ["scan.npz"]


@pytest.mark.contract("data.store.unwritable")
@pytest.mark.skipif(not Path("/proc/self/fdinfo").is_dir(), reason="a folder where nobody may write: Linux's /proc")
def test_a_folder_that_cannot_be_written_to_is_one_line(scan_file: Path) -> None:
    with pytest.raises(StoreError, match=r"^/proc/self/fdinfo/store: expected a place that can be written to; found: "):
        prepare_file(scan_file, Path("/proc/self/fdinfo/store"), make_config())


@pytest.mark.contract("data.store.unwritable")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line_and_a_store_in_it_is_used(scan_file: Path) -> None:
    prepare_file(scan_file, scan_file.with_name("store"), make_config())
    scan_file.parent.chmod(0o555)
    try:
        prepare_file(scan_file, scan_file.with_name("store"), make_config())
        with pytest.raises(StoreError, match=r"expected a place that can be written to; found: Permission denied"):
            prepare_file(scan_file, scan_file.with_name("other"), make_config())
    finally:
        scan_file.parent.chmod(0o755)


@pytest.mark.contract("data.store.unwritable")
def test_a_store_is_used_where_nothing_can_be_written(scan_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scan_file.with_name("store")
    prepare_file(scan_file, path, make_config())
    path.with_name(".store.lock").touch()

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    for name in ("mkdir", "unlink", "rename", "replace", "rmdir"):
        monkeypatch.setattr(os, name, refused)
    prepare_file(scan_file, path, make_config())


KINDS = {"stored": StoredFrames, "compressed": ZippedFrames, "HDF5": Hdf5Frames}


def written_as(kind: str, folder: Path) -> tuple[Path, ReadConfig]:
    if kind != "HDF5":
        write_scan(SCAN, folder / "scan.npz", compressed=kind == "compressed")
        return folder / "scan.npz", ReadConfig()
    case = next(case for case in make_cases() if case.name == "cxi")
    (folder / case.main).write_bytes(case.files[case.main])
    return folder / case.main, case.config


@pytest.mark.contract("data.source.changes")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["touched", "cut short", "appended to", "removed"])
def test_a_source_that_changes_while_it_is_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, change: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path, config = written_as(kind, folder)
    scan = read_scan(path, config)
    whole = KINDS[kind].chunks

    def chunks(self: Any, _: int) -> Iterator[np.ndarray]:
        for number, chunk in enumerate(whole(self, 2)):
            if number == 1:
                if change == "touched":
                    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
                elif change == "cut short":
                    os.truncate(path, path.stat().st_size // 4)
                elif change == "appended to":
                    with path.open("ab") as file:
                        file.write(b"more")
                else:
                    path.unlink()
            yield chunk

    monkeypatch.setattr(KINDS[kind], "chunks", chunks)
    # The frames of the HDF5 case are of a size that is no store's; they stream all the same.

    def read() -> None:
        if kind != "HDF5":
            prepare([scan], make_config(), folder / "store")
        for _ in prepare_processes.writing_module.iter_checked_chunks(scan):
            pass

    with pytest.raises(ScanError, match=path.name) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert "expected a file that stays as it was when it was opened; found a change (" in str(caught.value)
    assert names_beside(path) == ([] if change == "removed" else [path.name])


@pytest.mark.contract("data.source.changes")
@pytest.mark.parametrize("in_order", [True, False])
def test_a_mapped_file_that_is_cut_short_is_an_error_and_not_the_end_of_the_process(
    tmp_path: Path, in_order: bool
) -> None:
    stack = FRAMES if in_order else np.ascontiguousarray(FRAMES.transpose(1, 2, 0))
    np.savez(
        tmp_path / "scan.npz",
        diffraction=stack,
        xcoords=SCAN.positions_px[:, 1],
        ycoords=SCAN.positions_px[:, 0],
        probeGuess=SCAN.probe,
    )
    scan = read_scan(tmp_path / "scan.npz")
    os.truncate(tmp_path / "scan.npz", 4096)
    with pytest.raises(ScanError, match=r"scan.npz: 'diffraction'"):
        scan.frames[M - 1]
    with pytest.raises(ScanError, match=r"scan.npz: 'diffraction'"):
        list(scan.frames.chunks(4))


class TestReport:
    @pytest.mark.contract("data.store.report")
    @pytest.mark.parametrize("frames_kept", [None, "2:"])
    def test_dark_saturated_and_repeated_frames_are_kept_and_listed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, frames_kept: str | None
    ) -> None:
        frames, positions_px = FRAMES.copy(), SCAN.positions_px.copy()
        frames[5] = 0
        frames[7, 3, 4] = frames[11, 0, 0] = 65_535
        positions_px[9] = positions_px[4]
        bad = dataclasses.replace(SCAN, frames=ArrayFrames(frames), positions_px=positions_px)
        write_scan(bad, tmp_path / "scan.npz")
        config = RunConfig(prepare=PrepareConfig(frames=frames_kept, val_fraction=0), group=GroupConfig(gridsize=2))
        prepare([read_scan(tmp_path / "scan.npz", config.prepare)], config, tmp_path / "store")
        (entry,) = Store.open(tmp_path / "store").scans
        assert (entry.findings.dark, entry.findings.saturated, entry.findings.repeated) == ((5,), (7, 11), (9,))
        assert not entry.left_out
        (told,) = json.loads((tmp_path / "store" / "store.json").read_text())["scans"]
        assert told["findings"] == {"dark": [5], "saturated": [7, 11], "repeated": [9]}
        for words in ("without a single count are kept", "saturated pixels are kept", "position of an earlier one"):
            assert words in caplog.text
        assert Store.open(tmp_path / "store").n_frames == M - (2 if frames_kept else 0)

    @pytest.mark.contract("data.store.report")
    def test_the_same_position_in_another_scan_is_no_repetition_and_a_clean_scan_has_no_findings(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        twice = dataclasses.replace(
            SCAN,
            frames=ArrayFrames(np.concatenate([FRAMES, FRAMES])),
            scan_id=np.repeat([0, 1], M),
            positions_px=np.tile(SCAN.positions_px, (2, 1)),
        )
        (entry,) = prepare([twice], make_config(), tmp_path / "store").scans
        assert not any(dataclasses.astuple(entry.findings))
        assert not caplog.text

    @pytest.mark.contract("data.store.report")
    def test_frames_of_nan_are_refused_or_left_out_and_listed(self, tmp_path: Path) -> None:
        frames = FRAMES.astype(np.float32)
        frames[3], frames[8, 2, 2] = np.nan, -1
        bad = dataclasses.replace(SCAN, frames=ArrayFrames(frames))
        with pytest.raises(ScanError, match=r"NaN or infinity in 1 frame: 3 \(counted from 0\)"):
            prepare([bad], make_config(), tmp_path / "store")
        assert not list(tmp_path.iterdir())
        rest = {key: getattr(SCAN, key) for key in ("probe",)}
        np.savez(
            tmp_path / "scan.npz",
            diffraction=frames,
            xcoords=SCAN.positions_px[:, 1],
            ycoords=SCAN.positions_px[:, 0],
            probeGuess=rest["probe"],
        )
        config = RunConfig(
            prepare=PrepareConfig(domain="counts", bad_frames="leave-out", drop_frames=(1,)),
            group=GroupConfig(gridsize=1),
        )
        prepare([read_scan(tmp_path / "scan.npz", config.prepare)], config, tmp_path / "store")
        (entry,) = Store.open(tmp_path / "store").scans
        assert entry.left_out == {1: "asked for by drop_frames", 3: "NaN or infinity", 8: "negative values"}
        assert entry.n_frames == M - 3
