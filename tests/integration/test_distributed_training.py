"""Several processes train together: how the others learn what the first one did, and what each of them sees."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from programs import Program
from tiny_run import TINY, TINY_SIMULATION

from torchptycho.core.config import save_config
from torchptycho.core.errors import ConfigError, StoreError, TorchptychoError
from torchptycho.data.store import Store
from torchptycho.training import distributed
from torchptycho.training.distributed import RankCoordinator, wait_for_store


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def processes(rank: int, size: int, port: int) -> RankCoordinator:
    class Launched(TorchElasticEnvironment):
        """What a launcher tells one of its processes."""

        main_address, main_port = "127.0.0.1", port  # type: ignore[assignment]

        def world_size(self) -> int:
            return size

        def global_rank(self) -> int:
            return rank

    return RankCoordinator.from_environment(Launched())


def in_processes(work: Callable[[int], Any], size: int, folder: Path, kill: int | None = None) -> dict[int, str]:
    """What `work(rank)` returned or raised in each of so many processes."""

    def run(rank: int) -> None:
        try:
            told = f"{work(rank)}"
        except (TorchptychoError, AssertionError) as error:
            told = f"{type(error).__name__}: {error}"
        (folder / f"{rank}.txt").write_text(told)

    context = multiprocessing.get_context("fork")
    started = [context.Process(target=run, args=(rank,)) for rank in range(size)]
    for process in started:
        process.start()
    if kill is not None:
        time.sleep(1.0)
        assert started[kill].pid is not None
        os.kill(started[kill].pid, signal.SIGKILL)
    for process in started:
        process.join(60)
        assert not process.is_alive()
    return {rank: (folder / f"{rank}.txt").read_text() for rank in range(size) if rank != kill}


class TestFirstGoes:
    @pytest.mark.contract("train.ddp.prepare")
    def test_others_begin_when_the_first_has_ended(self, tmp_path: Path) -> None:
        port = free_port()

        def work(rank: int) -> list[bool]:
            together_ = processes(rank, 3, port)

            def step(first: bool) -> bool:
                if first:
                    time.sleep(0.3)
                    (tmp_path / "prepared").write_text("")
                return (tmp_path / "prepared").exists()

            done = [together_.rank_zero_first(step) for _ in range(2)]
            time.sleep(0.5)  # the first one still answers while it trains
            return done

        assert in_processes(work, 3, tmp_path) == dict.fromkeys(range(3), "[True, True]")

    @pytest.mark.contract("train.ddp.prepare")
    def test_others_end_with_the_error_of_the_first(self, tmp_path: Path) -> None:
        port = free_port()

        def work(rank: int) -> None:
            def step(first: bool) -> None:
                assert first
                raise ConfigError("scan.npz: expected\nlight; found none.")

            processes(rank, 3, port).rank_zero_first(step)

        told = in_processes(work, 3, tmp_path)
        assert told[0].startswith("ConfigError: scan.npz: expected\nlight")
        why = "StoreError: the first process could not prepare the run: scan.npz: expected light; found none."
        assert (told[1], told[2]) == (why, why)

    @pytest.mark.contract("train.ddp.prepare")
    def test_others_end_when_the_first_is_killed(self, tmp_path: Path) -> None:
        port = free_port()
        told = in_processes(
            lambda rank: processes(rank, 2, port).rank_zero_first(lambda first: time.sleep(60)), 2, tmp_path, kill=0
        )
        assert "StoreError: the first process ended without a message" in told[1]

    @pytest.mark.contract("train.ddp.prepare")
    def test_first_that_never_answers_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(distributed, "_CONNECT_TIMEOUT_S", 0.5)
        with pytest.raises(StoreError, match=r"127\.0\.0\.1:\d+: the first process does not answer"):
            processes(1, 2, free_port())

    @pytest.mark.contract("train.ddp.prepare")
    def test_alone_or_started_by_the_first_there_is_nobody_to_wait_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for environment in (None, LightningEnvironment()):
            assert RankCoordinator.from_environment(environment).rank_zero_first(lambda first: first) is True
        monkeypatch.setattr(distributed, "_VISIBLE_TIMEOUT_S", 0.3)
        with pytest.raises(StoreError, match="expected the store that the first process has prepared"):
            wait_for_store(tmp_path)


SCRIPT = """
import json, sys
from pathlib import Path
import yaml
from lightning.pytorch.callbacks import Callback
from torchptycho.core.config import RunConfig, from_dict
from torchptycho.core.errors import TorchptychoError
from torchptycho.training.train import train

class Seen(Callback):
    def __init__(self):
        self.epochs = []
    def on_train_epoch_start(self, trainer, module):
        self.epochs.append([])
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.epochs[-1].append(batch.members.flatten().tolist())

out, config = Path(sys.argv[1]), from_dict(RunConfig, yaml.safe_load(Path(sys.argv[2]).read_text()))
seen = Seen()
result = train(sys.argv[3], config, out / "run", progress=False, callbacks=[seen])
told = {"rank": result.rank, "epochs": seen.epochs}
try:
    train(sys.argv[4], config, out / "bad", progress=False)
except TorchptychoError as error:
    told["error"] = f"{type(error).__name__}: {error}"
(out / f"told-{result.rank}.json").write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tiny_scan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Two processes, started as torchrun does, train on a good scan and then on one with a frame of NaN."""
    folder = tmp_path_factory.mktemp("together")
    with np.load(tiny_scan) as arrays:
        content = dict(arrays)
    content["diffraction"] = content["diffraction"].astype(np.float32)
    content["diffraction"][5, 3, 3] = np.nan
    np.savez(folder / "bad.npz", **content)
    config = dataclasses.replace(
        TINY, train=dataclasses.replace(TINY.train, epochs=2, batch_size=9, devices=2, warmup_steps=2)
    )
    save_config(config, folder / "config.yaml")
    (folder / "script.py").write_text(SCRIPT)
    shared = {
        "TORCHELASTIC_RUN_ID": "test",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    started = []
    for rank in range(2):
        (folder / f"printed-{rank}").mkdir()
        started.append(
            Program(
                *(folder, folder / "config.yaml", tiny_scan, folder / "bad.npz"),
                script=folder / "script.py",
                folder=folder / f"printed-{rank}",
                environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
        )
    answers = [program.communicate(timeout=200)[1] for program in started]
    assert [program.returncode for program in started] == [0, 0], "\n".join(answers)[-4000:]
    return folder, [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.contract("train.ddp.prepare")
def test_both_processes_end_with_the_reason_when_the_scan_is_bad(told: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (first, other) = told
    assert first["error"].startswith("ScanError:")
    assert "NaN or infinity in 1 frame: 5" in first["error"]
    reason = first["error"].removeprefix("ScanError: ")
    assert other["error"] == f"StoreError: the first process could not prepare the run: {reason}"
    assert not (folder / "bad").exists()


@pytest.mark.contract("train.ddp.frames")
def test_every_frame_is_seen_exactly_once_in_each_epoch(told: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, both = told
    trained = sorted(Store.open(folder / "run" / "store").groups("train").members.flatten().tolist())
    assert len(trained) == 61 < TINY_SIMULATION.n_frames
    for epoch in range(2):
        batches = [process["epochs"][epoch] for process in both]
        assert len(batches[0]) == len(batches[1]) == 4
        assert sorted(frame for process in batches for batch in process for frame in batch) == trained
        assert {len(batch) for process in batches for batch in process} <= {7, 8}
    assert both[0]["epochs"][0] != both[0]["epochs"][1]
