"""Training and prediction from end to end on tiny scans: what a run leaves, and that it can be trusted."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import pickle
import pickletools
import shutil
import signal
import warnings
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny_run import TINY, TINY_FLAGS, TINY_SIMULATION, Command
from tolerances import relative_l2

from torchptycho.cli.app import main
from torchptycho.core.config import PrepareConfig, ReconstructConfig, RunConfig, SimulateConfig, load_config
from torchptycho.core.errors import ConfigError, ScanError, StoreError
from torchptycho.core.scan import ArrayFrames
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.io import read_scan, write_scan
from torchptycho.models.checkpoints import find_checkpoint, load_checkpoint
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.training.train import TrainResult, read_history, train


def tiny(**sections: Any) -> RunConfig:
    """The tiny configuration with some fields of its sections replaced."""
    return dataclasses.replace(
        TINY, **{name: dataclasses.replace(getattr(TINY, name), **values) for name, values in sections.items()}
    )


def run(source: Any, config: RunConfig, out: Path, **options: Any) -> TrainResult:
    return train(source, config, out, progress=False, **options)


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def assert_same_weights(a: Path, b: Path) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class _Spoiler(Callback):
    """Makes the network worse after two epochs, so that the best is not the last."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch >= 2:
            assert isinstance(pl_module, PtychoPINN)
            pl_module.generator.head.bias.data += 3  # type: ignore[operator,union-attr]


class _Stopped(BaseException):
    """Nobody catches it."""


class _StopAtStart(Callback):
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise _Stopped


