"""The mean of a loss over an epoch, on one process or several, which a checkpoint can take along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["EpochMean"]


class EpochMean:
    """Sums up losses and their weights in double precision, where they are, without waiting for the device."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._weight = 0.0

    def add(self, value: Tensor, weight: float) -> None:
        self._sum = self._sum + weight * value.detach().double()
        self._weight += weight

    def compute_and_reset(self, strategy: Any) -> Tensor | None:
        """Return the mean so far over all processes of a Lightning strategy, None without values; then start again."""
        if not self._weight:
            return None
        sums = torch.tensor([float(self._sum), self._weight], dtype=torch.float64, device=strategy.root_device)
        self._sum, self._weight = 0.0, 0.0
        sums = strategy.reduce(sums, reduce_op="sum")
        mean: Tensor = (sums[0] / sums[1]).float()
        return mean

    def state_dict(self) -> list[float]:
        """Return plain data for a checkpoint."""
        return [float(self._sum), self._weight]

    def load_state_dict(self, state: list[float]) -> None:
        """Go on from `state`."""
        self._sum, self._weight = state
