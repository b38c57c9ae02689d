"""Penalties on the object: smoothness and total variation."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

__all__ = ["apply_penalty_step", "compute_penalty"]

# Differences below this count as smooth, so that the gradient of the total variation is continuous at 0.
_TV_SMOOTHING = 0.01


def apply_penalty_step(object: Complex[Tensor, "h w"], smoothness: float, tv: float) -> Complex[Tensor, "h w"]:
    """Take one explicit step down the gradients of both penalties, short enough not to overshoot."""
    down, right = _compute_differences(object)
    weight_down, weight_right = (smoothness + tv / (d.abs().square() + _TV_SMOOTHING**2).sqrt() for d in (down, right))
    flow_down, flow_right = (torch.clamp(w, max=0.125) * d for w, d in ((weight_down, down), (weight_right, right)))
    step = torch.zeros_like(object)
    step[:-1] += flow_down
    step[1:] -= flow_down
    step[:, :-1] += flow_right
    step[:, 1:] -= flow_right
    return object + step


def compute_penalty(object: Complex[Tensor, "h w"], smoothness: float, tv: float) -> Float[Tensor, ""]:
    """Compute the penalties, mean over the pixels: smoothness |d|^2 / 2 + tv (sqrt(|d|^2 + s^2) - s)."""
    total = object.real.new_zeros(())
    for d in _compute_differences(object):
        square = d.real.square() + d.imag.square()
        total = total + (smoothness * square / 2 + tv * ((square + _TV_SMOOTHING**2).sqrt() - _TV_SMOOTHING)).sum()
    return total / object.numel()


def _compute_differences(object: Tensor) -> tuple[Tensor, Tensor]:
    return object[1:] - object[:-1], object[:, 1:] - object[:, :-1]
