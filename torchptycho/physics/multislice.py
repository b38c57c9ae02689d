"""Thick objects as slices with free space between them: psi_1 = P O_1, psi_{s+1} = A_d(psi_s) O_{s+1}.

A_d is the angular spectrum without the paraxial approximation, see `core.angular_spectrum`. It is unitary as long as
no light of the sampled angles leaves the frame between two slices (d < N p^2 / lambda) and none is evanescent, so that
its adjoint is A_{-d}.
Reference: Maiden, Humphry, Rodenburg, J. Opt. Soc. Am. A 29, 1606 (2012).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from torchptycho.core.angular_spectrum import angular_spectrum_transfer
from torchptycho.physics.propagation import NearField, Propagator

__all__ = ["SliceWaves", "backpropagate_change", "build_gap", "pass_through_slices", "propagate_object_change"]


@dataclasses.dataclass(frozen=True, eq=False)
class SliceWaves:
    """Waves in a thick object.

    Arguments:
        incident: [*frames, P, N, N] in front of each slice; in front of the first one it is the probe.
        exit: [*frames, P, N, N] behind the last slice.
    """

    incident: tuple[Tensor, ...]
    exit: Tensor


def build_gap(
    n_px: int,
    pixel_m: float,
    wavelength_m: float,
    spacing_m: float,
    *,
    dtype: torch.dtype = torch.complex64,
    device: torch.device | str = "cpu",
) -> Propagator:
    """Build the propagator from one slice to the next.

    Arguments:
        n_px: edge of the frames.
        pixel_m: edge of an object pixel.
        spacing_m: distance between neighbouring slices; 0 changes no wave.
    """
    transfer: np.ndarray = angular_spectrum_transfer(n_px, pixel_m, spacing_m, wavelength_m)
    return NearField(torch.from_numpy(transfer).to(device, dtype))


def pass_through_slices(
    patches: Complex[Tensor, "slices *frames n n"],
    probe: Complex[Tensor, "*probe_frames p n n"],
    gap: Propagator | None,
) -> SliceWaves:
    """Propagate the probe through all slices of each frame's patch; linear in the probe and in each slice.

    Arguments:
        probe: one for all frames, or that of each.
        gap: from one slice to the next; a single slice needs none.
    """
    incident, wave = [probe], patches[0].unsqueeze(-3) * probe
    for patch in patches[1:]:
        assert gap is not None
        incident.append(gap.forward(wave))
        wave = patch.unsqueeze(-3) * incident[-1]
    return SliceWaves(incident=tuple(incident), exit=wave)


def backpropagate_change(
    patches: Complex[Tensor, "slices *frames n n"],
    exit_change: Complex[Tensor, "*frames p n n"],
    gap: Propagator | None,
) -> tuple[Complex[Tensor, "*frames p n n"], ...]:
    """Propagate a change of the exit wave back to the wave behind each slice, first slice first.

    The adjoint of how changes behind a slice reach the exit: with c_s behind slice s, <exit change, effect of b> is
    <c_s, b> for every change b behind that slice.
    """
    changes = [exit_change]
    for patch in patches[1:].flip(0):
        assert gap is not None
        changes.append(gap.adjoint(changes[-1] * patch.conj().unsqueeze(-3)))
    return tuple(reversed(changes))


def propagate_object_change(
    changes: Sequence[Complex[Tensor, "*frames n n"]] | Complex[Tensor, "slices *frames n n"],
    patches: Complex[Tensor, "slices *frames n n"],
    incident: Sequence[Complex[Tensor, "..."]],
    gap: Propagator | None,
) -> Complex[Tensor, "*frames p n n"]:
    """Compute to first order how the exit wave changes when the slices change: the directional derivative.

    Arguments:
        changes: of each slice's patches.
        incident: waves in front of each slice, of `pass_through_slices`.
    """
    total: Tensor = changes[0].unsqueeze(-3) * incident[0]
    for change, patch, wave in zip(changes[1:], patches[1:], incident[1:], strict=True):
        assert gap is not None
        total = gap.forward(total) * patch.unsqueeze(-3) + change.unsqueeze(-3) * wave
    return total
