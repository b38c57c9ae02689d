"""Batches: whole groups gathered at once, in an order that can be told beforehand."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close

from torchptycho.core.config import GroupConfig, PrepareConfig, RunConfig, SimulateConfig
from torchptycho.core.scan import Scan
from torchptycho.data.batch import GroupBatch
from torchptycho.data.datamodule import PtychoDataModule
from torchptycho.data.datasets import GroupDataset
from torchptycho.data.prepare import prepare
from torchptycho.data.samplers import EpochBatchSampler, batches_per_epoch
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.physics.patches import extract, locate_corner

M, N = 30, 32


def scan(**options: Any) -> Scan:
    defaults = {"n_px": N, "object_px": 72, "n_frames": M, "photons_per_frame": 1e4}
    return simulate(SimulateConfig(**(defaults | options)))


def store_in(folder: Path, gridsize: int = 1, scans: int = 1) -> Store:
    config = RunConfig(prepare=PrepareConfig(val_fraction=0.2), group=GroupConfig(gridsize=gridsize))
    return prepare([scan(simulation_seed=seed) for seed in range(scans)], config, folder / f"store{gridsize}{scans}")


def members_by_epoch(module: PtychoDataModule, epochs: int) -> list[torch.Tensor]:
    loader = module.train_dataloader()
    found = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found.append(torch.cat([batch.members for batch in loader]))
    return found


class TestBatch:
    @pytest.mark.contract("data.batch.whole")
    @pytest.mark.parametrize("gridsize", [1, 2])
    def test_batch_is_gathered_whole_in_the_dtype_of_the_detector(self, tmp_path: Path, gridsize: int) -> None:
        store = store_in(tmp_path, gridsize)
        dataset = GroupDataset(store, "train")
        batch = dataset.__getitems__([3, 0, 5])
        assert isinstance(batch, GroupBatch)
        groups, count = store.groups("train"), gridsize**2
        assert batch.frames.shape == (3, count, N, N)
        assert batch.frames.dtype == torch.uint16
        np.testing.assert_array_equal(batch.members.numpy(), groups.members[[3, 0, 5]])
        np.testing.assert_array_equal(batch.frames.numpy(), store.frames.parts[0].numpy()[batch.members.numpy()])
        assert (batch.center_px.dtype, batch.offset_px.dtype) == (torch.float64, torch.float32)
        places = batch.center_px[:, None] + batch.offset_px
        assert_close(places, store.tensors["positions_px"][batch.members], "single")
        assert bool(batch.is_first.all())
        assert batch.truth is None

    @pytest.mark.contract("data.batch.whole")
    def test_loader_yields_batches_as_the_dataset_makes_them(self, tmp_path: Path) -> None:
        module = PtychoDataModule(store_in(tmp_path, 2), batch_size=16, predict_batch_size=32)
        assert {tuple(batch.frames.shape) for batch in module.train_dataloader()} == {(4, 4, N, N)}
        assert [batch.frames.shape[0] for batch in module.val_dataloader()] == [6]
        assert [batch.frames.shape[0] for batch in module.predict_dataloader()] == [8]

    @pytest.mark.contract("data.batch.copy")
    def test_batch_can_be_changed_without_changing_the_store(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        before = store.frames.parts[0].clone()
        batch = GroupDataset(store, "train").__getitems__([0, 1])
        batch.frames.zero_()
        assert torch.equal(store.frames.parts[0], before)

    @pytest.mark.contract("data.batch.scan")
    def test_batch_says_which_scan_its_groups_are_of(self, tmp_path: Path) -> None:
        store = store_in(tmp_path, scans=2)
        dataset = GroupDataset(store, "train")
        batch = dataset.__getitems__(range(len(dataset)))
        assert torch.equal(batch.scan, (batch.members[:, 0] >= M).long())
        predicted = GroupDataset(store, "predict", training_scan=1).__getitems__([0, 1])
        assert predicted.scan.tolist() == [1, 1]

    @pytest.mark.contract("data.truth")
    @pytest.mark.parametrize("gridsize", [1, 2])
    def test_truth_patches_are_those_that_extraction_gives(self, tmp_path: Path, gridsize: int) -> None:
        store = store_in(tmp_path, gridsize, scans=2)
        dataset = GroupDataset(store, "train", with_truth=True)
        batch = dataset.__getitems__([0, len(dataset) - 1, 3])
        assert batch.truth is not None
        for row, (which, members) in enumerate(zip(batch.scan.tolist(), batch.members, strict=True)):
            truth = scan(simulation_seed=which).truth
            assert truth is not None
            places = locate_corner(store.tensors["positions_px"][members], N)
            # Positions went through a centre and a float32 offset.
            assert_close(batch.truth[row], extract(torch.from_numpy(truth), places, N), "single")


class TestSplits:
    @pytest.mark.contract("data.predict.once")
    @pytest.mark.parametrize("gridsize", [1, 2, 3])
    @pytest.mark.parametrize("scans", [1, 2])
    def test_prediction_covers_every_frame_exactly_once(self, tmp_path: Path, gridsize: int, scans: int) -> None:
        store = store_in(tmp_path, gridsize, scans)
        batches = list(PtychoDataModule(store, predict_batch_size=12).predict_dataloader())
        fresh = torch.cat([batch.members[batch.is_first] for batch in batches])
        assert sorted(fresh.tolist()) == list(range(M * scans))

    @pytest.mark.contract("data.split")
    @pytest.mark.parametrize("gridsize", [1, 2])
    def test_validation_groups_are_seeded_by_held_out_frames(self, tmp_path: Path, gridsize: int) -> None:
        store = store_in(tmp_path, gridsize)
        trained = set(store.groups("train").members.ravel().tolist())
        batches = list(PtychoDataModule(store).val_dataloader())
        held_out = torch.cat([batch.members[:, 0] for batch in batches]).tolist()
        assert len(set(held_out)) == round(0.2 * M)
        assert not set(held_out) & trained


class TestOrder:
    @pytest.mark.contract("data.order")
    def test_order_depends_on_seed_and_epoch_alone(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        first, second = members_by_epoch(PtychoDataModule(store, batch_size=6, seed=3), 2)
        assert not torch.equal(first, second)
        torch.manual_seed(99)
        again = members_by_epoch(PtychoDataModule(store, batch_size=6, seed=3), 2)
        assert torch.equal(torch.stack(again), torch.stack([first, second]))
        other = members_by_epoch(PtychoDataModule(store, batch_size=6, seed=4), 1)[0]
        assert not torch.equal(other, first)
        assert sorted(first.flatten().tolist()) == sorted(store.groups("train").members[:, 0].tolist())

    @pytest.mark.contract("data.order")
    def test_global_generator_is_left_alone(self, tmp_path: Path) -> None:
        module = PtychoDataModule(store_in(tmp_path), batch_size=6)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        members_by_epoch(module, 1)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.contract("data.batches")
    @pytest.mark.parametrize(("batch_size", "sizes"), [(7, [6] * 4), (11, [8] * 3), (23, [12] * 2), (100, [24])])
    def test_no_batch_is_ragged_and_no_group_left_out(self, tmp_path: Path, batch_size: int, sizes: list[int]) -> None:
        module = PtychoDataModule(store_in(tmp_path), batch_size=batch_size)
        assert [batch.batch_size[0] for batch in module.train_dataloader()] == sizes
        assert module.batches_per_epoch() == len(module.train_dataloader()) == len(sizes)

    @pytest.mark.contract("data.batches")
    @given(groups=st.integers(1, 60), batch_groups=st.integers(1, 9), ranks=st.integers(1, 4), epoch=st.integers(0, 3))
    def test_every_group_is_in_one_batch_of_one_process(
        self, groups: int, batch_groups: int, ranks: int, epoch: int
    ) -> None:
        orders = [EpochBatchSampler(range(groups), 3, batch_groups, ranks, rank) for rank in range(ranks)]
        for order in orders:
            order.set_epoch(epoch)
        batches = [list(order) for order in orders]
        if groups < ranks:
            assert not any(batches)
            return
        assert sorted(group for mine in batches for batch in mine for group in batch) == list(range(groups))
        assert len({len(mine) for mine in batches}) == 1
        sizes = [len(batch) for mine in batches for batch in mine]
        assert max(sizes) <= max(batch_groups, 2 if ranks > 1 else 1)
        assert min(sizes) >= 1
        whole = [sum(len(mine[k]) for mine in batches) for k in range(len(batches[0]))]
        assert max(whole) - min(whole) <= 1
        assert len(orders[0]) == len(batches[0]) == batches_per_epoch(groups, batch_groups, ranks)

    @pytest.mark.contract("data.workers")
    def test_two_workers_give_the_same_batches_as_none(self, tmp_path: Path) -> None:
        store = store_in(tmp_path, 2)
        alone, helped = (PtychoDataModule(store, batch_size=16, num_workers=n) for n in (0, 2))
        for a, b in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
            assert bool((a == b).all())

    @pytest.mark.contract("data.workers")
    def test_threads_end_with_their_loop_and_pass_errors_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def working() -> list[str]:
            return [thread.name for thread in threading.enumerate() if "torchptycho" in thread.name]

        data = PtychoDataModule(store_in(tmp_path), batch_size=4, num_workers=2)
        batches = iter(data.train_dataloader())
        next(batches)
        assert working()
        del batches
        gc.collect()
        assert not working()

        def fail(*_: object) -> None:
            raise OSError("gone")

        monkeypatch.setattr(GroupDataset, "__getitems__", fail)
        for loader in (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()):
            with pytest.raises(OSError, match="gone"):
                next(iter(loader))
        assert not working()
