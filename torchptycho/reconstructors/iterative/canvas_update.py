"""Changes of the object and the probe that the frames of one update ask for, summed where these frames lie."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from torchptycho.physics.patches import index_inside, place_inside
from torchptycho.reconstructors.iterative.reducer import Reducer
from torchptycho.reconstructors.iterative.state import RefinementState

__all__ = ["AccumulatedUpdate", "add_momentum_in_place"]

# Fraction of the canvas above which an update touches all of it: one pass in order is then faster than the patches one
# by one.
_WHOLE_CANVAS_FRACTION = 0.5
# Momentum needs several operations on each pixel; pieces of this size stay in a processor's cache between them.
_PIECE_PX = 1 << 15


class AccumulatedUpdate:
    """Sums over the frames since the last update.

    The work of an update depends on the frames it has, not on the canvas outside them. Sums on the canvas are allocated
    once and cleared where they were used.

    Arguments:
        state: what will be updated.
        alpha: regularisation of weakly illuminated pixels, see `RefineConfig`.
    """

    def __init__(self, state: RefinementState, alpha: float) -> None:
        self._alpha = alpha
        self._object = torch.zeros_like(state.object)
        self._illumination = torch.zeros_like(state.object.real)
        self._probe = torch.zeros_like(state.probe)
        self._transmission = torch.zeros_like(state.probe[0].real)
        self._corners_px: list[Tensor] = []
        self._index: Tensor | None = None
        self._change: Tensor | None = None
        self.frames = 0

    def add(
        self,
        patches: Complex[Tensor, "k n n"],
        probe: Complex[Tensor, "*frames p n n"],
        corners_px: Float[Tensor, "k 2"],
        exit_change: Complex[Tensor, "k p n n"],
        *,
        update_probe: bool,
        touched_px: Float[Tensor, "all 2"] | None = None,
        scale: Float[Tensor, " k"] | None = None,
    ) -> None:
        """Add the frames of a batch.

        Arguments:
            patches: of the object, at `corners_px`.
            exit_change: change of each frame's exit waves.
            probe: one for all frames, or that of each.
            update_probe: whether the probe changes too.
            touched_px: the corners of the frames of all processes in this batch; None where there is only this one.
            scale: factor of each frame's probe.
        """
        power = (probe.real.square() + probe.imag.square()).sum(-3)
        one = probe.shape[-3] == 1
        backprojection = exit_change[:, 0] * probe[..., 0, :, :].conj() if one else (exit_change * probe.conj()).sum(1)
        place_inside(self._object, backprojection, corners_px)
        place_inside(self._illumination, power.expand(len(patches), -1, -1), corners_px)
        if update_probe:
            patches = patches if scale is None else patches * scale[:, None, None]
            self._probe += (exit_change * patches.conj()[:, None]).sum(0)
            self._transmission += (patches.real.square() + patches.imag.square()).sum(0)
        touched_px = corners_px if touched_px is None else touched_px
        self._corners_px.append(touched_px)
        self._index = None
        self.frames += len(touched_px)

    def add_others(self, reducer: Reducer) -> None:
        """Add the sums of the other processes: where any frame lies, or on the whole canvas where that is less."""
        if reducer.size == 1:
            return
        index = self._index_touched()
        if index is None:
            reducer.sum(self._object, self._illumination, self._probe, self._transmission)
            return
        is_touched = torch.zeros(self._object.numel(), dtype=torch.bool, device=index.device)
        is_touched[index] = True
        pixels = is_touched.nonzero()[:, 0]
        fields = self._object.view(-1), self._illumination.view(-1)
        sums = [field[pixels] for field in fields]
        reducer.sum(*sums, self._probe, self._transmission)
        for field, values in zip(fields, sums, strict=True):
            field[pixels] = values

    def compute_object_change(self) -> Complex[Tensor, "h w"]:
        """Return the sum over the frames, divided by the regularised illumination, where the frames lie.

        The sum itself is overwritten; pixels that no frame touches are 0.
        """
        index = self._index_touched()
        if index is None:
            return self._object.div_(self._regularize(self._illumination))
        flat, illumination = self._object.view(-1), self._illumination.view(-1)[index]
        # Pixels of several frames are written several times, with the same value.
        self._change = flat[index].div_(self._regularize(illumination))
        flat.scatter_(0, index, self._change)
        return self._object

    def compute_probe_change(self) -> Complex[Tensor, "p n n"]:
        """Return the sum over the frames, divided by the regularised transmission."""
        return self._probe / self._regularize(self._transmission)

    def apply_to(self, object: Complex[Tensor, "h w"], step: float | Tensor) -> None:
        """Add `step` times the change of the object that was computed, in place, where the frames lie."""
        index = self._index_touched()
        if index is None:
            object.add_(self._object * step)
            return
        assert self._change is not None
        flat = object.view(-1)
        flat.scatter_(0, index, flat[index].add_(self._change.mul_(step)))

    def clear(self) -> None:
        """Begin the next update."""
        index = self._index_touched()
        if index is None:
            self._object.zero_()
            self._illumination.zero_()
        else:
            self._object.view(-1).scatter_(0, index, 0)
            self._illumination.view(-1).scatter_(0, index, 0)
        self._probe.zero_()
        self._transmission.zero_()
        self._corners_px, self._index, self._change, self.frames = [], None, None, 0

    def _index_touched(self) -> Tensor | None:
        """Return the flat indices of all pixels of the frames, or None where that would be most of the canvas."""
        n_px = self._probe.shape[-1]
        if self.frames * (n_px + 1) ** 2 > _WHOLE_CANVAS_FRACTION * self._object.numel():
            return None
        if self._index is None:
            self._index = index_inside(torch.cat(self._corners_px), n_px + 1, self._object.shape[-1])
        return self._index

    def _regularize(self, curvature: Tensor) -> Tensor:
        return (1 - self._alpha) * curvature + self._alpha * curvature.max()


def add_momentum_in_place(values: Tensor, velocity: Tensor, anchor: Tensor, momentum: float) -> None:
    """Go on in the direction of the updates since the anchor, in place, and set the anchor there.

    v = m v + (x - anchor), x = x + m v: the momentum of mPIE.
    Reference: Maiden, Johnson, Li, Optica 4, 736 (2017).
    """
    size = _PIECE_PX if values.device.type == "cpu" else max(values.numel(), 1)
    pieces = (torch.split(tensor.view(-1), size) for tensor in (values, velocity, anchor))
    for value, speed, start in zip(*pieces, strict=True):
        speed.mul_(momentum).add_(value).sub_(start)
        value.add_(speed, alpha=momentum)
        start.copy_(value)
