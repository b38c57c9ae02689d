"""The projection methods: regularised PIE in mini-batches, and the same with optimal step lengths (LSQML).

Maiden, Johnson, Li, Optica 4, 736 (2017); Odstrcil, Menzel, Guizar-Sicairos, Opt. Express 26, 3108 (2018).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Complex, Float, Float64, Int64
from torch import Tensor

from torchptycho.core.config import RefineConfig
from torchptycho.physics.multislice import (
    SliceWaves,
    backpropagate_change,
    pass_through_slices,
    propagate_object_change,
)
from torchptycho.physics.patches import extract_slices
from torchptycho.reconstructors.iterative.canvas_update import AccumulatedUpdate, add_momentum_in_place
from torchptycho.reconstructors.iterative.fit import (
    EpochFit,
    ReducedChiSquared,
    compute_wave_correction,
    propagate_to_detector,
    scale_wave,
    sum_intensity,
)
from torchptycho.reconstructors.iterative.position_correction import PositionSteps
from torchptycho.reconstructors.iterative.problem import Problem
from torchptycho.reconstructors.iterative.reducer import Reducer
from torchptycho.reconstructors.iterative.regularization import apply_penalty_step
from torchptycho.reconstructors.iterative.state import RefinementState
from torchptycho.reconstructors.iterative.variable_probe import VariationFit, fix_variation_gauge

__all__ = ["choose_batch_size", "compute_frame_misfits", "measure_misfit", "run_epoch", "split_into_batches"]

# Momentum is applied four times per epoch: every pixel has then been updated about once.
_MOMENTUM_PER_EPOCH = 4
# Fraction of the largest curvature that is added to each frame's own in the joint solution of two step lengths.
_STEP_DAMPING = 0.01
_MAX_STEP = 2.0
# Small scans need small batches for enough updates per epoch; larger batches than this save no time.
_UPDATES_PER_EPOCH, _MIN_BATCH_SIZE, _MAX_BATCH_SIZE = 25, 8, 64
# Frames in a batch for each probe that they have in common: fewer hardly determine the modes of variation.
_FRAMES_PER_PROBE = 4
# Fraction of the frames in a batch above which only the object corrects the total intensity; otherwise object and probe
# would both correct it.
_SCALE_FREE_FRACTION = 0.25


def run_epoch(
    problem: Problem,
    state: RefinementState,
    config: RefineConfig,
    order: Int64[Tensor, " m"],
    shifts: PositionSteps | None,
    *,
    frames_per_update: int,
    update_probe: bool,
) -> EpochFit:
    """Run one pass over the frames in this order and return its fit; update object, probe and background on the way.

    Arguments:
        shifts: collects where each frame would rather be; None leaves positions alone.
        frames_per_update: about this number of frames are accumulated before object and probe are updated.
    """
    misfit = ReducedChiSquared(state.background)
    background = _BackgroundEstimator(state, problem.mask) if config.background else None
    state.object = state.object.contiguous()
    gathered = AccumulatedUpdate(state, config.alpha)
    batches = split_into_batches(order, choose_batch_size(config, len(order)))
    n_updates = max(1, round(len(order) / frames_per_update))
    varies = state.has_variable_probe and state.epoch >= config.opr_start_epoch
    variation = VariationFit(problem, state, config) if varies and (update_probe or config.frame_scale) else None
    for number, (batch, (index, counts)) in enumerate(zip(batches, problem.iterate_counts(batches), strict=True), 1):
        corners_px = problem.compute_corners_px(state.positions_px[index])
        patches = extract_slices(state.slices, corners_px, problem.n_px)
        waves = pass_through_slices(patches, state.build_probe(index), problem.gap)
        wave = problem.propagator.forward(waves.exit)
        intensity = sum_intensity(wave)
        if background is not None:
            intensity = intensity + state.background
        if variation is not None:
            wave, intensity = variation.fit_frames(batch, index, patches, wave, intensity, counts)
            waves = pass_through_slices(patches, state.build_probe(index), problem.gap)
        if background is not None:
            background.add(intensity, counts)
        change = compute_wave_correction(intensity, counts, problem.mask_or_none, config.likelihood, misfit)
        exit_change = problem.propagator.adjoint(scale_wave(wave, change[:, None]))
        changes = backpropagate_change(patches, exit_change, problem.gap)
        if shifts is not None:
            shifts.add(index, state.slices, patches, waves.incident, corners_px, changes, problem.gap)
        touched_px = corners_px if index is batch else problem.compute_corners_px(state.positions_px[batch])
        scale = state.frame_scale[index] if state.has_variable_probe else None
        gathered.add(
            patches, waves.incident, corners_px, changes, update_probe=update_probe, touched_px=touched_px, scale=scale
        )
        if variation is not None and update_probe:
            variation.accumulate(index, len(batch), patches[0], changes[0])
        if number * n_updates // len(batches) > (number - 1) * n_updates // len(batches):
            gathered.add_others(problem.reducer)
            _apply_update(
                gathered, state, config, problem, batch, patches, waves, corners_px, exit_change, update_probe
            )
            gathered.clear()
            if variation is not None:
                variation.update_modes()
    if variation is not None:
        fix_variation_gauge(problem, state, config, update_probe=update_probe)
    if background is not None:
        background.update_state(problem.reducer)
    if shifts is not None:
        shifts.add_others(problem.reducer)
    misfit.add_others(problem.reducer)
    return misfit.compute_fit(problem.n_good_pixels)


def compute_frame_misfits(
    problem: Problem,
    state: RefinementState,
    config: RefineConfig,
    index: Int64[Tensor, " k"],
    positions_px: Float64[Tensor, "trials k 2"],
) -> Float64[Tensor, "trials k"]:
    """Compute the misfit of each of these frames at each of some positions, as `PositionSteps.residual` does; nothing
    is updated, and the frames are read once."""
    own, own_px = problem.select_own(index), positions_px
    if problem.is_own is not None:
        own_px = positions_px[:, problem.is_own[index]]
    misfits = []
    parts = torch.split(own, _MAX_BATCH_SIZE)
    for (part, counts), trials_px in zip(
        problem.iterate_counts(parts), torch.split(own_px, _MAX_BATCH_SIZE, dim=1), strict=True
    ):
        probe, found = state.build_probe(part), []
        for places in trials_px:
            patches = extract_slices(state.slices, problem.compute_corners_px(places), problem.n_px)
            _, intensity = propagate_to_detector(patches, probe, problem.propagator, problem.gap)
            expected = intensity + state.background if config.background else intensity
            change = compute_wave_correction(
                expected, counts, problem.mask_or_none, config.likelihood, ReducedChiSquared(state.background)
            )
            found.append((intensity * change.square()).sum((1, 2)).double())
        misfits.append(torch.stack(found, 1))
    return problem.collect(torch.cat(misfits), index).T


def measure_misfit(problem: Problem, state: RefinementState, object: Complex[Tensor, "*slices h w"]) -> float:
    """Measure the misfit of an object with the probe, positions and background of the state; nothing is updated."""
    misfit = ReducedChiSquared(state.background)
    batches = torch.split(torch.arange(problem.n_frames, device=problem.device), _MAX_BATCH_SIZE)
    for index, counts in problem.iterate_counts(batches):
        corners_px = problem.compute_corners_px(state.positions_px[index])
        patches = extract_slices(object[None] if object.ndim == 2 else object, corners_px, problem.n_px)
        _, intensity = propagate_to_detector(patches, state.build_probe(index), problem.propagator, problem.gap)
        compute_wave_correction(intensity + state.background, counts, problem.mask_or_none, "poisson", misfit)
    misfit.add_others(problem.reducer)
    return misfit.compute(problem.n_good_pixels)


def choose_batch_size(config: RefineConfig, n_frames: int) -> int:
    """Return the configured batch size, or one that suits the number of frames."""
    least = max(_MIN_BATCH_SIZE, _FRAMES_PER_PROBE * (1 + config.opr_modes))
    wanted = config.batch_size or max(least, min(_MAX_BATCH_SIZE, round(n_frames / _UPDATES_PER_EPOCH)))
    return min(wanted, n_frames)


def split_into_batches(order: Int64[Tensor, " m"], batch_size: int) -> tuple[Tensor, ...]:
    """Split into batches that differ by one frame at most: a last one of few frames would have the weight of a full
    one."""
    return order.tensor_split(math.ceil(len(order) / batch_size))


def _apply_update(
    gathered: AccumulatedUpdate,
    state: RefinementState,
    config: RefineConfig,
    problem: Problem,
    batch: Int64[Tensor, " frames"],
    patches: Complex[Tensor, "slices k n n"],
    waves: SliceWaves,
    corners_px: Float[Tensor, "k 2"],
    exit_change: Complex[Tensor, "k p n n"],
    update_probe: bool,
) -> None:
    """Update object and probe; the last batch's frames, of all processes, tell how far LSQML goes."""
    update = gathered.compute_object_change()
    probe_change = gathered.compute_probe_change() if update_probe else None
    if probe_change is not None and gathered.frames >= _SCALE_FREE_FRACTION * problem.n_frames:
        probe_change = _remove_scale(probe_change, state.probe)
    # All slices change at once, and each follows in full what the exit wave asks for.
    step: float | Tensor = config.step / len(patches)
    probe_step: float | Tensor = config.step
    if config.method == "lsqml":
        by_object = propagate_object_change(
            extract_slices(update, corners_px, problem.n_px), patches, waves.incident, problem.gap
        )
        by_probe = None if probe_change is None else pass_through_slices(patches, probe_change, problem.gap).exit
        products = _compute_step_products(by_object, by_probe, exit_change)
        lengths = _solve_step_lengths(problem.collect(products, batch))
        step, probe_step = (config.step * length for length in lengths)
    gathered.apply_to(state.slices, step)
    if probe_change is not None:
        state.probe = state.probe + probe_step * probe_change
    if config.smoothness_weight or config.tv_weight:
        part = gathered.frames / problem.n_frames
        state.object = apply_penalty_step(state.object, config.smoothness_weight * part, config.tv_weight * part)
    state.updates += 1
    wait = math.ceil(problem.n_frames / _MOMENTUM_PER_EPOCH / gathered.frames) * 2**state.momentum_backoffs
    if config.momentum and state.updates >= wait:
        _apply_momentum(state, config.momentum, update_probe)


