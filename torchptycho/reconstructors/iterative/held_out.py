"""A prior and its strength, chosen by counts that the trial images do not see."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from torchptycho.core.config import RefineConfig
from torchptycho.core.reconstruction import MIN_COVERAGE
from torchptycho.io.frames.thinning import are_whole_numbers, thin
from torchptycho.physics.illumination import compute_illumination
from torchptycho.physics.noise import poisson_log_ratio
from torchptycho.physics.patches import extract_inside
from torchptycho.physics.variable_probe import combine_probe
from torchptycho.reconstructors.iterative.fit import propagate_to_detector
from torchptycho.reconstructors.iterative.learned_prior import (
    DEFAULT_STRENGTH,
    LearnedPrior,
    apply_last_step,
    apply_learned_step,
)
from torchptycho.reconstructors.iterative.problem import Problem
from torchptycho.reconstructors.iterative.regularization import Regularizer
from torchptycho.reconstructors.iterative.rpie import choose_batch_size, run_epoch
from torchptycho.reconstructors.iterative.state import RefinementState

__all__ = ["Choice", "choose_prior", "find_best_strength"]

# Photons, or frames, that the trials see.
_KEPT_FRACTION = 0.85
# Tried in this order, each from the image of the one before, until the held-out counts became less likely twice.
_STRENGTHS = (0.025, 0.05, 0.1, 0.2, 0.4)
_MAX_FRAMES, _MIN_FRAMES = 64, 14
# Epochs of a trial: from a uniform object, and polishing for each strength. With half as many of the latter, images lag
# behind the strength, which is chosen up to twice too large.
_BASE_EPOCHS, _POLISHING_EPOCHS = 24, 16
# Frames computed in trials of total variation, of those that the refinement computes. Half of its time with the trial
# of the learnt prior, which adds a quarter to it, and because small batches take longer.
_WORK = 0.32
# Photons through an object pixel beyond which no prior is tried.
_ENOUGH_PHOTONS_PER_PX = 1e6
# Standard errors by which held-out counts must be likelier with a prior than without.
_MIN_SIGNIFICANCE = 2.0
_FRAMES_AT_ONCE = 16
_LIKELIEST = "held-out counts are likelier"
_LARGEST_EXACT = 1e4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A strength and how it was found.

    Arguments:
        kind: "tv" or "learned".
        strength: 0 for no prior.
        reason: why, in a few words.
        photons_per_px: median of the photons through an object pixel.
        held_out: what the trials did not see: `photons` or `frames`; None without trials.
        frames: number of frames in the trials.
        strengths: those that were tried.
        gains: for each, log-likelihood of the held-out counts above that under the mean frame, per count.
        learned_gain: the same with the learnt prior; None when it was not tried.
        held_out_gain: how much likelier the held-out counts are with the chosen prior than without, per count; None
            without trials.
        seconds: time that it took.
    """

    kind: str = "tv"
    strength: float
    reason: str
    photons_per_px: float | None = None
    held_out: str | None = None
    frames: int = 0
    strengths: tuple[float, ...] = ()
    gains: tuple[float, ...] = ()
    learned_gain: float | None = None
    held_out_gain: float | None = None
    seconds: float = 0.0


