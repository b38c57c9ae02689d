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
from jaxtyping import Complex
from torch import Tensor

from torchptycho.core.config import RefineConfig, as_config, to_dict
from torchptycho.core.devices import find_devices
from torchptycho.core.errors import ConfigError
from torchptycho.core.reconstruction import MIN_COVERAGE, Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.core.versions import collect_versions
from torchptycho.io.fingerprint import fingerprint_content, fingerprint_scan
from torchptycho.io.inputs import as_probe, as_reconstruction, as_scan
from torchptycho.io.scan_choice import refuse_several_scans
from torchptycho.io.storage.outputs import check_output_file
from torchptycho.physics.illumination import compute_illumination
from torchptycho.reconstructors.iterative.autodiff import AutodiffSolver
from torchptycho.reconstructors.iterative.fit import EpochFit
from torchptycho.reconstructors.iterative.initial_state import (
    compute_start_margin_px,
    initialize_state,
    limit_positions,
)
from torchptycho.reconstructors.iterative.judgement import compute_unexplained, judge_fit, judge_illumination
from torchptycho.reconstructors.iterative.position_correction import (
    PositionSteps,
    add_momentum,
    fit_linear_part,
    random_search,
)
from torchptycho.reconstructors.iterative.prior_steps import PriorSteps, check_regularization
from torchptycho.reconstructors.iterative.probe_modes import compute_area_px, orthogonalize_modes
from torchptycho.reconstructors.iterative.problem import Problem, open_problem
from torchptycho.reconstructors.iterative.rpie import compute_frame_misfits, run_epoch
from torchptycho.reconstructors.iterative.schedule import (
    advance_polishing,
    compute_polishing_progress,
    plan_frames_per_update,
)
from torchptycho.reconstructors.iterative.start_matching import match_start
from torchptycho.reconstructors.iterative.state import RefinementState

__all__ = ["build_fingerprint", "refine"]

_log = logging.getLogger(__name__)

# Increase of the misfit in an epoch above which the momentum is reduced.
_DIVERGENCE_RATIO = 1.3
# For this many epochs the misfit may grow because a prior removes noise that was fitted.
_PRIOR_SETTLES_IN_EPOCHS = 3
_SAVE_EVERY_S = 30.0

EpochCallback = Callable[[int, float], None]
ImageCallback = Callable[[Reconstruction], None]


def refine(
    scan: Scan | str | Path,
    start: Reconstruction | str | Path | None = None,
    *,
    probe: Complex[np.ndarray, "*p n n"] | str | Path | None = None,
    config: RefineConfig | dict[str, Any] | None = None,
    device: str = "auto",
    state_file: str | Path | None = None,
    resume: bool = False,
    on_epoch: EpochCallback | None = None,
    on_image: ImageCallback | None = None,
    image_every_epochs: int = 10,
    scratch: str | Path | None = None,
    judge: bool = True,
) -> Reconstruction:
    """Fit an image to the counts of a scan; without a start this is a plain iterative reconstruction.

    Ctrl+C ends it after the current batch with the image so far, and its provenance says so.

    Arguments:
        scan: what was measured, or its file.
        start: an image of it to begin with, such as a trained network's, or its file; its probe and positions are taken
            over when it has them, resampled when energy, distance or detector were corrected since. None begins with a
            transparent object.
        probe: modes in sqrt(photons) that replace the scan's (and the start's) own.
        config: method, epochs, and what may change besides the object.
        device: "auto" takes a GPU when there is one; "gpu", "cpu", or another name that torch knows.
        state_file: where to write the state from time to time and at the end, for `resume`.
        resume: go on from that file, up to the configured epochs; begin, with a warning, where there is none yet.
        on_epoch: called with the number of each finished epoch and its misfit.
        on_image: shown the image so far, every `image_every_epochs` epochs before the last.
        scratch: folder for a temporary copy of frames that need more than 256 MB and that their file cannot give in any
            order, as a compressed NPZ.
        judge: warn when the fit cannot be right; the provenance says so in any case.

    Returns:
        the image on the canvas of all positions, with `probe`, `positions_px`, and in `history` for each epoch:
        `misfit` (mean squared deviation of the counts over that of photon noise: 1 is the limit, less is fitting the
        noise), `residual` (squared deviation of the amplitudes over the counts), `unexplained` (the part of the
        variation between frames that it leaves, without photon noise), `seconds` since the beginning, and with a
        prior its `regularization_strength`; in `provenance` what `regularization` acted and how its strength was found.

    Raises:
        TorchptychoError: the scan is unusable, the start or the probe does not fit it, or the state is another's.
    """
    settings, scan = as_config(RefineConfig, config), as_scan(scan)
    if resume and state_file is None:
        raise ConfigError("resume: expected the state_file of an earlier refinement; found none.")
    refuse_several_scans(scan, "a refinement")
    if state_file is not None:
        check_output_file(state_file, option="state_file")
    check_regularization(settings)
    (place,) = find_devices(device, option="device")
    image = None if start is None else match_start(as_reconstruction(start, "start"), scan)
    modes = None if probe is None else as_probe(probe, scan.n_px)
    moves = settings.position_update != "none"
    margin_px = math.ceil(settings.position_limit_px) if moves else compute_start_margin_px(scan, image)
    with torch.no_grad(), open_problem(scan, margin_px=margin_px, device=place, scratch=scratch) as problem:
        fingerprint = {} if state_file is None else build_fingerprint(scan, settings)
        digest = fingerprint_scan(scan)
        if _can_resume(state_file, resume=resume):
            assert state_file is not None
            state = RefinementState.load(state_file, fingerprint, place)
        else:
            state = initialize_state(problem, scan, image, modes, settings)

        def report_epoch(epoch: int, misfit: float) -> None:
            if on_epoch is not None:
                on_epoch(epoch, misfit)
            if on_image is not None and epoch % image_every_epochs == 0 and epoch < settings.epochs:
                on_image(_build_reconstruction(problem, scan, state, settings, False, digest))

        complete = _run_epochs(problem, scan, state, settings, report_epoch, state_file, fingerprint)
        image = _build_reconstruction(problem, scan, state, settings, complete, digest)
        for fault in image.provenance["warnings"] if judge else ():
            _log.warning("%s", fault)
        return image


