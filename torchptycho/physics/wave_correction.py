"""Relative correction of the waves on the detector by the counts: the core of all PIE iterations.

Poisson: (y - I) / 2 (I + 1), the gradient of the likelihood with the step that agrees to first order with the
projection onto the measured modulus; at few counts that projection would make the object too dark.
Amplitude: sqrt(y / I) - 1, the projection itself.
Reference: Thibault, Guizar-Sicairos, New J. Phys. 14, 063004 (2012).
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["PoissonWaveCorrection", "compute_residuals", "limit_poisson_change", "project_amplitude"]

# Added to the expected counts in denominators.
_COUNT_OFFSET = 1.0
# Largest correction of a wave in one step, as a multiple of the wave, where measured counts far exceed the expected
# ones.
_MAX_RELATIVE_CHANGE = 4.0


def compute_residuals(
    intensity: Float[Tensor, "k n n"], counts: Float[Tensor, "k n n"], mask: Bool[Tensor, "n n"] | None
) -> tuple[Float[Tensor, "k n n"], Float[Tensor, "k n n"], Float[Tensor, "k n n"]]:
    """Return (y - I) / (I + 1), y - I and 1 / (I + 1); the first and the last are 0 under the mask.

    Arguments:
        intensity: expected counts I.
        counts: measured counts y.
        mask: good pixels; None where all are good.
    """
    weight = (intensity + _COUNT_OFFSET).reciprocal_()
    difference = counts - intensity
    relative = difference * weight
    if mask is not None:
        relative, weight = relative * mask, weight * mask
    return relative, difference, weight


def limit_poisson_change(relative_residual: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert (y - I) / (I + 1) to the relative change of the wave, in place."""
    return relative_residual.mul_(0.5).clamp_max_(_MAX_RELATIVE_CHANGE)


def project_amplitude(
    intensity: Float[Tensor, "k n n"], counts: Float[Tensor, "k n n"], mask: Bool[Tensor, "n n"] | None
) -> Float[Tensor, "k n n"]:
    """Return sqrt(y / I) - 1, 0 under the mask."""
    change = (counts / intensity.clamp_min(1e-12)).sqrt_().sub_(1)
    return change if mask is None else change * mask


class PoissonWaveCorrection:
    """The Poisson change for counts that stay the same over many steps, in any unit of intensity.

    (y - I) / 2 (I + 1) = (y + 1) / 2 (I + 1) - 1/2: numerator and mask are computed once.

    Arguments:
        intensity: measured.
        mask: good pixels, 0 or 1, in the dtype of the intensity.
        intensity_per_count: intensity of one count.
        background: intensity that does not come from the sample.
    """

    def __init__(
        self,
        intensity: Float[Tensor, "b c n n"],
        mask: Float[Tensor, "b 1 n n"],
        intensity_per_count: Float[Tensor, "b 1 1 1"],
        background: Float[Tensor, "b 1 1 1"],
    ) -> None:
        self._half_mask = 0.5 * mask
        self._half_counts = (intensity + _COUNT_OFFSET * intensity_per_count) * self._half_mask
        self._offset = _COUNT_OFFSET * intensity_per_count + background

    def compute(self, intensity: Float[Tensor, "b c n n"]) -> Float[Tensor, "b c n n"]:
        """Return the relative change of the waves whose intensity, without background, is given."""
        expected = intensity + self._offset
        return (self._half_counts / expected).sub_(self._half_mask).clamp_max_(_MAX_RELATIVE_CHANGE)
