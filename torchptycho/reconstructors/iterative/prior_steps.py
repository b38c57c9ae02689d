"""Which prior acts on the object, when, and how strongly."""

from __future__ import annotations

import dataclasses
import functools

from jaxtyping import Float
from torch import Tensor

from torchptycho.core.config import RefineConfig
from torchptycho.core.errors import ConfigError
from torchptycho.models.prior import load_prior
from torchptycho.physics.illumination import compute_illumination
from torchptycho.reconstructors.iterative.autodiff import AutodiffSolver
from torchptycho.reconstructors.iterative.held_out import Choice, choose_prior
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


def check_regularization(config: RefineConfig) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: a strength without a prior that takes one, two penalties at once, a prior without polishing, or
            weights for a prior that has none.
        StoreError: the file of weights is not there, or holds something else.
    """
    if config.prior_weights is not None:
        if config.regularization not in ("learned", "auto"):
            raise ConfigError(
                f"prior_weights: expected none with regularization '{config.regularization}'; found "
                f"{config.prior_weights}. Set regularization to learned or auto."
            )
        load_prior(config.prior_weights)
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
        self._kinds = _list_kinds(config)
        self._learned: LearnedPrior | None = None

    def decide(self, state: RefinementState) -> None:
        """Choose the prior and its strength, if polishing has begun and they have not been chosen."""
        if self._kinds and state.polishing_since is not None and state.regularization is None:
            self._choose(state)

    def _choose(self, state: RefinementState) -> None:
        given = self._config.regularization_strength
        if self._config.regularization == "learned":
            reason = "a little less than the noise that the photons leave" if given is None else "given"
            choice = Choice(kind="learned", strength=DEFAULT_STRENGTH if given is None else given, reason=reason)
        elif given is not None:
            choice = Choice(strength=given, reason="given")
        else:
            load_learned = self._load_learned if "learned" in self._kinds else None
            choice = choose_prior(self._problem, state, self._config, TotalVariation(self._config.alpha), load_learned)
        state.regularization = dataclasses.asdict(choice)

    def _get_prior(self, state: RefinementState) -> TotalVariation | LearnedPrior | None:
        """Return the prior that acts, None before it was chosen and where none does."""
        if state.regularization is None or self._get_strength(state) == 0:
            return None
        return self._load_learned() if state.regularization["kind"] == "learned" else TotalVariation(self._config.alpha)

    def _load_learned(self) -> LearnedPrior:
        if self._learned is None:
            prior = load_prior(self._config.prior_weights, device=self._problem.device)
            self._learned = LearnedPrior(prior)
        return self._learned

    def prepare(self, state: RefinementState, solver: AutodiffSolver | None) -> None:
        """Give the prior to a solver that takes penalties instead of steps."""
        strength, prior = self._get_strength(state), self._get_prior(state)
        if solver is None or not isinstance(prior, TotalVariation):
            return
        photons_per_px = self._count_photons(state)
        solver.penalty = functools.partial(prior.compute_penalty, photons_per_px=photons_per_px, strength=strength)

    def apply(self, state: RefinementState, solver: AutodiffSolver | None) -> None:
        """Take the step that follows an epoch, and note in the history how strong it is and what it gains."""
        if not self._kinds:
            return
        strength, prior = self._get_strength(state), self._get_prior(state)
        if isinstance(prior, LearnedPrior):
            left = count_polishing_epochs_left(state, self._config)
            # The last step is that of `finish`.
            if left != 0 and left % prior.every_epochs == 0:
                apply_learned_step(self._problem, state, prior, strength)
        elif prior is not None and solver is None:
            state.object = prior.denoise(state.object, self._count_photons(state), strength)
        _append(state, "regularization_strength", strength)
        if self._config.regularization != "learned" and self._config.regularization_strength is None:
            gain = None if state.regularization is None else state.regularization.get("held_out_gain")
            _append(state, "held_out_gain", gain or 0.0)

    def finish(self, state: RefinementState) -> None:
        """Take the step that follows the last epoch, unless it was taken."""
        if self._config.regularization == "learned" and state.regularization is None:
            self._choose(state)
        prior = self._get_prior(state)
        if not isinstance(prior, LearnedPrior):
            return
        assert state.regularization is not None
        if state.regularization.get("finished_epoch") != state.epoch:
            found = apply_last_step(self._problem, state, prior, self._get_strength(state))
            state.regularization |= found | {"finished_epoch": state.epoch, "prior_sha256": prior.prior.sha256}

    def _count_photons(self, state: RefinementState) -> Float[Tensor, "h w"]:
        corners_px = self._problem.compute_corners_px(state.positions_px)
        return compute_illumination(state.build_mean_probe(), corners_px, self._problem.shape).to(
            state.object.real.dtype
        )

    def _get_strength(self, state: RefinementState) -> float:
        return 0.0 if state.regularization is None else float(state.regularization["strength"])


def _append(state: RefinementState, name: str, value: float) -> None:
    """Append a figure of the present epoch; no prior acted in epochs that have none."""
    figures = state.history.setdefault(name, [])
    figures += [0.0] * (state.epoch - len(figures)) + [value]


def _list_kinds(config: RefineConfig) -> tuple[str, ...]:
    """List the kinds of priors that may act."""
    kind, by_hand = config.regularization, config.tv_weight or config.smoothness_weight
    # Held-out counts have not been shown to choose well where slices share what the counts determine.
    by_choice = kind == "auto" or (kind == "tv" and config.regularization_strength is None)
    if config.n_slices > 1 and by_choice:
        return ()
    if kind == "none" or config.polish == 0 or (kind == "auto" and by_hand):
        return ()
    return ("tv", "learned") if kind == "auto" else (kind,)
