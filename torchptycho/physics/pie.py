"""rPIE iterations on many groups at once, each group on its own small canvas."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from torchptycho.physics.group_patches import GATHER_SCATTER, PatchOperators
from torchptycho.physics.patches import locate_corner
from torchptycho.physics.wave_correction import PoissonWaveCorrection

__all__ = ["GroupProjection", "extrapolate", "shift_probe", "upsample_2x"]

_REGULARISATION = 0.03
_MOMENTUM = 0.85
# Phase changes below this number of cycles per frame are doubled; the gain falls off towards higher frequencies.
_ROLL_OFF_CYCLES = 3.0
# Cycles per frame beyond which the remaining gain is neglected.
_MAX_CYCLES = 8.0


class GroupProjection:
    """Corrections of B small objects in parallel by the frames of B groups.

    The waves on the detector change by (y - I) / 2 (I + 1), in counts: the gradient of the Poisson likelihood, and to
    first order the projection onto the measured amplitudes, which would bias the object to low amplitudes at few
    counts. The backprojected change is normalised by the total illumination of each pixel. Masked pixels do not
    contribute.

    Each frame lies on whole pixels of the canvas, and its probe is shifted once, by Fourier transform, by the remaining
    fraction of a pixel: the detector intensity does not depend on the position of the wave, and no step interpolates.
    Reference: Maiden, Johnson, Li, Optica 4, 736 (2017), with all frames of a group at once and heavy-ball momentum;
    Thibault, Guizar-Sicairos, New J. Phys. 14, 063004 (2012).

    Arguments:
        amplitude: measured, zero frequency at [n//2, n//2].
        probe: in the same units; probe_b is 1 or b.
        offset_px: (y, x) of each frame from the centre of its group's canvas.
        mask: good detector pixels.
        intensity_per_count: squared amplitude of one count.
        background: squared amplitude that does not come from the sample.
        canvas_px: edge S of the canvases, large enough for every patch, see `overlap.merge_canvas_px`.
        operators: how patches are read and placed.
    """

    def __init__(
        self,
        amplitude: Float[Tensor, "b c n n"],
        probe: Complex[Tensor, "probe_b p n n"],
        offset_px: Float[Tensor, "b c 2"],
        mask: Bool[Tensor, "b 1 n n"],
        intensity_per_count: Float[Tensor, " b"],
        background: Float[Tensor, " b"],
        canvas_px: int,
        operators: PatchOperators = GATHER_SCATTER,
    ) -> None:
        self._n_px = n_px = amplitude.shape[-1]
        self._corner_px = locate_corner(offset_px, n_px, (-(canvas_px // 2), -(canvas_px // 2)))
        whole = self._corner_px.round()
        self._operators = operators
        self._blocks = operators.build_blocks(whole.long(), n_px, canvas_px)
        intensity_per_count = intensity_per_count.to(amplitude.dtype)[:, None, None, None]
        self._correction = PoissonWaveCorrection(
            torch.fft.ifftshift(amplitude.square(), dim=(-2, -1)),
            torch.fft.ifftshift(mask, dim=(-2, -1)).to(amplitude.dtype),
            intensity_per_count,
            background.to(amplitude.dtype)[:, None, None, None],
        )
        self._probe = shift_probe(probe, (self._corner_px - whole).to(amplitude.dtype))
        self._conjugate = self._probe.conj().resolve_conj()
        illumination = self._blocks.place(_sum_modes(self._probe.real.square() + self._probe.imag.square()))
        peak = illumination.amax((-2, -1), keepdim=True)
        self.illumination = illumination / peak
        """[b, S, S] total illumination of each group, at most 1."""
        # Stored twice, for real and imaginary part, because dividing complex by real values is otherwise computed as a
        # complex division.
        inverse = 1 / ((1 - _REGULARISATION) * illumination + _REGULARISATION * peak)
        self._inverse = torch.stack([inverse, inverse], -1)
        self._cosines, self._gains = _build_cosine_filter(canvas_px, n_px, amplitude)

    @classmethod
    def at_half_resolution(
        cls,
        amplitude: Float[Tensor, "b c n n"],
        probe: Complex[Tensor, "probe_b p n n"],
        offset_px: Float[Tensor, "b c 2"],
        mask: Bool[Tensor, "b 1 n n"],
        intensity_per_count: Float[Tensor, " b"],
        background: Float[Tensor, " b"],
        canvas_px: int,
        operators: PatchOperators = GATHER_SCATTER,
    ) -> GroupProjection:
        """Build the same projection at half the resolution, from the centre of the detector: a quarter of the pixels.

        Its canvases have every second pixel of the full ones, [0, 0] included; `upsample_2x` interpolates the rest. Low
        spatial frequencies need as many iterations at either resolution, and fine structure needs few. The far field of
        the probe beyond the centre of the detector is omitted, which costs some accuracy.

        Arguments:
            canvas_px: edge S of the canvases at full resolution, a multiple of 4.
        """
        n_px = amplitude.shape[-1] // 2
        far = torch.fft.fftshift(torch.fft.fft2(probe, norm="ortho"), dim=(-2, -1))
        coarse_probe = torch.fft.ifft2(torch.fft.ifftshift(_crop_center(far, n_px), dim=(-2, -1)), norm="ortho")
        return cls(
            _crop_center(amplitude, n_px),
            coarse_probe,
            offset_px / 2,
            _crop_center(mask, n_px),
            intensity_per_count,
            background,
            canvas_px // 2,
            operators,
        )

    def make_transparent_objects(self) -> Complex[Tensor, "b s s"]:
        """Return uniform objects of amplitude 1 and phase 0."""
        return torch.ones_like(self.illumination, dtype=self._probe.dtype)

    def extract_patches(self, canvas: Complex[Tensor, "b s s"]) -> Complex[Tensor, "b c n n"]:
        """Extract each frame's patch of its group's object, interpolated bilinearly: pixel N/2 is on the frame's
        position."""
        return self._operators.extract(canvas, self._corner_px, self._n_px)

    def gradient_step(self, canvas: Complex[Tensor, "b s s"]) -> Complex[Tensor, "b s s"]:
        """Compute the preconditioned gradient step of these objects."""
        far = torch.fft.fft2(self._blocks.extract(canvas)[:, :, None] * self._probe, norm="ortho")
        squares = torch.view_as_real(far).square()
        ratio = self._correction.compute(_sum_modes(squares[..., 0] + squares[..., 1]))
        backprojection = _sum_modes(torch.fft.ifft2(far * ratio[:, :, None], norm="ortho") * self._conjugate)
        placed = self._blocks.place(backprojection)
        return torch.view_as_complex(torch.view_as_real(placed) * self._inverse)

    def preconditioned_step(self, canvas: Complex[Tensor, "b s s"]) -> Complex[Tensor, "b s s"]:
        """Compute the gradient step with low spatial frequencies of the phase accelerated.

        The counts say little about low spatial frequencies of the phase, so that their change is made up to twice as
        large as in `gradient_step`.
        """
        gradient_step = self.gradient_step(canvas)
        power = canvas.real.square() + canvas.imag.square()
        mean = (power * self.illumination).sum((-2, -1), keepdim=True) / self.illumination.sum((-2, -1), keepdim=True)
        # In radians; reduced where the object transmits little and its phase is not determined.
        phase_change = (gradient_step * canvas.conj()).imag / torch.maximum(power, mean)
        slow = self._cosines @ ((self._cosines.mT @ phase_change @ self._cosines) * self._gains) @ self._cosines.mT
        return gradient_step + canvas * (slow * 1j)

    def run(
        self, canvas: Complex[Tensor, "b s s"], steps: int, velocity: Complex[Tensor, "b s s"] | None = None
    ) -> tuple[Complex[Tensor, "b s s"], Complex[Tensor, "b s s"] | None]:
        """Run a number of corrections with momentum.

        Arguments:
            canvas: the objects.
            velocity: change per step at the end of an earlier run; None starts without momentum.

        Returns:
            The objects, and their change in the last step.
        """
        for _ in range(steps):
            further = extrapolate(canvas, velocity)
            moved = further + self.preconditioned_step(further)
            velocity, canvas = moved - canvas, moved
        return canvas, velocity


def extrapolate(
    canvas: Complex[Tensor, "b s s"], velocity: Complex[Tensor, "b s s"] | None
) -> Complex[Tensor, "b s s"]:
    """Extrapolate objects along their last change, before they are corrected."""
    return canvas if velocity is None else canvas.add(velocity, alpha=_MOMENTUM)


def upsample_2x(coarse: Complex[Tensor, "b s s"]) -> Complex[Tensor, "b 2*s 2*s"]:
    """Double the number of pixels on each axis, bilinearly; pixel [2 y, 2 x] is [y, x], the last ones are repeated."""
    size = coarse.shape[-1]
    there = torch.arange(2 * size, device=coarse.device, dtype=coarse.real.dtype)[:, None] / 2
    here = torch.arange(size, device=coarse.device, dtype=coarse.real.dtype)
    hats = (1 - (there.clamp_max(size - 1) - here).abs()).clamp_min(0)
    return torch.complex(hats @ coarse.real @ hats.mT, hats @ coarse.imag @ hats.mT)


def shift_probe(
    probe: Complex[Tensor, "probe_b p n n"], shift_px: Float[Tensor, "b c 2"]
) -> Complex[Tensor, "b c p n n"]:
    """Shift the probe of each frame by a fraction of a pixel towards larger indices, by Fourier transform."""
    n_px = probe.shape[-1]
    # fftfreq is avoided because ONNX lacks it.
    cycles = torch.fft.ifftshift(torch.arange(n_px, dtype=shift_px.dtype, device=probe.device) - n_px // 2) / n_px
    angle = -2 * math.pi * (shift_px[..., 0, None, None] * cycles[:, None] + shift_px[..., 1, None, None] * cycles)
    phase_factor = torch.complex(angle.cos(), angle.sin())
    probes: Tensor = torch.fft.ifft2(torch.fft.fft2(probe)[:, None] * phase_factor[:, :, None])
    return probes


def _crop_center(values: Tensor, n_px: int) -> Tensor:
    """Crop the n_px x n_px pixels about [n//2, n//2]."""
    first = values.shape[-1] // 2 - n_px // 2
    return values[..., first : first + n_px, first : first + n_px]


def _build_cosine_filter(size: int, n_px: int, like: Tensor) -> tuple[Float[Tensor, "s k"], Float[Tensor, "k k"]]:
    """Build orthonormal cosines along an axis of the canvas, and the weight of the product of two: 1 at frequency 0,
    then less."""
    count = min(size, math.ceil(2 * size / n_px * _MAX_CYCLES))
    order, place = (torch.arange(n, device=like.device, dtype=torch.float64) for n in (count, size))
    waves = (2 / size) ** 0.5 * torch.cos(math.pi / size * (place[:, None] + 0.5) * order)
    waves[:, 0] *= 0.5**0.5
    cycles = order * n_px / (2 * size * _ROLL_OFF_CYCLES)
    gains = (1 + cycles[:, None].square() + cycles.square()) ** -2
    return waves.to(like.dtype), gains.to(like.dtype)


def _sum_modes(values: Tensor) -> Tensor:
    """Sum over axis 2, which costs nothing where there is one mode."""
    return values[:, :, 0] if values.shape[2] == 1 else values.sum(2)
