"""When a prior acts on the object, and how strongly."""

from __future__ import annotations

import dataclasses
import functools

import torch
from jaxtyping import Float
from torch import Tensor

from torchptycho.core.config import RefineConfig
from torchptycho.core.errors import ConfigError
from torchptycho.physics.illumination import compute_illumination
from torchptycho.reconstructors.iterative.autodiff import AutodiffSolver
from torchptycho.reconstructors.iterative.held_out import Choice, choose_strength
from torchptycho.reconstructors.iterative.learned_prior import (
    DEFAULT_STRENGTH,
    LearnedPrior,
    apply_last_step,
    apply_learned_step,
)
from torchptycho.reconstructors.iterative.problem import Problem
from torchptycho.reconstructors.iterative.regularization import TotalVariation
from torchptycho.reconstructors.iterative.schedule import count_polishing_epochs_left
from torchptycho.reconstructors.iterative.state import RefinementState

__all__ = ["PriorSteps", "check_regularization"]

_Prior = TotalVariation | LearnedPrior


def check_regularization(config: RefineConfig) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: a strength without a prior that takes one, two penalties at once, or a prior without polishing.
    """
    strength, kind = config.regularization_strength, config.regularization
    if strength is not None and kind in ("none", "auto"):
        raise ConfigError(
            f"regularization_strength: expected none with regularization '{kind}'; found {strength:g}. Set "
            "regularization to tv to give its strength by hand."
        )
    if kind not in ("tv", "learned"):
        return
    by_hand = [name for name in ("tv_weight", "smoothness_weight") if getattr(config, name)]
    if by_hand:
        raise ConfigError(
            f"regularization: expected none or auto with {by_hand[0]}; found {kind}. Give one of the two penalties."
        )
    if config.polish == 0:
        raise ConfigError(
            f"regularization: expected none without polishing; found {kind}, which acts in it. Raise polish from 0."
        )


class PriorSteps:
    """The prior of a refinement: decides its strength when polishing begins, and applies it after each epoch.

    Before polishing, each batch would bring the noise back that the prior removes.
    """

    def __init__(self, problem: Problem, config: RefineConfig) -> None:
        self._problem, self._config = problem, config
        self._prior = _choose_prior(config, problem.device)

    def decide(self, state: RefinementState) -> None:
        """Choose the strength, if polishing has begun and it has not been chosen."""
        if self._prior is None or state.polishing_since is None or state.regularization is not None:
            return
        self._choose_strength(state, self._prior)

    def _choose_strength(self, state: RefinementState, prior: _Prior) -> None:
        given = self._config.regularization_strength
        if given is not None:
            choice = Choice(strength=given, reason="given")
        elif isinstance(prior, LearnedPrior):
            choice = Choice(strength=DEFAULT_STRENGTH, reason="a little less than the noise that the photons leave")
        else:
            choice = choose_strength(self._problem, state, self._config, prior)
        kind = "learned" if isinstance(prior, LearnedPrior) else "tv"
        state.regularization = {"kind": kind} | dataclasses.asdict(choice)

    def prepare(self, state: RefinementState, solver: AutodiffSolver | None) -> None:
        """Give the prior to a solver that takes penalties instead of steps."""
        strength = self._get_strength(state)
        if solver is None or not isinstance(self._prior, TotalVariation) or strength == 0:
            return
        photons_per_px = self._count_photons(state)
        solver.penalty = functools.partial(
            self._prior.compute_penalty, photons_per_px=photons_per_px, strength=strength
        )

    def apply(self, state: RefinementState, solver: AutodiffSolver | None) -> None:
        """Take the step that follows an epoch, and note the strength in the history."""
        if self._prior is None:
            return
        strength = self._get_strength(state)
        if isinstance(self._prior, LearnedPrior):
            left = count_polishing_epochs_left(state, self._config)
            # The last step is that of `finish`.
            if strength > 0 and left != 0 and left % self._prior.every_epochs == 0:
                apply_learned_step(self._problem, state, self._prior, strength)
        elif solver is None and strength > 0:
            photons_per_px = self._count_photons(state)
            state.object = self._prior.denoise(state.object, photons_per_px, strength)
        state.history.setdefault("regularization_strength", []).append(strength)

    def finish(self, state: RefinementState) -> None:
        """Take the step that follows the last epoch, unless it was taken."""
        if not isinstance(self._prior, LearnedPrior):
            return
        if state.regularization is None:
            self._choose_strength(state, self._prior)
        assert state.regularization is not None
        if self._get_strength(state) > 0 and state.regularization.get("finished_epoch") != state.epoch:
            found = apply_last_step(self._problem, state, self._prior, self._get_strength(state))
            state.regularization |= found | {"finished_epoch": state.epoch}

    def _count_photons(self, state: RefinementState) -> Float[Tensor, "h w"]:
        corners_px = self._problem.compute_corners_px(state.positions_px)
        return compute_illumination(state.probe, corners_px, self._problem.shape).to(state.object.real.dtype)

    def _get_strength(self, state: RefinementState) -> float:
        return 0.0 if state.regularization is None else float(state.regularization["strength"])


def _choose_prior(config: RefineConfig, device: torch.device) -> _Prior | None:
    if config.regularization == "none" or config.polish == 0:
        return None
    if config.regularization == "learned":
        return LearnedPrior(device=device)
    if config.regularization == "auto" and (config.tv_weight or config.smoothness_weight):
        return None
    return TotalVariation(config.alpha)