def _can_resume(state_file: str | Path | None, *, resume: bool) -> bool:
    """Return whether to continue; a job script may ask for it before there is a state."""
    if not resume or state_file is None or Path(state_file).exists():
        return resume
    _log.warning("%s: no state to resume from yet; refinement begins from the start.", state_file)
    return False


def _run_epochs(
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
            prior.prepare(state, solver)
            fit = _advance_epoch(problem, state, config, solver, given_px)
            if len(state.probe) > 1:
                state.replace_modes(orthogonalize_modes(state.probe))
            state.fix_gauge()
            prior.apply(state, solver)
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
        fit = solver.run_epoch(state, order, rate=1 - 0.9 * polished, update_probe=probe, update_positions=positions)
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
        _update_positions(problem, state, config, shifts, given_px, polished, generator)
    return fit


def _update_positions(
    problem: Problem,
    state: RefinementState,
    config: RefineConfig,
    shifts: PositionSteps,
    given_px: Tensor,
    polished: float,
    generator: torch.Generator,
) -> None:
    """Bring the positions nearer to where the frames would rather be."""
    step = torch.zeros_like(state.positions_px)
    if config.position_update in ("affine", "both"):
        step = step + shifts.solve_affine(state.positions_px)
    if config.position_update in ("frames", "both"):
        step = step + shifts.solve_per_frame()
    longest_px = config.position_step_px * (1 - 0.9 * polished)
    state.drift_px = add_momentum(step, state.drift_px, state.positions_px, longest_px)
    state.positions_px = limit_positions(state.positions_px + state.drift_px, given_px, config)
    if config.position_update == "affine" or state.polishing_since is not None:
        return

    def measure_misfits(index: Tensor, positions_px: Tensor) -> Tensor:
        return compute_frame_misfits(
            problem, state, config, index, limit_positions(positions_px, given_px[index], config)
        )

    lost, places = random_search(
        measure_misfits, state.positions_px, given_px, shifts.residual, config.position_limit_px, generator
    )
    if len(lost):
        state.positions_px[lost] = limit_positions(places, given_px[lost], config)
        state.drift_px[lost] = 0


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


def _build_reconstruction(
    problem: Problem, scan: Scan, state: RefinementState, config: RefineConfig, complete: bool, digest: str
) -> Reconstruction:
    illumination = compute_illumination(state.probe, problem.compute_corners_px(state.positions_px), problem.shape)
    coverage = (illumination / illumination.max()).float().cpu().numpy()
    shifted = torch.fft.fftshift(state.background) if problem.propagator.zero_frequency_first else state.background
    background = shifted.float().cpu().numpy()
    area_px = float(compute_area_px(state.probe))
    faults = (
        judge_fit(state.history, scan.source),
        judge_illumination(state.history, area_px / state.probe_area_px, coverage, scan.source),
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
    return Reconstruction(
        object=np.where(coverage > 1e-9, state.object.cpu().numpy(), 0).astype(np.complex64),
        coverage=coverage,
        valid=coverage >= MIN_COVERAGE,
        origin_px=problem.origin_px,
        object_pixel_m=scan.geometry.with_object_pixel(scan.n_px).object_pixel_m,
        provenance=provenance,
        probe=state.probe.to(torch.complex64).cpu().numpy(),
        positions_px=state.positions_px.cpu().numpy(),
        given_positions_px=scan.positions_px,
        background=background if config.background else None,
        history={name: list(values) for name, values in state.history.items()},
    )


def build_fingerprint(scan: Scan, config: RefineConfig) -> dict[str, Any]:
    """Build the fingerprint of a state: it may continue with more epochs, but not with another scan or method."""
    fixed = dataclasses.replace(config, epochs=1, patience=None)
    return {"scan": fingerprint_content(scan)} | {f"refine.{name}": value for name, value in to_dict(fixed).items()}
