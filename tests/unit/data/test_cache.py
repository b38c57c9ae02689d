"""Reopening a store by its files and options: at once when they are the same, named when they are not."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchptycho.cli.app import main
from torchptycho.core.config import GroupConfig, MappingConfig, PrepareConfig, RefineConfig, RunConfig, SimulateConfig
from torchptycho.core.errors import StoreError
from torchptycho.core.scan import ArrayFrames
from torchptycho.data import cache
from torchptycho.data.cache import StoreRequest
from torchptycho.data.prepare import open_if_unchanged, prepare
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.io import read_scan, write_scan

N = 32
SCAN = simulate(SimulateConfig(n_px=N, object_px=72, n_frames=30, photons_per_frame=1e4))
CONFIG = RunConfig(prepare=PrepareConfig(val_fraction=0.2), group=GroupConfig(gridsize=1))


def prepared(paths: list[Path], store: Path, config: RunConfig = CONFIG, val: tuple[Path, ...] = ()) -> Store:
    scans = [read_scan(path, config.prepare) for path in (*paths, *val)]
    request = StoreRequest.from_sources(paths, config, val)
    return prepare(scans[: len(paths)], config, store, val_scans=scans[len(paths) :], request=request)


@pytest.fixture
def scan_file(tmp_path: Path) -> Path:
    write_scan(SCAN, tmp_path / "scan.npz")
    return tmp_path / "scan.npz"


class Opened:
    """The files that are opened; hooks stay for ever, so there is one, and none before it is needed."""

    def __init__(self) -> None:
        self.names: list[str] | None = None
        self._listens = False

    def begin(self) -> list[str]:
        if not self._listens:
            sys.addaudithook(self._heard)
        self._listens, self.names = True, []
        return self.names

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self.names is not None:
            self.names.append(str(arguments[0]))


OPENED = Opened()


@pytest.fixture
def opened() -> Iterator[list[str]]:
    yield OPENED.begin()
    OPENED.names = None


@pytest.mark.contract("data.store.reopened.unread")
def test_a_store_of_unchanged_files_is_reopened_and_none_of_them_is_read(
    scan_file: Path, tmp_path: Path, opened: list[str]
) -> None:
    first = prepared([scan_file], tmp_path / "store")
    assert str(scan_file) in opened
    opened.clear()
    again = open_if_unchanged(tmp_path / "store", StoreRequest.from_sources([str(scan_file)], CONFIG))
    assert again is not None
    assert (again.scans, again.fingerprint) == (first.scans, first.fingerprint)
    assert str(scan_file) not in opened
    assert not [name for name in opened if name.endswith("frames.memmap") and "store" not in name]


@pytest.mark.contract("data.store.reopened.unread")
@pytest.mark.parametrize("command", ["prepare", "train"])
def test_the_commands_reopen_without_opening_the_scan(
    scan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    from torchptycho.io import discovery

    flags = ["--gridsize", "1", "--steps", "1", "--accelerator", "cpu", "--n-filters-scale", "1"]
    flags += ["--start-projections", "1", "--finish-projections", "0"]
    flags = flags if command == "train" else flags[:2]
    assert main([command, str(scan_file), "--out", str(tmp_path / "out"), *flags]) == 0
    monkeypatch.setattr(discovery, "read_scan", None)
    monkeypatch.chdir(tmp_path)
    # Another way to name the same file.
    flags += ["--resume"] if command == "train" else []
    assert main([command, "scan.npz", "--out", str(tmp_path / "out"), *flags]) == 0


@pytest.mark.contract("data.store.reopened.named")
@pytest.mark.parametrize("change", ["touched", "appended to", "removed"])
@pytest.mark.parametrize("which", ["scan.csv", "scan.npy", "probe.npz", "dark.npy"])
def test_a_changed_source_is_named(tmp_path: Path, which: str, change: str) -> None:
    np.save(tmp_path / "scan.npy", SCAN.frames[:])
    lines = [f"{x},{y}" for y, x in SCAN.positions_px]
    (tmp_path / "scan.csv").write_text("\n".join(["x,y", *lines]))
    np.savez(tmp_path / "probe.npz", probe=SCAN.probe)
    np.save(tmp_path / "dark.npy", np.zeros((N, N), np.float32))
    mapping = MappingConfig(
        frames="scan.npy", positions_y="{stem}.csv:y", positions_x="{stem}.csv:x", positions_unit="px"
    )
    options: dict[str, Any] = {"probe": str(tmp_path / "probe.npz"), "dark": str(tmp_path / "dark.npy")}
    config = dataclasses.replace(CONFIG, prepare=PrepareConfig(mapping=mapping, **options))
    prepared([tmp_path / "scan.npy"], tmp_path / "store", config)
    request = StoreRequest.from_sources([tmp_path / "scan.npy"], config)
    assert open_if_unchanged(tmp_path / "store", request) is not None
    path = tmp_path / which
    size = path.stat().st_size
    if change == "touched":
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_500_000_000))
        # What it holds decides, and then the file is known by its new time.
        assert open_if_unchanged(tmp_path / "store", request) is None
        prepared([tmp_path / "scan.npy"], tmp_path / "store", config)
        assert open_if_unchanged(tmp_path / "store", request) is not None
        return
    if change == "appended to":
        with path.open("ab") as file:
            file.write(b"\n")
        told = f"size: {size} bytes then, {size + 1} now"
    else:
        path.unlink()
        told = "gone: nothing of that name"
    words = rf"was made from other files or options; differences: {path} \({told}\)\. Choose"
    with pytest.raises(StoreError, match=words):
        open_if_unchanged(tmp_path / "store", request)


@pytest.mark.contract("data.store.reopened.content")
@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_scan_that_was_moved_or_copied_is_known_by_its_content(scan_file: Path, tmp_path: Path, how: str) -> None:
    store, other = tmp_path / "store", tmp_path / "archive" / "other.npz"
    np.savez(tmp_path / "probe.npz", probe=SCAN.probe)
    config = dataclasses.replace(CONFIG, prepare=dataclasses.replace(CONFIG.prepare, probe=str(tmp_path / "probe.npz")))
    prepared([scan_file], store, config)
    other.parent.mkdir()
    if how == "moved":
        scan_file.rename(other)
        (tmp_path / "probe.npz").rename(tmp_path / "archive" / "probe.npz")
    else:
        other.write_bytes(scan_file.read_bytes())
        shutil.copy(tmp_path / "probe.npz", tmp_path / "archive")
    os.utime(other, ns=(0, 10**18))
    new = dataclasses.replace(
        config, prepare=dataclasses.replace(config.prepare, probe=str(tmp_path / "archive" / "probe.npz"))
    )
    before = (store / "store.json").read_bytes()
    assert prepare([other], new, store).n_frames == SCAN.n_frames
    assert (store / "store.json").read_bytes() == before
    # Known from now on without reading it.
    assert open_if_unchanged(store, StoreRequest.from_sources([other], new)) is not None


@pytest.mark.contract("data.store.reopened.content")
def test_another_scan_in_its_place_is_refused(scan_file: Path, tmp_path: Path) -> None:
    prepared([scan_file], tmp_path / "store")
    frames = SCAN.frames[:]
    frames[17, 5, 6] += 1
    for path in (scan_file, tmp_path / "other.npz"):
        write_scan(dataclasses.replace(SCAN, frames=ArrayFrames(frames)), path)
        with pytest.raises(StoreError, match="other files or options"):
            prepare([path], CONFIG, tmp_path / "store")
    write_scan(dataclasses.replace(SCAN, positions_px=SCAN.positions_px + 0.5), scan_file)
    with pytest.raises(StoreError, match="other files or options"):
        prepare([scan_file], CONFIG, tmp_path / "store")


@pytest.mark.contract("data.store.reopened.named")
def test_a_changed_option_or_version_is_named_with_both_values(
    scan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared([scan_file], tmp_path / "store")
    prepare_config = dataclasses.replace(CONFIG.prepare, val_fraction=0.5, split_seed=3)
    other = StoreRequest.from_sources([scan_file], dataclasses.replace(CONFIG, prepare=prepare_config))
    with pytest.raises(
        StoreError,
        match=r"differences: prepare\.split_seed \(0 then, 3 now\); prepare\.val_fraction \(0\.2 then, 0\.5 now\)\.",
    ):
        open_if_unchanged(tmp_path / "store", other)
    monkeypatch.setattr(cache, "get_package_version", lambda: "99.0")
    with pytest.raises(StoreError, match=r"differences: version \(\"\S+\" then, \"99\.0\" now\)\. Choose"):
        open_if_unchanged(tmp_path / "store", StoreRequest.from_sources([scan_file], CONFIG))
    with pytest.raises(StoreError, match=r"differences: version \(\"\S+\" then, \"99\.0\" now\)\. Choose"):
        prepare([read_scan(scan_file)], CONFIG, tmp_path / "store")


@pytest.mark.contract("data.store.reopened.named")
def test_refinement_matters_where_the_probe_comes_from_it(scan_file: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, refine=RefineConfig(refine_seed=1))
    prepared([scan_file], tmp_path / "store")
    assert open_if_unchanged(tmp_path / "store", StoreRequest.from_sources([scan_file], config)) is not None
    bootstrap = dataclasses.replace(CONFIG.prepare, bootstrap_probe=2)
    first, second = (
        StoreRequest.from_sources(
            [scan_file], dataclasses.replace(CONFIG, prepare=bootstrap, refine=RefineConfig(refine_seed=seed))
        )
        for seed in (0, 1)
    )
    scan = read_scan(scan_file)
    prepare([scan], dataclasses.replace(CONFIG, prepare=bootstrap), tmp_path / "second", request=first)
    assert open_if_unchanged(tmp_path / "second", first) is not None
    with pytest.raises(StoreError, match=r"differences: refine\.refine_seed \(0 then, 1 now\)\."):
        open_if_unchanged(tmp_path / "second", second)


@pytest.mark.contract("data.store.reopened.unread")
def test_what_cannot_be_told_from_files_alone_is_left_to_prepare(scan_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    write_scan(SCAN, other)
    request = StoreRequest.from_sources([scan_file], CONFIG)
    assert StoreRequest.from_sources([SCAN], CONFIG) is None
    assert open_if_unchanged(tmp_path / "store", None) is None
    assert open_if_unchanged(tmp_path / "store", request) is None
    prepared([scan_file], tmp_path / "store")
    assert open_if_unchanged(tmp_path / "store", StoreRequest.from_sources([other], CONFIG)) is None
    assert open_if_unchanged(tmp_path / "store", StoreRequest.from_sources([scan_file, other], CONFIG)) is None
    # A store that was changed since, and one that was made of scans in memory.
    manifest = tmp_path / "store" / "store.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert open_if_unchanged(tmp_path / "store", request) is None
    prepare([read_scan(scan_file)], CONFIG, tmp_path / "memory")
    assert open_if_unchanged(tmp_path / "memory", request) is None
    # Held out as a whole is not trained on.
    prepared([scan_file], tmp_path / "val", val=(other,))
    assert open_if_unchanged(tmp_path / "val", StoreRequest.from_sources([scan_file, other], CONFIG)) is None
    assert open_if_unchanged(tmp_path / "val", StoreRequest.from_sources([scan_file], CONFIG, [other])) is not None
