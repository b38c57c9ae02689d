"""Photon noise: drawing counts, and the likelihood of measured ones."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

__all__ = ["poisson_deviance", "poisson_log_ratio", "poisson_nll", "poisson_sample"]

# Lower bound of expected counts: log(0) would be infinite at a pixel with counts.
MIN_EXPECTED = 1e-8
# Far below any count in any unit, and quotients with it are still normal float32 numbers.
_TINY = 1e-30


def poisson_sample(expected: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Draw counts from a Poisson distribution with the given mean, in the dtype of the mean."""
    return torch.poisson(expected, generator=generator)


def poisson_nll(
    expected: Float[Tensor, "*batch n n"],
    counts: Float[Tensor, "*batch n n"],
    mask: Bool[Tensor, "*mask_batch n n"] | None = None,
) -> Float[Tensor, ""]:
    """Compute the negative log-likelihood I - y log I, mean over the good pixels, without the constant log y!."""
    expected = expected.clamp_min(MIN_EXPECTED)
    return _mean(expected - torch.xlogy(counts, expected), mask)


def poisson_log_ratio(
    expected: Float[Tensor, "*batch n n"],
    reference: Float[Tensor, "*reference_batch n n"],
    counts: Float[Tensor, "*batch n n"],
    mask: Bool[Tensor, "*mask_batch n n"] | None = None,
) -> Float64[Tensor, ""]:
    """Log-likelihood of the counts under `expected` less that under `reference`, sum over the good pixels.

    y log(I / R) - (I - R): the constant log y! cancels. In float64, because the sum over a scan is far larger than the
    differences that matter.
    """
    expected, reference = (values.double().clamp_min(MIN_EXPECTED) for values in (expected, reference))
    ratio = counts.double() * (expected / reference).log() - (expected - reference)
    return (ratio if mask is None else ratio * mask).sum()


def poisson_deviance(
    expected: Float[Tensor, "*batch n n"],
    counts: Float[Tensor, "*batch n n"],
    mask: Bool[Tensor, "*mask_batch n n"] | None = None,
    offset: float | Float[Tensor, "*offset_batch 1 1"] = 0.5,
) -> Float[Tensor, ""]:
    """Compute twice the excess of the negative log-likelihood over that of a perfect fit, mean over the good pixels.

    `offset` counts are added to expected and measured counts. Without them the gradient of dark pixels, where almost
    nothing is expected, would dominate training. Counts and offset may have any common unit, with which the result
    scales.
    Reference: McCullagh and Nelder, Generalized Linear Models, sec. 2.3.
    """
    measured, model = counts + offset, expected + offset
    # xlogy is avoided: its gradient is 0/0 where no counts were measured and the offset is 0.
    ratio = measured.clamp_min(_TINY) / model.clamp_min(_TINY)
    return _mean(2 * (model - measured + measured * ratio.log()), mask)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean()
    return (values * mask).sum() / mask.expand(values.shape).sum().clamp_min(1)
