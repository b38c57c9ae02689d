"""Generators of another package, small enough to be exported and compiled in seconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchptycho.core.config import ModelConfig
from torchptycho.models.generators import Generator, GroupInput
from torchptycho.models.generators.resunet import estimate_object


class Estimate(Generator):
    """One step of phase retrieval and one convolution."""

    supported_n_px = (32,)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.decoder = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)

    @classmethod
    def from_config(cls, config: ModelConfig, n_px: int, channels: int) -> Estimate:
        return cls(channels)

    def forward(self, group: GroupInput) -> Tensor:
        estimate = estimate_object(group.amplitude, group.probe)
        parts = self.decoder(torch.cat([estimate.real, estimate.imag], 1)) + 1
        return torch.complex(parts[:, : self.channels], parts[:, self.channels :])


class Angles(Estimate):
    """With an operator of complex numbers that has no form in real ones here."""

    def forward(self, group: GroupInput) -> Tensor:
        return torch.polar(torch.ones_like(group.amplitude), super().forward(group).angle())
