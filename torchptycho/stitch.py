"""The canvas: patches in, their weighted average out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Complex128, Float, Float64
from torch import Tensor

from torchptycho.physics.patches import corner, place_into
from torchptycho.reconstruction import MIN_COVERAGE, Reconstruction

__all__ = ["MIN_COVERAGE", "Canvas"]


@dataclasses.dataclass(frozen=True, eq=False)
class Canvas:
    """Sums of weighted patches and of their weights, at absolute positions. Canvases of one frame of reference add.

    Arguments:
        numerator: [H, W] sum of weight * patch.
        weight: [H, W] sum of weights.
        origin_px: (y, x) object pixel of [0, 0].
    """

    numerator: Complex128[Tensor, "h w"]
    weight: Float64[Tensor, "h w"]
    origin_px: tuple[int, int]

    @classmethod
    def for_positions(
        cls, positions_px: Float[Tensor, "m 2"], n_px: int, device: torch.device | str | None = None
    ) -> Canvas:
        """An empty canvas that holds every patch of n_px pixels at these positions."""
        # Rounded down before anything is subtracted: -1e-20 - 32 is -32, and the canvas would begin too late.
        low = positions_px.double().amin(0).floor() - n_px // 2
        high = positions_px.double().amax(0).floor() - n_px // 2 + n_px + 1
        height, width = (int(size) for size in (high - low).tolist())
        return cls(
            numerator=torch.zeros(height, width, dtype=torch.complex128, device=device),
            weight=torch.zeros(height, width, dtype=torch.float64, device=device),
            origin_px=(int(low[0]), int(low[1])),
        )

    def add(
        self,
        patches: Complex[Tensor, "k n n"],
        positions_px: Float[Tensor, "k 2"],
        weight: Float[Tensor, "*weight_k n n"],
    ) -> None:
        """Accumulate patches in place, bilinearly at sub-pixel positions.

        In double precision, so that the image does not depend on the order or the size of the batches beyond 1e-12.

        Raises:
            ValueError: a patch would fall outside: the canvas was made for other positions.
        """
        n_px = patches.shape[-1]
        corner_px = corner(positions_px.double(), n_px, self.origin_px)
        room = corner_px.new_tensor(self.weight.shape) - n_px
        outside = ~((corner_px >= 0) & (corner_px <= room)).all(-1)  # so written, NaN is outside too
        if bool(outside.any()):
            first = positions_px[outside][0].tolist()
            raise ValueError(f"{int(outside.sum())} patches fall outside the canvas, the first at (y, x) = {first}")
        weight = weight.double().expand(patches.shape)
        place_into(self.numerator, patches * weight, corner_px)
        place_into(self.weight, weight, corner_px)

    def __add__(self, other: Canvas) -> Canvas:
        """The canvas of both sets of patches.

        Raises:
            ValueError: the two differ in place or size.
        """
        if self.origin_px != other.origin_px or self.weight.shape != other.weight.shape:
            raise ValueError(
                f"canvases at {self.origin_px} {tuple(self.weight.shape)} and {other.origin_px} "
                f"{tuple(other.weight.shape)} do not cover the same pixels"
            )
        return Canvas(self.numerator + other.numerator, self.weight + other.weight, self.origin_px)

    def finish(self, object_pixel_m: float | None = None, provenance: dict[str, Any] | None = None) -> Reconstruction:
        """Divide, and say where the result can be trusted."""
        weight = self.weight.cpu().numpy()
        peak = float(weight.max())
        if not 0 < peak < math.inf:
            raise ValueError(f"nothing was placed on the canvas (largest weight {peak})")
        covered = weight > 1e-9 * peak
        image = np.divide(self.numerator.cpu().numpy(), weight, out=np.zeros(weight.shape, complex), where=covered)
        coverage = (weight / peak).astype(np.float32)
        return Reconstruction(
            object=image.astype(np.complex64),
            coverage=coverage,
            valid=coverage >= MIN_COVERAGE,
            origin_px=self.origin_px,
            object_pixel_m=object_pixel_m,
            provenance=provenance or {},
        )
