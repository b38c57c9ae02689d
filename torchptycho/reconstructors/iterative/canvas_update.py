"""Changes of the object and the probe that the frames of one update ask for, summed where these frames lie."""

from __future__ import annotations

from collections.abc import Sequence

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
    once and cleared where they were used. Each slice of a thick object has its own sums and its own denominator.

    Arguments:
        state: what will be updated.
        alpha: regularisation of weakly illuminated pixels, see `RefineConfig`.
    """

    def __init__(self, state: RefinementState, alpha: float) -> None:
        self._alpha = alpha
        self._object = torch.zeros_like(state.slices)
        self._illumination = torch.zeros_like(state.slices.real)
        self._probe = torch.zeros_like(state.probe)
        self._transmission = torch.zeros_like(state.probe[0].real)
        self._corners_px: list[Tensor] = []
        self._index: Tensor | None = None
        self._changes: list[Tensor] = []
        self.frames = 0

    def add(
        self,
        patches: Complex[Tensor, "slices k n n"],
        incident: Sequence[Complex[Tensor, "..."]],
        corners_px: Float[Tensor, "k 2"],
        changes: Sequence[Complex[Tensor, "k p n n"]],
        *,
        update_probe: bool,
        touched_px: Float[Tensor, "all 2"] | None = None,
        scale: Float[Tensor, " k"] | None = None,
    ) -> None:
        """Add the frames of a batch.

        Arguments:
            patches: of each slice of the object, at `corners_px`.
            incident: waves in front of each slice, the probe in front of the first: one for all frames, or that of
                each.
            changes: of each frame's waves behind each slice.
            update_probe: whether the probe changes too.
            touched_px: the corners of the frames of all processes in this batch; None where there is only this one.
            scale: factor of each frame's probe.
        """
        carried = _measure_transmission_behind(patches)
        for number, (wave, change, part) in enumerate(zip(incident, changes, carried, strict=True)):
            power = (wave.real.square() + wave.imag.square()).sum(-3)
            power = power if part is None else power * part[:, None, None]
            one = wave.shape[-3] == 1
            backprojection = change[:, 0] * wave[..., 0, :, :].conj() if one else (change * wave.conj()).sum(1)
            place_inside(self._object[number], backprojection, corners_px)
            place_inside(self._illumination[number], power.expand(patches.shape[1], -1, -1), corners_px)
        if update_probe:
            first = patches[0] if scale is None else patches[0] * scale[:, None, None]
            self._probe += (changes[0] * first.conj()[:, None]).sum(0)
            transmission = first.real.square() + first.imag.square()
            part = carried[0]
            transmission = transmission if part is None else transmission * part[:, None, None]
            self._transmission += transmission.sum(0)
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
        is_touched = torch.zeros(self._object[0].numel(), dtype=torch.bool, device=index.device)
        is_touched[index] = True
        pixels = is_touched.nonzero()[:, 0]
        fields = [each.view(-1) for each in (*self._object, *self._illumination)]
        sums = [field[pixels] for field in fields]
        reducer.sum(*sums, self._probe, self._transmission)
        for field, values in zip(fields, sums, strict=True):
            field[pixels] = values

    def compute_object_change(self) -> Complex[Tensor, "slices h w"]:
        """Return the sum over the frames, divided by the regularised illumination, where the frames lie.

        The sum itself is overwritten; pixels that no frame touches are 0.
        """
        index = self._index_touched()
        self._changes = []
        for numerator, illumination in zip(self._object, self._illumination, strict=True):
            if index is None:
                numerator.div_(self._regularize(illumination))
                continue
            flat = numerator.view(-1)
            # Pixels of several frames are written several times, with the same value.
            change = flat[index].div_(self._regularize(illumination.view(-1)[index]))
            flat.scatter_(0, index, change)
            self._changes.append(change)
        return self._object

    def compute_probe_change(self) -> Complex[Tensor, "p n n"]:
        """Return the sum over the frames, divided by the regularised transmission."""
        return self._probe / self._regularize(self._transmission)

    def apply_to(self, slices: Complex[Tensor, "slices h w"], step: float | Tensor) -> None:
        """Add `step` times the change of the object that was computed, in place, where the frames lie."""
        index = self._index_touched()
        if index is None:
            slices.add_(self._object * step)
            return
        for each, change in zip(slices, self._changes, strict=True):
            flat = each.view(-1)
            flat.scatter_(0, index, flat[index].add_(change.mul_(step)))

    def clear(self) -> None:
        """Begin the next update."""
        index = self._index_touched()
        if index is None:
            self._object.zero_()
            self._illumination.zero_()
        else:
            for field in (*self._object, *self._illumination):
                field.view(-1).scatter_(0, index, 0)
        self._probe.zero_()
        self._transmission.zero_()
        self._corners_px, self._index, self._changes, self.frames = [], None, [], 0

    def _index_touched(self) -> Tensor | None:
        """Return the flat indices of all pixels of the frames, or None where that would be most of the canvas."""
        n_px = self._probe.shape[-1]
        if self.frames * (n_px + 1) ** 2 > _WHOLE_CANVAS_FRACTION * self._object[0].numel():
            return None
        if self._index is None:
            self._index = index_inside(torch.cat(self._corners_px), n_px + 1, self._object.shape[-1])
        return self._index

    def _regularize(self, curvature: Tensor) -> Tensor:
        return (1 - self._alpha) * curvature + self._alpha * curvature.max()


def _measure_transmission_behind(patches: Complex[Tensor, "slices k n n"]) -> list[Tensor | None]:
    """Measure the part of the light that passes all slices behind each one, in the mean of each patch; None behind the
    last.

    The curvature of the misfit by a slice is less by this part.
    """
    parts: list[Tensor | None] = [None]
    for patch in patches[1:].flip(0):
        part = (patch.real.square() + patch.imag.square()).mean((1, 2))
        parts.append(part if parts[-1] is None else part * parts[-1])
    return parts[::-1]


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
