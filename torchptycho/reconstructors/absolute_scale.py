"""Absolute scale: how bright the predicted object and a constant background must be to give the measured counts."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, distributed

from torchptycho.core.errors import StoreError
from torchptycho.models.network import FrameBatch, PtychoNetwork

__all__ = ["AbsoluteScale", "ScaleStatistics"]

# Added to the variance of a pixel, so that pixels without expected counts have a finite weight.
_MIN_VARIANCE = 0.5


@dataclasses.dataclass(frozen=True)
class AbsoluteScale:
    """Counts are object_factor^2 times the model's, plus a background.

    Arguments:
        object_factor: factor of the object.
        background_counts: per detector pixel and frame.
    """

    object_factor: float
    background_counts: float


class ScaleStatistics:
    """Sums over frames that determine the scale; the sums of two parts of a scan add.

    The counts y are fitted by alpha I + beta with two real numbers, I being the model's counts, by weighted least
    squares. The weights are those of the model's own photon noise, 1 / (I + 1/2), and do not depend on y, so the fit is
    linear and its five sums are all that has to be kept: the variable projection of Golub and Pereyra, Inverse Problems
    19, R1 (2003), for coefficients that enter linearly.
    """

    def __init__(self) -> None:
        self._normal = torch.zeros(2, 2, dtype=torch.float64)
        self._right = torch.zeros(2, dtype=torch.float64)

    def add(
        self, expected: Float[Tensor, "*shape"], counts: Float[Tensor, "*shape"], good: Bool[Tensor, "*shape"]
    ) -> None:
        """Add the expected and measured counts of some frames, in good pixels only."""
        model, measured = expected[good].double(), counts[good].double()
        weight = 1 / (model + _MIN_VARIANCE)
        once = (weight * model).sum()
        normal = torch.stack([(weight * model.square()).sum(), once, once, weight.sum()]).reshape(2, 2)
        right = torch.stack([(weight * model * measured).sum(), (weight * measured).sum()])
        self._normal = self._normal + normal.cpu()
        self._right = self._right + right.cpu()

    def solve(self) -> AbsoluteScale:
        """Solve for the best scale; a background that would be negative is 0.

        Raises:
            StoreError: no positive scale fits, because the model sees no light or its pattern is not in the counts.
        """
        (ii, i1), (_, ones) = self._normal.tolist()
        iy, y = self._right.tolist()
        # The determinant relative to its maximum: 0 for patterns without structure, which cannot distinguish scale and
        # background.
        independent = 1 - i1 * i1 / (ii * ones) if ii > 0 and ones > 0 else 0.0
        alpha, beta = (iy / ii if ii > 0 else 0.0), 0.0
        if independent > 1e-9:
            free = (iy * ones - i1 * y) / (ii * ones * independent), (ii * y - i1 * iy) / (ii * ones * independent)
            if free[1] > 0:
                alpha, beta = free
        if not 0 < alpha < math.inf:
            raise StoreError(f"absolute_scale: expected a positive factor of the counts; the best fit is {alpha:.3g}.")
        return AbsoluteScale(math.sqrt(alpha), beta)

    def add_batch(self, network: PtychoNetwork, patches: Complex[Tensor, "b c n n"], batch: FrameBatch) -> None:
        """Add a predicted batch, in the units of training, every frame once."""
        with torch.no_grad():
            # Without the background, which is fitted here.
            expected = network.compute_expected_counts(patches, batch, background=False)
            counts = network.compute_measured_counts(batch)
            good = network.masks[batch.scan][:, None] & batch.is_first[:, :, None, None]
            # Patches that are not finite are excluded from the image too.
            good = good & expected.isfinite() & counts.isfinite()
        self.add(expected, counts, good)

    def all_reduce(self, device: torch.device) -> None:
        """Sum over all processes, which communicate on this device."""
        both = torch.cat([self._normal.reshape(-1), self._right]).to(device)
        distributed.all_reduce(both)
        self._normal, self._right = both[:4].cpu().reshape(2, 2), both[4:].cpu()

    def to_sums(self) -> dict[str, Tensor]:
        """Return the sums as plain tensors."""
        return {"normal": self._normal, "right": self._right}

    @classmethod
    def from_sums(cls, sums: dict[str, Tensor]) -> ScaleStatistics:
        """Build the statistics from what `to_sums` returned."""
        statistics = cls()
        statistics._normal, statistics._right = sums["normal"], sums["right"]
        return statistics
