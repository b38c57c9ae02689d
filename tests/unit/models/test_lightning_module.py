"""The module that wires generator, physics and loss: what it computes, and what it refuses to guess."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import assert_close, relative_l2
from torch import Tensor

from torchptycho.core.config import (
    GroupConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    SimulateConfig,
    TrainConfig,
    from_dict,
)
from torchptycho.core.config import to_dict as plain
from torchptycho.core.errors import ConfigError, StoreError, TrainingError
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.batch import GroupBatch
from torchptycho.data.datasets import GroupDataset
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.models.generators import GroupInput
from torchptycho.models.lightning_module import PtychoPINN, build_learning_rate_schedule
from torchptycho.physics.diffraction import expected_counts, far_field, measurement

M, N = 24, 32
SMALL = ModelConfig(n_filters_scale=1)


def run_config(**sections: Any) -> RunConfig:
    """A small network for single frames, unless the sections say otherwise."""
    return RunConfig(**({"group": GroupConfig(gridsize=1), "model": SMALL} | sections))


def scan(**options: Any) -> Scan:
    defaults = {"n_px": N, "object_px": 72, "n_frames": M, "photons_per_frame": 1e5}
    return simulate(SimulateConfig(**(defaults | options)))


SCAN = scan()


def module_for(store: Store, config: RunConfig, seed: int = 0) -> PtychoPINN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = PtychoPINN.for_store(store, config)
        # The residual blocks begin as the identity; a network in use does not.
        for parameter in module.generator.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape)
    return module


def made(
    folder: Path, config: RunConfig | None = None, scans: Scan | list[Scan] = SCAN, groups: int = 6
) -> tuple[PtychoPINN, GroupBatch]:
    """A module for a store of these scans, and its first training groups."""
    config = config or run_config(model=SMALL)
    store = prepare(scans if isinstance(scans, list) else [scans], config, folder / "store")
    module = module_for(store, config)
    return module, GroupDataset(store, "train", with_truth=module.loss.needs_truth).__getitems__(range(groups))


def gradient(module: PtychoPINN, batch: GroupBatch) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient with respect to all weights of the generator as one vector."""
    loss = module._evaluate_loss(batch)["loss"]
    parts = torch.autograd.grad(loss, list(module.generator.parameters()))
    return loss.detach(), torch.cat([part.flatten() for part in parts])


class TestStatistics:
    @pytest.mark.contract("train.statistics.required")
    def test_module_without_statistics_refuses_to_predict_and_to_train(self, tmp_path: Path) -> None:
        _, batch = made(tmp_path)
        bare = PtychoPINN(plain(run_config(model=SMALL)), n_px=N)
        for step in (bare.predict_step, bare.training_step):
            with pytest.raises(StoreError, match=r"no statistics.*for_store or load a checkpoint"):
                step(batch, 0)

    @pytest.mark.contract("train.checkpoint.plain")
    def test_hyper_parameters_are_plain_data(self, tmp_path: Path) -> None:
        config = run_config(model=SMALL, train=TrainConfig(learning_rate=1e-4))
        module, _ = made(tmp_path, config)
        told = dict(module.hparams)
        assert json.loads(json.dumps(told)) == told
        assert from_dict(RunConfig, told["config"]) == config

    @pytest.mark.contract("train.units")
    def test_input_of_a_mean_frame_has_the_norm_that_networks_expect(self, tmp_path: Path) -> None:
        module, batch = made(tmp_path, groups=20)
        seen: list[GroupInput] = []
        module.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        module(batch)
        amplitude, probe = seen[0].amplitude, seen[0].probe
        counts = SCAN.frames[:].sum(axis=(1, 2), dtype=np.float64)
        own = torch.from_numpy(counts[batch.members[:, 0]])
        expected = own / module.photons_per_frame[0] * (N / 2) ** 2
        assert_close(amplitude.double().square().sum(dim=(1, 2, 3)), expected, "single_fft")
        power = float(module.probe.abs().square().sum() / module.photons_per_frame[0])
        assert float(probe.abs().square().sum()) == pytest.approx(power * (N / 2) ** 2, rel=1e-5)

    @pytest.mark.contract("train.units")
    def test_amplitudes_and_counts_of_one_measurement_train_alike(self, tmp_path: Path) -> None:
        as_counts, batch = made(tmp_path / "counts")
        photons = float(as_counts.photons_per_frame[0])
        frames = np.sqrt(SCAN.frames[:] / 7).astype(np.float32)
        given = dataclasses.replace(
            SCAN,
            frames=ArrayFrames(frames),
            domain="amplitude",
            metadata={"nphotons": photons},
        )
        as_amplitude, roots = made(tmp_path / "amplitude", scans=given)
        assert_close(as_amplitude.compute_measured_counts(roots), as_counts.compute_measured_counts(batch), "single")
        for a, b in zip(gradient(as_amplitude, roots), gradient(as_counts, batch), strict=True):
            assert relative_l2(a, b) < 1e-4  # float32 rounding of the input, through 30 layers

    @pytest.mark.contract("train.scans")
    def test_each_group_uses_the_scale_and_the_probe_of_its_scan(self, tmp_path: Path) -> None:
        bright = scan(photons_per_frame=1e6, probe_kind="gaussian", simulation_seed=1)
        config = run_config(model=SMALL)
        store = prepare([SCAN, bright], config, tmp_path / "both")
        module, dataset = module_for(store, config), GroupDataset(store, "train")
        rows = [0, 1, len(dataset) - 1]
        together = module._evaluate_loss(dataset.__getitems__(rows))["nll"]
        apart = [module._evaluate_loss(dataset.__getitems__([row]))["nll"] for row in rows]
        assert_close(together, torch.stack(apart).mean(), "single_fft")
        transparent = torch.ones(3, 1, N, N, dtype=torch.complex64)
        photons = module.compute_expected_counts(transparent, dataset.__getitems__(rows)).sum(dim=(1, 2, 3))
        assert_close(photons, torch.tensor([1e5, 1e5, 1e6]), "single_fft")
        swapped = dataset.__getitems__(rows)
        swapped.scan = 1 - swapped.scan
        # The projections follow a wrong probe as far as they can.
        assert relative_l2(module._evaluate_loss(swapped)["nll"], together) > 0.03