def _remove_scale(update: Complex[Tensor, "p n n"], probe: Complex[Tensor, "p n n"]) -> Complex[Tensor, "p n n"]:
    """Remove from a change of the probe its component along the probe itself: the scale is left to the object.

    When many frames speak at once, both would follow in full, the counts be corrected twice over, and momentum make the
    brightness swing more and more. Batches of few frames need the probe to follow at once.
    """
    factor = (probe.conj() * update).sum() / (probe.real.square() + probe.imag.square()).sum()
    return update - factor * probe


def _compute_step_products(
    by_object: Complex[Tensor, "k p n n"],
    by_probe: Complex[Tensor, "k p n n"] | None,
    exit_change: Complex[Tensor, "k p n n"],
) -> Float[Tensor, "k products"]:
    """Compute what the step lengths follow from, for each frame: <a, a>, <a, c>, and with a change of the probe
    <b, b>, <b, c>, <a, b>; a and b are the changes of the exit wave by object and probe, c is the wanted one."""
    pairs = [(by_object, by_object), (by_object, exit_change)]
    if by_probe is not None:
        pairs += [(by_probe, by_probe), (by_probe, exit_change), (by_object, by_probe)]
    return torch.stack([_compute_inner_products(a, b) for a, b in pairs], 1)


def _solve_step_lengths(products: Float[Tensor, "k products"]) -> tuple[Tensor, Tensor]:
    """Solve for the mean over the frames of the step lengths that bring exit waves closest to the corrected ones.

    Both at once when object and probe move together (eq. 22 of Odstrcil et al.).
    """
    aa, ab, *of_probe = products.unbind(1)
    if not of_probe:
        length = ab.sum() / aa.sum().clamp_min(1e-30)
        return length.clamp(0, _MAX_STEP), torch.zeros_like(length)
    bb, bc, cross = of_probe
    aa, bb = aa + _STEP_DAMPING * aa.mean(), bb + _STEP_DAMPING * bb.mean()
    determinant = (aa * bb - cross.square()).clamp_min(1e-30)
    lengths = (bb * ab - cross * bc) / determinant, (aa * bc - cross * ab) / determinant
    first, second = (length.clamp(0, _MAX_STEP).mean() for length in lengths)
    return first, second


