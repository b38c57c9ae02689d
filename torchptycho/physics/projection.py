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
        photon = photon.to(amplitude.dtype)[:, None, None, None]
        # (y - I) / 2 (I + 1) = (y + 1) / 2 (I + 1) - 1/2, and 0 under the mask: what of it does not change.
        self._half = 0.5 * torch.fft.ifftshift(mask, dim=(-2, -1)).to(amplitude.dtype)
        self._raised = (torch.fft.ifftshift(amplitude.square(), dim=(-2, -1)) + photon) * self._half
        self._offset = photon + background.to(amplitude.dtype)[:, None, None, None]
        self._probe = probe[:, None]
        self._conjugate = probe.conj().resolve_conj()[:, None]
        power = (probe.real.square() + probe.imag.square()).sum(1)[:, None]
        light = place_groups(power.expand(amplitude.shape).contiguous(), self._corner_px, canvas_px)
        peak = light.amax((-2, -1), keepdim=True)
        self.light = light / peak
        """[b, S, S] where the beams were, at most 1."""
        # For real and imaginary part: a complex number over a real one is a division of two complex ones otherwise.
        inverse = 1 / ((1 - _REGULARISATION) * light + _REGULARISATION * peak)
        self._inverse = torch.stack([inverse, inverse], -1)

    def transparent(self) -> Complex[Tensor, "b s s"]:
        """Where one begins: O = 1."""
        return torch.ones_like(self.light, dtype=self._probe.dtype)

    def patches(self, canvas: Complex[Tensor, "b s s"]) -> Complex[Tensor, "b c n n"]:
        """What each frame sees of its group's object."""
        return extract_groups(canvas, self._corner_px, self._n_px)

    def change(self, canvas: Complex[Tensor, "b s s"]) -> Complex[Tensor, "b s s"]:
        """What the counts would have these objects change by."""
        far = torch.fft.fft2(self.patches(canvas)[:, :, None] * self._probe, norm="ortho")
        squares = torch.view_as_real(far).square()
        expected = _over_modes(squares[..., 0] + squares[..., 1]) + self._offset
        ratio = (self._raised / expected).sub_(self._half).clamp_max_(_LONGEST)
        wish = _over_modes(torch.fft.ifft2(far * ratio[:, :, None], norm="ortho") * self._conjugate)
        placed = place_groups(wish, self._corner_px, self._canvas_px)
        return torch.view_as_complex(torch.view_as_real(placed) * self._inverse)

    def run(self, canvas: Complex[Tensor, "b s s"], steps: int) -> Complex[Tensor, "b s s"]:
        """So many corrections, one after the other, each going on in the direction of the last."""
        previous = canvas
        for _ in range(steps):
            ahead = canvas.add(canvas - previous, alpha=_MOMENTUM)
            previous, canvas = canvas, ahead + self.change(ahead)
        return canvas


def _over_modes(values: Tensor) -> Tensor:
    """The sum over axis 2, which costs nothing where there is one mode."""
    return values[:, :, 0] if values.shape[2] == 1 else values.sum(2)
