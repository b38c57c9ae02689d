"""A generator that costs next to nothing, for what has to do with many frames and little with the network."""

from __future__ import annotations

import torch
from jaxtyping import Complex
from torch import Tensor, nn

from torchptycho.core.config import ModelConfig
from torchptycho.models.generators import Generator, GroupInput


class Quick(Generator):
    """Each frame's patch is its amplitude, turned: another frame is another patch."""

    supported_n_px = (32, 64, 128)

    def __init__(self) -> None:
        super().__init__()
        self.turn_rad = nn.Parameter(torch.tensor(0.5))

    @classmethod
    def from_config(cls, config: ModelConfig, n_px: int, channels: int) -> Quick:
        return cls()

    def forward(self, group: GroupInput) -> Complex[Tensor, "b c n n"]:
        size = 1 + group.amplitude
        return torch.complex(size * torch.cos(self.turn_rad * size), size * torch.sin(self.turn_rad * size))