class TestPhysics:
    @pytest.mark.contract("train.scale-invariance")
    def test_loss_and_gradient_do_not_depend_on_the_unit_of_dose(self, tmp_path: Path) -> None:
        # At these doses the half count in the loss is nothing even in the dark, where 1e-9 of the photons arrive.
        results = []
        for index, photons in enumerate((1e16, 1e19)):
            given = scan(photons_per_frame=photons, noise=False)
            results.append(gradient(*made(tmp_path / str(index), scans=given)))
        (loss, pull), (other_loss, other_pull) = results
        assert relative_l2(other_loss, loss) < 1e-4
        assert relative_l2(other_pull, pull) < 1e-3  # float32 sums of signed terms

    @pytest.mark.contract("train.mask")
    @pytest.mark.parametrize("garbage", [60_000.0, float("nan")])
    def test_masked_pixels_take_part_in_neither_input_nor_loss(self, tmp_path: Path, garbage: float) -> None:
        mask = np.ones((N, N), bool)
        mask[3:6, 8] = mask[16, 16:20] = False
        frames = SCAN.frames[:].astype(np.float32)
        module, batch = made(tmp_path, scans=dataclasses.replace(SCAN, frames=ArrayFrames(frames), mask=mask))
        spoiled = batch.clone()
        spoiled.frames[..., ~torch.from_numpy(mask)] = garbage
        assert torch.equal(module(spoiled), module(batch))
        for a, b in zip(gradient(module, spoiled), gradient(module, batch), strict=True):
            assert torch.equal(a, b)
        # Where the pixel is good, the same value does matter.
        module.masks = torch.ones_like(module.masks)
        assert not torch.equal(module(spoiled), module(batch))

    @pytest.mark.contract("train.mask.scale")
    def test_scales_count_good_pixels_only(self, tmp_path: Path) -> None:
        mask = np.ones((N, N), bool)
        mask[12:18, 13:19] = False
        module, batch = made(tmp_path, scans=dataclasses.replace(SCAN, mask=mask, probe_is_calibrated=False))
        wave = module._scale_probe_to_input(batch)
        seen = measurement(far_field(wave))[0][torch.from_numpy(mask)].sum()
        assert float(seen) == pytest.approx((N / 2) ** 2, rel=1e-4)
        photons = SCAN.frames[:][:, mask].sum(axis=1).mean()
        assert float(module.compute_mean_count(batch)[0]) == pytest.approx(photons / mask.sum(), rel=0.05)

    @pytest.mark.contract("train.fit")
    def test_loss_of_the_true_patches_is_the_photon_noise_alone(self, tmp_path: Path) -> None:
        config = run_config(model=SMALL, loss=LossConfig(realspace_weight=1.0))
        module, batch = made(tmp_path, config)
        assert batch.truth is not None
        counts, expected = module.compute_measured_counts(batch), module.compute_expected_counts(batch.truth, batch)
        # Both are sums over the same pixels: counts differ from their expectation by sqrt(total).
        total = float(expected.sum())
        assert abs(float(counts.sum()) - total) < 5 * total**0.5
        assert float((counts - expected).square().sum()) == pytest.approx(total, rel=0.1)

    @pytest.mark.contract("train.merge")
    def test_merge_weight_matters_in_groups_and_only_there(self, tmp_path: Path) -> None:
        for gridsize in (1, 2):
            counts = []
            for weight in ("probe", "central"):
                config = run_config(
                    model=dataclasses.replace(SMALL, generator="resunet", merge_weight=weight),
                    group=GroupConfig(gridsize=gridsize),
                )
                module, batch = made(tmp_path / f"{gridsize}{weight}", config)
                counts.append(module.compute_expected_counts(module(batch), batch))
                assert bool(counts[-1].isfinite().all())
            assert torch.equal(*counts) == (gridsize == 1)

    @pytest.mark.contract("train.merge")
    @pytest.mark.parametrize("gridsize", [2, 3])
    def test_largest_offset_of_the_store_fits_the_canvas(self, tmp_path: Path, gridsize: int) -> None:
        config = run_config(model=SMALL, group=GroupConfig(gridsize=gridsize, neighbor_count=M - 5))
        module, batch = made(tmp_path, config, groups=20)
        assert float(batch.offset_px.abs().max()) > 8
        # What a canvas cuts off comes back as 0, and a transparent object shows every pixel that is missing.
        counts = module.compute_expected_counts(torch.ones(batch.frames.shape, dtype=torch.complex64), batch)
        alone = expected_counts(torch.ones(N, N, dtype=torch.complex64), module.probe[0])
        # Where the beam is too weak to weigh anything, the merged object is 0; next to none of its photons are there.
        assert relative_l2(counts, alone.expand(counts.shape)) < 1e-4


