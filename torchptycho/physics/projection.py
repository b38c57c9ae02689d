"""Projections of many groups at once, each group on a small canvas of its own."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from torchptycho.physics.inside import extract_groups, place_groups
from torchptycho.physics.patches import corner

__all__ = ["GroupProjection"]

_REGULARISATION = 0.03
_MOMENTUM = 0.85
# Where far more was counted than is expected, the wave grows by so many times itself in one step, and no more.
_LONGEST = 4.0


class GroupProjection:
    """The frames of B groups, ready to correct B small objects in parallel.

    The waves on the detector change by (y - I) / 2 (I + 1), in counts: the gradient of the Poisson likelihood, and to
    first order the projection onto the measured amplitudes, which at few counts would make the object too dark. What
    the exit waves change by is divided by the light that the group's frames shed on each pixel. Masked pixels ask for
    nothing.
    Reference: Maiden, Johnson, Li, Optica 4, 736 (2017), with all frames of a group at once and heavy-ball momentum;
    Thibault, Guizar-Sicairos, New J. Phys. 14, 063004 (2012).

    Arguments:
        amplitude: measured, zero frequency at [n//2, n//2].
        probe: in the same units; probe_b is 1 or b.
        offset_px: (y, x) of each frame from the middle of its group's canvas.
        mask: good detector pixels.
        photon: squared amplitude that one count makes.
        background: squared amplitude that does not come from the sample.
        canvas_px: edge S of the canvases; they must hold every patch, see `merging.merge_canvas_px`.
    """

    def __init__(
        self,
        amplitude: Float[Tensor, "b c n n"],
        probe: Complex[Tensor, "probe_b p n n"],
        offset_px: Float[Tensor, "b c 2"],
        mask: Bool[Tensor, "b 1 n n"],
        photon: Float[Tensor, " b"],
        background: Float[Tensor, " b"],
        canvas_px: int,
    ) -> None:
        self._n_px, self._canvas_px = amplitude.shape[-1], canvas_px
        self._corner_px = corner(offset_px, self._n_px, (-(canvas_px // 2), -(canvas_px // 2)))
        self._intensity = torch.fft.ifftshift(amplitude.square(), dim=(-2, -1))[:, :, None]
        self._mask = torch.fft.ifftshift(mask, dim=(-2, -1))[:, :, None]
        self._photon = photon.to(amplitude.dtype)[:, None, None, None, None]
        self._background = background.to(amplitude.dtype)[:, None, None, None, None]
        self._probe = probe[:, None]
        power = (probe.real.square() + probe.imag.square()).sum(1)[:, None]
        light = place_groups(power.expand(amplitude.shape).contiguous(), self._corner_px, canvas_px)
        peak = light.amax((-2, -1), keepdim=True)
        self.light = light / peak
        """[b, S, S] where the beams were, at most 1."""
        self._divisor = (1 - _REGULARISATION) * light + _REGULARISATION * peak

    def transparent(self) -> Complex[Tensor, "b s s"]:
        """Where one begins: O = 1."""
        return torch.ones_like(self.light, dtype=self._probe.dtype)

    def patches(self, canvas: Complex[Tensor, "b s s"]) -> Complex[Tensor, "b c n n"]:
        """What each frame sees of its group's object."""
        return extract_groups(canvas, self._corner_px, self._n_px)

    def change(self, canvas: Complex[Tensor, "b s s"]) -> Complex[Tensor, "b s s"]:
        """What the counts would have these objects change by."""
        far = torch.fft.fft2(self.patches(canvas)[:, :, None] * self._probe, norm="ortho")
        intensity = (far.real.square() + far.imag.square()).sum(2, keepdim=True) + self._background
        ratio = (0.5 * (self._intensity - intensity) / (intensity + self._photon)).clamp_max(_LONGEST) * self._mask
        wish = (torch.fft.ifft2(far * ratio, norm="ortho") * self._probe.conj()).sum(2)
        return place_groups(wish, self._corner_px, self._canvas_px) / self._divisor

    def run(self, canvas: Complex[Tensor, "b s s"], steps: int) -> Complex[Tensor, "b s s"]:
        """So many corrections, one after the other, each going on in the direction of the last."""
        previous = canvas
        for _ in range(steps):
            ahead = canvas + _MOMENTUM * (canvas - previous)
            previous, canvas = canvas, ahead + self.change(ahead)
        return canvas
