"""When polishing begins, how many frames an update gathers, and when a refinement ends."""

from __future__ import annotations

from torchptycho.core.config import RefineConfig
from torchptycho.reconstructors.iterative.rpie import choose_batch_size
from torchptycho.reconstructors.iterative.state import RefinementState

__all__ = [
    "advance_polishing",
    "compute_polishing_progress",
    "count_polishing_epochs_left",
    "has_stalled",
    "plan_frames_per_update",
]


def advance_polishing(state: RefinementState, config: RefineConfig) -> bool:
    """Begin polishing when it is due; return False when the refinement is to end.

    Polishing begins `polish` x `epochs` before the last epoch, or earlier when the misfit has stalled. When it stalls
    again, or there is no polishing, the refinement ends; but not before the end of polishing when a prior acts, because
    the misfit grows while the prior removes noise that was fitted.
    """
    stalled = has_stalled(state, config)
    has_prior = state.regularization is not None and state.regularization["strength"] > 0
    if stalled and config.polish == 0:
        return False
    if (
        stalled
        and state.polishing_since is not None
        and not (has_prior and compute_polishing_progress(state, config) < 1)
    ):
        return False
    planned = config.epochs - round(config.polish * config.epochs)
    if state.polishing_since is None and (stalled or state.epoch >= planned):
        state.polishing_since = state.epoch
    return True


def has_stalled(state: RefinementState, config: RefineConfig) -> bool:
    """Return True when the misfit has not improved for `patience` epochs of the present phase."""
    misfit = state.history["misfit"]
    since = state.polishing_since or 0
    if config.patience is None or len(misfit) - since <= config.patience:
        return False
    recent, before = misfit[-config.patience :], misfit[since : -config.patience]
    return min(recent) >= min(before) * (1 - config.min_improvement)


def compute_polishing_progress(state: RefinementState, config: RefineConfig) -> float:
    """Return the part of the polishing that is done after the coming epoch, 0 to 1."""
    if state.polishing_since is None:
        return 0.0
    return min(1.0, (state.epoch - state.polishing_since + 1) / max(1, round(config.polish * config.epochs)))


def count_polishing_epochs_left(state: RefinementState, config: RefineConfig) -> int:
    """Return how many epochs of polishing follow the present one; negative when it takes longer than planned."""
    if state.polishing_since is None:
        return 0
    return max(1, round(config.polish * config.epochs)) - (state.epoch - state.polishing_since + 1)


def plan_frames_per_update(n_frames: int, state: RefinementState, config: RefineConfig) -> int:
    """Return the frames of an update: one batch before polishing, growing to all frames over half of it."""
    first = choose_batch_size(config, n_frames)
    if state.polishing_since is None:
        return first
    done = state.epoch - state.polishing_since + 1
    growth = min(1.0, 2 * done / max(1, round(config.polish * config.epochs)))
    return round(float(first * (n_frames / first) ** growth))
