"""The far-field experiment as a sentence: measurement(far_field(illuminate(patch, probe)))."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

__all__ = ["expected_counts", "far_field", "illuminate", "measurement"]


def illuminate(
    patch: Complex[Tensor, "*batch n n"], probe: Complex[Tensor, "*probe_batch p n n"]
) -> Complex[Tensor, "*batch p n n"]:
    """Compute the exit waves of P incoherent probe modes behind a thin object: psi_m = P_m O.

    The probe has no batch axes (one probe for all), or those of the patches.
    """
    return patch[..., None, :, :] * probe


def far_field(exit_wave: Complex[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch n n"]:
    """Propagate to the detector in the far field (Fraunhofer), zero frequency at [n//2, n//2].

    Orthonormal, so photons are conserved: sum |far_field(w)|^2 == sum |w|^2.
    Reference: Goodman, Introduction to Fourier Optics, eq. 4-25.
    """
    wave: Tensor = torch.fft.fftshift(torch.fft.fft2(exit_wave, norm="ortho"), dim=(-2, -1))
    return wave


def measurement(wave: Complex[Tensor, "*batch p n n"]) -> Float[Tensor, "*batch n n"]:
    """Compute the expected intensity of incoherent modes: I = sum_m |F_m|^2.

    From real and imaginary parts, because the gradient of |F| at 0 does not exist.
    """
    return (wave.real.square() + wave.imag.square()).sum(dim=-3)


def expected_counts(
    patch: Complex[Tensor, "*batch n n"], probe: Complex[Tensor, "*probe_batch p n n"]
) -> Float[Tensor, "*batch n n"]:
    """Compute the expected photon counts on the detector, for a probe in sqrt(photons)."""
    return measurement(far_field(illuminate(patch, probe)))
