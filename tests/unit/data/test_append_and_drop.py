"""Scans are added to a store and dropped from it: what it is then, and what it is in between."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepare_processes import append_and_drop, start_process

from torchptycho.core.config import GroupConfig, PrepareConfig, RunConfig, SimulateConfig
from torchptycho.core.errors import GroupingError, ScanError, StoreError
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data import writer as writing_module
from torchptycho.data.datasets import GroupDataset
from torchptycho.data.prepare import append_scans, drop_scans, prepare
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.io import write_scan

N = 32


def scan(seed: int, n_frames: int = 16, **options: Any) -> Scan:
    defaults = {"n_px": N, "object_px": 72, "photons_per_frame": 1e4}
    return simulate(SimulateConfig(**(defaults | options), n_frames=n_frames, simulation_seed=seed))


def different(seed: int) -> Scan:
    """Another field, dose, number of modes and frames, probe of unknown power, and dtype."""
    given = scan(
        seed,
        20 + seed,
        object_px=72 + 8 * seed,
        photons_per_frame=1e3 * 10**seed,
        probe_modes=1 + seed,
        probe_kind=("zone_plate", "gaussian", "disk")[seed],
    )
    frames = given.frames[:].astype((np.uint16, np.uint32, np.int32)[seed])
    mask = np.ones((N, N), bool)
    mask[seed] = False
    return dataclasses.replace(given, frames=ArrayFrames(frames), probe_is_calibrated=seed == 0, mask=mask)


SCANS = [different(seed) for seed in range(3)]


def run_config(**prepare_options: Any) -> RunConfig:
    return RunConfig(prepare=PrepareConfig(**({"val_fraction": 0.2} | prepare_options)), group=GroupConfig(gridsize=2))


def assert_same(store: Store, expected: Store) -> None:
    """All tensors to the bit, and everything that is told but the names of the folders."""
    assert store.fingerprint == expected.fingerprint
    assert store.config == expected.config
    for ours, theirs in zip(store.scans, expected.scans, strict=True):
        assert dataclasses.replace(ours, folder="") == dataclasses.replace(theirs, folder="")
    every = torch.arange(expected.n_frames)
    np.testing.assert_array_equal(store.frames[every].numpy(), expected.frames[every].numpy())
    for key in expected.tensors.keys(include_nested=True, leaves_only=True):
        np.testing.assert_array_equal(store.tensors[key].numpy(), expected.tensors[key].numpy(), err_msg=str(key))
    assert set(store.tensors.keys(include_nested=True)) == set(expected.tensors.keys(include_nested=True))


def files_under(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


class TestAppending:
    @pytest.mark.contract("data.append")
    @pytest.mark.parametrize("val_by", ["frames", "region"])
    def test_store_that_scans_were_added_to_is_the_one_prepared_of_all(self, tmp_path: Path, val_by: str) -> None:
        config = run_config(val_by=val_by)
        store = prepare(SCANS[:1], config, tmp_path / "store")
        before = files_under(store.path / "scans")
        store = append_scans(store, SCANS[1])
        store = append_scans(tmp_path / "store", SCANS[2:])
        assert_same(store, prepare(SCANS, config, tmp_path / "at-once"))
        assert_same(prepare(SCANS, config, tmp_path / "store"), store)
        assert before.items() <= files_under(store.path / "scans").items()
        assert len(list((store.path / "tables").iterdir())) == 1

    @pytest.mark.contract("data.append")
    def test_whole_scans_are_added_to_validate_on(self, tmp_path: Path) -> None:
        store = append_scans(prepare(SCANS[:1], run_config(), tmp_path / "store"), (), val_scans=SCANS[1])
        assert_same(store, prepare(SCANS[:1], run_config(), tmp_path / "at-once", val_scans=SCANS[1:2]))
        assert [entry.held_out for entry in store.scans] == [False, True]

    @pytest.mark.contract("data.append")
    def test_files_are_read_as_the_store_was_prepared(self, tmp_path: Path) -> None:
        for seed in range(2):
            write_scan(scan(seed), tmp_path / f"{seed}.npz")
        config = run_config(frames=":12", flip_y=True)
        store = prepare(tmp_path / "0.npz", config, tmp_path / "store")
        store = append_scans(store, tmp_path / "1.npz")
        assert store.n_frames == 24
        np.testing.assert_array_equal(store.tensors["positions_px"][12:, 0].numpy(), -scan(1).positions_px[:12, 0])

    @pytest.mark.contract("data.append.refused")
    def test_file_that_has_changed_since_is_added_with_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_scan(scan(0), tmp_path / "0.npz")
        store = prepare(tmp_path / "0.npz", run_config(), tmp_path / "store")
        write_scan(scan(1), tmp_path / "0.npz")
        assert len(append_scans(store, tmp_path / "0.npz").scans) == 2
        assert "0.npz, or an earlier state of it, are in the store" in caplog.text

    @pytest.mark.contract("data.append.refused")
    def test_scan_that_is_there_already_or_does_not_fit_changes_nothing(self, tmp_path: Path) -> None:
        write_scan(scan(0), tmp_path / "0.npz")
        store = prepare(tmp_path / "0.npz", run_config(), tmp_path / "store")
        before = files_under(tmp_path)
        other = scan(1, n_px=64, object_px=128, n_frames=9)
        for refused, error, message in (
            (tmp_path / "0.npz", StoreError, r"has .*0\.npz already \(as .*0\.npz\)"),
            ([SCANS[0], SCANS[0]], StoreError, "already"),
            ([], StoreError, "expected at least one scan to add"),
            ([SCANS[0], other], ScanError, r"simulate.*expected N = 32 and counts as in .*0\.npz; found N = 64"),
            (dataclasses.replace(SCANS[0], frames=ArrayFrames(np.zeros((20, N, N), np.uint16))), ScanError, "zero"),
        ):
            with pytest.raises(error, match=message):
                append_scans(store, refused)
        assert files_under(tmp_path) == before
        with pytest.raises(StoreError, match="expected a store"):
            append_scans(tmp_path, SCANS[0])
        assert files_under(tmp_path) == before


class TestDropping:
    @pytest.mark.contract("data.drop")
    @pytest.mark.parametrize("gone", [[0], [1], [2, 0]])
    def test_store_that_scans_were_dropped_from_is_the_one_prepared_of_the_rest(
        self, tmp_path: Path, gone: list[int]
    ) -> None:
        store = prepare(SCANS, run_config(), tmp_path / "store")
        folders = [store.path / "scans" / entry.folder for entry in store.scans]
        before = files_under(store.path / "scans")
        left = drop_scans(store, gone)
        assert_same(
            left, prepare([one for i, one in enumerate(SCANS) if i not in gone], run_config(), tmp_path / "rest")
        )
        assert [folder.exists() for folder in folders] == [i not in gone for i in range(3)]
        assert files_under(store.path / "scans").items() <= before.items()
        # What was opened before is still whole.
        np.testing.assert_array_equal(store.frames[torch.tensor([0])][0].numpy(), SCANS[0].frames[:][0] * SCANS[0].mask)
        np.testing.assert_array_equal(store.tensors["frame_scan"].numpy(), np.repeat([0, 1, 2], [20, 21, 22]))

    @pytest.mark.contract("data.drop")
    def test_scans_are_named_by_number_or_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for seed in range(4):
            write_scan(scan(seed), tmp_path / f"{seed}.npz")
        store = prepare([tmp_path / f"{seed}.npz" for seed in range(4)], run_config(), tmp_path / "store")
        monkeypatch.chdir(tmp_path)
        store = drop_scans(store, [0, "2.npz"])
        assert [Path(entry.source).name for entry in store.scans] == ["1.npz", "3.npz"]
        for unknown in (2, -1, "2.npz"):
            with pytest.raises(StoreError, match=rf"which are 0 \(.*1\.npz\), 1 \(.*3\.npz\); found {unknown}"):
                drop_scans(store, [unknown])

    @pytest.mark.contract("data.drop")
    def test_last_scan_to_train_on_stays(self, tmp_path: Path) -> None:
        store = prepare(SCANS[:1], run_config(), tmp_path / "store", val_scans=SCANS[1:])
        before = files_under(store.path)
        with pytest.raises(StoreError, match="expected at least one training scan to remain"):
            drop_scans(store, [0])
        assert files_under(store.path) == before

    @pytest.mark.contract("data.change.atomic")
    def test_groups_that_the_rest_cannot_form_leave_the_store_as_it_is(self, tmp_path: Path) -> None:
        config = dataclasses.replace(run_config(), group=GroupConfig(gridsize=1, n_groups=40))
        store = prepare(SCANS, config, tmp_path / "store")
        before = files_under(store.path)
        with pytest.raises(GroupingError, match="n_groups 40"):
            drop_scans(store, [0, 1])
        assert files_under(store.path) == before


class TestInBetween:
    @pytest.mark.contract("data.change.atomic")
    @pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError])
    @pytest.mark.parametrize("step", ["iter_checked_chunks", "measure_scaling", "replace_atomically"])
    def test_interrupted_change_leaves_the_old_store_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], step: str
    ) -> None:
        def fail(*_: Any, **__: Any) -> Any:
            raise failure("now")

        def some_then_fail(given: Scan, *_: Any) -> Iterator[np.ndarray]:
            yield given.frames[:5]
            raise failure("now")

        store = prepare(SCANS[:2], run_config(), tmp_path / "store")
        before = files_under(tmp_path)
        monkeypatch.setattr(writing_module, step, some_then_fail if step == "iter_checked_chunks" else fail)
        told = StoreError if failure is OSError else failure
        with pytest.raises(told, match="now"):
            append_scans(store, SCANS[2])
        if step != "iter_checked_chunks":
            with pytest.raises(told, match="now"):
                drop_scans(store, [0])
        assert files_under(tmp_path) == before

    @pytest.mark.contract("data.change.atomic")
    def test_killed_change_leaves_the_old_store_or_the_new_one(self, tmp_path: Path) -> None:
        store = prepare(SCANS[:2], run_config(), tmp_path / "store")
        old = prepare(SCANS[:2], run_config(), tmp_path / "old")
        new = append_scans(prepare(SCANS[:2], run_config(), tmp_path / "new"), SCANS[2])
        # The second time: at first the server of processes begins, too.
        for _ in range(2):
            begin = time.monotonic()
            start_process(append_scans, store.path, SCANS[2]).join()
            whole = time.monotonic() - begin
            drop_scans(store, [2])
        outcomes = set()
        for part in range(8):
            process = start_process(append_scans, store.path, SCANS[2])
            process.join(whole * (part + 1) / 8)
            process.kill()
            process.join()
            found = Store.open(store.path)
            outcomes.add(len(found.scans))
            assert_same(found, {2: old, 3: new}[len(found.scans)])
            if len(found.scans) == 3:
                drop_scans(store, [2])
        assert 2 in outcomes
        # The next change has removed what the killed ones left.
        append_scans(store, SCANS[2])
        assert len(list((store.path / "scans").iterdir())) == 3
        assert len(list((store.path / "tables").iterdir())) == 1
        assert {path.name for path in store.path.iterdir()} == {"scans", "tables", "store.json"}

    @pytest.mark.contract("data.change.readers")
    def test_reader_finds_the_old_store_or_the_new_one_at_any_moment(self, tmp_path: Path) -> None:
        store = prepare(SCANS[:2], run_config(), tmp_path / "store")
        known = {2: store, 3: append_scans(prepare(SCANS[:2], run_config(), tmp_path / "new"), SCANS[2])}
        # Compared by value, as the opened store's own files go away.
        groups = {count: one.groups("train").members.copy() for count, one in known.items()}

        process = start_process(append_and_drop, store.path, SCANS[2], 2, 8)
        seen = set()
        while process.is_alive():
            found = Store.open(store.path)
            seen.add(len(found.scans))
            np.testing.assert_array_equal(found.groups("train").members, groups[len(found.scans)])
            assert found.frames.shape[0] == sum(entry.n_frames for entry in found.scans)
        process.join()
        assert process.exitcode == 0
        assert seen == {2, 3}

    @pytest.mark.contract("data.change.one-at-a-time")
    def test_processes_that_add_at_once_lose_no_scan(self, tmp_path: Path) -> None:
        store = prepare(SCANS[:1], run_config(), tmp_path / "store")
        given = [scan(seed) for seed in range(4)]
        processes = [start_process(append_scans, store.path, one) for one in given]
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 4
        found = Store.open(store.path)
        assert {entry.source for entry in found.scans[1:]} == {one.source for one in given}
        assert found.n_frames == SCANS[0].n_frames + 4 * 16
        assert {path.name for path in tmp_path.iterdir()} == {"store"}


class TestFramesOfSeveralScans:
    @pytest.mark.contract("data.frames.once")
    def test_each_scan_keeps_its_own_dtype_and_batches_have_the_smallest_that_holds_all(self, tmp_path: Path) -> None:
        store = prepare(SCANS[:2], run_config(), tmp_path / "store")
        assert [part.dtype for part in store.frames.parts] == [torch.uint16, torch.uint32]
        assert store.frames.dtype == torch.uint32
        members = torch.tensor([[0, 19, 20], [40, 21, 5]])
        whole = np.concatenate([(one.frames[:] * one.mask).astype(np.uint32) for one in SCANS[:2]])
        found = store.frames[members]
        assert found.dtype == torch.uint32
        np.testing.assert_array_equal(found.numpy(), whole[members.numpy()])
        assert store.frames[members[:1, :2]].dtype == torch.uint32

    @pytest.mark.contract("data.statistics.own")
    @settings(max_examples=5, deadline=None)
    @given(
        seeds=st.lists(st.integers(0, 5), min_size=2, max_size=4, unique=True),
        which=st.integers(0, 3),
        val_by=st.sampled_from(["frames", "region"]),
        gridsize=st.sampled_from([1, 2]),
    )
    def test_rows_belong_to_one_scan_and_statistics_to_its_training_part(
        self, tmp_path_factory: pytest.TempPathFactory, seeds: list[int], which: int, val_by: str, gridsize: int
    ) -> None:
        folder = tmp_path_factory.mktemp("own")
        scans = [
            scan(
                seed, 14 + 3 * seed, object_px=72 + 4 * seed, photons_per_frame=1e3 * 4**seed, probe_modes=1 + seed % 2
            )
            for seed in seeds
        ]
        config = RunConfig(
            prepare=PrepareConfig(
                val_fraction=0.2, val_by=val_by, split_seed=sum(seeds), val_gap_px=(6.0 if val_by == "region" else None)
            ),
            group=GroupConfig(gridsize=gridsize),
        )
        store = prepare(scans, config, folder / "all")
        starts = np.cumsum([0, *(one.n_frames for one in scans)])
        for split in ("train", "val"):
            dataset = GroupDataset(store, split)  # type: ignore[arg-type]
            for row in dataset.__getitems__(range(len(dataset))) if len(dataset) else ():
                first, after = starts[int(row.scan)], starts[int(row.scan) + 1]
                assert ((row.members >= first) & (row.members < after)).all()
                expected = scans[int(row.scan)].frames[:][row.members.numpy() - first]
                np.testing.assert_array_equal(row.frames.numpy(), expected)
        # Alone in a store, a scan has the same statistics, probe and held-out frames.
        index = which % len(scans)
        alone = prepare(scans[index : index + 1], config, folder / "alone")
        assert alone.scans[0].scaling == store.scans[index].scaling
        np.testing.assert_array_equal(alone.frames.parts[0].numpy(), store.frames.parts[index].numpy())
        modes = len(scans[index].probe)
        np.testing.assert_array_equal(
            alone.tensors["probes"][0].numpy(), store.tensors["probes"][index, :modes].numpy()
        )
        mine = {
            int(m) - starts[index] for m in store.groups("val").members[:, 0] if starts[index] <= m < starts[index + 1]
        }
        assert mine == set(alone.groups("val").members[:, 0].tolist())
        # And brighter frames elsewhere, or held out, do not matter to it.
        frames = scans[index].frames[:].copy()
        trained = np.unique(store.groups("train").frames_used) - starts[index]
        others = np.setdiff1d(np.arange(scans[index].n_frames), trained)
        frames[others] *= 2
        spoiled = dataclasses.replace(scans[index], frames=ArrayFrames(frames))
        assert prepare([spoiled], config, folder / "spoiled").scans[0].scaling == alone.scans[0].scaling
