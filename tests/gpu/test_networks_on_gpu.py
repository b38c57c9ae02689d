"""Training, prediction and the watch of a scan on a CUDA device do what they do on the CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emulated_cuda import EmulatedGpu
from tolerances import relative_l2

from torchptycho.analysis.history import read_history
from torchptycho.core.config import (
    ExperimentConfig,
    GroupConfig,
    LossConfig,
    ModelConfig,
    ReconstructConfig,
    RunConfig,
    SimulateConfig,
    TrainConfig,
)
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.datasets import GroupDataset
from torchptycho.data.inference_dataset import InferenceDataset
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.live.preview import LivePreview
from torchptycho.live.replay import make_layout
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.reconstructors.inference import batch_size_for
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.reconstructors.stitcher import PatchStitcher
from torchptycho.training.train import train

pytestmark = pytest.mark.gpu

SCAN = simulate(SimulateConfig(n_px=32, object_px=64, n_frames=32, photons_per_frame=1e6, simulation_seed=3))
# The smallest frames that the plain encoder is made for.
WIDE = simulate(SimulateConfig(n_px=64, object_px=100, n_frames=12, photons_per_frame=1e6, simulation_seed=3))
EVERYTHING = {
    "model": ModelConfig(generator="resunet", n_filters_scale=1, probe_trainable=True),
    "experiment": ExperimentConfig(
        scale_trainable=True, background_trainable=True, probe_power="fixed", probe_support_px=20, exit_smoothing_px=0.5
    ),
    "loss": LossConfig(tv_weight=0.1, realspace_weight=0.5, realspace_mae_weight=0.5),
}  # fmt: skip


def config_of(generator: str = "pie_unet", gridsize: int = 2, **sections: Any) -> RunConfig:
    model = ModelConfig(generator=generator, n_filters_scale=1, start_projections=2, finish_projections=2)
    return RunConfig(**({"group": GroupConfig(gridsize=gridsize), "model": model} | sections))


def module_of(folder: Path, config: RunConfig) -> tuple[PtychoPINN, Scan, GroupDataset]:
    """A module as a first training would make it, but with weights that matter."""
    scan = WIDE if config.model.generator == "cnn" else SCAN
    store = prepare([scan], config, folder / "store")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = PtychoPINN.for_store(store, config)
        for parameter in module.generator.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape)
    return module, scan, GroupDataset(store, "train", with_truth=module.loss.needs_truth)


def assert_same(there: Reconstruction, here: Reconstruction, limit: float = 1e-3) -> None:
    assert there.origin_px == here.origin_px
    for name in ("object", "coverage", "spread"):
        one, other = getattr(there, name), getattr(here, name)
        assert (one is None) == (other is None)
        assert one is None or relative_l2(torch.from_numpy(one), torch.from_numpy(other)) < limit


def assert_images_agree(folder: Path, run: RunConfig, config: ReconstructConfig, limit: float = 1e-3) -> None:
    module, scan, _ = module_of(folder, run)
    there, here = (reconstruct(module, scan, config, accelerator=name, progress=False) for name in ("gpu", "cpu"))
    assert_same(there, here, limit)
    assert module.probe_parts.device.type == "cpu"
    scales = [one.provenance.get("absolute_scale", {}) for one in (there, here)]
    assert scales[0] == pytest.approx(scales[1], rel=limit)


@pytest.mark.contract("predict.devices")
@pytest.mark.parametrize("generator", ["pie_unet", "resunet", "cnn"])
@pytest.mark.parametrize("gridsize", [1, 2])
@pytest.mark.parametrize("agree_phases", [True, False])
def test_an_image_is_the_same_on_cpu_and_gpu(
    cuda: torch.device, tmp_path: Path, generator: str, gridsize: int, agree_phases: bool
) -> None:
    assert_images_agree(tmp_path, config_of(generator, gridsize), ReconstructConfig(agree_phases=agree_phases))


@pytest.mark.contract("predict.devices")
@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"predict_passes": 2, "stitch_weight": "central"}, 1e-3),
        ({"absolute_scale": True, "input_scale": "scan"}, 1e-3),
        ({"predict_precision": "bf16-mixed"}, 2e-2),
    ],
)
def test_all_options_are_the_same_on_cpu_and_gpu(
    cuda: torch.device, tmp_path: Path, options: dict[str, Any], limit: float
) -> None:
    assert_images_agree(tmp_path, config_of(), ReconstructConfig(predict_batch_size=8, **options), limit)


@pytest.mark.contract("predict.devices")
@pytest.mark.parametrize("learnt", [True, False])
def test_an_experiment_that_was_learnt_and_a_refinement_follow(
    cuda: torch.device, tmp_path: Path, learnt: bool
) -> None:
    module, scan, _ = module_of(tmp_path, config_of(gridsize=1, **(EVERYTHING if learnt else {})))
    told: list[str] = []
    images = [
        reconstruct(
            module,
            scan,
            ReconstructConfig(absolute_scale=True),
            accelerator=name,
            progress=False,
            refine_epochs=3,
            on_batch=lambda batch, patches: told.append(patches.device.type),
        )
        for name in ("gpu", "cpu")
    ]
    assert_same(*images, limit=1e-2)
    assert sorted(set(told)) == ["cpu", "cuda"]


@pytest.mark.contract("predict.devices")
def test_patches_that_do_not_fit_onto_the_gpu_are_kept_in_a_file(machine: EmulatedGpu, tmp_path: Path) -> None:
    machine.free_bytes = 4 * 32 * 32 * 32 * 8
    assert_images_agree(tmp_path, config_of(), ReconstructConfig(predict_batch_size=8))


@pytest.mark.contract("predict.memory.gpu")
def test_what_is_free_on_a_gpu_is_shared_out(machine: EmulatedGpu, tmp_path: Path) -> None:
    module, _, _ = module_of(tmp_path, config_of())
    stream = InferenceDataset.from_scan(SCAN, tmp_path, gridsize=2, nphotons=None, training_scan=0)
    config, device = ReconstructConfig(), torch.device("cuda", 0)
    module.to(device)
    groups = min(4, len(stream))
    # So much for each group that ten of them take half of what there is.
    machine.free_bytes, machine.peak_bytes = 20 << 20, groups << 20
    assert batch_size_for(module, stream, config, device) == 10
    machine.free_bytes = 1 << 40
    assert batch_size_for(module, stream, config, device) == 4096 // 4
    size = 8 * 100 * 32 * 32
    for free, there in ((4 * size + 4, True), (4 * size - 4, False)):
        machine.free_bytes = free
        mosaic = PatchStitcher(torch.rand(100, 2), torch.ones(32, 32, device="cuda"))
        assert mosaic._patches is not None
        assert mosaic._patches.is_cuda == there


@pytest.mark.contract("predict.memory.gpu")
def test_wide_frames_come_in_smaller_batches(machine: EmulatedGpu, tmp_path: Path) -> None:
    machine.free_bytes = 1 << 40
    wide = simulate(SimulateConfig(n_px=256, object_px=300, n_frames=6, photons_per_frame=1e6))
    run = config_of("resunet", 1)
    module = PtychoPINN.for_store(prepare([wide], run, tmp_path / "store"), run).to("cuda")
    stream = InferenceDataset.from_scan(wide, tmp_path, gridsize=1, nphotons=None, training_scan=0)
    assert batch_size_for(module, stream, ReconstructConfig(), torch.device("cuda", 0)) == 1024


@pytest.mark.contract("train.devices")
@pytest.mark.parametrize(
    "run",
    [config_of("pie_unet"), config_of("cnn"), config_of("resunet", **EVERYTHING)],
    ids=["pie_unet", "cnn", "everything"],
)
def test_loss_and_gradient_are_the_same_on_cpu_and_gpu(cuda: torch.device, tmp_path: Path, run: RunConfig) -> None:
    module, _, groups = module_of(tmp_path, run)
    batch = groups.__getitems__(range(3))
    found = []
    for device in (torch.device("cpu"), cuda):
        module.to(device)
        module.zero_grad()
        loss = module._evaluate_loss(batch.to(device))["loss"]
        loss.backward()
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        found.append((float(loss.detach()), torch.cat([p.grad.flatten().cpu() for p in trained if p.grad is not None])))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    assert relative_l2(found[1][1], found[0][1]) < 1e-2


@pytest.mark.contract("train.waits")
@pytest.mark.parametrize(
    "run", [config_of("pie_unet"), config_of("resunet", **EVERYTHING)], ids=["plain", "everything"]
)
def test_a_forward_pass_does_not_wait_for_the_gpu(machine: EmulatedGpu, tmp_path: Path, run: RunConfig) -> None:
    module, _, groups = module_of(tmp_path, run)
    batch = groups.__getitems__(range(3)).to("cuda")
    module.to("cuda")
    before = machine.n_syncs
    module._evaluate_loss(batch)["loss"].backward()
    module.expect_offsets(groups.max_offset_px)
    with torch.inference_mode():
        module(batch)
    assert machine.n_syncs == before


@pytest.mark.contract("train.devices")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_takes_the_same_steps_on_cpu_and_gpu(cuda: torch.device, tmp_path: Path, precision: Any) -> None:
    losses = []
    for name in ("cpu", "gpu"):
        options = TrainConfig(steps=4, batch_size=16, accelerator=name, precision=precision, warmup_steps=2)
        result = train(SCAN, config_of(train=options), tmp_path / name, progress=False)
        losses.append([value for _, value in read_history(tmp_path / name)["train/loss_epoch"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2 if precision == "32-true" else 5e-2)
    there, here = (reconstruct(result.checkpoint, SCAN, accelerator=name, progress=False) for name in ("gpu", "cpu"))
    assert_same(there, here)


@pytest.mark.contract("train.devices")
def test_a_run_on_a_gpu_is_resumed_there(cuda: torch.device, tmp_path: Path) -> None:
    options = TrainConfig(steps=2, batch_size=16, accelerator="gpu", schedule="constant", warmup_steps=1)
    run = config_of("resunet", **EVERYTHING | {"train": options})
    train(SCAN, run, tmp_path / "run", progress=False)
    longer = dataclasses.replace(run, train=dataclasses.replace(options, steps=4))
    train(SCAN, longer, tmp_path / "run", resume=True, progress=False)
    train(SCAN, longer, tmp_path / "at once", progress=False)
    resumed, at_once = (read_history(tmp_path / name)["train/loss_epoch"] for name in ("run", "at once"))
    assert resumed[-1][1] == pytest.approx(at_once[-1][1], rel=1e-2)


@pytest.mark.contract("live.devices")
@pytest.mark.parametrize("gridsize", [1, 2])
def test_a_provisional_image_is_the_same_on_cpu_and_gpu(cuda: torch.device, tmp_path: Path, gridsize: int) -> None:
    module, scan, _ = module_of(tmp_path, config_of("resunet", gridsize))
    frames = np.array(scan.frames[:], np.float32)
    frames[5, 3, 3] = np.nan
    layout = make_layout(dataclasses.replace(scan, frames=ArrayFrames(frames)))
    found, before = [], {name: value.clone() for name, value in module.state_dict().items()}
    for device in (torch.device("cpu"), cuda):
        with LivePreview(module, module.config.reconstruct, layout, "here", device) as image:
            for start in (0, 12, 20):
                some = slice(max(0, start - 4), start + 12)
                image.add(frames[some], scan.positions_px[some], some.start, start - some.start)
            found.append(image.make_image())
        assert list(image.unfit) == [5]
        assert not image.unplaced
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        assert not any(value.is_inference() for value in module.state_dict().values())
    assert found[0] is not None
    assert found[1] is not None
    assert_same(found[1], found[0])