class TestGenerators:
    @pytest.mark.contract("train.generators")
    @pytest.mark.parametrize(
        ("config", "n_px"),
        [
            (run_config(model=ModelConfig(generator="cnn", n_filters_scale=1)), 64),
            (run_config(model=ModelConfig(generator="cnn", n_filters_scale=1, probe_big=False)), 64),
            (run_config(model=SMALL, group=GroupConfig(gridsize=2)), 32),
            (run_config(model=SMALL, loss=LossConfig(nll_weight=0.0, mae_weight=1.0, tv_weight=1e-3)), 32),
            (run_config(model=SMALL, loss=LossConfig(nll_weight=0.0, realspace_weight=1.0)), 32),
        ],
        ids=["cnn", "cnn, centre only", "groups", "amplitude loss", "supervised"],
    )
    def test_every_kind_of_model_has_a_finite_gradient(self, tmp_path: Path, config: RunConfig, n_px: int) -> None:
        module, batch = made(tmp_path, config, scans=scan(n_px=n_px, object_px=n_px + 40), groups=2)
        loss, pull = gradient(module, batch)
        assert bool(loss.isfinite())
        assert bool(pull.isfinite().all())
        assert float(pull.abs().max()) > 0

    @pytest.mark.contract("train.precision")
    def test_physics_stays_in_single_precision_under_autocast(self, tmp_path: Path) -> None:
        module, batch = made(tmp_path)
        exact = module._evaluate_loss(batch)["loss"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            patches = module(batch)
            counts = module.compute_expected_counts(patches, batch)
            loss = module._evaluate_loss(batch)["loss"]
        assert (patches.dtype, counts.dtype, loss.dtype) == (torch.complex64, torch.float32, torch.float32)
        assert relative_l2(loss, exact) < 0.02  # bfloat16 has 8 bits


class TestProbe:
    @pytest.mark.contract("train.probe")
    @pytest.mark.parametrize("trainable", [True, False])
    def test_only_a_trainable_probe_gets_a_gradient(self, tmp_path: Path, trainable: bool) -> None:
        module, batch = made(tmp_path, run_config(model=dataclasses.replace(SMALL, probe_trainable=trainable)))
        module._evaluate_loss(batch)["loss"].backward()
        if trainable:
            assert module.probe_parts.grad is not None
            assert float(module.probe_parts.grad.abs().max()) > 0
        else:
            assert module.probe_parts.grad is None


class TestRefusals:
    @pytest.mark.contract("train.refuse")
    @pytest.mark.parametrize(
        ("config", "words"),
        [
            (run_config(loss=LossConfig(mae_weight=1.0)), "nll_weight compares counts and mae_weight amplitudes"),
            (run_config(loss=LossConfig(nll_weight=0.0, tv_weight=1.0)), "expected a term that depends on the data"),
            (run_config(model=ModelConfig(generator="resnet")), "one of .*cnn, .*pie_unet, .*resunet"),
            (run_config(model=ModelConfig(generator="cnn")), "takes frames of N = 64, 128, 256 px; found N = 32"),
            (run_config(group=GroupConfig(gridsize=2)), r"gridsize: expected 1 as in .*store; found 2"),
            (run_config(loss=LossConfig(realspace_weight=1.0)), "without a truth"),
        ],
    )
    def test_configuration_that_does_not_fit_is_refused(self, tmp_path: Path, config: RunConfig, words: str) -> None:
        store = prepare([dataclasses.replace(SCAN, truth=None)], run_config(), tmp_path / "store")
        with pytest.raises(ConfigError, match=words):
            PtychoPINN.for_store(store, config)

    @pytest.mark.contract("train.not-finite")
    def test_loss_that_is_not_finite_stops_training_and_names_the_frames(self, tmp_path: Path) -> None:
        module, batch = made(tmp_path, groups=2)
        batch.frames = batch.frames.float()
        batch.frames[0, 0, 0, 0] = float("inf")
        names = batch.members.flatten().tolist()
        with pytest.raises(TrainingError, match=rf"at step 0, scans \[0\], frames \[{names[0]}\]"):
            module.training_step(batch, 0)


class TestSchedule:
    @pytest.mark.contract("train.schedule")
    @pytest.mark.parametrize("schedule", ["plateau", "cosine", "constant"])
    def test_rate_rises_linearly_during_the_warm_up(self, schedule: str) -> None:
        shape = build_learning_rate_schedule(schedule, 10, 1000)
        assert [shape(step) for step in range(10)] == pytest.approx([0.1 * (step + 1) for step in range(10)], rel=1e-3)

    @pytest.mark.contract("train.schedule")
    def test_cosine_falls_to_a_thousandth_and_the_others_stay(self) -> None:
        cosine = [build_learning_rate_schedule("cosine", 10, 110)(step) for step in range(10, 111)]
        assert cosine == sorted(cosine, reverse=True)
        assert cosine[50] == pytest.approx(0.5, rel=1e-6)
        assert cosine[-1] == 1e-3
        for schedule in ("constant", "plateau"):
            assert {build_learning_rate_schedule(schedule, 10, 110)(step) for step in range(10, 120)} == {1.0}

    @pytest.mark.contract("train.schedule")
    def test_no_warm_up_begins_at_the_peak(self) -> None:
        assert build_learning_rate_schedule("constant", 0, 1)(0) == 1

    @pytest.mark.contract("train.plateau")
    def test_plateau_halves_the_rate_and_the_warm_up_does_not_undo_it(self, tmp_path: Path) -> None:
        config = run_config(model=SMALL, train=TrainConfig(learning_rate=1e-3, warmup_steps=50))
        module, _ = made(tmp_path, config)
        module._trainer = SimpleNamespace(  # type: ignore[assignment]
            estimated_stepping_batches=2000,
            check_val_every_n_epoch=1,
            num_training_batches=100,
            accumulate_grad_batches=1,
        )
        [optimizer], [follow, plateau] = module.configure_optimizers()
        assert plateau["monitor"] == "val/nll"
        rates = []
        for _ in range(6):
            for _ in range(100):
                optimizer.step()
                follow["scheduler"].step()
            plateau["scheduler"].step(1.0)
            rates.append(optimizer.param_groups[0]["lr"])
        # The first loss is the best; 300 steps later patience ends.
        assert rates == pytest.approx([1e-3] * 4 + [5e-4] * 2, rel=1e-6)

    @pytest.mark.contract("train.plateau")
    def test_without_held_out_frames_the_training_loss_is_watched(self, tmp_path: Path) -> None:
        module, _ = made(tmp_path)
        assert module.monitor == "val/nll"
        module.has_validation = False
        assert module.monitor == "train/loss_epoch"

    @pytest.mark.contract("train.probe")
    def test_rate_of_a_trainable_probe_is_relative_to_its_size(self, tmp_path: Path) -> None:
        config = run_config(
            model=dataclasses.replace(SMALL, probe_trainable=True),
            train=TrainConfig(probe_learning_rate=0.01, schedule="constant", warmup_steps=0),
        )
        module, _ = made(tmp_path, config)
        module._trainer = SimpleNamespace(estimated_stepping_batches=100)  # type: ignore[assignment]
        [optimizer], _ = module.configure_optimizers()
        size = float(module.probe_parts.detach().square().mean().sqrt())
        assert optimizer.param_groups[1]["lr"] == pytest.approx(0.01 * size, rel=1e-6)
