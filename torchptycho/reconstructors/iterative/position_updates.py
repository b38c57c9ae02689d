"""The step of all positions after an epoch: with momentum, within their limits, elsewhere for lost frames."""

from __future__ import annotations

import torch
from torch import Tensor

from torchptycho.core.config import RefineConfig
from torchptycho.reconstructors.iterative.initial_state import limit_positions
from torchptycho.reconstructors.iterative.position_correction import PositionSteps, add_momentum, random_search
from torchptycho.reconstructors.iterative.problem import Problem
from torchptycho.reconstructors.iterative.rpie import compute_frame_misfits
from torchptycho.reconstructors.iterative.state import RefinementState

__all__ = ["update_positions"]


def update_positions(
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
        measure_misfits,
        state.positions_px,
        given_px,
        shifts.residual,
        config.position_limit_px,
        generator,
        thorough=config.position_search_px > 0,
    )
    if len(lost):
        state.positions_px[lost] = limit_positions(places, given_px[lost], config)
        state.drift_px[lost] = 0
