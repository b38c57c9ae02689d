"""A run that is killed anywhere and resumed, and a run on two processes, end with the weights of an undisturbed one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from test_training import assert_same_weights, run, tiny, weights
from tiny_run import TINY, TINY_SIMULATION
from tolerances import relative_l2

from torchptycho.analysis.history import read_history
from torchptycho.core.config import LogConfig, save_config
from torchptycho.core.errors import ConfigError
from torchptycho.data.datamodule import PtychoDataModule
from torchptycho.data.datasets import GroupDataset
from torchptycho.data.prepare import prepare
from torchptycho.data.samplers import EpochBatchSampler, InOrderSampler
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.training.dry_run import plan_training
from torchptycho.training.runtime import check_devices
from torchptycho.training.train import train


class _Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


class _KillAfter(Callback):
    def __init__(self, batches: int) -> None:
        self._left = batches

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._left -= 1
        if not self._left:
            raise _Killed


class TestKilled:
    @pytest.mark.contract("train.resume.same")
    def test_a_run_is_not_resumed_on_a_prepared_store_of_other_scans(self, tmp_path: Path) -> None:
        bright = simulate(TINY_SIMULATION)
        dim = simulate(dataclasses.replace(TINY_SIMULATION, photons_per_frame=1e4))
        large = simulate(dataclasses.replace(TINY_SIMULATION, n_px=64, object_px=112))
        config = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, steps=1))
        longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
        stores = [prepare([scan], config, tmp_path / name) for name, scan in (("a", bright), ("b", dim), ("c", large))]
        train(stores[0], config, tmp_path / "run", progress=False)
        for store in stores[1:]:
            with pytest.raises(ConfigError, match=r"expected the scans that .*last\.ckpt was trained on; found others"):
                train(store, longer, tmp_path / "run", resume=True, progress=False)
            with pytest.raises(ConfigError, match=r"expected the scans that .*last\.ckpt was trained on; found others"):
                plan_training([store.path], longer, tmp_path / "run", resume=True)
        plan_training([stores[0].path], longer, tmp_path / "run", resume=True)
        train(stores[0], longer, tmp_path / "run", resume=True, progress=False)

    @pytest.mark.contract("train.resume")
    @pytest.mark.parametrize(
        ("killed_after", "step", "options", "held_out"),
        [
            (5, 4, {"schedule": "plateau"}, 0.05),
            (12, 10, {"schedule": "cosine", "num_workers": 1}, 0.05),
            (6, 2, {"schedule": "plateau", "accumulate": 2}, 0.0),
        ],
        ids=["first epoch", "second epoch, a loading process", "accumulated, nothing held out"],
    )
    def test_run_that_is_killed_within_an_epoch_ends_like_an_undisturbed_one(
        self,
        tiny_scan: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        killed_after: int,
        step: int,
        options: dict[str, Any],
        held_out: float,
    ) -> None:
        # 61 or 64 frames in batches of 8: an epoch has 8, and is followed by a validation.
        monkeypatch.setattr("torchptycho.training.schedule.VALIDATE_EVERY_STEPS", 1)
        config = tiny(train={"epochs": 2, "warmup_steps": 2, **options}, prepare={"val_fraction": held_out})
        config = dataclasses.replace(config, log=LogConfig(checkpoint_every_steps=2))
        whole = run(tiny_scan, config, tmp_path / "whole")
        with pytest.raises(_Killed):
            run(tiny_scan, config, tmp_path / "parts", callbacks=[_KillAfter(killed_after)])
        last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
        assert torch.load(last, weights_only=True)["global_step"] == step
        resumed = run(tiny_scan, config, tmp_path / "parts", resume=True)
        assert_same_weights(resumed.last, whole.last)
        assert_same_weights(resumed.checkpoint, whole.checkpoint)
        name = "val/nll" if held_out else "train/loss_epoch"
        assert read_history(tmp_path / "parts")[name] == read_history(tmp_path / "whole")[name]

    @pytest.mark.contract("train.resume")
    def test_plateau_remembers_the_loss_after_which_the_checkpoint_was_written(
        self, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torchptycho.training.schedule.VALIDATE_EVERY_STEPS", 1)
        monkeypatch.setattr("torchptycho.models.lightning_module._PLATEAU_STEPS", 1)
        # An epoch is one step.
        config = tiny(train={"epochs": 6, "batch_size": 64, "warmup_steps": 0, "learning_rate": 1e-12})
        whole = run(tiny_scan, config, tmp_path / "whole")
        with pytest.raises(_Killed):
            run(tiny_scan, config, tmp_path / "parts", callbacks=[_KillAfter(4)])
        resumed = run(tiny_scan, config, tmp_path / "parts", resume=True)
        plateaus = [torch.load(result.last, weights_only=True)["lr_schedulers"][1] for result in (whole, resumed)]
        assert plateaus[0] == plateaus[1]
        # No step makes anything better, and all six losses were seen.
        assert plateaus[1]["last_epoch"] == 6
        assert plateaus[1]["best"] == pytest.approx(dict(read_history(tmp_path / "whole")["val/nll"])[0], rel=1e-6)

    @pytest.mark.contract("train.checkpoint.whole")
    def test_checkpoint_that_is_being_written_does_not_touch_the_last_one(
        self, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = tiny(train={"epochs": 2})
        monkeypatch.setattr("torchptycho.training.schedule.VALIDATE_EVERY_STEPS", 1)
        save, calls = TorchCheckpointIO.save_checkpoint, []

        def half(self: Any, content: Any, path: Any, options: Any = None) -> None:
            calls.append(path)
            if len(calls) == 4:
                Path(path).write_bytes(b"half a file")
                raise _Killed
            save(self, content, path, options)

        monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", half)
        with pytest.raises(_Killed):
            run(tiny_scan, config, tmp_path / "run")
        last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == 8


SCRIPT = """
import sys, warnings
from pathlib import Path
import yaml
from torchptycho.core.config import RunConfig, from_dict
from torchptycho.training.train import train