def _compute_inner_products(a: Tensor, b: Tensor) -> Tensor:
    """Compute Re <a, b> for each frame."""
    return (a.real * b.real + a.imag * b.imag).sum((1, 2, 3))


def _apply_momentum(state: RefinementState, momentum: float, update_probe: bool) -> None:
    """Go on in the direction of the last updates."""
    add_momentum_in_place(state.object, state.velocity, state.anchor, momentum)
    if update_probe:
        add_momentum_in_place(state.probe, state.probe_velocity, state.probe_anchor, momentum)
    state.updates = 0


class _BackgroundEstimator:
    """Counts that are the same in every frame: one step of expectation maximisation after each epoch.

    Positive by construction, and the likelihood does not fall with it.
    Reference: Shepp, Vardi, IEEE Trans. Med. Imaging 1, 113 (1982).
    """

    def __init__(self, state: RefinementState, mask: Bool[Tensor, "n n"]) -> None:
        self._state, self._mask = state, mask
        self._ratio, self._frames = torch.zeros_like(state.background), 0

    def add(self, intensity: Float[Tensor, "k n n"], counts: Float[Tensor, "k n n"]) -> None:
        self._ratio += (counts / intensity.clamp_min(1e-6)).sum(0)
        self._frames += len(counts)

    def update_state(self, reducer: Reducer) -> None:
        frames = self._ratio.new_full((), self._frames, dtype=torch.float64)
        reducer.sum(self._ratio, frames)
        self._state.background = self._state.background * self._ratio / frames.to(self._ratio.dtype) * self._mask
