"""The estimate that a refinement begins with: a uniform object, or an earlier image."""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
import torch
from torch import Tensor

from torchptycho.core.config import RefineConfig
from torchptycho.core.errors import ConfigError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.physics.scaling import compute_probe_factor
from torchptycho.reconstructors.iterative.probe_modes import find_empty_modes, orthogonalize_modes, set_mode_count
from torchptycho.reconstructors.iterative.problem import Problem
from torchptycho.reconstructors.iterative.state import RefinementState
from torchptycho.reconstructors.iterative.thick_object import split_into_slices
from torchptycho.reconstructors.iterative.variable_probe import begin_variation, take_over_variation

_log = logging.getLogger(__name__)

__all__ = ["compute_start_margin_px", "initialize_state", "limit_positions"]

# Initial background, relative to the mean count.
_INITIAL_BACKGROUND = 1e-3


def compute_start_margin_px(scan: Scan, start: Reconstruction | None) -> int:
    """Return the room around the canvas for positions that an earlier refinement found, in pixels."""
    if start is None or start.positions_px is None or start.positions_px.shape != scan.positions_px.shape:
        return 0
    return math.ceil(float(np.abs(start.positions_px - scan.positions_px).max()))


def initialize_state(
    problem: Problem, scan: Scan, start: Reconstruction | None, probe: np.ndarray | None, config: RefineConfig
) -> RefinementState:
    """Return the state before the first epoch.

    Raises:
        ConfigError: the start or the probe does not fit the scan.
    """
    if probe is None and start is not None and start.probe is not None:
        probe = start.probe
    if probe is None:
        factor = compute_probe_factor(scan, problem.scaling, probe_is_fixed=not config.probe_update)
        modes = torch.from_numpy(scan.probe) * factor
        if not config.probe_update and not scan.probe_is_calibrated:
            _log.warning(
                "%s: the probe is not refined; its power is %s. The entry \"probe_is_calibrated\": true in '_metadata' "
                "of an NPZ states that it is known.",
                scan.source,
                "taken as known" if factor == 1.0 else f"scaled by {factor**2:.4g} to the photons of a mean frame",
            )
    else:
        modes = torch.from_numpy(np.ascontiguousarray(probe))
    if modes.shape[-2:] != (problem.n_px, problem.n_px):
        raise ConfigError(
            f"probe: expected {problem.n_px}x{problem.n_px} px, as the frames; found {tuple(modes.shape)}."
        )
    n_empty = int(find_empty_modes(orthogonalize_modes(modes)).sum())
    if n_empty:
        _log.warning(
            "%s: %d of the %d modes of the probe are copies of the others but for noise, or dark; they are begun as "
            "new ones, or left out.",
            scan.source,
            n_empty,
            len(modes),
        )
    modes = set_mode_count(modes.to(problem.device, problem.dtype), config.n_modes or len(modes))
    positions_px = torch.from_numpy(scan.positions_px).to(problem.device)
    moves = config.position_update != "none"
    if start is not None and start.positions_px is not None and len(start.positions_px) != scan.n_frames and not moves:
        _log.warning(
            "%s: the start's positions are of %d frames and are left out; the scan has %d.",
            scan.source,
            len(start.positions_px),
            scan.n_frames,
        )
    if start is not None and start.positions_px is not None and (moves or len(start.positions_px) == scan.n_frames):
        if start.positions_px.shape != scan.positions_px.shape:
            raise ConfigError(
                f"start: its positions are of {len(start.positions_px)} frames; the scan has {scan.n_frames}."
            )
        start_px = torch.from_numpy(start.positions_px).to(problem.device)
        positions_px = limit_positions(start_px, positions_px, config) if moves else start_px
    object = _begin_object(problem, modes, start, config.n_slices)
    state = RefinementState.begin(object, modes, positions_px)
    if config.opr_modes or config.frame_scale:
        begin_variation(state, config.opr_modes, config.refine_seed)
        if start is not None and start.probe is not None and probe is start.probe:
            take_over_variation(state, start, config)
    if config.background:
        state.background += _INITIAL_BACKGROUND * problem.scaling.photons_per_frame / problem.n_px**2
    return state


def _begin_object(problem: Problem, modes: Tensor, start: Reconstruction | None, n_slices: int) -> Tensor:
    """Begin with a uniform object or an earlier image; an image without slices is copied into them.

    Raises:
        ConfigError: the start has another number of slices.
    """
    if start is None:
        return split_into_slices(_make_uniform_object(problem, modes), n_slices)
    if start.object.ndim == 2:
        return split_into_slices(_crop_start_to_canvas(problem, start), n_slices)
    if len(start.object) != n_slices:
        raise ConfigError(
            f"start: expected an image of one slice or of n_slices, {n_slices}; found one of {len(start.object)}. Set "
            f"n_slices to {len(start.object)}, or start from another image."
        )
    slices = [dataclasses.replace(start, object=each) for each in start.object]
    return torch.stack([_crop_start_to_canvas(problem, each) for each in slices])


def _make_uniform_object(problem: Problem, probe: Tensor) -> Tensor:
    """Return the constant object through which the good pixels would count the photons that they counted."""
    pattern = problem.propagator.forward(probe).abs().square().sum(0)
    seen = float(pattern[problem.mask].sum())
    value = math.sqrt(problem.scaling.photons_per_frame / seen) if seen > 0 else 1.0
    return torch.full(problem.shape, value, dtype=problem.dtype, device=problem.device)


def _crop_start_to_canvas(problem: Problem, start: Reconstruction) -> Tensor:
    """Return the start where it is valid, and its mean elsewhere."""
    values = torch.from_numpy(start.object).to(problem.device, problem.dtype)
    valid = torch.from_numpy(start.valid)
    top, left = (mine - its for mine, its in zip(problem.origin_px, start.origin_px, strict=True))
    rows = torch.arange(problem.shape[0]) + top
    columns = torch.arange(problem.shape[1]) + left
    inside = ((rows >= 0) & (rows < len(valid)))[:, None] & ((columns >= 0) & (columns < valid.shape[1]))
    take = (rows.clamp(0, len(valid) - 1)[:, None], columns.clamp(0, valid.shape[1] - 1))
    known = (inside & valid[take]).to(problem.device)
    if not bool(known.any()):
        raise ConfigError(
            f"start: its {len(valid)}x{valid.shape[1]} px at {start.origin_px} (y, x) hold nothing valid where the "
            f"scan is ({problem.shape[0]}x{problem.shape[1]} px at {problem.origin_px}). Is it an image of this scan?"
        )
    taken = values[take]
    mean = taken[known].mean()
    mean = mean / mean.abs().clamp_min(1e-6) * taken[known].abs().mean()
    return torch.where(known, taken, mean)


def limit_positions(positions_px: Tensor, given_px: Tensor, config: RefineConfig) -> Tensor:
    """Return the positions, at most `position_limit_px` from the given ones along each axis."""
    limit = config.position_limit_px
    return given_px + (positions_px - given_px).clamp(-limit, limit)
