"""Information of Poisson counts about object, probe and positions: its action on a change, and random scores.

With I = sum_m |Psi_m|^2 + b and y ~ Poisson(I), the information about real parameters is
F_ij = sum_k dI_k/dx_i dI_k/dx_j / I_k, dI = 2 sum_m Re(conj(Psi_m) dPsi_m). The inverse of F bounds the covariance of
every unbiased estimate (Cramer-Rao). An estimate that weights the residuals by 1 / (I + c), so that single counts do
not count too much, has the covariance H^-1 B H^-1, H with 1 / (I + c) and B with I / (I + c)^2 in place of 1 / I.
References: Wei, Fannjiang, arXiv 2003.05475; Huber, Ronchetti, Robust Statistics, sec. 3.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Bool, Complex, Float, Int64, Shaped
from torch import Tensor

from torchptycho.physics.patches import extract_derivatives, extract_inside, place_inside
from torchptycho.physics.propagation import FAR_FIELD, Propagator

__all__ = ["Change", "FisherInformation"]

# Bytes of detector waves that are kept between two applications; others are computed each time.
_KEPT_BYTES = 256 << 20
# Added to the expected counts, so that a pixel without any has no weight instead of 0/0.
_TINY_COUNTS = 1e-9
# Part of the largest curvature that is added to each in the preconditioner.
_RIDGE = 0.02


@dataclasses.dataclass(frozen=True, eq=False)
class Change:
    """Changes of what is fitted, several at once, or their gradients; None where it is not fitted.

    Arguments:
        object: [S, H, W].
        probe: [S, P, N, N] of the mean probe, in sqrt(photons).
        positions_px: [S, M, 2], (y, x).
    """

    object: Shaped[Tensor, "s h w"]
    probe: Shaped[Tensor, "s p n n"] | None = None
    positions_px: Float[Tensor, "s m 2"] | None = None

    @property
    def _parts(self) -> list[Tensor]:
        return [part for part in (self.object, self.probe, self.positions_px) if part is not None]

    def combine(self, function: Callable[..., Tensor], *others: Change) -> Change:
        """Apply a function to the tensors of one kind."""

        def apply(name: str) -> Tensor | None:
            tensors = [getattr(one, name) for one in (self, *others)]
            return None if tensors[0] is None else function(*tensors)

        found = apply("object")
        assert found is not None
        return Change(found, apply("probe"), apply("positions_px"))

    def dot(self, other: Change) -> Float[Tensor, " s"]:
        """Compute the real inner product of each pair."""
        total = self.object.real.new_zeros(len(self.object), dtype=torch.float64)
        for a, b in zip(self._parts, other._parts, strict=True):
            left, right = (torch.view_as_real(x) if x.is_complex() else x for x in (a.resolve_conj(), b.resolve_conj()))
            total = total + (left.double() * right.double()).flatten(1).sum(1)
        return total

    def add(self, other: Change, factor: Float[Tensor, " s"]) -> Change:
        """Return self + factor * other, with one factor for each."""
        return self.combine(lambda a, b: a + factor.to(a.real.dtype).view(-1, *[1] * (a.ndim - 1)) * b, other)


class FisherInformation:
    """The information of a scan at one estimate. All patches lie inside the object's canvas.

    Arguments:
        object: [H, W].
        probe: [P, N, N] modes in sqrt(photons).
        corners_px: (y, x) of the patches' pixel [0, 0] on the canvas.
        mask: [N, N], True where pixels count, laid out as the propagator has it; None where all do.
        background: [N, N] counts that do not come from the sample.
        offset_counts: c, see the module; 0 for the likelihood's own weights.
        fits_probe, fits_positions: whether these are unknown too, and take their share of the information.
        build_probe: the probe of some frames, [k, P, N, N], where it differs from frame to frame, which is taken as
            known but for the mean; None where it is the same.
        frame_scale: [M] by which the mean probe enters each frame; None for 1.
    """

    def __init__(
        self,
        object: Complex[Tensor, "h w"],
        probe: Complex[Tensor, "p n n"],
        corners_px: Float[Tensor, "m 2"],
        *,
        mask: Bool[Tensor, "n n"] | None = None,
        background: Float[Tensor, "n n"] | None = None,
        propagator: Propagator = FAR_FIELD,
        offset_counts: float = 0.0,
        fits_probe: bool = False,
        fits_positions: bool = False,
        build_probe: Callable[[Int64[Tensor, " k"]], Complex[Tensor, "k p n n"]] | None = None,
        frame_scale: Float[Tensor, " m"] | None = None,
        batch_frames: int = 32,
    ) -> None:
        self._object, self._probe, self._corners_px = object, probe, corners_px
        self._mask, self._background, self._propagator = mask, background, propagator
        self._offset = max(offset_counts, _TINY_COUNTS)
        self.fits_probe, self.fits_positions = fits_probe, fits_positions
        self._build_probe, self._frame_scale = build_probe, frame_scale
        self._batches = torch.split(torch.arange(len(corners_px), device=object.device), batch_frames)
        elements = len(corners_px) * probe.numel()
        self._kept: list[tuple[Tensor, Tensor]] | None = [] if 12 * elements <= _KEPT_BYTES else None

    def make_zeros(self, samples: int) -> Change:
        """Return changes that change nothing."""
        return Change(
            self._object.new_zeros(samples, *self._object.shape),
            self._probe.new_zeros(samples, *self._probe.shape) if self.fits_probe else None,
            self._corners_px.new_zeros(samples, *self._corners_px.shape) if self.fits_positions else None,
        )

    def apply(self, change: Change) -> Change:
        """Apply the information (with an offset, the curvature H) to changes."""
        result = self.make_zeros(len(change.object))
        for number, index in enumerate(self._batches):
            frames = self._view_frames(index)
            wave, intensity = self._get_waves(number, frames)
            weight = self._weigh(intensity)
            for sample in range(len(change.object)):
                moved = self._propagator.forward(self._change_exit_wave(frames, change, sample))
                slope = (wave.real * moved.real + wave.imag * moved.imag).sum(1)
                self._backproject(frames, wave, 4 * weight * slope, result, sample)
        return result

    def draw_scores(self, samples: int, generator: torch.Generator) -> Change:
        """Draw gradients of the log-likelihood at the truth: mean 0, covariance F (with an offset, B)."""
        result = self.make_zeros(samples)
        for number, index in enumerate(self._batches):
            frames = self._view_frames(index)
            wave, intensity = self._get_waves(number, frames)
            spread = 2 * self._weigh(intensity) * intensity.sqrt()
            for sample in range(samples):
                noise = torch.randn(intensity.shape, generator=generator, dtype=intensity.dtype).to(intensity.device)
                self._backproject(frames, wave, spread * noise, result, sample)
        return result

    def make_preconditioner(self) -> Change:
        """Return about the diagonal of the information, which is positive everywhere."""
        illumination = self._object.real.new_zeros(self._object.shape)
        transmission = self._probe.real.new_zeros(self._probe.shape[-2:])
        curvature = self._corners_px.new_zeros(self._corners_px.shape)
        for index in self._batches:
            frames = self._view_frames(index)
            power = (frames.probe.real.square() + frames.probe.imag.square()).sum(-3).expand(len(index), -1, -1)
            place_inside(illumination, power.contiguous(), frames.corners_px)
            patches = frames.patches
            transmission += (patches.real.square() + patches.imag.square()).sum(0)
            if frames.slopes is not None:
                squares = torch.stack([(slope.real.square() + slope.imag.square()) for slope in frames.slopes], 1)
                curvature[index] = (squares * power[:, None]).sum((2, 3)).to(curvature.dtype)

        def regularize(values: Tensor) -> Tensor:
            return 2 * (values + _RIDGE * values.max())

        return Change(
            regularize(illumination)[None],
            regularize(transmission).expand(1, len(self._probe), -1, -1) if self.fits_probe else None,
            regularize(curvature)[None] if self.fits_positions else None,
        )

    def solve(self, scores: Change, iterations: int) -> Change:
        """Solve F x = score by preconditioned conjugate gradients, from x = 0.

        What the counts do not determine (global phase, shift of probe and object together) stays 0.
        """
        inverse = self.make_preconditioner().combine(torch.reciprocal)

        def precondition(values: Change) -> Change:
            return values.combine(lambda a, b: a * b, inverse)

        found, residual = self.make_zeros(len(scores.object)), scores
        towards = leading = precondition(residual)
        before = residual.dot(towards)
        for _ in range(iterations):
            image = self.apply(leading)
            length = before / leading.dot(image).clamp_min(1e-300)
            found, residual = found.add(leading, length), residual.add(image, -length)
            towards = precondition(residual)
            now = residual.dot(towards)
            leading, before = towards.add(leading, now / before.clamp_min(1e-300)), now
        return found

    def _weigh(self, intensity: Tensor) -> Tensor:
        weight = (intensity + self._offset).reciprocal()
        return weight if self._mask is None else weight * self._mask

    def _view_frames(self, index: Tensor) -> _Frames:
        corners_px, n_px = self._corners_px[index], self._probe.shape[-1]
        probe = self._probe if self._build_probe is None else self._build_probe(index)
        slopes = extract_derivatives(self._object, corners_px, n_px) if self.fits_positions else None
        scale = None if self._frame_scale is None else self._frame_scale[index]
        return _Frames(index, corners_px, extract_inside(self._object, corners_px, n_px), probe, slopes, scale)

    def _get_waves(self, number: int, frames: _Frames) -> tuple[Tensor, Tensor]:
        if self._kept is not None and number < len(self._kept):
            return self._kept[number]
        wave = self._propagator.forward(frames.patches[:, None] * frames.probe)
        intensity = (wave.real.square() + wave.imag.square()).sum(1)
        intensity = intensity if self._background is None else intensity + self._background
        if self._kept is not None:
            self._kept.append((wave, intensity))
        return wave, intensity

    def _change_exit_wave(self, frames: _Frames, change: Change, sample: int) -> Tensor:
        n_px = self._probe.shape[-1]
        moved = extract_inside(change.object[sample], frames.corners_px, n_px)
        if change.positions_px is not None and frames.slopes is not None:
            shift = change.positions_px[sample, frames.index].to(moved.real.dtype)[..., None, None]
            moved = moved + sum(slope * shift[:, axis] for axis, slope in enumerate(frames.slopes))
        wave = moved[:, None] * frames.probe
        if change.probe is not None:
            wave = wave + frames.scaled_patches[:, None] * change.probe[sample]
        return wave

    def _backproject(self, frames: _Frames, wave: Tensor, factor: Tensor, result: Change, sample: int) -> None:
        """Add the adjoint of the exit waves' change, of factor times the detector waves."""
        back = self._propagator.adjoint(wave * factor[:, None])
        on_object = (back * frames.probe.conj()).sum(1)
        place_inside(result.object[sample], on_object, frames.corners_px)
        if result.probe is not None:
            result.probe[sample] += (back * frames.scaled_patches.conj()[:, None]).sum(0)
        if result.positions_px is not None and frames.slopes is not None:
            along = [(slope.real * on_object.real + slope.imag * on_object.imag).sum((1, 2)) for slope in frames.slopes]
            result.positions_px[sample, frames.index] = torch.stack(along, 1).to(result.positions_px.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class _Frames:
    """What a batch of frames sees of the estimate."""

    index: Tensor
    corners_px: Tensor
    patches: Tensor
    probe: Tensor
    slopes: tuple[Tensor, Tensor] | None
    scale: Tensor | None

    @property
    def scaled_patches(self) -> Tensor:
        return self.patches if self.scale is None else self.patches * self.scale[:, None, None]
