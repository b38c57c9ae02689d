"""Positions that are wrong by more than derivatives can lead back, found before the first epoch.

Frames are reconstructed one by one with the given probe, their images registered with those of their neighbours, and
the positions solved for that agree with most of the distances found.
"""

from __future__ import annotations

import dataclasses
import logging
import math

import torch
from jaxtyping import Float64
from torch import Tensor

from torchptycho.core.config import RefineConfig
from torchptycho.core.errors import ConfigError
from torchptycho.reconstructors.iterative.frame_registration import (
    find_pairs,
    register_pairs,
    remove_common,
    solve_positions,
)
from torchptycho.reconstructors.iterative.problem import Problem
from torchptycho.reconstructors.iterative.single_frames import crop_to_probe, reconstruct_frames, weigh_pixels
from torchptycho.reconstructors.iterative.state import RefinementState

__all__ = ["SEARCH_ITERATIONS", "plan_search", "search_positions"]

_log = logging.getLogger(__name__)

SEARCH_ITERATIONS = 60
"""Passes over all frames that a search takes."""

# Part of the epochs in which the probe stays what it is, because it adapts to wrong positions.
_PROBE_KEPT = 1 / 3
# Correlation of the positions found with those given, relative to the larger extent.
_MIN_AGREEMENT = 0.5
# A frame has been found when as many distances to others agree; fewer may do so by chance.
_MIN_SUPPORT = 3
# Of this part of the frames at least, for the others to have something to be found by.
_MIN_FOUND = 0.5


def plan_search(config: RefineConfig) -> RefineConfig:
    """Let corrections reach as far as the search, and keep the probe until they have settled.

    Raises:
        ConfigError: positions are searched for that are not to be corrected.
    """
    if not config.position_search_px:
        return config
    if config.position_update not in ("frames", "both"):
        raise ConfigError(
            f"position_search_px: expected position_update frames or both; found {config.position_update}. Add "
            "--position-update frames, or leave --position-search-px out."
        )
    limit_px = max(config.position_limit_px, config.position_search_px)
    kept = max(config.probe_start_epoch, round(_PROBE_KEPT * config.epochs))
    return dataclasses.replace(config, position_limit_px=limit_px, probe_start_epoch=kept)


def search_positions(problem: Problem, state: RefinementState, config: RefineConfig, source: str) -> bool:
    """Replace the positions of the state by those at which what the frames show fits together.

    Frames that are not found keep the positions that were given. Nothing changes, with a warning, where fewer than half
    are found: the probe is then not that of the scan, or its frames do not overlap.

    Arguments:
        source: the scan, for the warning.

    Returns:
        whether positions were found.
    """
    given_px = state.positions_px
    weight = weigh_pixels(state.probe)
    images = reconstruct_frames(problem, state, config, SEARCH_ITERATIONS)
    weight = weight[crop_to_probe(weight)]
    diameter_px = 2 * math.sqrt(float((weight > 0.5).sum()) / math.pi)
    pairs = torch.from_numpy(find_pairs(given_px.cpu().numpy(), diameter_px)).to(problem.device)
    if not len(pairs):
        _warn(source, 0, problem.n_frames)
        return False
    shifts = register_pairs(remove_common(images, weight), weight, pairs)
    positions_px, support = solve_positions(shifts, given_px)
    found = support >= _MIN_SUPPORT
    n_found = int(found.sum())
    if n_found < _MIN_FOUND * problem.n_frames or not _is_same_scan(positions_px[found], given_px[found]):
        _warn(source, n_found, problem.n_frames)
        return False
    state.positions_px = _settle(positions_px, given_px, found, config.position_search_px)
    _log.info("%s: %d of %d frames found by what they show", source, n_found, problem.n_frames)
    return True


def _is_same_scan(positions_px: Float64[Tensor, "k 2"], given_px: Float64[Tensor, "k 2"]) -> bool:
    """Return whether positions lie about as the given ones do: frames of noise all register at no shift at all."""
    found, given = positions_px - positions_px.mean(0), given_px - given_px.mean(0)
    product = float((found * given).sum())
    smaller = min(float(found.square().sum()), float(given.square().sum()))
    larger = max(float(found.square().sum()), float(given.square().sum()))
    return product > _MIN_AGREEMENT * larger and smaller > 0


def _settle(
    positions_px: Float64[Tensor, "m 2"], given_px: Float64[Tensor, "m 2"], found: Tensor, reach_px: float
) -> Float64[Tensor, "m 2"]:
    """Put the frames that were found where they are, as a whole where the given positions are on average."""
    off = positions_px - given_px
    off = torch.where(found[:, None], off - off[found].median(0).values, torch.zeros_like(off))
    return given_px + off.clamp(-reach_px, reach_px)


def _warn(source: str, n_found: int, n_frames: int) -> None:
    _log.warning(
        "%s: positions were not found: what %d of %d frames show fits together. Give a better probe, or refine without "
        "position_search_px.",
        source,
        n_found,
        n_frames,
    )