def choose_prior(
    problem: Problem,
    state: RefinementState,
    config: RefineConfig,
    prior: Regularizer,
    load_learned: Callable[[], LearnedPrior] | None,
) -> Choice:
    """Choose the prior under which held-out counts are likeliest; strength 0 where they are not likelier with one.

    A compact part of the scan is refined from a uniform object, with the probe and the positions of the state, from
    85 % of its photons, drawn one by one; the others judge. Where there are no photons to draw (counts that are not
    whole numbers, amplitudes that are not roots of such), one in seven of its frames is held out instead. In units of
    the noise, the strength means the same for the part and for the whole. At most half as many frames are computed as
    by the refinement itself.

    Arguments:
        prior: whose strength is chosen.
        load_learned: loads the learnt prior, which is tried at its own strength; None does not try it.
    """
    begun = time.perf_counter()
    photons = compute_illumination(
        state.build_mean_probe(), problem.compute_corners_px(state.positions_px), problem.shape
    )
    per_px = float(photons[photons >= MIN_COVERAGE * photons.max()].median())
    if per_px > _ENOUGH_PHOTONS_PER_PX:
        return Choice(strength=0.0, reason="more photons than a prior improves", photons_per_px=per_px)
    epochs = state.epoch + max(1, round(config.polish * config.epochs))
    trial_epochs = _BASE_EPOCHS + (len(_STRENGTHS) + 1) * _POLISHING_EPOCHS
    n_frames = min(problem.n_frames, _MAX_FRAMES, int(_WORK * problem.n_frames * epochs / trial_epochs))
    if n_frames < _MIN_FRAMES:
        return Choice(strength=0.0, reason="too few frames or epochs for trials", photons_per_px=per_px)
    trials = _Trials(problem, state, config, n_frames)
    if not trials.n_held_counts > 0:
        return Choice(strength=0.0, reason="no counts to judge by", photons_per_px=per_px)
    likelihoods, with_learned = trials.run(prior, None if load_learned is None else load_learned())
    strengths = (0.0, *_STRENGTHS[: len(likelihoods) - 1])
    strength, reason = find_best_strength(strengths, likelihoods)
    kind, best = "tv", max(likelihoods, key=torch.sum) if strength > 0 else likelihoods[0]
    if with_learned is not None and _is_likelier(with_learned, likelihoods):
        kind, strength, reason, best = "learned", DEFAULT_STRENGTH, _LIKELIEST, with_learned
    return Choice(
        kind=kind,
        strength=strength,
        reason=reason,
        photons_per_px=per_px,
        held_out=trials.held_out,
        frames=n_frames,
        strengths=strengths,
        gains=tuple(float(values.sum()) / trials.n_held_counts for values in likelihoods),
        learned_gain=None if with_learned is None else float(with_learned.sum()) / trials.n_held_counts,
        held_out_gain=float((best - likelihoods[0]).sum()) / trials.n_held_counts,
        seconds=round(time.perf_counter() - begun, 3),
    )


def _is_likelier(learned: Float64[Tensor, " h"], likelihoods: list[Float64[Tensor, " h"]]) -> bool:
    """Return whether the learnt prior beats every strength tried, and no prior by more than the noise."""
    best = max(float(values.sum()) for values in likelihoods)
    return float(learned.sum()) > best and _is_significant(learned - likelihoods[0])


def _is_significant(gain: Float64[Tensor, " h"]) -> bool:
    return float(gain.sum()) > _MIN_SIGNIFICANCE * float(gain.std()) * math.sqrt(len(gain))


def find_best_strength(strengths: tuple[float, ...], likelihoods: list[Float64[Tensor, " h"]]) -> tuple[float, str]:
    """Return the strength of the largest likelihood, between those that were tried, and why.

    Arguments:
        strengths: ascending, the first 0.
        likelihoods: of each held frame at each strength.
    """
    totals = torch.stack([values.sum() for values in likelihoods])
    best = int(totals.argmax())
    if best == 0 or not _is_significant(likelihoods[best] - likelihoods[0]):
        return 0.0, "held-out counts are not likelier with a prior"
    reason = _LIKELIEST
    if not 1 < best < len(strengths) - 1:
        return strengths[best], reason
    # The peak of a parabola through the best and its neighbours, over the logarithm.
    left, middle, right = (math.log(strength) for strength in strengths[best - 1 : best + 2])
    rise = float(totals[best] - totals[best - 1]) / (middle - left)
    fall = float(totals[best + 1] - totals[best]) / (right - middle)
    peak = (left + middle) / 2 + rise / (rise - fall) * (right - left) / 2 if rise > fall else middle
    return math.exp(min(max(peak, left), right)), reason


