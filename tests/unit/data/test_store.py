"""The store: frames once, in their own dtype, with what training may know and nothing else."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from tolerances import assert_close

from torchptycho.core.config import GroupConfig, PrepareConfig, RunConfig, SimulateConfig
from torchptycho.core.errors import ConfigError, GroupingError, ScanError, StoreError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data import writer as writing_module
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.io import read_scan, write_scan
from torchptycho.physics.diffraction import far_field, measurement

M, N = 30, 32


def scan(**options: Any) -> Scan:
    defaults = {"n_px": N, "object_px": 72, "n_frames": M, "photons_per_frame": 1e4}
    return simulate(SimulateConfig(**(defaults | options)))


SCAN = scan()
FRAMES = SCAN.frames[:]


def changed(**fields: Any) -> Scan:
    return dataclasses.replace(SCAN, **fields)


def run_config(val_fraction: float = 0.2, **group: Any) -> RunConfig:
    return RunConfig(prepare=PrepareConfig(val_fraction=val_fraction), group=GroupConfig(**({"gridsize": 1} | group)))


def frames_of(store: Store) -> np.ndarray:
    return np.asarray(store.frames[torch.arange(store.n_frames)].numpy())


def everything_under(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


class TestFrames:
    @pytest.mark.contract("data.frames.once")
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.float32])
    def test_frames_are_stored_once_in_their_own_dtype(self, tmp_path: Path, dtype: Any) -> None:
        frames = FRAMES.clip(0, 255).astype(dtype)
        config = run_config(gridsize=2, n_groups=200, oversample=True, neighbor_count=7)
        store = prepare([changed(frames=ArrayFrames(frames))], config, tmp_path / "store")
        assert frames_of(store).dtype == dtype
        np.testing.assert_array_equal(frames_of(store), frames)
        # 200 groups of four: written out, they would be 27 times the frames.
        assert len(store.groups("train")) == 200
        on_disk = sum(path.stat().st_size for path in everything_under(tmp_path / "store") if path.is_file())
        assert on_disk < frames.nbytes + 150_000
        assert next((tmp_path / "store").glob("scans/*/frames.memmap")).stat().st_size == frames.nbytes

    @pytest.mark.contract("data.store.size")
    def test_disk_holds_the_frames_the_index_tables_and_nothing_else(self, tmp_path: Path) -> None:
        store = prepare([SCAN], run_config(gridsize=2, n_groups=20), tmp_path / "store")
        n_train, n_val = len(store.groups("train")), len(store.groups("val"))
        assert (n_train, n_val) == (20, 6)
        assert SCAN.truth is not None
        per_group = 4 * 8 + 2 * 8 + 4 * 2 * 4
        used = M - n_val + M
        tables = M * (2 * 8 + 8 + 8) + (n_train + n_val) * per_group + used * 8
        # What a scan brings, and what stands in the tables over all scans.
        own = FRAMES.nbytes + M * (2 * 8 + 8 + 8) + SCAN.truth.nbytes
        expected = own + tables + 2 * (SCAN.probe.nbytes + N * N)
        files = [path for path in everything_under(tmp_path / "store") if path.is_file()]
        assert sum(path.stat().st_size for path in files if path.suffix == ".memmap") == expected
        assert {path.suffix for path in files} == {".memmap", ".json"}

    @pytest.mark.contract("data.frames.once")
    def test_largest_count_of_the_detector_is_kept(self, tmp_path: Path) -> None:
        frames = FRAMES.copy()
        frames[3, 4, 5] = 65535
        store = prepare([changed(frames=ArrayFrames(frames))], run_config(), tmp_path / "store")
        assert int(frames_of(store)[3, 4, 5]) == 65535
        training = np.unique(store.groups("train").members)
        assert 3 in training
        mean = frames[training].sum(axis=(1, 2), dtype=np.uint64).mean()
        assert store.scans[0].scaling.photons_per_frame == pytest.approx(mean, rel=1e-12)

    @pytest.mark.contract("data.frames.masked")
    def test_what_lies_under_the_mask_is_stored_as_zero_and_not_counted(self, tmp_path: Path) -> None:
        mask = np.ones((N, N), bool)
        mask[5, 7] = mask[20] = False
        clean, spoiled = (np.where(mask, FRAMES, value).astype(np.float32) for value in (0, np.nan))
        stores = [
            prepare([changed(frames=ArrayFrames(f), mask=mask)], run_config(), tmp_path / name)
            for name, f in (("clean", clean), ("spoiled", spoiled))
        ]
        np.testing.assert_array_equal(frames_of(stores[1]), clean)
        assert stores[1].scans[0].scaling == stores[0].scans[0].scaling
        np.testing.assert_array_equal(stores[1].tensors["masks"].numpy(), mask[None])

    @pytest.mark.contract("data.store.read-only")
    def test_writing_to_the_tensors_of_a_store_does_not_change_its_files(self, tmp_path: Path) -> None:
        store = prepare([SCAN], run_config(), tmp_path / "store")
        before = {path: path.read_bytes() for path in everything_under(tmp_path / "store") if path.is_file()}
        store.frames.parts[0][0] = 7
        store.frames.parts[0].numpy()[1] = 7
        store.tensors["positions_px"].fill_(3.0)
        store.tensors["train"]["members"].zero_()
        assert {path: path.read_bytes() for path in everything_under(tmp_path / "store") if path.is_file()} == before
        np.testing.assert_array_equal(frames_of(Store.open(tmp_path / "store")), FRAMES)


class TestStatistics:
    @pytest.mark.contract("data.statistics.training-only")
    def test_statistics_do_not_depend_on_the_held_out_frames(self, tmp_path: Path) -> None:
        first = prepare([SCAN], run_config(), tmp_path / "first")
        held_out = first.groups("val").members[:, 0]
        frames = FRAMES.copy()
        frames[held_out] = frames[held_out] * 3 + 1
        second = prepare([changed(frames=ArrayFrames(frames))], run_config(), tmp_path / "second")
        assert second.scans[0].scaling == first.scans[0].scaling
        frames[first.groups("train").members[0]] += 1
        third = prepare([changed(frames=ArrayFrames(frames))], run_config(), tmp_path / "third")
        assert third.scans[0].scaling != first.scans[0].scaling

    @pytest.mark.contract("data.statistics.formula")
    @pytest.mark.parametrize("domain", ["counts", "amplitude"])
    def test_scale_is_from_the_mean_intensity_of_the_training_frames(self, tmp_path: Path, domain: str) -> None:
        frames = FRAMES if domain == "counts" else np.sqrt(FRAMES).astype(np.float32)
        given = changed(frames=ArrayFrames(frames), domain=domain, metadata={"nphotons": 5e3})
        store = prepare([given], run_config(), tmp_path / "store")
        training = FRAMES[np.unique(store.groups("train").members)].astype(np.float64)
        mean = training.sum(axis=(1, 2)).mean()
        scaling = store.scans[0].scaling
        assert scaling.domain == domain
        assert scaling.input_scale == pytest.approx(N / 2 / np.sqrt(mean), rel=1e-6)
        # Counts count their own photons; amplitudes stand for as many as the file says.
        assert scaling.photons_per_frame == pytest.approx(mean if domain == "counts" else 5e3, rel=1e-12)

    @pytest.mark.contract("data.statistics.formula")
    @pytest.mark.parametrize(("configured", "in_file", "expected"), [(7e4, 5e3, 7e4), (None, None, 1e9)])
    def test_dose_of_amplitudes_comes_from_the_configuration_the_file_or_1e9(
        self, tmp_path: Path, configured: float | None, in_file: float | None, expected: float
    ) -> None:
        given = changed(
            frames=ArrayFrames(np.sqrt(FRAMES).astype(np.float32)),
            domain="amplitude",
            metadata={} if in_file is None else {"nphotons": in_file},
        )
        config = RunConfig(prepare=PrepareConfig(nphotons=configured), group=GroupConfig(gridsize=1))
        assert prepare([given], config, tmp_path / "store").scans[0].scaling.photons_per_frame == expected


class TestSplit:
    @pytest.mark.contract("data.split")
    @settings(max_examples=5)
    @given(seed=st.integers(0, 2**31), fraction=st.floats(0, 0.99), gridsize=st.sampled_from([1, 2]))
    def test_held_out_frames_are_seeded_and_never_trained_on(
        self, tmp_path_factory: pytest.TempPathFactory, seed: int, fraction: float, gridsize: int
    ) -> None:
        folder = tmp_path_factory.mktemp("split")
        config = RunConfig(
            prepare=PrepareConfig(val_fraction=fraction, split_seed=seed), group=GroupConfig(gridsize=gridsize)
        )
        store = prepare([SCAN], config, folder / "a")
        held_out = store.groups("val").members[:, 0]
        assert len(held_out) == min(round(fraction * M), M - gridsize**2)
        assert not set(held_out) & set(store.groups("train").members.ravel())
        again = prepare([SCAN], config, folder / "b").groups("val").members[:, 0]
        np.testing.assert_array_equal(held_out, again)

    @pytest.mark.contract("data.split")
    def test_another_seed_holds_out_other_frames(self, tmp_path: Path) -> None:
        held_out = [
            tuple(
                prepare(
                    [SCAN],
                    RunConfig(prepare=PrepareConfig(val_fraction=0.3, split_seed=s), group=GroupConfig(gridsize=1)),
                    tmp_path / str(s),
                )
                .groups("val")
                .members[:, 0]
            )
            for s in range(3)
        ]
        assert len(set(held_out)) == 3

    @pytest.mark.contract("data.split.constraints")
    def test_held_out_frames_without_neighbours_leave_a_good_scan_without_validation(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = RunConfig(
            prepare=PrepareConfig(val_fraction=1 / M), group=GroupConfig(gridsize=2, max_distance_px=10.0)
        )
        (alone,) = prepare([SCAN], run_config(val_fraction=1 / M), tmp_path / "single").groups("val").members[:, 0]
        positions_px = np.stack(np.divmod(np.arange(M), 6), 1) * 3.0
        apart = positions_px.copy()
        apart[alone] += 1000
        assert len(prepare([changed(positions_px=positions_px)], config, tmp_path / "near").groups("val")) == 1
        with caplog.at_level(logging.WARNING):
            store = prepare([changed(positions_px=apart)], config, tmp_path / "apart")
        assert len(store.groups("val")) == 0
        assert len(store.groups("train")) == M - 1
        assert store.max_offset_px < 10
        assert "no validation groups can be formed from the 1 held-out frames" in caplog.text

    @pytest.mark.contract("data.split.told")
    @pytest.mark.parametrize("group", [{"n_groups": M}, {"n_subsample": M}, {"gridsize": 4}])
    def test_groups_that_the_held_out_frames_prevent_say_so(self, tmp_path: Path, group: dict[str, Any]) -> None:
        two = changed(scan_id=(np.arange(M) >= 16).astype(np.int64)) if "gridsize" in group else SCAN
        with pytest.raises(GroupingError, match=r"6 of 30 frames are held out for validation \(val_fraction 0\.2\)"):
            prepare([two], run_config(**group), tmp_path / "store")
        prepare([two], run_config(val_fraction=0, **group), tmp_path / "store")
        with pytest.raises(GroupingError) as caught:
            prepare([two], run_config(n_groups=99), tmp_path / "other")
        assert "held out" not in str(caught.value)


class TestProbe:
    @pytest.mark.contract("data.probe.gauge")
    def test_probe_of_unknown_power_gets_the_photons_of_the_frames_and_the_factor_is_kept(self, tmp_path: Path) -> None:
        given = changed(probe=SCAN.probe * np.complex64(37.5), probe_is_calibrated=False)
        store = prepare([given], run_config(), tmp_path / "store")
        entry, probe = store.scans[0], store.tensors["probes"][0]
        power = float(probe.to(torch.complex128).abs().square().sum())
        assert power == pytest.approx(entry.scaling.photons_per_frame, rel=1e-6)
        assert_close(probe / entry.probe_factor, torch.from_numpy(given.probe), "single")

    @pytest.mark.contract("data.probe.gauge")
    def test_power_behind_a_beam_stop_is_not_missing_from_the_probe(self, tmp_path: Path) -> None:
        mask = np.hypot(*(np.indices((N, N)) - N // 2)) > 8
        store = prepare([changed(probe_is_calibrated=False, mask=mask)], run_config(), tmp_path / "store")
        probe = store.tensors["probes"][0].to(torch.complex128)
        photons = store.scans[0].scaling.photons_per_frame
        assert photons < 0.9 * FRAMES.sum(axis=(1, 2)).mean()
        assert float(measurement(far_field(probe))[torch.from_numpy(mask)].sum()) == pytest.approx(photons, rel=1e-6)

    @pytest.mark.contract("data.probe.gauge")
    def test_probe_that_only_the_beam_stop_sees_is_refused(self, tmp_path: Path) -> None:
        mask = np.ones((N, N), bool)
        mask[N // 2, N // 2] = False
        flat = changed(probe=np.ones((1, N, N), np.complex64), probe_is_calibrated=False, mask=mask)
        with pytest.raises(ScanError, match=r"'probeGuess'.*good pixels.*--probe"):
            prepare([flat], run_config(), tmp_path / "store")

    @pytest.mark.contract("data.probe.dose")
    @pytest.mark.parametrize(
        ("stated", "configured", "factor"), [(1e4, 4e4, 2.0), (1e4, 1e4, 1.0), (1e4, None, 1.0), (None, 1e7, 0.1)]
    )
    def test_calibrated_probe_of_amplitudes_follows_the_configured_dose(
        self, tmp_path: Path, stated: float | None, configured: float | None, factor: float
    ) -> None:
        given = changed(
            frames=ArrayFrames(np.sqrt(FRAMES).astype(np.float32)),
            domain="amplitude",
            metadata={} if stated is None else {"nphotons": stated},
        )
        config = RunConfig(prepare=PrepareConfig(nphotons=configured), group=GroupConfig(gridsize=1))
        store = prepare([given], config, tmp_path / "store")
        assert store.scans[0].probe_factor == pytest.approx(factor, rel=1e-12)
        assert_close(store.tensors["probes"][0], factor * torch.from_numpy(SCAN.probe), "single")

    @pytest.mark.contract("data.probe.calibrated")
    def test_calibrated_probe_is_left_as_it_is(self, tmp_path: Path) -> None:
        store = prepare([SCAN], run_config(), tmp_path / "store")
        assert store.scans[0].probe_factor == 1
        assert torch.equal(store.tensors["probes"][0], torch.from_numpy(SCAN.probe))

    @pytest.mark.contract("data.probe.calibrated")
    def test_replaced_probe_is_brought_into_the_gauge(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "probe.npz", probe=SCAN.probe * np.complex64(1e-3))
        config = RunConfig(prepare=PrepareConfig(probe=str(tmp_path / "probe.npz")), group=GroupConfig(gridsize=1))
        store = prepare([SCAN], config, tmp_path / "store")
        assert store.scans[0].probe_factor > 100
        shape = store.tensors["probes"][0] / store.scans[0].probe_factor
        assert_close(shape, torch.from_numpy(SCAN.probe * np.complex64(1e-3)), "single")


class TestSeveralScans:
    @pytest.mark.contract("data.groups.one-scan")
    def test_groups_mix_neither_files_nor_the_scans_of_a_file(self, tmp_path: Path) -> None:
        two = changed(scan_id=np.arange(M, dtype=np.int64) % 2)
        store = prepare([two, scan(simulation_seed=1)], run_config(gridsize=2), tmp_path / "store")
        kind = np.concatenate([two.scan_id, np.full(M, 2)])
        for split in ("train", "val"):
            members = store.groups(split).members
            assert (kind[members] == kind[members[:, :1]]).all()
        assert set(kind[store.groups("train").members[:, 0]]) == {0, 1, 2}

    @pytest.mark.contract("data.scans.own")
    def test_each_scan_has_its_own_scale_probe_and_mask(self, tmp_path: Path) -> None:
        bright = scan(photons_per_frame=1e6, probe_modes=2, probe_kind="gaussian", simulation_seed=1)
        mask = np.ones((N, N), bool)
        mask[0] = False
        both = prepare([SCAN, dataclasses.replace(bright, mask=mask)], run_config(val_fraction=0), tmp_path / "both")
        alone = prepare([SCAN], run_config(val_fraction=0), tmp_path / "alone")
        assert both.scans[0].scaling == alone.scans[0].scaling
        assert both.scans[1].scaling.photons_per_frame > 50 * both.scans[0].scaling.photons_per_frame
        assert (both.scans[1].first_frame, both.scans[1].n_frames) == (M, M)
        probes = both.tensors["probes"]
        assert probes.shape == (2, 2, N, N)
        assert torch.equal(probes[0, :1], torch.from_numpy(SCAN.probe))
        assert not probes[0, 1].any()
        assert torch.equal(probes[1], torch.from_numpy(bright.probe))
        assert both.tensors["masks"].sum(dim=(1, 2)).tolist() == [N * N, N * N - N]

    @pytest.mark.contract("data.scans.own")
    def test_frames_of_all_scans_follow_each_other(self, tmp_path: Path) -> None:
        other = scan(simulation_seed=1, n_frames=20)
        store = prepare([SCAN, other], run_config(), tmp_path / "store")
        np.testing.assert_array_equal(frames_of(store), np.concatenate([FRAMES, other.frames[:]]))
        np.testing.assert_array_equal(
            store.tensors["positions_px"].numpy(), np.concatenate([SCAN.positions_px, other.positions_px])
        )
        assert store.tensors["frame_scan"].tolist() == [0] * M + [1] * 20

    @pytest.mark.contract("data.scans.alike")
    @pytest.mark.parametrize(
        "other",
        [
            scan(n_px=64, object_px=128, n_frames=5),
            changed(frames=ArrayFrames(np.sqrt(FRAMES).astype(np.float32)), domain="amplitude", source="other"),
        ],
        ids=["size", "domain"],
    )
    def test_scans_of_another_size_or_domain_are_refused(self, tmp_path: Path, other: Scan) -> None:
        with pytest.raises(ScanError, match=r"expected N = 32 and counts as in simulate.*store of their own"):
            prepare([SCAN, other], run_config(), tmp_path / "store")
        assert not everything_under(tmp_path)

    @pytest.mark.contract("data.scans.domain")
    def test_configured_domain_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        config = RunConfig(prepare=PrepareConfig(domain="amplitude"), group=GroupConfig(gridsize=1))
        with pytest.raises(ConfigError, match=r"expected 'counts', which the frames of simulate.* found 'amplitude'"):
            prepare([SCAN], config, tmp_path / "store")
        assert not everything_under(tmp_path)


class TestReopening:
    @pytest.mark.contract("data.store.reopened")
    def test_preparing_the_same_again_opens_the_same_store(self, tmp_path: Path) -> None:
        write_scan(SCAN, tmp_path / "scan.npz")
        first = prepare([read_scan(tmp_path / "scan.npz")], run_config(), tmp_path / "store")
        times = {path: path.stat().st_mtime_ns for path in everything_under(tmp_path / "store")}
        second = prepare([read_scan(tmp_path / "scan.npz")], run_config(), tmp_path / "store")
        assert {path: path.stat().st_mtime_ns for path in everything_under(tmp_path / "store")} == times
        assert (second.scans, second.config, second.fingerprint) == (first.scans, first.config, first.fingerprint)

    @pytest.mark.contract("data.store.fingerprint")
    @pytest.mark.parametrize(
        ("config", "field"),
        [
            (run_config(val_fraction=0.3), "prepare.val_fraction"),
            (run_config(gridsize=2), "group.gridsize"),
            (run_config(group_seed=1), "group.group_seed"),
        ],
    )
    def test_another_configuration_is_an_error_that_names_the_field(
        self, tmp_path: Path, config: RunConfig, field: str
    ) -> None:
        prepare([SCAN], run_config(), tmp_path / "store")
        with pytest.raises(
            StoreError, match=rf"store: was made from other .*; differences: {field} \(\S+ then, \S+ now\)\."
        ):
            prepare([SCAN], config, tmp_path / "store")

    @pytest.mark.contract("data.store.fingerprint")
    @pytest.mark.parametrize(
        ("other", "field"),
        [
            (changed(positions_px=SCAN.positions_px + 0.5), "positions_px"),
            (changed(probe=SCAN.probe * np.complex64(2)), "probe"),
            (changed(frames=ArrayFrames(FRAMES + np.uint16(1))), "frames"),
            (changed(mask=np.arange(N * N).reshape(N, N) > 0), "mask"),
            (changed(probe_is_calibrated=False), "probe_is_calibrated"),
            (changed(geometry=Geometry(object_pixel_m=1e-8)), "geometry"),
            (changed(metadata={"nphotons": 3.0}), "metadata"),
            (changed(truth_patches=np.ones((M, N, N), np.complex64)), "truth_patches"),
        ],
    )
    def test_another_scan_is_an_error_that_names_it_and_the_field(
        self, tmp_path: Path, other: Scan, field: str
    ) -> None:
        prepare([SCAN], run_config(), tmp_path / "store")
        with pytest.raises(StoreError, match=rf"differences: scan 0 \(simulate\(dead_leaves, seed 0\)\) {field}[ .]"):
            prepare([other], run_config(), tmp_path / "store")

    @pytest.mark.contract("data.store.fingerprint.frames")
    @pytest.mark.parametrize("compressed", [True, False])
    def test_other_frames_of_the_same_file_are_another_scan(self, tmp_path: Path, compressed: bool) -> None:
        frames = np.concatenate([FRAMES, FRAMES + np.uint16(1)])
        twice = changed(
            frames=ArrayFrames(frames),
            positions_px=np.tile(SCAN.positions_px, (2, 1)),
            scan_id=np.tile(SCAN.scan_id, 2),
        )
        write_scan(twice, tmp_path / "scan.npz", compressed=compressed)
        first, second = (read_scan(tmp_path / "scan.npz", frames=cut) for cut in (slice(None, M), slice(M, None)))
        prepare([first], run_config(), tmp_path / "store")
        for other in (second, dataclasses.replace(first, frames=ArrayFrames(first.frames[:] // 2))):
            with pytest.raises(StoreError, match=r"differences: scan 0 \(.*scan.npz\) frames"):
                prepare([other], run_config(), tmp_path / "store")

    @pytest.mark.contract("data.store.fingerprint.frames")
    @pytest.mark.parametrize("compressed", [True, False])
    def test_frames_that_stay_in_their_file_are_not_read_to_know_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool
    ) -> None:
        write_scan(SCAN, tmp_path / "scan.npz", compressed=compressed)
        given = read_scan(tmp_path / "scan.npz", frames=slice(2, None))
        prepare([given], run_config(), tmp_path / "store")

        def unwanted(*_: Any) -> Any:
            raise AssertionError("the frames were read")

        monkeypatch.setattr(type(given.frames), "chunks", unwanted)
        prepare([given], run_config(), tmp_path / "store")

    @pytest.mark.contract("data.store.fingerprint")
    def test_folder_of_something_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(StoreError, match="expected a store"):
            prepare([SCAN], run_config(), tmp_path)
        assert [path.name for path in everything_under(tmp_path)] == ["notes.txt"]


class TestIncomplete:
    @pytest.mark.contract("data.store.atomic")
    @pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError])
    @pytest.mark.parametrize("when", ["frames", "tables"])
    def test_interrupted_preparation_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], when: str
    ) -> None:
        def fail(*_: Any, **__: Any) -> Any:
            raise failure("now")

        def some_then_fail(given: Scan, *_: Any) -> Iterator[np.ndarray]:
            yield FRAMES[:10]
            raise failure("now")

        if when == "frames":
            monkeypatch.setattr(writing_module, "iter_checked_chunks", some_then_fail)
        else:
            monkeypatch.setattr(writing_module, "measure_scaling", fail)
        with pytest.raises(StoreError if failure is OSError else failure, match="now"):
            prepare([SCAN], run_config(), tmp_path / "new" / "folder" / "store")
        assert not everything_under(tmp_path)
        monkeypatch.undo()
        assert prepare([SCAN], run_config(), tmp_path / "new" / "folder" / "store").n_frames == M

    @pytest.mark.contract("data.store.atomic")
    def test_folders_that_were_there_stay(self, tmp_path: Path) -> None:
        (tmp_path / "runs").mkdir()
        with pytest.raises(GroupingError, match="n_groups 99"):
            prepare([SCAN], run_config(n_groups=99), tmp_path / "runs" / "a" / "store")
        assert everything_under(tmp_path) == [tmp_path / "runs"]

    @pytest.mark.contract("data.store.damage")
    @pytest.mark.parametrize(
        "name",
        ["scans/*/frames.memmap", "tables/*/probes.memmap", "tables/*/train/members.memmap", "scans/*/meta.json"],
    )
    @pytest.mark.parametrize("how", ["truncated", "removed"])
    def test_file_of_another_size_is_found_on_opening(self, tmp_path: Path, name: str, how: str) -> None:
        prepare([SCAN], run_config(), tmp_path / "store")
        (path,) = (tmp_path / "store").glob(name)
        size = path.stat().st_size
        if how == "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.unlink()
        found = size - 1 if how == "truncated" else 0
        with pytest.raises(StoreError, match=rf"{path}: expected {size} bytes; found {found}\. Prepare"):
            Store.open(tmp_path / "store")

    @pytest.mark.contract("data.store.damage")
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m: json.dumps(m)[:-5], "expected JSON"),
            (lambda m: json.dumps(m | {"schema": 99}), "'schema': expected 4; found 99"),
            (lambda m: "[]", "'schema'"),
            (lambda m: json.dumps({"schema": 4}), "incomplete"),
        ],
    )
    def test_damaged_or_foreign_manifest_is_a_store_error(self, tmp_path: Path, change: Any, message: str) -> None:
        prepare([SCAN], run_config(), tmp_path / "store")
        path = tmp_path / "store" / "store.json"
        path.write_text(change(json.loads(path.read_text())))
        with pytest.raises(StoreError, match=message):
            Store.open(tmp_path / "store")


class TestRefusals:
    @pytest.mark.contract("data.refuse.size")
    @pytest.mark.parametrize(
        ("n_px", "words"),
        [(100, ["Pad", "--crop-px 128"]), (48, ["Crop", "--crop-px 32"]), (40, ["Crop", "--crop-px 32"])],
    )
    def test_frame_size_without_a_network_is_refused_with_the_way_out(
        self, tmp_path: Path, n_px: int, words: list[str]
    ) -> None:
        given = scan(n_px=n_px, object_px=n_px + 40, n_frames=4)
        with pytest.raises(ScanError, match="32, 64, 128, 256") as caught:
            prepare([given], run_config(), tmp_path / "store")
        for word in ["'diffraction'", f"found N = {n_px}", *words]:
            assert word in str(caught.value)
        assert not everything_under(tmp_path)

    @pytest.mark.contract("data.groups.seed")
    @settings(max_examples=3)
    @given(seed=seeds)
    def test_groups_follow_their_seed(self, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
        folder = tmp_path_factory.mktemp("groups")
        config = run_config(gridsize=2, group_seed=seed)
        a, b = (prepare([SCAN], config, folder / name).groups("train").members for name in "ab")
        np.testing.assert_array_equal(a, b)
