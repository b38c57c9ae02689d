"""Propagation of exit waves to the detector: Fraunhofer (far field), or Fresnel by the angular spectrum (near field).

Both conserve photons, so that every algorithm that corrects waves on the detector and propagates them back works with
either.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Complex
from torch import Tensor

from torchptycho.core.angular_spectrum import angular_spectrum_transfer
from torchptycho.core.geometry import Geometry

__all__ = ["FAR_FIELD", "FarField", "NearField", "Propagator", "build_propagator", "compute_detector_wave"]


@runtime_checkable
class Propagator(Protocol):
    """Carries exit waves to the detector and back."""

    zero_frequency_first: bool
    """Whether pixel [0, 0] of the detector wave is the direct beam; otherwise it is the corner of the frame."""

    def forward(self, wave: Complex[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch n n"]:
        """Propagate from the sample to the detector."""

    def adjoint(self, wave: Complex[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch n n"]:
        """Apply the adjoint of `forward`, which is its inverse for all waves that reach the detector."""


class FarField:
    """Fraunhofer propagation: the orthonormal Fourier transform. Reference: Goodman, Introduction to Fourier Optics,
    eq. 4-25."""

    zero_frequency_first = True

    def forward(self, wave: Complex[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch n n"]:
        """Propagate from the sample to the detector, zero frequency at [0, 0]."""
        # The CPU's library refuses to transform nothing.
        detector_wave: Tensor = torch.fft.fft2(wave, norm="ortho") if wave.numel() else wave
        return detector_wave

    def adjoint(self, wave: Complex[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch n n"]:
        """Propagate from the detector back to the sample."""
        exit_wave: Tensor = torch.fft.ifft2(wave, norm="ortho") if wave.numel() else wave
        return exit_wave


FAR_FIELD = FarField()


class NearField:
    """Propagation over a short distance, by a product with a transfer function in Fourier space.

    Frames are images of the sample here: pixel [y, x] of the detector lies behind pixel [y, x] of the patch. Waves wrap
    around at the border of the frame; frames whose illumination reaches the border need padding, see
    `core.angular_spectrum.choose_padding_px`.

    Arguments:
        transfer: [n, n] of modulus at most 1, zero frequency at [0, 0].
    """

    zero_frequency_first = False

    def __init__(self, transfer: Complex[Tensor, "n n"]) -> None:
        self._transfer, self._conjugate = transfer, transfer.conj().resolve_conj()

    def forward(self, wave: Complex[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch n n"]:
        """Propagate from the sample to the detector."""
        detector_wave: Tensor = torch.fft.ifft2(torch.fft.fft2(wave) * self._transfer) if wave.numel() else wave
        return detector_wave

    def adjoint(self, wave: Complex[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch n n"]:
        """Propagate from the detector back to the sample."""
        exit_wave: Tensor = torch.fft.ifft2(torch.fft.fft2(wave) * self._conjugate) if wave.numel() else wave
        return exit_wave


def build_propagator(
    geometry: Geometry, n_px: int, *, dtype: torch.dtype = torch.complex64, device: torch.device | str = "cpu"
) -> Propagator:
    """Build the propagator of an experiment.

    Raises:
        ValueError: a near-field experiment without its wavelength and lengths.
    """
    if geometry.propagation == "far":
        return FAR_FIELD
    pixel_m = geometry.with_object_pixel(n_px).object_pixel_m
    if pixel_m is None or geometry.effective_distance_m is None or geometry.wavelength_m is None:
        raise ValueError(f"expected wavelength, distance and detector pixel of near-field frames; found {geometry}")
    transfer = angular_spectrum_transfer(n_px, pixel_m, geometry.effective_distance_m, geometry.wavelength_m)
    return NearField(torch.from_numpy(transfer).to(device, dtype))


def compute_detector_wave(
    exit_wave: Complex[Tensor, "*batch n n"], geometry: Geometry
) -> Complex[Tensor, "*batch n n"]:
    """Propagate exit waves to the detector, laid out as frames are: in the far field zero frequency at [N/2, N/2]."""
    propagator = build_propagator(geometry, exit_wave.shape[-1], dtype=exit_wave.dtype, device=exit_wave.device)
    wave = propagator.forward(exit_wave)
    return torch.fft.fftshift(wave, dim=(-2, -1)) if propagator.zero_frequency_first else wave
