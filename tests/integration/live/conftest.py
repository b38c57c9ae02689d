"""Networks and a recorded scan for the tests of live reconstruction."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from live_scans import (
    LENGTHS,
    SIMULATION,
)

from torchptycho.core.config import (
    GroupConfig,
    ModelConfig,
    ReconstructConfig,
    RunConfig,
    TrainConfig,
)
from torchptycho.data.simulation import simulate
from torchptycho.io import write_scan
from torchptycho.training.train import train


def train_quick_network(folder: Path, gridsize: int, *, agree_phases: bool) -> Path:
    """Train a network of one cheap layer for one step."""
    config = RunConfig(
        group=GroupConfig(gridsize=gridsize),
        model=ModelConfig(generator="fast_generator:Quick"),
        train=TrainConfig(steps=1, batch_size=8, accelerator="cpu", on_flat="warn"),
        reconstruct=ReconstructConfig(agree_phases=agree_phases),
    )
    small = simulate(dataclasses.replace(SIMULATION, n_frames=64, object_px=80))
    return train(small, config, folder / "run", progress=False).checkpoint


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_quick_network(tmp_path_factory.mktemp("single"), 1, agree_phases=False)


@pytest.fixture(scope="session")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_quick_network(tmp_path_factory.mktemp("paired"), 2, agree_phases=True)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "scan.npz"
    write_scan(dataclasses.replace(simulate(SIMULATION), geometry=LENGTHS.with_object_pixel(32)), path)
    return path
