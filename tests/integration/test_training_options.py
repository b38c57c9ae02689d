"""What training can be asked for: labels, a network to begin with, held-out scans; and what it does not pass off."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from test_training import assert_same_weights, run, tiny, weights
from tiny_run import TINY_SIMULATION, Command
from tolerances import relative_l2

from torchptycho.analysis.evaluation import evaluate
from torchptycho.analysis.history import read_history
from torchptycho.core.config import ExperimentConfig, LogConfig, ReconstructConfig, load_config
from torchptycho.core.errors import ConfigError, StoreError, TrainingError
from torchptycho.data.datasets import GroupDataset
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.models.checkpoints import load_checkpoint
from torchptycho.models.lightning_module import CHECKPOINT_FORMAT, PtychoPINN
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.training.callbacks.collapse import CollapseStatistics
from torchptycho.training.train import TrainResult

SCAN = simulate(TINY_SIMULATION)


CONSTANT = {"generator": "constant_generator:Constant"}


class _At(Callback):
    """Does something to module and batch before the step of a given number."""

    def __init__(self, step: int, spoil: Any) -> None:
        self._step, self._spoil = step, spoil

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            self._spoil(pl_module, batch)


def bad_frame(module: Any, batch: Any) -> None:
    batch.frames = batch.frames.float()
    batch.frames[2] = torch.inf


def bad_weight(module: Any, batch: Any) -> None:
    next(module.generator.parameters()).data.fill_(torch.nan)


def bad_gradient(module: Any, batch: Any) -> None:
    next(module.generator.parameters()).register_hook(lambda gradient: gradient * torch.nan)


class TestNotFinite:
    @pytest.mark.contract("train.not-finite")
    @pytest.mark.parametrize("spoil", [bad_frame, bad_weight, bad_gradient])
    def test_run_stops_names_scan_and_frames_and_keeps_the_last_good_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
    ) -> None:
        monkeypatch.setattr("torchptycho.training.schedule.VALIDATE_EVERY_STEPS", 1)
        first = dataclasses.replace(SCAN, source="first")
        with pytest.raises(TrainingError) as caught:
            # The second of two scans, so that frames are numbered as its own file does.
            run(
                [first, dataclasses.replace(first, source="second")],
                tiny(train={"epochs": 2}),
                tmp_path / "run",
                callbacks=[_At(17, spoil)],
            )
        message = str(caught.value)
        what = "the gradient" if spoil is bad_gradient else "the loss"
        assert re.search(what + r" is (nan|inf) at step 17, scans \[[01](, 1)?\], frames", message), message
        named = {
            int(frame)
            for part in re.findall(r"(?:first|second): frames ([\d, ]+)\.", message)
            for frame in part.split(", ")
        }
        # Eight frames in a batch; the two scans may hold some of the same numbers.
        assert len(named) == 1 if spoil is bad_frame else len(named) > 4
        assert max(named) < SCAN.n_frames
        assert "last.ckpt is the last good checkpoint" in message
        kept = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
        assert all(bool(p.isfinite().all()) for p in kept.parameters())

    @pytest.mark.contract("train.not-finite")
    def test_command_line_reports_it_in_one_line(
        self, command: Command, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise TrainingError("the loss is nan at step 3, scans [0], frames [7]")

        monkeypatch.setattr("torchptycho.training.train.train", fail)
        answer = command("train", tiny_scan, "--out", tmp_path / "run")
        assert answer.code == 1
        assert answer.err.strip() == "torchptycho: the loss is nan at step 3, scans [0], frames [7]"


class TestFlat:
    @pytest.mark.contract("train.flat")
    @pytest.mark.parametrize("held_out", [0.1, 0.0])
    def test_network_that_shows_the_same_for_every_frame_is_a_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: float
    ) -> None:
        monkeypatch.setattr("torchptycho.training.callbacks.collapse.MIN_STEPS", 1)
        config = tiny(model=CONSTANT, train={"epochs": 1}, prepare={"val_fraction": held_out})
        with pytest.raises(TrainingError, match=r"featureless .* after \d+ steps.*last good checkpoint|No checkpoint"):
            run(SCAN, config, tmp_path / "run")

    @pytest.mark.contract("train.flat")
    def test_warning_is_enough_when_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("torchptycho.training.callbacks.collapse.MIN_STEPS", 1)
        run(SCAN, tiny(model=CONSTANT, train={"epochs": 1, "on_flat": "warn"}), tmp_path / "run")
        assert "featureless patches after" in caplog.text

    @pytest.mark.contract("train.flat")
    def test_network_that_learns_is_none_and_an_empty_sample_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torchptycho.training.callbacks.collapse.MIN_STEPS", 1)
        run(SCAN, tiny(train={"steps": 40, "learning_rate": 2e-3}), tmp_path / "run")
        history = read_history(tmp_path / "run")
        assert history["contrast"][-1][1] > 0.1
        assert history["misfit_over_empty"][-1][1] < 0.9
        # Noise alone tells one frame of an empty sample from another.
        nothing = simulate(dataclasses.replace(TINY_SIMULATION, amplitude_min=1.0, phase_range_rad=0.0))
        run(nothing, tiny(model=CONSTANT, train={"epochs": 1}), tmp_path / "empty")

    @pytest.mark.contract("train.flat")
    @pytest.mark.parametrize(
        ("changed", "flat"),
        [
            ({}, True),
            ({"contrast_within": 0.3, "contrast_between": 0.3}, False),
            ({"contrast_within": 0.3, "contrast_between": 0.3, "misfit": 1.01}, True),
            ({"contrast_between": 0.3}, True),
            ({"contrast_within": 0.3}, True),
            ({"misfit": 0.5}, False),
            ({"noise": 0.9}, False),
            ({"misfit": float("nan")}, True),
        ],
    )
    def test_verdict(self, changed: dict[str, float], flat: bool) -> None:
        values = {"contrast_within": 0.01, "contrast_between": 0.01, "misfit": 0.97, "empty": 1.0, "noise": 0.1}
        assert CollapseStatistics(**(values | changed)).has_collapsed is flat


class TestStart:
    @pytest.mark.contract("train.from")
    def test_run_begins_with_another_network_on_new_scans(
        self, command: Command, tiny_result: TrainResult, tiny_run: Path, tiny_scan: Path, tmp_path: Path
    ) -> None:
        other = simulate(dataclasses.replace(TINY_SIMULATION, simulation_seed=1, photons_per_frame=1e6))
        config = tiny(train={"epochs": 1, "freeze_encoder": True, "learning_rate_factor": 0.5})
        result = run(other, config, tmp_path / "tuned", start=tiny_run)
        before, after = weights(tiny_result.checkpoint), weights(result.last)
        same = {name for name in before if torch.equal(before[name], after[name])}
        for name in before:
            if name.startswith("generator"):
                assert (name in same) == (name.split(".")[1] in ("stem", "encoder", "down")), name
        # Probe and statistics are those of the new scan.
        assert not {"probe_parts", "input_scale", "photons_per_frame"} & same
        assert load_checkpoint(result.last).hparams["started_from"] == str(tiny_run)
        rates = read_history(tmp_path / "tuned")["learning_rate"]
        assert max(rate for _, rate in rates) == pytest.approx(0.5e-3)

    @pytest.mark.contract("train.from")
    def test_command_line_takes_a_run_to_begin_with(
        self, command: Command, tiny_run: Path, tiny_scan: Path, tmp_path: Path
    ) -> None:
        flags = ["--out", tmp_path / "run", "--steps", "1", "--config", tiny_run / "config.yaml"]
        assert command("train", tiny_scan, "--from", tiny_run, *flags).code == 0
        answer = command("train", tiny_scan, "--from", tmp_path / "nothing.ckpt", "--out", tmp_path / "other")
        assert answer.code == 1
        assert "nothing.ckpt: expected a checkpoint" in answer.err

    @pytest.mark.contract("train.from")
    def test_another_network_than_the_configured_one_is_refused(self, tiny_run: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"n_filters_scale was 1, is 2; gridsize was 1, is 2"):
            run(SCAN, tiny(model={"n_filters_scale": 2}, group={"gridsize": 2}), tmp_path / "run", start=tiny_run)
        assert not (tmp_path / "run").exists()

    @pytest.mark.contract("train.from")
    def test_network_without_an_encoder_cannot_be_frozen(self, tmp_path: Path) -> None:
        begun = run(SCAN, tiny(model=CONSTANT), tmp_path / "begun")
        frozen = tiny(model=CONSTANT, train={"freeze_encoder": True})
        with pytest.raises(ConfigError, match=r"freeze_encoder: .*Constant has none"):
            run(SCAN, frozen, tmp_path / "run", start=begun.last)

    @pytest.mark.contract("train.from")
    def test_a_new_network_is_not_frozen_and_a_resumed_run_has_no_other_start(
        self, tiny_run: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=r"freeze_encoder: expected a trained network"):
            run(SCAN, tiny(train={"freeze_encoder": True}), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        run(SCAN, tiny(), tmp_path / "run", start=tiny_run)
        with pytest.raises(ConfigError, match=rf"--from: .* started from {tiny_run}; found elsewhere"):
            run(SCAN, tiny(), tmp_path / "run", start="elsewhere", resume=True)
        assert run(SCAN, tiny(), tmp_path / "run", start=tiny_run, resume=True).last.is_file()


class TestScans:
    @pytest.mark.contract("train.val-scans")
    def test_held_out_scan_is_validated_as_a_whole_and_not_trained_on(
        self, command: Command, tiny_scan: Path, tmp_path: Path
    ) -> None:
        other = simulate(dataclasses.replace(TINY_SIMULATION, simulation_seed=1, probe_kind="gaussian", n_frames=20))
        config = tiny(train={"epochs": 1}, prepare={"val_fraction": 0.0})
        result = run([SCAN, SCAN], config, tmp_path / "run", val_scans=[other])
        store = Store.open(tmp_path / "run" / "store")
        frames = store.tensors["frame_scan"]
        assert set(frames[store.tensors["train"]["members"].flatten()].tolist()) == {0, 1}
        assert store.tensors["val"]["members"].flatten().tolist() == list(range(128, 148))
        assert [entry.held_out for entry in store.scans] == [False, False, True]
        # Its scale is measured on its own frames, as when it is reconstructed.
        counts = other.frames[:].sum(axis=(1, 2), dtype=np.float64)
        assert store.scans[2].scaling.photons_per_frame == pytest.approx(counts.mean())
        module = load_checkpoint(result.checkpoint).eval()
        batch = GroupDataset(store, "val").__getitems__(range(20))
        with torch.no_grad():
            expected = float(module._evaluate_loss(batch)["nll"])
        assert result.metrics["val/nll"] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.contract("train.val-scans")
    def test_command_line_takes_held_out_scans(self, command: Command, tiny_scan: Path, tmp_path: Path) -> None:
        flags = ["--out", tmp_path / "run", "--gridsize", "1", "--n-filters-scale", "1", "--steps", "1"]
        other = shutil.copy(tiny_scan, tmp_path / "other.npz")
        assert command("train", tiny_scan, "--val-scans", other, *flags, "--accelerator", "cpu").code == 0
        assert Store.open(tmp_path / "run" / "store").scans[1].held_out
        answer = command("train", tmp_path / "run" / "store", "--val-scans", tiny_scan, "--out", tmp_path / "b")
        assert "is prepared already" in answer.err


class TestSupervised:
    @pytest.mark.contract("train.supervised")
    @pytest.mark.parametrize("known_as", ["truth", "patches"])
    def test_labels_alone_train_the_network_whatever_their_global_phase(self, tmp_path: Path, known_as: str) -> None:
        assert SCAN.truth is not None
        turned = (SCAN.truth * np.exp(2j)).astype(np.complex64)
        given = dataclasses.replace(SCAN, truth=turned)
        if known_as == "patches":
            corners = np.round(SCAN.positions_px).astype(int) - 16
            given = dataclasses.replace(
                given,
                truth=None,
                truth_patches=np.stack([np.pad(turned, 40)[y + 40 : y + 72, x + 40 : x + 72] for y, x in corners]),
            )
        config = tiny(train={"steps": 70, "learning_rate": 2e-3}, loss={"nll_weight": 0.0, "realspace_weight": 1.0})
        result = run(given, config, tmp_path / "run")
        history = read_history(tmp_path / "run")
        assert "train/nll" not in history
        losses = [value for _, value in history["train/loss_epoch"]]
        assert losses[-1] < 0.7 * losses[0]
        image = reconstruct(result.last, given, accelerator="cpu", progress=False)
        assert evaluate(image, SCAN.truth).phase_ssim > 0.3

    @pytest.mark.contract("train.supervised")
    def test_two_scans_whose_truths_differ_in_phase_have_the_same_labels(self, tmp_path: Path) -> None:
        assert SCAN.truth is not None
        turned = dataclasses.replace(SCAN, truth=(SCAN.truth * 1j).astype(np.complex64))
        config = tiny(train={"epochs": 1}, loss={"nll_weight": 0.0, "realspace_weight": 1.0})
        one, other = (run(scan, config, tmp_path / str(i)) for i, scan in enumerate((SCAN, turned)))
        a, b = weights(one.last), weights(other.last)
        for name in a:
            assert relative_l2(a[name].double(), b[name].double()) < 1e-3, name


class TestCheckpoints:
    @pytest.mark.contract("train.checkpoint.versions")
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                lambda c: c["format"].update(version=CHECKPOINT_FORMAT + 1),
                rf"format {CHECKPOINT_FORMAT + 1}, here {CHECKPOINT_FORMAT}",
            ),
            (lambda c: c["hyper_parameters"]["config"]["train"].update(momentum=1), r"momentum.*torch 1\.0, here 2"),
            (lambda c: c["state_dict"].pop("generator.head.weight"), r"Missing key.*head\.weight.*torch 1\.0, here 2"),
        ],
    )
    def test_checkpoint_of_another_version_says_what_differs(
        self, tiny_result: TrainResult, tmp_path: Path, change: Any, words: str
    ) -> None:
        content = torch.load(tiny_result.last, weights_only=True)
        content["format"]["written_with"]["torch"] = "1.0"
        change(content)
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.raises(StoreError, match=words):
            load_checkpoint(tmp_path / "other.ckpt")

    @pytest.mark.contract("train.checkpoint.self-sufficient")
    def test_checkpoint_brings_the_whole_experiment_along(self, tmp_path: Path) -> None:
        everything = ExperimentConfig(
            probe_power="fixed",
            probe_support_px=24,
            scale_trainable=True,
            exit_smoothing_px=0.3,
            background_trainable=True,
        )
        config = dataclasses.replace(tiny(train={"epochs": 1}, model={"probe_trainable": True}), experiment=everything)
        kept: list[PtychoPINN] = []

        class Keep(Callback):
            def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
                assert isinstance(pl_module, PtychoPINN)
                kept.append(pl_module)

        result = run(SCAN, config, tmp_path / "run", callbacks=[Keep()])
        loaded = PtychoPINN.load_from_checkpoint(result.last, weights_only=True)
        batch = GroupDataset(Store.open(tmp_path / "run" / "store"), "val").__getitems__([0, 1])
        patches = torch.ones(batch.frames.shape, dtype=torch.complex64)
        assert torch.equal(
            loaded.compute_expected_counts(patches, batch), kept[0].compute_expected_counts(patches, batch)
        )
        scale = loaded.experiment.scale
        assert scale is not None
        assert float(scale) != 1

    @pytest.mark.contract("train.checkpoint.every")
    def test_checkpoints_are_kept_every_few_epochs(self, tmp_path: Path) -> None:
        config = dataclasses.replace(
            tiny(train={"epochs": 4, "batch_size": 64}), log=LogConfig(checkpoint_every_epochs=2)
        )
        run(SCAN, config, tmp_path / "run")
        names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
        assert names == {"best.ckpt", "last.ckpt", "epoch-0001.ckpt", "epoch-0003.ckpt"}
        steps = torch.load(tmp_path / "run" / "checkpoints" / "epoch-0001.ckpt", weights_only=True)["global_step"]
        assert steps == 2


class TestLoop:
    @pytest.mark.contract("train.accumulate")
    def test_two_batches_of_eight_accumulated_are_one_of_sixteen(self, tmp_path: Path) -> None:
        halves = run(SCAN, tiny(train={"epochs": 1, "accumulate": 2}, prepare={"val_fraction": 0.0}), tmp_path / "a")
        whole = run(SCAN, tiny(train={"epochs": 1, "batch_size": 16}, prepare={"val_fraction": 0.0}), tmp_path / "b")
        a, b = weights(halves.last), weights(whole.last)
        assert torch.load(halves.last, weights_only=True)["global_step"] == 4
        for name in a:
            assert relative_l2(a[name].double(), b[name].double()) < 1e-3, name

    @pytest.mark.contract("train.half-precision")
    def test_run_in_bfloat16_learns_alike(self, tmp_path: Path) -> None:
        losses = []
        for precision in ("32-true", "bf16-mixed"):
            config = tiny(train={"steps": 24, "precision": precision, "learning_rate": 2e-3})
            run(SCAN, config, tmp_path / precision)
            losses.append(read_history(tmp_path / precision)["train/loss_epoch"][-1][1])
        assert losses[1] == pytest.approx(losses[0], rel=0.1)
        assert losses[1] != losses[0]

    @pytest.mark.contract("train.early-stop")
    def test_run_ends_early_when_nothing_gets_better(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torchptycho.training.schedule.VALIDATE_EVERY_STEPS", 1)
        config = tiny(train={"epochs": 20, "batch_size": 64, "early_stop": 2, "learning_rate": 1e-12})
        run(SCAN, config, tmp_path / "run")
        assert len(read_history(tmp_path / "run")["val/nll"]) < 8

    @pytest.mark.contract("train.compile")
    def test_without_a_compiler_training_goes_on_and_says_so(
        self,
        tiny_result: TrainResult,
        tiny_scan: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def no_compiler(*_: Any, **__: Any) -> None:
            raise RuntimeError("No working C++ compiler found")

        monkeypatch.setattr("torchptycho.models.lightning_module.PtychoPINN.forward", _failing_once(no_compiler))
        with caplog.at_level(logging.WARNING):
            result = run(tiny_scan, tiny(train={"compile": True}), tmp_path / "run")
        assert "runs without torch.compile, which fails here: No working C++ compiler found" in caplog.text
        assert_same_weights(result.last, tiny_result.last)

    @pytest.mark.contract("train.logged")
    def test_rate_norms_speed_and_memory_are_written_down(self, tiny_run: Path) -> None:
        history = read_history(tiny_run)
        for name in ("learning_rate", "train/gradient_norm", "train/parameter_norm", "frames_per_s", "peak_memory_GB"):
            values = [value for _, value in history[name]]
            assert values, name
            assert all(0 < value < 1e6 for value in values), name

    @pytest.mark.contract("train.loggers")
    def test_logger_that_is_not_installed_is_told_with_its_extra(
        self, command: Command, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(*_: Any, **__: Any) -> None:
            raise ModuleNotFoundError("no such package")

        monkeypatch.setattr("torchptycho.training.loggers.WandbLogger", missing)
        answer = command("train", tiny_scan, "--out", tmp_path / "run", "--logger", "wandb", "--gridsize", "1")
        assert answer.code == 1
        assert "pip install 'torchptycho[wandb]'" in answer.err
        assert not (tmp_path / "run").exists()

    @pytest.mark.contract("train.pictures")
    def test_pictures_are_drawn_every_few_epochs_and_change_nothing(self, tiny_scan: Path, tmp_path: Path) -> None:
        config = tiny(train={"epochs": 2, "batch_size": 30}, group={"gridsize": 2})
        drawn = dataclasses.replace(config, log=LogConfig(image_every_epochs=2, image_patches=3))
        plain, result = run(tiny_scan, config, tmp_path / "plain"), run(tiny_scan, drawn, tmp_path / "drawn")
        names = sorted(path.name for path in (tmp_path / "drawn" / "images").iterdir())
        assert names == ["epoch-0002-patches.png", "epoch-0002-scan.png"]
        assert_same_weights(result.last, plain.last)
        assert load_config(tmp_path / "drawn" / "config.yaml").log.image_patches == 3


def _failing_once(fail: Any) -> Any:
    from torchptycho.models.lightning_module import PtychoPINN

    forward, calls = PtychoPINN.forward, []

    def once(self: Any, batch: Any) -> Any:
        calls.append(1)
        return fail() if len(calls) == 1 else forward(self, batch)

    return once


@pytest.mark.contract("predict.absolute")
def test_absolute_scale_undoes_an_object_that_is_too_bright(tiny_scan: Path, tmp_path: Path) -> None:
    # A network that does not see how bright the beam is; the projections of the default one would follow it.
    config = tiny(model=CONSTANT, train={"epochs": 1, "on_flat": "warn"})
    module = load_checkpoint(run(SCAN, config, tmp_path / "run").checkpoint)
    images = []
    for brighter in (1.0, 3.0):
        # The head gives O - 1, so the probe is dimmed instead: the same counts ask for a brighter object.
        module.probe_parts.data /= brighter
        image = reconstruct(
            module, tiny_scan, ReconstructConfig(absolute_scale=True), accelerator="cpu", progress=False
        )
        told = image.provenance["absolute_scale"]
        assert told["background_counts"] >= 0
        images.append((told["object_factor"], image))
    assert 0.6 < images[0][0] < 0.9  # the sample is darker than the transparent one that the network shows
    assert images[1][0] / images[0][0] == pytest.approx(3, rel=5e-3)  # the half count in the weights
    assert relative_l2(torch.from_numpy(images[1][1].object), torch.from_numpy(3 * images[0][1].object)) < 5e-3
    plain = reconstruct(module, tiny_scan, accelerator="cpu", progress=False)
    assert "absolute_scale" not in plain.provenance
