"""The learnt prior as a regulariser of refinement."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from torchptycho.models.prior import TrainedPrior, apply_prior, load_prior
from torchptycho.physics.illumination import compute_illumination, compute_noise_level
from torchptycho.reconstructors.iterative.problem import Problem
from torchptycho.reconstructors.iterative.rpie import measure_misfit
from torchptycho.reconstructors.iterative.state import RefinementState

__all__ = ["DEFAULT_STRENGTH", "LearnedPrior", "apply_last_step", "apply_learned_step"]

DEFAULT_STRENGTH = 0.8
"""Noise relative to that of the photons: what was removed by the step before is not all back after a few epochs."""

# The last step is shortened until the misfit is above 1 (or what it was before) by at most this part of what it was
# below 1 before, which is the noise that was fitted; a misfit above 1 before is no noise that a prior could remove.
_MISFIT_TOLERANCE, _MIN_FITTED_NOISE = 1.5, 0.01
_STEPS = (1.0, 0.75, 0.5, 0.25)


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


def apply_learned_step(problem: Problem, state: RefinementState, prior: LearnedPrior, strength: float) -> None:
    """Replace the object of the state by one with less noise; momentum starts again from there."""
    state.object = prior.denoise(state.object, _measure_photons(problem, state), strength)
    state.reset_momentum()


def apply_last_step(problem: Problem, state: RefinementState, prior: LearnedPrior, strength: float) -> dict[str, float]:
    """Take the step that ends a refinement, as far as the counts agree with it.

    An image that follows the photon noise has a misfit below 1 and the true object one of 1. What raises it further has
    lost structure, or has some that is not there: the step is then shortened.

    Returns:
        the misfit before and after, and the length of the step.
    """
    before = measure_misfit(problem, state, state.object)
    change = prior.denoise(state.object, _measure_photons(problem, state), strength) - state.object
    limit = max(1.0, before) + _MISFIT_TOLERANCE * max(1.0 - before, _MIN_FITTED_NOISE)
    step, after = 0.0, before
    for length in _STEPS:
        found = measure_misfit(problem, state, state.object + length * change)
        if found <= limit:
            step, after = length, found
            break
    state.object = state.object + step * change
    state.reset_momentum()
    return {"misfit_before": before, "misfit_after": after, "step": step}


def _measure_photons(problem: Problem, state: RefinementState) -> Tensor:
    corners_px = problem.compute_corners_px(state.positions_px)
    return compute_illumination(state.build_mean_probe(), corners_px, problem.shape)
