"""Incoherent modes of the probe: how many, in which basis, and how bright."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

__all__ = ["center", "orthogonal_modes", "power", "with_modes"]

# Part of the light that a mode begins with which the scan's probe did not have.
_NEW_MODE = 0.02


def power(probe: Complex[Tensor, "*p n n"]) -> Float[Tensor, ""]:
    """Photons in all modes."""
    return probe.abs().square().sum()


def center(probe: Complex[Tensor, "p n n"]) -> tuple[float, float]:
    """(y, x) of the centre of mass of the light, in pixels from the corner of the frame."""
    light = probe.abs().square().sum(0)
    along = torch.arange(len(light), device=light.device, dtype=light.dtype)
    total = light.sum().clamp_min(1e-30)
    return float(light.sum(1) @ along / total), float(light.sum(0) @ along / total)


def orthogonal_modes(probe: Complex[Tensor, "p n n"]) -> Complex[Tensor, "p n n"]:
    """The same mutual intensity as orthogonal modes, brightest first.

    The rows of S V^H of the singular value decomposition; no intensity changes.
    Reference: Thibault, Menzel, Nature 494, 68 (2013).
    """
    if len(probe) == 1:
        return probe
    _, singular, rows = torch.linalg.svd(probe.flatten(1), full_matrices=False)
    modes = (singular[:, None] * rows).reshape(probe.shape)
    # The decomposition leaves each mode's phase open: keep the overlap with what it came from real.
    overlap = (modes.conj() * probe).sum((1, 2))
    phase = torch.where(overlap.abs() > 0, overlap / overlap.abs().clamp_min(1e-30), torch.ones_like(overlap))
    turned: Tensor = modes * phase[:, None, None]
    return turned


def with_modes(probe: Complex[Tensor, "p n n"], count: int) -> Complex[Tensor, "count n n"]:
    """So many modes: the brightest ones, or these and weak new ones, the first times x, y, x y, x^2 ...; same power."""
    if count <= len(probe):
        kept = orthogonal_modes(probe)[:count]
    else:
        n_px = probe.shape[-1]
        along = (torch.arange(n_px, device=probe.device) - n_px // 2) / n_px
        exponents = [(i, total - i) for total in range(1, count + 1) for i in range(total + 1)]
        new = [probe[0] * along[:, None] ** i * along**j for i, j in exponents[: count - len(probe)]]
        weak = torch.stack([mode * (_NEW_MODE * power(probe) / power(mode)).sqrt() for mode in new])
        kept = orthogonal_modes(torch.cat([probe, weak]))
    return kept * (power(probe) / power(kept)).sqrt()
