"""Detector waves, their correction and the misfit: shared by all iterative methods."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from torchptycho.physics.multislice import pass_through_slices
from torchptycho.physics.propagation import FAR_FIELD, Propagator
from torchptycho.physics.wave_correction import compute_residuals, limit_poisson_change, project_amplitude
from torchptycho.reconstructors.iterative.reducer import Reducer

__all__ = [
    "EpochFit",
    "ReducedChiSquared",
    "compute_wave_correction",
    "propagate_to_detector",
    "scale_wave",
    "sum_intensity",
]


def propagate_to_detector(
    patches: Complex[Tensor, "*slices k n n"],
    probe: Complex[Tensor, "*frames p n n"],
    propagator: Propagator = FAR_FIELD,
    gap: Propagator | None = None,
) -> tuple[Complex[Tensor, "k p n n"], Float[Tensor, "k n n"]]:
    """Return the waves on the detector (in the far field with the zero frequency at [0, 0]) and their summed
    intensity.

    Arguments:
        patches: of a thin object, or of each slice of a thick one.
        probe: one for all frames, or that of each.
        gap: from one slice to the next, of a thick object.
    """
    slices = patches[None] if patches.ndim == 3 else patches
    wave = propagator.forward(pass_through_slices(slices, probe, gap).exit)
    return wave, sum_intensity(wave)


def sum_intensity(wave: Complex[Tensor, "k p n n"]) -> Float[Tensor, "k n n"]:
    """Sum the intensity of the modes."""
    intensity = wave.real.square() + wave.imag.square()
    return intensity[:, 0] if wave.shape[1] == 1 else intensity.sum(1)


def scale_wave(wave: Complex[Tensor, "k p n n"], factor: Float[Tensor, "k #p n n"]) -> Complex[Tensor, "k p n n"]:
    """Multiply waves by real factors, as real numbers: torch would convert the factors to complex ones first."""
    return torch.view_as_complex(torch.view_as_real(wave) * factor[..., None])


def compute_wave_correction(
    intensity: Float[Tensor, "k n n"],
    counts: Float[Tensor, "k n n"],
    mask: Bool[Tensor, "n n"] | None,
    likelihood: Literal["poisson", "amplitude"],
    misfit: ReducedChiSquared,
) -> Float[Tensor, "k n n"]:
    """Return the relative change of the detector's waves that the counts ask for, 0 under the mask.

    Arguments:
        intensity: expected counts.
        counts: measured counts.
        mask: None where every pixel is good.
        likelihood: see `physics.wave_correction` for both changes.
        misfit: receives this batch.
    """
    relative, difference, weight = compute_residuals(intensity, counts, mask)
    misfit.add(relative, difference, weight)
    misfit.add_amplitudes(intensity, counts, mask)
    if likelihood == "poisson":
        return limit_poisson_change(relative)
    return project_amplitude(intensity, counts, mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochFit:
    """How well the counts are fitted over one epoch, frame by frame as each was corrected.

    Arguments:
        misfit: reduced chi-squared, see `ReducedChiSquared.compute`.
        residual: squared deviation of the amplitudes over the counts, see `ReducedChiSquared.compute_residual`.
    """

    misfit: float
    residual: float


class ReducedChiSquared:
    """Mean squared deviation of the counts, divided by that of photon noise: 1 is the limit.

    sum (y - I)^2 / (I + 1) over sum I / (I + 1), which is its mean under the model. With it the residual relative to
    the signal, which does not depend on the dose where the model is wrong: sum (sqrt(y) - sqrt(I))^2 over sum y.
    """

    def __init__(self, like: Tensor) -> None:
        self._squared_deviation = self._weights = like.new_zeros((), dtype=torch.float64)
        self._squared_amplitude = self._counts = self._squared_deviation
        self._n_frames = 0

    def add(self, step: Tensor, difference: Tensor, weight: Tensor) -> None:
        """Add one batch: (y - I) / (I + 1), y - I and 1 / (I + 1); the first and the last are 0 under the mask."""
        self._squared_deviation = self._squared_deviation + torch.dot(step.flatten(), difference.flatten()).double()
        self._weights = self._weights + weight.sum().double()
        self._n_frames += weight.shape[0]

    def add_amplitudes(
        self, intensity: Float[Tensor, "k n n"], counts: Float[Tensor, "k n n"], mask: Bool[Tensor, "n n"] | None
    ) -> None:
        """Add the expected and the measured counts of one batch to the relative residual."""
        off = counts.sqrt() - intensity.sqrt()
        off = off if mask is None else off * mask
        self._squared_amplitude = self._squared_amplitude + torch.dot(off.flatten(), off.flatten()).double()
        self._counts = self._counts + counts.sum().double()

    def add_others(self, reducer: Reducer) -> None:
        """Add what the other processes that share the frames have."""
        sums = self._squared_deviation, self._weights, self._squared_amplitude, self._counts
        values = torch.stack([*sums, torch.full_like(self._weights, self._n_frames)])
        reducer.sum(values)
        self._squared_deviation, self._weights, self._squared_amplitude, self._counts = values[:4]
        self._n_frames = int(values[4]) if reducer.size > 1 else self._n_frames

    def compute_fit(self, n_good_pixels: int) -> EpochFit:
        """Return both figures of all batches so far."""
        return EpochFit(misfit=self.compute(n_good_pixels), residual=self.compute_residual())

    def compute_residual(self) -> float:
        """Return the residual relative to the signal, 0 to about 2, of all batches so far."""
        return float(self._squared_amplitude / self._counts.clamp_min(1e-30))

    def compute(self, n_good_pixels: int) -> float:
        """Return the misfit of all batches so far, for frames with this number of good pixels."""
        expected = self._n_frames * n_good_pixels - self._weights
        return float(self._squared_deviation / expected.clamp_min(1e-30))