warnings.simplefilter("default")
scan, out, config = sys.argv[1:]
train(scan, from_dict(RunConfig, yaml.safe_load(Path(config).read_text())), out, progress=False)
"""


class TestProcesses:
    @pytest.mark.contract("train.ddp")
    def test_two_processes_train_like_one_with_twice_the_batch(self, tiny_scan: Path, tmp_path: Path) -> None:
        # 60 groups: 3 batches of 20, and 3 of 10 on each of two.
        config = tiny(
            train={"epochs": 2, "batch_size": 20, "warmup_steps": 2},
            model={"probe_trainable": True},
            prepare={"val_fraction": 4 / 64},
        )
        one = run(tiny_scan, config, tmp_path / "one")
        halved = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=10, devices=2))
        save_config(halved, tmp_path / "two.yaml")
        (tmp_path / "script.py").write_text(SCRIPT)
        # Python's own path does not hold the project where it is not installed.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        told = [str(path) for path in (tmp_path / "script.py", tiny_scan, tmp_path / "two", tmp_path / "two.yaml")]
        answer = subprocess.run(
            [sys.executable, *told], env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert answer.returncode == 0, answer.stderr[-3000:]
        for complaint in ("unused parameters", "find_unused", "sync_dist", "Grad strides", "destroy_process_group"):
            assert complaint not in answer.stderr, answer.stderr[-3000:]
        two = weights(tmp_path / "two" / "checkpoints" / "last.ckpt")
        for name, value in weights(one.last).items():
            # Sums over 10 and 10 frames instead of 20 differ by rounding, which Adam's first steps enlarge.
            assert relative_l2(two[name].double(), value.double()) < 1e-3, name
        mine, theirs = (dict(read_history(tmp_path / which)["val/nll"]) for which in ("one", "two"))
        assert mine.keys() == theirs.keys()
        assert list(theirs.values()) == pytest.approx(list(mine.values()), rel=1e-4)

    @pytest.mark.contract("train.ddp.machines")
    def test_devices_and_nodes_are_those_that_torchrun_started(
        self, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0",
                   "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29511"}  # fmt: skip
        for name, value in started.items():
            monkeypatch.setenv(name, value)
        check_devices("cpu", devices=2, nodes=2)
        with pytest.raises(ConfigError, match=r"devices 2: not on this machine.*world size"):
            run(tiny_scan, tiny(train={"devices": 2}), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.contract("train.ddp.shares")
    @pytest.mark.parametrize("ranks", [2, 3])
    def test_processes_share_an_epoch_without_overlap_and_batch_by_batch(self, tiny_run: Path, ranks: int) -> None:
        dataset = GroupDataset(Store.open(tiny_run / "store"), "train")
        together = EpochBatchSampler(dataset, 3, 4 * ranks)
        shares = [EpochBatchSampler(dataset, 3, 4, ranks, rank) for rank in range(ranks)]
        for order in (together, *shares):
            order.set_epoch(5)
        parts = [list(share) for share in shares]
        assert len({len(part) for part in parts}) == 1
        for whole, *dealt in zip(together, *parts, strict=True):
            assert sorted(whole) == sorted(group for batch in dealt for group in batch)
            assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        assert sorted(group for part in parts for batch in part for group in batch) == list(range(len(dataset)))

    @pytest.mark.contract("train.ddp.shares")
    def test_every_held_out_group_is_looked_at_once(self, tiny_run: Path) -> None:
        dataset = GroupDataset(Store.open(tiny_run / "store"), "val")
        assert sorted(group for rank in range(2) for group in InOrderSampler(dataset, 2, rank)) == list(
            range(len(dataset))
        )
        assert list(InOrderSampler(dataset, 99, 98)) == [0]

    @pytest.mark.contract("train.epoch")
    def test_each_epoch_has_another_order_and_every_frame_once(self, tiny_run: Path) -> None:
        data = PtychoDataModule(Store.open(tiny_run / "store"), batch_size=1)
        loader = data.train_dataloader()
        orders = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            orders.append(torch.cat([batch.members.flatten() for batch in loader]).tolist())
        assert orders[0] != orders[1]
        assert sorted(orders[0]) == sorted(orders[1])
        assert len(set(orders[0])) == len(orders[0]) == len(loader)
