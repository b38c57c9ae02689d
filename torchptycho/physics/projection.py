"""Projections of many groups at once, each group on a small canvas of its own."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from torchptycho.physics.patches import corner, extract_inside, place_inside

__all__ = ["GroupProjection"]

_REGULARISATION = 0.03
_MOMENTUM = 0.8
# Where far more was counted than is expected, the wave grows by so many times itself in one step, and no more.
_LONGEST = 4.0


class GroupProjection:
    """The frames of B groups, ready to correct B small objects in parallel; nothing here is differentiated.

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
        canvas_px: edge S of the canvases; they must hold every patch, see `merging.merge_canvas_px`.
    """

    def __init__(
        self,
        amplitude: Float[Tensor, "b c n n"],
        probe: Complex[Tensor, "probe_b p n n"],
        offset_px: Float[Tensor, "b c 2"],
        mask: Bool[Tensor, "b 1 n n"],
        photon: Float[Tensor, " b"],
        canvas_px: int,
    ) -> None:
        groups, members, n_px, _ = amplitude.shape
        self._n_px, self.canvas_px = n_px, canvas_px
        self.corner_px = corner(offset_px, n_px, (-(canvas_px // 2), -(canvas_px // 2)))
        # The canvases stand on top of each other as one tall field, which a patch never leaves its part of.
        floor = torch.arange(groups, device=amplitude.device, dtype=torch.float64) * canvas_px
        tall = self.corner_px.double() + torch.stack([floor, torch.zeros_like(floor)], -1)[:, None]
        self._corner_px = tall.reshape(-1, 2)
        self._intensity = torch.fft.ifftshift(amplitude.square(), dim=(-2, -1)).reshape(-1, 1, n_px, n_px)
        self._photon = photon.to(amplitude.dtype).repeat_interleave(members)[:, None, None, None]
        all_good = bool(mask.all())
        shifted = torch.fft.ifftshift(mask, dim=(-2, -1)).expand(-1, members, -1, -1)
        self._mask = None if all_good else shifted.reshape(-1, 1, n_px, n_px)
        self._probe = probe if len(probe) == 1 else probe.repeat_interleave(members, 0)
        power = (self._probe.real.square() + self._probe.imag.square()).sum(1)
        light = amplitude.new_zeros(groups * canvas_px, canvas_px)
        place_inside(light, power.expand(groups * members, -1, -1), self._corner_px)
        light = light.view(groups, canvas_px, canvas_px)
        peak = light.amax((-2, -1), keepdim=True)
        self.light = light / peak
        """[b, S, S] where the beams were, at most 1."""
        self._divisor = (1 - _REGULARISATION) * light + _REGULARISATION * peak

    def transparent(self) -> Complex[Tensor, "b s s"]:
        """Where one begins: O = 1."""
        return torch.ones_like(self.light, dtype=self._probe.dtype)

    def change(self, canvas: Complex[Tensor, "b s s"]) -> Complex[Tensor, "b s s"]:
        """What the counts would have these objects change by."""
        patches = extract_inside(canvas.reshape(-1, self.canvas_px), self._corner_px, self._n_px)
        far = torch.fft.fft2(patches[:, None] * self._probe, norm="ortho")
        intensity = (far.real.square() + far.imag.square()).sum(1, keepdim=True)
        ratio = (0.5 * (self._intensity - intensity) / (intensity + self._photon)).clamp_max(_LONGEST)
        if self._mask is not None:
            ratio = ratio * self._mask
        exit_change = torch.fft.ifft2(far * ratio, norm="ortho")
        wish = (exit_change * self._probe.conj()).sum(1)
        total = torch.zeros_like(canvas).view(-1, self.canvas_px)
        place_inside(total, wish, self._corner_px)
        return total.view_as(canvas) / self._divisor

    def run(self, canvas: Complex[Tensor, "b s s"], steps: int) -> Complex[Tensor, "b s s"]:
        """So many corrections, one after the other, each going on in the direction of the last."""
        previous = canvas
        for _ in range(steps):
            ahead = canvas + _MOMENTUM * (canvas - previous)
            previous, canvas = canvas, ahead + self.change(ahead)
        return canvas