class TestRun:
    @pytest.mark.contract("train.run.files")
    def test_run_leaves_configuration_store_checkpoints_and_history(
        self, tiny_run: Path, tiny_result: TrainResult
    ) -> None:
        assert load_config(tiny_run / "config.yaml") == TINY
        assert (tiny_run / "store" / "store.json").is_file()
        assert tiny_result.checkpoint == tiny_run / "checkpoints" / "best.ckpt"
        assert tiny_result.last == tiny_run / "checkpoints" / "last.ckpt"
        assert tiny_result.last.is_file()
        history = read_history(tiny_run)
        assert {"train/nll", "train/loss", "val/nll", "learning_rate"} <= set(history)
        assert math.isfinite(history["val/nll"][-1][1])
        assert tiny_result.metrics["val/nll"] == pytest.approx(history["val/nll"][-1][1], rel=1e-6)

    @pytest.mark.contract("train.steps")
    @pytest.mark.parametrize("held_out", [0.05, 0.0])
    @pytest.mark.parametrize(("options", "wanted"), [({"steps": 13}, 13), ({"steps": 3}, 3), ({"epochs": 2}, 16)])
    def test_run_takes_exactly_the_steps_that_were_asked_for(
        self, tiny_scan: Path, tmp_path: Path, options: dict[str, int], wanted: int, held_out: float
    ) -> None:
        # An epoch of 61 or 64 groups has 8 batches.
        config = tiny(train=options, prepare={"val_fraction": held_out})
        result = run(tiny_scan, config, tmp_path / "run")
        for path in (result.last, result.checkpoint):
            assert torch.load(path, weights_only=True)["global_step"] == wanted
        # Judged at its end.
        name = "val/nll" if held_out else "train/loss_epoch"
        assert read_history(tmp_path / "run")[name][-1][0] == wanted - 1

    @pytest.mark.contract("train.steps")
    def test_longer_run_goes_on_within_the_epoch_in_which_a_shorter_one_ended(
        self, tiny_scan: Path, tmp_path: Path
    ) -> None:
        options = {"schedule": "constant", "warmup_steps": 0}
        whole = run(tiny_scan, tiny(train={"steps": 19, **options}), tmp_path / "whole")
        for steps in (5, 5, 13, 19):
            parts = run(
                tiny_scan,
                tiny(train={"steps": steps, **options}),
                tmp_path / "parts",
                resume=(tmp_path / "parts").exists(),
            )
            assert torch.load(parts.last, weights_only=True)["global_step"] == steps
        assert_same_weights(parts.last, whole.last)
        # Each epoch's mean, written where it is over, has all of its batches.
        means = [dict(read_history(tmp_path / name)["train/loss_epoch"]) for name in ("parts", "whole")]
        assert means[0][7] == pytest.approx(means[1][7], rel=1e-6)

    @pytest.mark.contract("train.steps")
    def test_cosine_falls_until_the_last_step(self, tiny_scan: Path, tmp_path: Path) -> None:
        config = tiny(train={"steps": 13, "schedule": "cosine", "warmup_steps": 0})
        result = run(tiny_scan, config, tmp_path / "run")
        state = torch.load(result.last, weights_only=True)["optimizer_states"][0]
        assert state["param_groups"][0]["lr"] == pytest.approx(1e-3 * TINY.train.learning_rate, rel=1e-6)

    @pytest.mark.contract("train.steps")
    @pytest.mark.parametrize(
        ("train", "held_out"),
        [({"epochs": 5, "batch_size": 16}, 0.05), ({"steps": 9, "batch_size": 16}, 0.05), ({"epochs": 5}, 0.0)],
    )
    def test_last_checkpoint_is_the_module_at_the_end_and_best_the_best_before(
        self, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], held_out: float
    ) -> None:
        monkeypatch.setattr("torchptycho.training.schedule.VALIDATE_EVERY_STEPS", 6)
        config = tiny(train=train, prepare={"val_fraction": held_out})
        result = run(tiny_scan, config, tmp_path / "run", callbacks=[_Spoiler()])
        history = read_history(tmp_path / "run")
        losses = dict(history["val/nll" if held_out else "train/loss_epoch"])
        # Lightning logs the step before the one that it counts.
        saved = {
            name: torch.load(path, weights_only=True)["global_step"] - 1
            for name, path in (("best", result.checkpoint), ("last", result.last))
        }
        assert saved["last"] == max(losses)
        assert losses[saved["best"]] == min(losses.values())
        assert saved["best"] < saved["last"]

    @pytest.mark.contract("train.best.start")
    def test_weights_are_kept_that_training_does_not_improve(
        self, tiny_scan: Path, tiny_result: TrainResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Worse(_Spoiler):
            def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
                assert isinstance(pl_module, PtychoPINN)
                pl_module.generator.head.bias.data += 3  # type: ignore[operator,union-attr]

        config = tiny(train={"steps": 9, "on_flat": "warn"})
        result = run(tiny_scan, config, tmp_path / "run", callbacks=[Worse()])
        assert not result.improved
        assert result.best_loss == result.start_loss
        assert "did not lower the loss of the held-out frames" in caplog.text
        assert float(weights(result.last)["generator.head.bias"].abs().max()) > 2
        assert float(weights(result.checkpoint)["generator.head.bias"].abs().max()) < 1
        assert min(dict(read_history(tmp_path / "run")["val/nll"]).values()) > result.start_loss  # type: ignore[operator]
        # The run that nothing spoils.
        assert tiny_result.improved
        assert tiny_result.best_loss < tiny_result.start_loss  # type: ignore[operator]
        # It is known when the run goes on.
        caplog.clear()
        longer = tiny(train={"steps": 12, "on_flat": "warn"})
        again = run(tiny_scan, longer, tmp_path / "run", callbacks=[Worse()], resume=True)
        assert (again.improved, again.start_loss) == (False, result.start_loss)

    @pytest.mark.contract("train.learns")
    def test_loss_falls(self, tiny_scan: Path, tmp_path: Path) -> None:
        config = tiny(train={"steps": 40, "learning_rate": 2e-3})
        run(tiny_scan, config, tmp_path / "run")
        losses = [value for _, value in read_history(tmp_path / "run")["train/loss_epoch"]]
        assert losses[-1] < 0.8 * losses[0]

    @pytest.mark.contract("train.seed")
    def test_same_seed_gives_the_same_weights_to_the_bit(
        self, tiny_scan: Path, tiny_result: TrainResult, tmp_path: Path
    ) -> None:
        torch.manual_seed(123)
        before = torch.get_rng_state()
        again = run(tiny_scan, TINY, tmp_path / "again")
        assert torch.equal(torch.get_rng_state(), before)
        assert_same_weights(again.last, tiny_result.last)
        other = run(tiny_scan, tiny(train={"seed": 1, "steps": 1}), tmp_path / "other")
        assert not torch.equal(
            weights(other.last)["generator.stem.weight"], weights(tiny_result.last)["generator.stem.weight"]
        )

    @pytest.mark.contract("train.probe")
    @pytest.mark.parametrize("trainable", [True, False])
    def test_trainable_probe_moves_and_a_fixed_one_does_not(
        self, tiny_scan: Path, tmp_path: Path, trainable: bool
    ) -> None:
        config = tiny(model={"probe_trainable": trainable}, group={"gridsize": 2, "n_groups": 24}, train={"steps": 3})
        result = run(tiny_scan, config, tmp_path / "run")
        given = torch.from_numpy(read_scan(tiny_scan).probe)
        moved = relative_l2(load_checkpoint(result.last).probe[0], given)
        assert (moved > 1e-5) if trainable else (moved == 0)

    @pytest.mark.contract("train.history")
    def test_existing_run_is_not_overwritten(self, tiny_run: Path, tiny_scan: Path) -> None:
        with pytest.raises(ConfigError, match=r"holds a finished or interrupted run.*--resume"):
            run(tiny_scan, TINY, tiny_run)

    @pytest.mark.contract("cli.overwrite")
    def test_run_is_replaced_on_request_and_nothing_else(
        self, command: Command, tiny_scan: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        flags: list[Any] = ["train", tiny_scan, "--out", out, *TINY_FLAGS, "--steps", "1"]
        assert command(*flags).code == 0
        (out / "mine.txt").write_text("mine")
        first = (out / "checkpoints" / "last.ckpt").read_bytes()
        answer = command(*flags, "--seed", "5")
        assert answer.code == 1
        assert "--overwrite" in answer.err
        assert command(*flags, "--seed", "5", "--gridsize", "1", "--overwrite", "--dry-run").code == 0
        assert (out / "checkpoints" / "last.ckpt").read_bytes() == first
        for wrong in (["--from", out], ["--from", out / "checkpoints" / "best.ckpt"], ["--resume"]):
            assert command(*flags, "--overwrite", *wrong).code == 1
            assert (out / "checkpoints" / "last.ckpt").read_bytes() == first
        answer = command(*flags, "--seed", "5", "--gridsize", "1", "--overwrite")
        assert answer.code == 0, answer.err
        assert (out / "checkpoints" / "last.ckpt").read_bytes() != first
        assert load_config(out / "config.yaml").group.gridsize == Store.open(out / "store").gridsize == 1
        assert (out / "mine.txt").read_text() == "mine"

    @pytest.mark.contract("train.scans")
    def test_two_scans_train_together_and_either_is_reconstructed(self, tiny_scan: Path, tmp_path: Path) -> None:
        other = simulate(dataclasses.replace(TINY_SIMULATION, simulation_seed=1, probe_kind="gaussian"))
        result = run([tiny_scan, other], tiny(train={"steps": 2}), tmp_path / "run")
        module = load_checkpoint(result.checkpoint)
        assert len(module.probe) == 2
        images = [
            reconstruct(module, other, ReconstructConfig(training_scan=which), accelerator="cpu", progress=False)
            for which in (0, 1)
        ]
        assert not np.array_equal(images[0].object, images[1].object)
        with pytest.raises(ConfigError, match="training_scan: expected 0 to 1; found 2"):
            reconstruct(module, other, ReconstructConfig(training_scan=2), accelerator="cpu", progress=False)


class _StopAfter(Callback):
    """Ends a run after an epoch, as a user would: politely, or by Ctrl+C."""

    def __init__(self, epoch: int, *, interrupt: bool = False) -> None:
        self._epoch, self._interrupt = epoch, interrupt

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self._epoch and self._interrupt:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self._epoch - 1 and not self._interrupt:
            trainer.should_stop = True


class TestResume:
    # An epoch is one step.
    CONFIG = tiny(train={"epochs": 4, "batch_size": 64, "warmup_steps": 2})

    @pytest.fixture
    def every_epoch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Validate after each epoch, not only about every 100 steps."""
        monkeypatch.setattr("torchptycho.training.schedule.VALIDATE_EVERY_STEPS", 1)

    @pytest.mark.contract("train.resume")
    @pytest.mark.parametrize(
        ("schedule", "interrupt", "held_out"),
        [("cosine", False, 0.05), ("plateau", True, 0.05), ("plateau", True, 0.0)],
    )
    def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
        self, tiny_scan: Path, tmp_path: Path, every_epoch: None, schedule: str, interrupt: bool, held_out: float
    ) -> None:
        config = dataclasses.replace(
            self.CONFIG,
            prepare=PrepareConfig(val_fraction=held_out),
            train=dataclasses.replace(self.CONFIG.train, schedule=schedule),
        )
        whole = run(tiny_scan, config, tmp_path / "whole")
        stop, last = _StopAfter(2, interrupt=interrupt), tmp_path / "parts" / "checkpoints" / "last.ckpt"
        # Lightning would end the process; the caller gets the KeyboardInterrupt instead.
        with pytest.raises(KeyboardInterrupt) if interrupt else contextlib.nullcontext():
            run(tiny_scan, config, tmp_path / "parts", callbacks=[stop])
        assert torch.load(last, weights_only=True)["global_step"] == 2
        resumed = run(tiny_scan, config, tmp_path / "parts", resume=True)
        assert torch.load(last, weights_only=True)["global_step"] == 4
        assert_same_weights(resumed.last, whole.last)
        name = "val/nll" if held_out else "train/loss_epoch"
        assert read_history(tmp_path / "parts")[name] == read_history(tmp_path / "whole")[name]

    @pytest.mark.contract("train.interrupt")
    def test_interrupt_reaches_the_caller_and_stays_possible(self, tiny_scan: Path, tmp_path: Path) -> None:
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_scan, TINY, tmp_path / "run", callbacks=[_StopAfter(0, interrupt=True)])
        assert signal.getsignal(signal.SIGINT) is before
        # Nothing to resume from yet: the same command begins anew.
        assert run(tiny_scan, tiny(train={"steps": 1}), tmp_path / "run").last.is_file()

    @pytest.mark.contract("train.resume.same")
    @pytest.mark.parametrize(
        ("config", "words"),
        [
            (tiny(model={"n_filters_scale": 2}), "model.n_filters_scale was 1, is 2"),
            (tiny(train={"batch_size": 4}), "train.batch_size was 8, is 4"),
            (tiny(loss={"tv_weight": 1.0}), "loss.tv_weight was 0.0, is 1.0"),
        ],
    )
    def test_run_is_not_continued_with_other_options(
        self, tiny_run: Path, tiny_scan: Path, config: RunConfig, words: str
    ) -> None:
        with pytest.raises(ConfigError, match=rf"cannot be continued with other options: {words}.*config\.yaml"):
            run(tiny_scan, config, tiny_run, resume=True)
        assert load_config(tiny_run / "config.yaml") == TINY

    @pytest.mark.contract("train.resume.moved")
    def test_run_is_resumed_on_its_scan_in_another_place(self, tiny_scan: Path, tmp_path: Path) -> None:
        scan = tmp_path / "scan.npz"
        shutil.copyfile(tiny_scan, scan)
        run(scan, tiny(train={"steps": 2}), tmp_path / "run")
        moved = tmp_path / "archive" / "night.npz"
        moved.parent.mkdir()
        moved.write_bytes(scan.read_bytes())
        scan.unlink()
        resumed = run(moved, tiny(train={"steps": 3}), tmp_path / "run", resume=True)
        assert torch.load(resumed.last, weights_only=True)["global_step"] == 3
        write_scan(simulate(dataclasses.replace(TINY_SIMULATION, simulation_seed=9)), moved)
        with pytest.raises(StoreError, match=r"other files or options"):
            run(moved, tiny(train={"steps": 4}), tmp_path / "run", resume=True)

    @pytest.mark.contract("train.resume.first")
    def test_first_start_of_a_run_that_is_to_resume_begins_and_says_so(
        self, tiny_scan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = tiny(train={"steps": 9})
        with pytest.raises(_Stopped):
            run(tiny_scan, config, tmp_path / "run", resume=True, callbacks=[_StopAtStart()])
        # The store is there, a checkpoint is not.
        for messages in (1, 2, 2):
            if messages == 2:
                result = run(tiny_scan, config, tmp_path / "run", resume=True)
            assert caplog.text.count("no checkpoint to resume from yet; training begins from the start") == messages
        assert torch.load(result.last, weights_only=True)["global_step"] == 9
        result.last.unlink()
        with pytest.raises(
            StoreError, match=r"last\.ckpt: expected a checkpoint to resume from; found best\.ckpt only"
        ):
            run(tiny_scan, config, tmp_path / "run", resume=True)


class _Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class TestCheckpoint:
    @pytest.mark.contract("train.checkpoint.self-sufficient")
    def test_checkpoint_alone_gives_the_same_image(
        self, tiny_result: TrainResult, tiny_scan: Path, tmp_path: Path
    ) -> None:
        shutil.copy(tiny_result.checkpoint, tmp_path / "model.ckpt")
        module = PtychoPINN.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
        assert module.config == TINY
        assert not bool(module.input_scale.isnan().any())
        assert_image = [
            reconstruct(given, tiny_scan, accelerator="cpu", progress=False).object
            for given in (module, tiny_result.checkpoint)
        ]
        assert np.array_equal(*assert_image)

    @pytest.mark.contract("train.checkpoint.plain")
    def test_checkpoint_holds_tensors_and_plain_data_only(self, tiny_result: TrainResult) -> None:
        told = torch.load(tiny_result.checkpoint, weights_only=True)["hyper_parameters"]
        assert json.loads(json.dumps(told)) == told
        with zipfile.ZipFile(tiny_result.checkpoint) as archive:
            [name] = [name for name in archive.namelist() if name.endswith("data.pkl")]
            named = [str(what) for code, what, _ in pickletools.genops(archive.read(name)) if code.name == "GLOBAL"]
        assert named
        assert not [what for what in named if "torchptycho" in what or "lightning" in what]

    @pytest.mark.contract("train.checkpoint.no-code")
    @pytest.mark.parametrize("where", ["top", "hyper_parameters", "state_dict"])
    def test_checkpoint_with_a_payload_is_refused_and_not_executed(
        self, tiny_result: TrainResult, tiny_scan: Path, tmp_path: Path, where: str
    ) -> None:
        content = torch.load(tiny_result.checkpoint, weights_only=True)
        (content if where == "top" else content[where])["extra"] = _Payload(tmp_path / "executed")
        torch.save(content, tmp_path / "model.ckpt")
        for load in (load_checkpoint, lambda path: reconstruct(path, tiny_scan, accelerator="cpu", progress=False)):
            with pytest.raises(StoreError, match=r"model\.ckpt: expected a torchptycho checkpoint.*never unpickled"):
                load(tmp_path / "model.ckpt")
        assert not (tmp_path / "executed").exists()

    @pytest.mark.contract("train.checkpoint.no-code")
    def test_resuming_refuses_a_payload_too(self, tiny_run: Path, tiny_scan: Path, tmp_path: Path) -> None:
        shutil.copytree(tiny_run, tmp_path / "run")
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        content = torch.load(last, weights_only=True)
        content["callbacks"]["extra"] = _Payload(tmp_path / "executed")
        torch.save(content, last)
        with pytest.raises(StoreError, match=r"last\.ckpt.*never unpickled"):
            run(tiny_scan, TINY, tmp_path / "run", resume=True)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.contract("train.checkpoint.refused")
    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"not a checkpoint", id="text"),
            pytest.param(pickle.dumps([1]), id="pickle"),
            pytest.param({}, id="no entries"),
            pytest.param([1], id="list"),
            pytest.param(torch.ones(2), id="tensor"),
            pytest.param({"pytorch-lightning_version": "2.6.6", "state_dict": {}}, id="no configuration"),
            pytest.param(
                {
                    "pytorch-lightning_version": "2.6.6",
                    "state_dict": {},
                    "hyper_parameters": {"config": {}, "n_px": 32},
                },
                id="no weights",
            ),
        ],
    )
    def test_what_is_no_checkpoint_is_a_store_error_of_one_line(self, tmp_path: Path, content: Any) -> None:
        path = tmp_path / "model.ckpt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(StoreError, match=r"model\.ckpt: expected a torchptycho checkpoint") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)

    @pytest.mark.contract("train.checkpoint.refused")
    def test_truncated_checkpoint_is_a_store_error(self, tiny_result: TrainResult, tmp_path: Path) -> None:
        (tmp_path / "model.ckpt").write_bytes(tiny_result.checkpoint.read_bytes()[:-1000])
        with pytest.raises(StoreError, match=r"model\.ckpt: expected a torchptycho checkpoint"):
            load_checkpoint(tmp_path / "model.ckpt")

    @pytest.mark.contract("train.checkpoint.refused")
    @pytest.mark.parametrize("protocol", range(6))
    def test_pickle_of_another_program_gives_one_line(
        self, tiny_scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: int
    ) -> None:
        path = tmp_path / "model.pkl"
        for content in ({"weights": [1.0]}, np.ones(3), _Payload(tmp_path / "executed")):
            path.write_bytes(pickle.dumps(content, protocol))
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert main(["reconstruct", str(path), str(tiny_scan), "--out", str(tmp_path / "image.npz")]) == 1
            said = capsys.readouterr().err
            assert said.count("\n") == 1
            assert "model.pkl: expected a torchptycho checkpoint" in said
        assert not (tmp_path / "executed").exists()

    @pytest.mark.contract("train.checkpoint.found")
    def test_folder_of_a_run_stands_for_its_best_checkpoint(self, tiny_run: Path, tmp_path: Path) -> None:
        assert find_checkpoint(tiny_run) == tiny_run / "checkpoints" / "best.ckpt"
        with pytest.raises(StoreError, match="expected a run with checkpoints"):
            find_checkpoint(tmp_path)
        with pytest.raises(StoreError, match="found nothing"):
            load_checkpoint(tmp_path / "absent.ckpt")


class TestReconstruct:
    @pytest.mark.contract("predict.all-frames")
    @pytest.mark.parametrize("batch_size", [7, 64])
    def test_image_does_not_depend_on_the_batch_size(
        self, tiny_result: TrainResult, tiny_scan: Path, batch_size: int
    ) -> None:
        module = load_checkpoint(tiny_result.checkpoint)
        reference = reconstruct(module, tiny_scan, accelerator="cpu", progress=False)
        image = reconstruct(
            module, tiny_scan, ReconstructConfig(predict_batch_size=batch_size), accelerator="cpu", progress=False
        )
        # The canvas is exact; convolutions of another batch size may round differently in float32.
        assert relative_l2(torch.from_numpy(image.object), torch.from_numpy(reference.object)) < 2e-6
        assert np.array_equal(image.valid, reference.valid)

    @pytest.mark.contract("predict.all-frames")
    def test_image_of_a_sparser_scan_does_not_depend_on_the_batch_size(self, tmp_path: Path) -> None:
        """Its groups are wider than any that was trained on, each by as much as it is."""
        dense = simulate(TINY_SIMULATION)
        sparse = simulate(dataclasses.replace(TINY_SIMULATION, object_px=130, n_frames=40, position_kind="random"))
        module = load_checkpoint(run(dense, tiny(group={"gridsize": 2}), tmp_path / "run").last)
        options: dict[str, Any] = {"accelerator": "cpu", "progress": False}
        images = [
            torch.from_numpy(reconstruct(module, sparse, ReconstructConfig(predict_batch_size=size), **options).object)
            for size in (4, 40)
        ]
        assert relative_l2(images[1], images[0]) < 1e-5

    @pytest.mark.contract("predict.mask")
    def test_pixels_that_the_scan_masks_have_no_say(self, tiny_result: TrainResult) -> None:
        scan = simulate(TINY_SIMULATION)
        mask = np.ones((32, 32), bool)
        mask[14:18, 3:9] = False
        hot = scan.frames[:].copy()
        hot[:, ~mask] = 50_000
        module = load_checkpoint(tiny_result.checkpoint)
        before = module.masks.clone()
        images = [
            reconstruct(
                module,
                dataclasses.replace(scan, frames=ArrayFrames(frames), mask=mask),
                accelerator="cpu",
                progress=False,
            ).object
            for frames in (scan.frames[:], hot)
        ]
        assert np.array_equal(*images)
        assert torch.equal(module.masks, before)

    @pytest.mark.contract("predict.edge")
    def test_patch_at_the_very_edge_is_placed_in_groups_too(self, tmp_path: Path) -> None:
        # The offset of a frame from the centre of its group is float32: center + offset misses 16 by 1e-8.
        y, x = np.meshgrid(np.linspace(16, 64, 7), np.linspace(16, 64, 7), indexing="ij")
        places = np.stack([y, x], axis=-1).reshape(-1, 2)
        rng = np.random.default_rng(0)
        places[:, 1] += np.where((places[:, 1] > 16) & (places[:, 1] < 64), rng.uniform(-3, 3, len(places)), 0)
        places[:, 0] += np.where((places[:, 0] > 16) & (places[:, 0] < 64), rng.uniform(-3, 3, len(places)), 0)
        scan = simulate(TINY_SIMULATION, positions_px=places)
        result = run(scan, tiny(group={"gridsize": 2}, train={"steps": 1}), tmp_path / "run")
        image = reconstruct(result.last, scan, accelerator="cpu", progress=False)
        assert image.origin_px[0] <= 0
        assert image.coverage.max() == 1

    @pytest.mark.contract("predict.provenance")
    def test_image_knows_where_it_comes_from(self, tiny_result: TrainResult, tiny_scan: Path) -> None:
        image = reconstruct(tiny_result.checkpoint, tiny_scan, accelerator="cpu", progress=False)
        told = image.provenance
        assert told["source"] == str(tiny_scan)
        assert told["frames"] == TINY_SIMULATION.n_frames
        assert len(told["checkpoint_sha256"]) == 64
        assert told["config"]["train"]["steps"] == TINY.train.steps
        assert set(told["versions"]) >= {"torchptycho", "torch", "lightning", "numpy"}
        assert json.loads(json.dumps(told)) == told

    @pytest.mark.contract("predict.refuse")
    def test_scan_that_the_network_was_not_trained_for_is_refused(self, tiny_result: TrainResult) -> None:
        large = simulate(SimulateConfig(n_px=64, object_px=100, n_frames=4))
        with pytest.raises(ScanError, match=r"expected 32x32 frames of counts.*found 64x64 frames of counts"):
            reconstruct(tiny_result.checkpoint, large, accelerator="cpu", progress=False)

    @pytest.mark.contract("predict.dose")
    def test_another_dose_is_told_and_can_be_scaled_away(
        self, tiny_result: TrainResult, caplog: pytest.LogCaptureFixture
    ) -> None:
        module = load_checkpoint(tiny_result.checkpoint)
        options: dict[str, Any] = {"accelerator": "cpu", "progress": False}
        strong = simulate(dataclasses.replace(TINY_SIMULATION, photons_per_frame=1e8))
        same = reconstruct(module, simulate(dataclasses.replace(TINY_SIMULATION, photons_per_frame=1e5)), **options)
        assert not caplog.records
        before = module.input_scale.clone()
        reconstruct(module, strong, **options)
        assert "times as bright" in caplog.text
        assert "--input-scale scan" in caplog.text
        rescaled = reconstruct(module, strong, ReconstructConfig(input_scale="scan"), **options)
        assert torch.equal(module.input_scale, before)
        valid = torch.from_numpy(same.valid)
        # The noise of 1e5 photons is all that differs.
        assert relative_l2(torch.from_numpy(rescaled.object)[valid], torch.from_numpy(same.object)[valid]) < 0.05


@pytest.mark.contract("phys.dose")
def test_object_comes_out_with_the_same_amplitude_at_any_dose(tmp_path: Path) -> None:
    # A rate that falls to nothing, because the steps of a constant one leave the scale wandering by some percent.
    config = tiny(train={"steps": 90, "learning_rate": 2e-3, "schedule": "cosine"})
    amplitude = []
    # At 1e4 the noise of each patch's phase takes some percent off the modulus of their average.
    for photons in (1e5, 1e7):
        scan = simulate(dataclasses.replace(TINY_SIMULATION, photons_per_frame=photons))
        result = run(scan, config, tmp_path / f"{photons:g}")
        image = reconstruct(result.last, scan, accelerator="cpu", progress=False)
        covered = image.coverage > 0.3
        amplitude.append(float(np.abs(image.object[covered]).mean()))
    # Counting noise moves the mean by some 0.1 %, 90 steps on other noise by up to 1 %; an error of units by a factor.
    assert amplitude[0] == pytest.approx(amplitude[1], rel=0.02)


def test_history_of_a_run_without_logs_is_empty(tmp_path: Path) -> None:
    assert read_history(tmp_path) == {}
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["epoch", "step", "val/nll"], [0, 7, 0.5], [1, 15, ""]])
    assert read_history(tmp_path) == {"val/nll": [(7, 0.5)]}


@pytest.mark.contract("phases.image")
def test_image_does_not_depend_on_the_phases_that_groups_come_with(tiny_result: TrainResult, tiny_scan: Path) -> None:
    options: dict[str, Any] = {"accelerator": "cpu", "progress": False}
    images = {}
    for agree in (True, False):
        for spread_rad in (0.0, 1.5):
            module = load_checkpoint(tiny_result.checkpoint)
            module.forward = turning(module.forward, spread_rad)  # type: ignore[method-assign]
            config = ReconstructConfig(agree_phases=agree)
            images[agree, spread_rad] = reconstruct(module, tiny_scan, config, **options)

    def apart(agree: bool) -> float:
        one, other = (torch.from_numpy(images[agree, spread].object) for spread in (0.0, 1.5))
        lit = torch.from_numpy(images[agree, 0.0].coverage > 0.3)
        common = (one[lit] * other[lit].conj()).sum()
        return relative_l2(other[lit] * common / common.abs(), one[lit])

    assert apart(agree=True) < 0.02
    assert apart(agree=False) > 0.3


def turning(forward: Any, spread_rad: float) -> Any:
    """The same patches, each group with a phase of its own."""

    def turned(batch: Any) -> torch.Tensor:
        phase = spread_rad * torch.sin(1.0 + 3.0 * batch.members[:, 0])
        patches: torch.Tensor = forward(batch) * torch.polar(torch.ones_like(phase), phase)[:, None, None, None]
        return patches

    return turned
