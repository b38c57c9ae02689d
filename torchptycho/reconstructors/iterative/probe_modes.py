"""Incoherent modes of the probe: how many, in which basis, and how bright."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

__all__ = [
    "compute_area_px",
    "compute_power",
    "find_center_of_mass",
    "find_empty_modes",
    "orthogonalize_modes",
    "set_mode_count",
]

# Initial fraction of the power in a mode that the scan's probe did not have.
_NEW_MODE_POWER = 0.02
# Part of the brightest mode's power below which a mode is empty but for rounding, and mean square over squared mean of
# the intensity below which it is noise: 2 in the mean, with some spread in small frames.
_EMPTY_MODE_POWER, _NOISE_EVENNESS = 1e-9, 3.0


def compute_power(probe: Complex[Tensor, "*p n n"]) -> Float[Tensor, ""]:
    """Compute the photons in all modes."""
    return probe.abs().square().sum()


def compute_area_px(probe: Complex[Tensor, "p n n"]) -> Float[Tensor, ""]:
    """Compute how many pixels the light of all modes fills: (sum I)^2 / sum I^2."""
    intensity = probe.abs().square().sum(0)
    return intensity.sum().square() / intensity.square().sum().clamp_min(1e-30)


def find_center_of_mass(probe: Complex[Tensor, "p n n"]) -> tuple[float, float]:
    """Find the (y, x) of the centre of mass of the intensity, in pixels from the corner of the frame."""
    intensity = probe.abs().square().sum(0)
    along = torch.arange(len(intensity), device=intensity.device, dtype=intensity.dtype)
    total = intensity.sum().clamp_min(1e-30)
    return float(intensity.sum(1) @ along / total), float(intensity.sum(0) @ along / total)


def orthogonalize_modes(probe: Complex[Tensor, "p n n"]) -> Complex[Tensor, "p n n"]:
    """Convert modes to orthogonal ones of the same mutual intensity, brightest first.

    The rows of S V^H of the singular value decomposition; no intensity changes.
    Reference: Thibault, Menzel, Nature 494, 68 (2013).
    """
    if len(probe) == 1:
        return probe
    _, singular, rows = torch.linalg.svd(probe.flatten(1), full_matrices=False)
    modes = (singular[:, None] * rows).reshape(probe.shape)
    # The decomposition does not determine the phase of a mode: make its overlap with the original mode real.
    overlap = (modes.conj() * probe).sum((1, 2))
    phase = torch.where(overlap.abs() > 0, overlap / overlap.abs().clamp_min(1e-30), torch.ones_like(overlap))
    turned: Tensor = modes * phase[:, None, None]
    return turned


def find_empty_modes(probe: Complex[Tensor, "p n n"]) -> Bool[Tensor, " p"]:
    """Find orthogonal modes that hold no light of their own: none at all, or noise.

    Modes that are copies of one another, up to noise, become one that has the light and others that have the noise.
    Noise fills the frame evenly, both at the sample and at the detector, which no wave of a probe does: there the mean
    square of its intensity is twice the square of its mean, and little more.
    """
    power = probe.abs().square().sum((1, 2))
    even = []
    for waves in (probe, torch.fft.fft2(probe)):
        intensity = waves.abs().square()
        mean = intensity.mean((1, 2)).clamp_min(torch.finfo(intensity.dtype).tiny)
        even.append((intensity / mean[:, None, None]).square().mean((1, 2)) < _NOISE_EVENNESS)
    empty: Tensor = (power <= _EMPTY_MODE_POWER * power.max()) | (even[0] & even[1])
    empty[0] = False
    return empty


def set_mode_count(probe: Complex[Tensor, "p n n"], count: int) -> Complex[Tensor, "count n n"]:
    """Return a number of modes: the brightest ones that hold light, or these and weak new ones, the first times x, y, x
    y, x^2 ...; same power."""
    modes = orthogonalize_modes(probe)
    kept = modes[~find_empty_modes(modes)][:count]
    if len(kept) < count:
        n_px = probe.shape[-1]
        along = (torch.arange(n_px, device=probe.device) - n_px // 2) / n_px
        exponents = [(i, total - i) for total in range(1, count + 1) for i in range(total + 1)]
        new = [kept[0] * along[:, None] ** i * along**j for i, j in exponents[: count - len(kept)]]
        weak = torch.stack(
            [mode * (_NEW_MODE_POWER * compute_power(kept) / compute_power(mode)).sqrt() for mode in new]
        )
        kept = orthogonalize_modes(torch.cat([kept, weak]))
    return kept * (compute_power(probe) / compute_power(kept)).sqrt()
