"""Refinement, projection, training and stitching on a CUDA device give what they give on the CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tolerances import relative_l2

from torchptycho.config import GroupConfig, ModelConfig, RefineConfig, RunConfig, SimulateConfig, TrainConfig
from torchptycho.reconstructing import reconstruct
from torchptycho.refinement import refine
from torchptycho.simulation import simulate
from torchptycho.workflows import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]

SCAN = simulate(SimulateConfig(n_px=32, object_px=72, n_frames=64, photons_per_frame=1e6, simulation_seed=3))


@pytest.mark.contract("refine.devices")
@pytest.mark.parametrize("method", ["rpie", "lsqml", "gradient"])
@pytest.mark.parametrize("position_update", ["none", "both"])
def test_refined_image_is_the_same_on_cpu_and_gpu(method: str, position_update: str) -> None:
    config = RefineConfig(
        method=method, epochs=8, position_update=position_update, position_start_epoch=2, patience=None  # type: ignore[arg-type]
    )  # fmt: skip
    here, there = (refine(SCAN, config=config, device=device) for device in ("cpu", "cuda"))
    # The order of additions differs, and eight epochs carry that on.
    assert relative_l2(torch.from_numpy(there.object), torch.from_numpy(here.object)) < 1e-2


@pytest.mark.contract("predict.devices")
def test_trained_network_gives_the_same_image_on_cpu_and_gpu(tmp_path: Path) -> None:
    config = RunConfig(
        group=GroupConfig(gridsize=2), model=ModelConfig(n_filters_scale=1), train=TrainConfig(steps=20, batch_size=16)
    )
    gpu = dataclasses.replace(config, train=dataclasses.replace(config.train, accelerator="gpu"))
    checkpoint = train(SCAN, gpu, tmp_path / "run", progress=False).checkpoint
    here, there = (
        reconstruct(checkpoint, SCAN, accelerator=accelerator, progress=False) for accelerator in ("cpu", "gpu")
    )
    assert relative_l2(torch.from_numpy(there.object), torch.from_numpy(here.object)) < 1e-3
