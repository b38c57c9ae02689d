"""The learnt prior as a regulariser of refinement."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from torchptycho.models.prior import TrainedPrior, apply_prior, load_prior
from torchptycho.physics.illumination import compute_noise_level

__all__ = ["LearnedPrior"]


class LearnedPrior:
    """What a network learnt about objects: brings the object nearer to those that it knows, by its photon noise.

    Arguments:
        prior: network and weights; None takes those that come with the package.
    """

    every_epochs = 4
    """Epochs of polishing between two steps: the counts need a few to restore what a step took away."""

    def __init__(self, prior: TrainedPrior | None = None, device: torch.device | str = "cpu") -> None:
        self.prior = load_prior(device=device) if prior is None else prior

    def denoise(
        self, object: Complex[Tensor, "h w"], photons_per_px: Float[Tensor, "h w"], strength: float
    ) -> Complex[Tensor, "h w"]:
        """Take the noise out that the photons leave.

        Arguments:
            photons_per_px: n, the photons through each object pixel; its noise is 1 / sqrt(2 n).
            strength: what the noise is taken to be, relative to that: 1 is right, 0 changes nothing.
        """
        if strength == 0:
            return object
        sigma = compute_noise_level(photons_per_px) * strength
        return apply_prior(self.prior.network, object, sigma)
