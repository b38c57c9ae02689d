"""A generator that looks at nothing, for what must not depend on the network."""

from __future__ import annotations

import torch
from jaxtyping import Complex
from torch import Tensor, nn

from torchptycho.core.config import ModelConfig
from torchptycho.models.generators import Generator, GroupInput


class Constant(Generator):
    """The same patch whatever it is given."""

    supported_n_px = (32,)

    def __init__(self, n_px: int) -> None:
        super().__init__()
        self.parts = nn.Parameter(torch.ones(n_px, n_px, 2) * torch.tensor([1.0, 0.0]))

    @classmethod
    def from_config(cls, config: ModelConfig, n_px: int, channels: int) -> Constant:
        return cls(n_px)

    def forward(self, group: GroupInput) -> Complex[Tensor, "b c n n"]:
        return torch.view_as_complex(self.parts).expand(group.amplitude.shape).clone()
