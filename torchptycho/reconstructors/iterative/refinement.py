"""From counts to the best image that they allow: epochs of one method, a schedule around them, and the result."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchptycho.core.config import RefineConfig, to_dict
from torchptycho.core.reconstruction import MIN_COVERAGE, Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.core.versions import collect_versions
from torchptycho.io.fingerprint import fingerprint_content
from torchptycho.physics.illumination import compute_illumination
from torchptycho.reconstructors.iterative.autodiff import AutodiffSolver
from torchptycho.reconstructors.iterative.fit import EpochFit
from torchptycho.reconstructors.iterative.initial_state import (
    limit_positions,
)
from torchptycho.reconstructors.iterative.judgement import compute_unexplained, judge_fit, judge_illumination
from torchptycho.reconstructors.iterative.position_correction import PositionSteps, fit_linear_part
from torchptycho.reconstructors.iterative.position_updates import update_positions
from torchptycho.reconstructors.iterative.prior_steps import PriorSteps
from torchptycho.reconstructors.iterative.probe_modes import compute_area_px, orthogonalize_modes
from torchptycho.reconstructors.iterative.problem import Problem
from torchptycho.reconstructors.iterative.rpie import run_epoch
from torchptycho.reconstructors.iterative.schedule import (
    advance_polishing,
    compute_polishing_progress,
    plan_frames_per_update,
)
from torchptycho.reconstructors.iterative.state import RefinementState
from torchptycho.reconstructors.iterative.thick_object import balance_slices, judge_spacing, smooth_slices
from torchptycho.reconstructors.iterative.variable_probe import fix_variation_gauge

__all__ = ["EpochCallback", "build_fingerprint", "build_reconstruction", "run_epochs"]

_log = logging.getLogger(__name__)

# Increase of the misfit in an epoch above which the momentum is reduced.
_DIVERGENCE_RATIO = 1.3
# For this many epochs the misfit may grow because a prior removes noise that was fitted.
_PRIOR_SETTLES_IN_EPOCHS = 3
_SAVE_EVERY_S = 30.0

EpochCallback = Callable[[int, float], None]


def run_epochs(
    problem: Problem,
    scan: Scan,
    state: RefinementState,
    config: RefineConfig,
    on_epoch: EpochCallback,
    state_file: str | Path | None,
    fingerprint: dict[str, Any],
) -> bool:
    """Run epochs until there are enough or nothing improves; return False when interrupted."""
    solver = AutodiffSolver(problem, state, config) if config.method == "gradient" else None
    prior = PriorSteps(problem, config)
    given_px = torch.from_numpy(scan.positions_px).to(problem.device)
    saved = time.perf_counter()
    try:
        while state.epoch < config.epochs and advance_polishing(state, config):
            begun = time.perf_counter()
            prior.decide(state)
            state.regularization = problem.reducer.share(state.regularization)
            prior.prepare(state, solver)
            fit = _advance_epoch(problem, state, config, solver, given_px)
            if len(state.probe) > 1:
                state.replace_modes(orthogonalize_modes(state.probe))
            state.fix_gauge()
            prior.apply(state, solver)
            if config.slice_smoothing:
                state.object = smooth_slices(state.slices, state.probe, problem.gap_depth, config.slice_smoothing)
            # Sums are the same in all processes, but not what different machines make of them.
            state.copy_from_first(problem.reducer)
            if solver is not None:
                solver.read_state(state)
            state.epoch += 1
            state.seconds += time.perf_counter() - begun
            for name, value in (
                ("misfit", fit.misfit),
                ("residual", fit.residual),
                ("unexplained", compute_unexplained(fit, problem.variation)),
                ("seconds", state.seconds),
            ):
                state.history[name].append(value)
            if not math.isfinite(fit.misfit):
                raise FloatingPointError(f"{scan.source}: the misfit is {fit.misfit} after epoch {state.epoch}.")
            _back_off_momentum(state)
            on_epoch(state.epoch, fit.misfit)
            if state_file is not None and time.perf_counter() - saved > _SAVE_EVERY_S:
                state.save(state_file, fingerprint)
                saved = time.perf_counter()
        prior.finish(state)
        complete = True
    except KeyboardInterrupt:
        _log.warning(
            "%s: interrupted after %d of %d epochs; this is the image so far", scan.source, state.epoch, config.epochs
        )
        complete = False
    # Only after an interruption: after other errors the state may not be finite.
    if state_file is not None:
        state.save(state_file, fingerprint)
    return complete


def _advance_epoch(
    problem: Problem, state: RefinementState, config: RefineConfig, solver: AutodiffSolver | None, given_px: Tensor
) -> EpochFit:
    # Depends on seed and epoch alone, so that a resumed run has the same order.
    generator = torch.Generator().manual_seed((config.refine_seed << 20) + state.epoch)
    order = problem.draw_order(generator)
    probe = config.probe_update and state.epoch >= config.probe_start_epoch
    positions = config.position_update != "none" and state.epoch >= config.position_start_epoch
    polished = compute_polishing_progress(state, config)
    if solver is not None:
        before = state.positions_px
        varies = state.has_variable_probe and state.epoch >= config.opr_start_epoch
        fit = solver.run_epoch(
            state,
            order,
            rate=1 - 0.9 * polished,
            update_probe=probe,
            update_positions=positions,
            update_variation=varies,
        )
        if varies:
            fix_variation_gauge(problem, state, config, update_probe=probe)
        if config.position_update == "affine":
            state.positions_px = before + fit_linear_part(state.positions_px - before, before)
        state.positions_px = limit_positions(state.positions_px, given_px, config)
        return fit
    shifts = PositionSteps(problem.n_frames, problem.device) if positions else None
    fit = run_epoch(
        problem,
        state,
        config,
        order,
        shifts,
        frames_per_update=plan_frames_per_update(problem.n_frames, state, config),
        update_probe=probe,
    )
    if shifts is not None:
        update_positions(problem, state, config, shifts, given_px, polished, generator)
    return fit


def _back_off_momentum(state: RefinementState) -> None:
    """Reduce the momentum and restart it from zero if the fit became worse, except in the first epochs."""
    misfit = state.history["misfit"]
    if state.regularization is not None and state.regularization["kind"] == "learned":
        return  # Each step of it starts momentum afresh.
    if state.regularization is not None and state.epoch - (state.polishing_since or 0) <= _PRIOR_SETTLES_IN_EPOCHS:
        return
    if len(misfit) > 3 and misfit[-1] > _DIVERGENCE_RATIO * misfit[-2]:
        state.momentum_backoffs += 1
        state.reset_momentum()


def build_reconstruction(
    problem: Problem, scan: Scan, state: RefinementState, config: RefineConfig, complete: bool, digest: str
) -> Reconstruction:
    illumination = compute_illumination(
        state.build_mean_probe(), problem.compute_corners_px(state.positions_px), problem.shape
    )
    coverage = (illumination / illumination.max()).float().cpu().numpy()
    shifted = torch.fft.fftshift(state.background) if problem.propagator.zero_frequency_first else state.background
    background = shifted.float().cpu().numpy()
    area_px = float(compute_area_px(state.probe))
    faults = (
        judge_fit(state.history, scan.source, corrects_positions=config.position_update in ("frames", "both")),
        judge_illumination(state.history, area_px / state.probe_area_px, coverage, scan.source),
        judge_spacing(problem.gap_depth, problem.n_px, scan.source),
    )
    provenance: dict[str, Any] = {
        "source": scan.source,
        "frames": scan.n_frames,
        "left_out": {str(frame): why for frame, why in scan.left_out.items()},
        "scan_sha256": digest,
        "refine": to_dict(config),
        "epochs": state.epoch,
        "regularization": state.regularization or {"kind": "none", "strength": 0.0},
        "complete": complete,
        "photons_per_frame": problem.scaling.photons_per_frame,
        "warnings": [fault for fault in faults if fault is not None],
        "versions": collect_versions(),
        "seconds": round(state.seconds, 3),
    }
    valid = coverage >= MIN_COVERAGE
    object = state.object.cpu().numpy()
    object = object if object.ndim == 2 else balance_slices(object, valid)
    return Reconstruction(
        object=np.where(coverage > 1e-9, object, 0).astype(np.complex64),
        coverage=coverage,
        valid=valid,
        origin_px=problem.origin_px,
        object_pixel_m=scan.geometry.with_object_pixel(scan.n_px).object_pixel_m,
        slice_spacing_m=problem.slice_spacing_m,
        provenance=provenance,
        probe=state.probe.to(torch.complex64).cpu().numpy(),
        opr_modes=state.opr_modes.to(torch.complex64).cpu().numpy().copy() if config.opr_modes else None,
        opr_weights=state.opr_weights.float().cpu().numpy().copy() if config.opr_modes else None,
        frame_scale=state.frame_scale.float().cpu().numpy().copy() if config.frame_scale else None,
        positions_px=state.positions_px.cpu().numpy(),
        given_positions_px=scan.positions_px,
        background=background if config.background else None,
        history={name: list(values) for name, values in state.history.items()},
    )


def build_fingerprint(scan: Scan, config: RefineConfig) -> dict[str, Any]:
    """Build the fingerprint of a state: it may continue with more epochs, but not with another scan or method."""
    fixed = dataclasses.replace(config, epochs=1, patience=None)
    return {"scan": fingerprint_content(scan)} | {f"refine.{name}": value for name, value in to_dict(fixed).items()}
