"""The tiny experiment that the tests from end to end share, and what a command answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torchptycho.core.config import GroupConfig, ModelConfig, RunConfig, SimulateConfig, TrainConfig

TINY_SIMULATION = SimulateConfig(n_px=32, object_px=80, n_frames=64, photons_per_frame=1e5)
TINY = RunConfig(
    group=GroupConfig(gridsize=1),
    model=ModelConfig(n_filters_scale=1),
    train=TrainConfig(steps=12, batch_size=8, learning_rate=1e-3, accelerator="cpu"),
)
TINY_FLAGS = [
    "--gridsize", "1", "--n-filters-scale", "1", "--steps", "12", "--batch-size", "8",
    "--learning-rate", "1e-3", "--accelerator", "cpu",
]  # fmt: skip
"""The same, for the command line."""


@dataclasses.dataclass(frozen=True)
class CommandResult:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


Command = Callable[..., CommandResult]
