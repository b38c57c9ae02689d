"""Each frame reconstructed by itself with a known probe: images of where the frames are, that need no positions.

With the probe known a frame alone determines what it shows, as in diffractive imaging with a curved illumination.
Reference: Abbey, Nugent, Williams, Clark, Peele, Pfeifer, de Jonge, McNulty, Nature Physics 4, 394 (2008).
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from torchptycho.core.config import RefineConfig
from torchptycho.reconstructors.iterative.fit import (
    ReducedChiSquared,
    compute_wave_correction,
    propagate_to_detector,
    scale_wave,
)
from torchptycho.reconstructors.iterative.problem import Problem
from torchptycho.reconstructors.iterative.state import RefinementState

__all__ = ["crop_to_probe", "reconstruct_frames", "weigh_pixels"]

_FRAMES_AT_ONCE = 64
# rPIE's regularisation of dim pixels: smaller, because one frame alone has to fill them.
_ALPHA = 0.02
# Relative to the brightest pixel of the probe: dimmer ones know nothing, and bright ones are about equal.
_DARK, _DIM = 0.03, 0.1


def weigh_pixels(probe: Complex[Tensor, "p n n"]) -> Float[Tensor, "n n"]:
    """Weigh the pixels of a frame's image by what the probe lets them know, from 0 to 1."""
    power = (probe.real.square() + probe.imag.square()).sum(0)
    return power / (power + _DIM * power.max()) * (power > _DARK * power.max())


def crop_to_probe(weight: Float[Tensor, "n n"]) -> tuple[slice, slice]:
    """Return the rows and columns that hold all pixels of any weight."""
    where = torch.nonzero(weight)
    low, high = where.min(0).values.tolist(), where.max(0).values.tolist()
    return slice(low[0], high[0] + 1), slice(low[1], high[1] + 1)


def reconstruct_frames(
    problem: Problem, state: RefinementState, config: RefineConfig, n_iterations: int
) -> Complex[Tensor, "m a b"]:
    """Reconstruct what each frame shows, by rPIE on that frame alone with the probe of the state.

    Returns:
        [M, A, B] images, cut to where the probe is bright; their phases have nothing in common.
    """
    probe = state.probe
    power = (probe.real.square() + probe.imag.square()).sum(0)
    step = probe.conj() / ((1 - _ALPHA) * power + _ALPHA * power.max())
    rows, columns = crop_to_probe(weigh_pixels(probe))
    value = state.object.abs().mean().to(probe.dtype)
    images: list[Tensor] = []
    batches = torch.split(torch.arange(problem.n_frames, device=problem.device), _FRAMES_AT_ONCE)
    for _, counts in problem.iterate_counts(batches):
        patches = torch.zeros(counts.shape, dtype=probe.dtype, device=probe.device) + value
        for _ in range(n_iterations):
            patches = patches + _compute_update(problem, state, config, patches, counts, step)
        images.append(patches[:, rows, columns])
    return problem.collect(torch.cat(images), torch.arange(problem.n_frames, device=problem.device))


def _compute_update(
    problem: Problem,
    state: RefinementState,
    config: RefineConfig,
    patches: Complex[Tensor, "k n n"],
    counts: Float[Tensor, "k n n"],
    step: Complex[Tensor, "p n n"],
) -> Complex[Tensor, "k n n"]:
    wave, intensity = propagate_to_detector(patches, state.probe, problem.propagator)
    misfit = ReducedChiSquared(state.background)
    change = compute_wave_correction(
        intensity + state.background, counts, problem.mask_or_none, config.likelihood, misfit
    )
    exit_change = problem.propagator.adjoint(scale_wave(wave, change[:, None]))
    update: Tensor = (step * exit_change).sum(1)
    return update
