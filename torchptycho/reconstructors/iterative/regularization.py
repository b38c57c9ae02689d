"""Penalties on the object, or on each slice of a thick one: smoothness and total variation."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Complex, Float
from torch import Tensor

__all__ = ["Regularizer", "TotalVariation", "apply_penalty_step", "compute_penalty", "denoise_total_variation"]

# Differences below this count as smooth, so that the gradient of the total variation is continuous at 0.
_TV_SMOOTHING = 0.01


def apply_penalty_step(
    object: Complex[Tensor, "*slices h w"], smoothness: float, tv: float
) -> Complex[Tensor, "*slices h w"]:
    """Take one explicit step down the gradients of both penalties, short enough not to overshoot."""
    down, right = _compute_differences(object)
    weight_down, weight_right = (smoothness + tv / (d.abs().square() + _TV_SMOOTHING**2).sqrt() for d in (down, right))
    flow_down, flow_right = (torch.clamp(w, max=0.125) * d for w, d in ((weight_down, down), (weight_right, right)))
    step = torch.zeros_like(object)
    step[..., :-1, :] += flow_down
    step[..., 1:, :] -= flow_down
    step[..., :-1] += flow_right
    step[..., 1:] -= flow_right
    return object + step


def compute_penalty(object: Complex[Tensor, "*slices h w"], smoothness: float, tv: float) -> Float[Tensor, ""]:
    """Compute the penalties, mean over the pixels: smoothness |d|^2 / 2 + tv (sqrt(|d|^2 + s^2) - s)."""
    total = object.real.new_zeros(())
    for d in _compute_differences(object):
        square = d.real.square() + d.imag.square()
        total = total + (smoothness * square / 2 + tv * ((square + _TV_SMOOTHING**2).sqrt() - _TV_SMOOTHING)).sum()
    return total / object.numel()


def _compute_differences(object: Tensor) -> tuple[Tensor, Tensor]:
    return object[..., 1:, :] - object[..., :-1, :], object[..., 1:] - object[..., :-1]


@runtime_checkable
class Regularizer(Protocol):
    """A prior that the object takes a step towards, once in each epoch of polishing."""

    def denoise(
        self, object: Complex[Tensor, "*slices h w"], photons_per_px: Float[Tensor, "h w"], strength: float
    ) -> Complex[Tensor, "*slices h w"]:
        """Take a proximal step on the whole canvas.

        Arguments:
            photons_per_px: n, photons through each object pixel; its noise is 1 / sqrt(2 n).
            strength: in units of that noise, so that it means the same at every dose and coverage.
        """
        ...


class TotalVariation:
    """Total variation: the prior that edges are few and sharp.

    Arguments:
        alpha: part of the largest photon number that is added to all, as in the PIE steps.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def denoise(
        self, object: Complex[Tensor, "*slices h w"], photons_per_px: Float[Tensor, "h w"], strength: float
    ) -> Complex[Tensor, "*slices h w"]:
        """Take the proximal step of the total variation, weighted at each pixel by `strength` times its noise."""
        return denoise_total_variation(object, strength / (2 * self._regularize(photons_per_px)).sqrt())

    def compute_penalty(
        self, object: Complex[Tensor, "*slices h w"], photons_per_px: Float[Tensor, "h w"], strength: float
    ) -> Float[Tensor, ""]:
        """Compute what half the deviance of all counts needs in addition for the fixed point of `denoise`.

        A full PIE step is a quarter of the gradient of that deviance, divided by n; so the weight is 4 n times that of
        the proximal step. Differentiable.
        """
        down, right = _compute_gradient(object)
        square = down.real.square() + down.imag.square() + right.real.square() + right.imag.square()
        length = (square + _TV_SMOOTHING**2).sqrt() - _TV_SMOOTHING
        return (2 * strength * (2 * self._regularize(photons_per_px)).sqrt() * length).sum()

    def _regularize(self, photons_per_px: Tensor) -> Tensor:
        return (1 - self._alpha) * photons_per_px + self._alpha * photons_per_px.max()


def denoise_total_variation(
    object: Complex[Tensor, "*slices h w"], weight: Float[Tensor, "h w"], n_steps: int = 10
) -> Complex[Tensor, "*slices h w"]:
    """Minimise |u - object|^2 / 2 + sum weight |gradient of u| by accelerated projections of the dual variable.

    The gradient of a complex image has four real components, so that edges of phase and amplitude count together.
    Reference: Beck, Teboulle, IEEE Trans. Image Process. 18, 2419 (2009).
    """
    previous = _compute_gradient(torch.zeros_like(object))
    leading, t = previous, 1.0
    for _ in range(n_steps):
        steps = _compute_gradient(object - _apply_adjoint(*leading))
        down, right = (dual + step / 8 for dual, step in zip(leading, steps, strict=True))
        length = (down.real.square() + down.imag.square() + right.real.square() + right.imag.square()).sqrt()
        shrink = (weight / length.clamp_min(1e-30)).clamp_max(1)
        present = down * shrink, right * shrink
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        ahead = (t - 1) / t_next
        leading = (
            present[0] + ahead * (present[0] - previous[0]),
            present[1] + ahead * (present[1] - previous[1]),
        )
        previous, t = present, t_next
    return object - _apply_adjoint(*previous)


def _compute_gradient(object: Tensor) -> tuple[Tensor, Tensor]:
    down, right = torch.zeros_like(object), torch.zeros_like(object)
    down[..., :-1, :], right[..., :-1] = _compute_differences(object)
    return down, right


def _apply_adjoint(down: Tensor, right: Tensor) -> Tensor:
    """Adjoint of `_compute_gradient`."""
    image = -(down + right)
    image[..., 1:, :] += down[..., :-1, :]
    image[..., 1:] += right[..., :-1]
    return image