class _Trials:
    """A compact part of a scan in two parts, and the images that are made of one of them.

    Arguments:
        n_frames: those nearest to the middle of the scan.
    """

    def __init__(self, problem: Problem, state: RefinementState, config: RefineConfig, n_frames: int) -> None:
        # The trials take the variation of the probe as they take the probe.
        self._config, self._given = (
            dataclasses.replace(config, opr_modes=0, opr_smoothing=0.0, frame_scale=False),
            state,
        )
        distance = (state.positions_px - state.positions_px.median(0).values).square().sum(1)
        rows = distance.argsort(stable=True)[:n_frames].sort().values
        frames, places = (
            _round_counts(problem.collect(problem.load_counts(problem.select_own(rows)), rows).cpu().numpy()),
            state.positions_px[rows],
        )
        if are_whole_numbers(frames):
            self.held_out = "photons"
            self._part, self._model_factor = _KEPT_FRACTION, (1 - _KEPT_FRACTION) / _KEPT_FRACTION
            pairs = zip(frames, rows.tolist(), strict=True)
            seen = np.stack([thin(frame, _KEPT_FRACTION, config.refine_seed, row) for frame, row in pairs])
            kept, held = (seen, places), (frames - seen, places)
            self._kept_rows = self._held_rows = rows
        else:
            self.held_out = "frames"
            self._part = self._model_factor = 1.0
            # By distance from the middle, so that those that are held out lie at all distances.
            is_held = np.zeros(n_frames, bool)
            every = round(1 / (1 - _KEPT_FRACTION))
            is_held[distance[rows].argsort(stable=True).cpu().numpy()[every // 2 :: every]] = True
            kept, held = (
                (frames[part], places[torch.from_numpy(part).to(places.device)]) for part in (~is_held, is_held)
            )
            self._kept_rows, self._held_rows = (
                rows[torch.from_numpy(part).to(rows.device)] for part in (~is_held, is_held)
            )
        self._kept, self._kept_px = self._make_problem(problem, kept[0], places), kept[1]
        self._held, self._held_px = self._make_problem(problem, held[0], places), held[1]
        self.n_held_counts = float(np.sum(held[0], dtype=np.float64))

    def run(
        self, prior: Regularizer, learned: LearnedPrior | None
    ) -> tuple[list[Float64[Tensor, " h"]], Float64[Tensor, " h"] | None]:
        """Return, for no prior and for each strength, the log-likelihood of each held frame above that of the mean
        frame; and the same with the learnt prior."""
        base = self._begin()
        self._run_epochs(base, _BASE_EPOCHS, lambda epoch: 0.0)
        photons_per_px = compute_illumination(
            base.build_mean_probe(), self._kept.compute_corners_px(base.positions_px), self._kept.shape
        ).to(base.object.real.dtype)
        plain = base.copy()
        self._run_epochs(plain, _POLISHING_EPOCHS, _grow)
        found = [self._judge(plain)]
        with_learned = None if learned is None else self._judge_learned(base.copy(), learned)
        for strength in _STRENGTHS:
            growth = _grow if len(found) == 1 else _take_all

            def denoise(state: RefinementState, strength: float = strength) -> None:
                state.object = prior.denoise(state.object, photons_per_px, strength)

            self._run_epochs(base, _POLISHING_EPOCHS, growth, denoise)
            found.append(self._judge(base))
            totals = [float(values.sum()) for values in found]
            if len(totals) > 3 and totals[-1] < totals[-2] < totals[-3]:
                break
        return found, with_learned

    def _judge_learned(self, state: RefinementState, learned: LearnedPrior) -> Float64[Tensor, " h"]:
        """Polish with the steps of the learnt prior, the last of which ends the trial."""
        last = state.epoch + _POLISHING_EPOCHS

        def denoise(state: RefinementState) -> None:
            left = last - state.epoch - 1
            if left and left % learned.every_epochs == 0:
                apply_learned_step(self._kept, state, learned, DEFAULT_STRENGTH)

        self._run_epochs(state, _POLISHING_EPOCHS, _grow, denoise)
        apply_last_step(self._kept, state, learned, DEFAULT_STRENGTH)
        return self._judge(state)

    def _make_problem(self, problem: Problem, frames: np.ndarray, places: Tensor) -> Problem:
        """Build the problem of some frames on the canvas of all at these positions."""
        low = (places.amin(0).floor() - problem.n_px // 2).to(torch.int64)
        high = (places.amax(0).floor() - problem.n_px // 2).to(torch.int64) + problem.n_px + 2
        (top, left), (bottom, right) = low.tolist(), high.tolist()
        scaling = dataclasses.replace(problem.scaling, domain="counts")
        on_device = torch.from_numpy(frames).to(problem.device)
        shape = (bottom - top, right - left)
        return Problem(on_device, scaling, problem.mask, (top, left), shape, problem.dtype, problem.propagator)

    def _begin(self) -> RefinementState:
        given = self._given
        probe = given.probe * math.sqrt(self._part)
        size = given.object.abs().square().mean().sqrt()
        state = RefinementState.begin(
            torch.full(self._kept.shape, float(size), dtype=probe.dtype, device=probe.device), probe, self._kept_px
        )
        state.background = given.background * self._part
        if given.has_variable_probe:
            state.opr_modes = given.opr_modes * math.sqrt(self._part)
            state.opr_weights = given.opr_weights[self._kept_rows]
            state.frame_scale = given.frame_scale[self._kept_rows]
        return state

    def _run_epochs(
        self,
        state: RefinementState,
        epochs: int,
        growth: Callable[[float], float],
        follow: Callable[[RefinementState], None] | None = None,
    ) -> None:
        """Run epochs with the probe and the positions as they are.

        Arguments:
            growth: how far updates gather all frames, 0 to 1, at each part of the epochs.
            follow: called after each epoch.
        """
        n_frames = self._kept.n_frames
        batch = choose_batch_size(self._config, n_frames)
        for epoch in range(epochs):
            generator = torch.Generator().manual_seed((self._config.refine_seed << 20) + state.epoch)
            order = torch.randperm(n_frames, generator=generator).to(self._kept.device)
            gathered = round(float(batch * (n_frames / batch) ** growth((epoch + 1) / epochs)))
            run_epoch(self._kept, state, self._config, order, None, frames_per_update=gathered, update_probe=False)
            if follow is not None:
                follow(state)
            state.epoch += 1

    def _judge(self, state: RefinementState) -> Float64[Tensor, " h"]:
        index: Int64[Tensor, " k"] = torch.arange(self._kept.n_frames, device=self._kept.device)
        mean: Float[Tensor, "n n"] = (self._kept.load_counts(index).sum(0) + 0.5) / len(index) * self._model_factor
        found = []
        for part in torch.split(torch.arange(self._held.n_frames, device=self._held.device), _FRAMES_AT_ONCE):
            corners_px = self._held.compute_corners_px(self._held_px[part])
            patches = extract_inside(state.object, corners_px, self._held.n_px)
            probe = self._build_held_probe(state, part)
            _, intensity = propagate_to_detector(patches, probe, self._held.propagator)
            if self._config.background:
                intensity = intensity + state.background
            for expected, counts in zip(intensity * self._model_factor, self._held.load_counts(part), strict=True):
                found.append(poisson_log_ratio(expected, mean, counts, self._held.mask_or_none))
        return torch.stack(found)

    def _build_held_probe(self, state: RefinementState, part: Int64[Tensor, " k"]) -> Tensor:
        given, rows = self._given, self._held_rows[part]
        if not given.has_variable_probe:
            return state.probe
        return combine_probe(state.probe, state.opr_modes, given.opr_weights[rows], given.frame_scale[rows])


def _round_counts(counts: np.ndarray) -> np.ndarray:
    """Return the whole numbers of which these are the squared roots, or these where they are not so."""
    whole = np.rint(counts)
    # Beyond this, rounding in float32 is of the order of one count.
    near = np.abs(counts - whole)[counts < _LARGEST_EXACT]
    return whole if len(near) and near.max() < 0.02 else counts


def _grow(done: float) -> float:
    return min(1.0, 2 * done)


def _take_all(done: float) -> float:
    return 1.0
