"""Options that make held-out counts of a part of a scan likeliest, and which of them are worth a change."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config import RefineConfig, as_config, to_dict
from torchptycho.core.errors import ConfigError, TorchptychoError
from torchptycho.core.scan import Scan
from torchptycho.io.fingerprint import fingerprint_scan
from torchptycho.io.inputs import as_scan
from torchptycho.io.near_field import refuse_near_field, state_propagation
from torchptycho.reconstructors.diagnosis.likelihood import Judgement, compare
from torchptycho.reconstructors.diagnosis.neighbourhood import (
    ASSUMED_PHOTONS,
    choose_frame_count,
    divide_counts,
    load_neighbourhood,
)
from torchptycho.reconstructors.tuning.parameters import (
    Parameter,
    Value,
    apply_to_options,
    choose_parameters,
    make_reading_options,
)
from torchptycho.reconstructors.tuning.results import ParameterChange, Tuning
from torchptycho.reconstructors.tuning.study import Study, import_optuna
from torchptycho.reconstructors.tuning.trials import TrialRunner

__all__ = ["MIN_SIGMA", "tune"]

MIN_SIGMA = 3.0
"""Standard errors above which a gain changes an option."""

# Distance of the values of a parabola, as parts of the range, and how far beyond them its vertex may lie.
_POLISH_PARTS, _FARTHEST = (0.1, 0.05), 2.0
# Part of the time in which trials are drawn; the rest is for the parabolas and the judgement.
_SEARCH_TIME = 0.7

OnProgress = Callable[[str], None]


def tune(
    scan: Scan | str | Path,
    *,
    over: Sequence[str] | None = None,
    config: RefineConfig | dict[str, Any] | None = None,
    trials: int = 60,
    minutes: float | None = None,
    epochs: int = 24,
    frames: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    journal: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> Tuning:
    """Search for the options with which held-out counts are likeliest.

    A compact neighbourhood is refined briefly on 85 % of its photons; the other 15 % judge. The first trial takes the
    options as given, the next ones are random, and the rest are drawn by a tree-structured Parzen estimator (Bergstra
    et al., NIPS 2011) where good trials were. Parabolas through further trials then polish scale and rotation. Finally
    each value is put back to the given one, on another draw of held-out photons: it is changed only where that loses
    more than three standard errors.

    Arguments:
        over: names of the parameters; None takes scale, rotation, defocus, n-modes and alpha.
        config: of the refinement, from which the search begins.
        trials: number of trials of the search, with those of one that is continued; polishing takes up to 16 more.
        minutes: about what all of it may take; None runs all trials.
        epochs: of a trial.
        frames: number of frames of the neighbourhood; None takes 100 of 64 x 64 px, fewer of larger ones.
        seed: of the place, of the photons that are held out, and of the trials.
        device: as of `refine`.
        journal: file in which the trials are kept, so that the search can be continued; None keeps them in memory.
        resume: go on from that file, if it is there.
        on_progress: called with what comes next.

    Raises:
        ConfigError: a parameter or a number is none, Optuna is not installed, or the journal is of another search.
        ScanError: the frames are unusable.
    """
    for name, number, least in (("trials", trials, 1), ("trial-epochs", epochs, 6), ("neighbours", frames, 4)):
        if number is not None and number < least:
            raise ConfigError(f"--{name}: expected at least {least}; found {number}.")
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes: expected more than 0; found {minutes:g}.")
    if seed < 0:
        raise ConfigError(f"--seed: expected 0 or more; found {seed}.")
    import_optuna()
    settings, scan = as_config(RefineConfig, config), as_scan(scan)
    parameters, notes = choose_parameters(over, scan, settings)
    begun = time.perf_counter()
    report = on_progress or (lambda what: None)
    if scan.geometry.propagation == "far":
        refuse_near_field(scan)
    part, assumed = load_neighbourhood(state_propagation(scan), frames or choose_frame_count(scan.n_px), seed)
    if assumed:
        notes += (f"the frames show no photons and state no dose: {ASSUMED_PHOTONS:g} per frame are assumed",)
    runner = TrialRunner(divide_counts(part, seed), settings, epochs, device)
    study = Study(
        runner,
        parameters,
        fingerprint={
            "scan": fingerprint_scan(scan),
            "parameters": [[one.name, one.given, one.low, one.high, list(one.choices)] for one in parameters],
            "options": to_dict(settings),
            "neighbours": part.n_frames,
            "epochs": epochs,
            "seed": seed,
        },
        file=None if journal is None else Path(journal),
        resume=resume,
        seed=seed,
    )
    study.search(
        trials,
        None if minutes is None else begun + _SEARCH_TIME * 60 * minutes,
        lambda number, best: report(
            f"trial {number + 1} of {trials}" + ("" if best is None else f", best {best:.4g} per photon")
        ),
    )
    report("polishing scale and rotation")
    _polish(study, parameters)
    best = study.best
    report("judging each parameter")
    # The photons that chose the values would flatter them.
    fresh = TrialRunner(divide_counts(part, seed + 1), settings, epochs, device)
    changes, gain, error = _judge_changes(fresh, parameters, best)
    values = {one.parameter.name: one.best for one in changes if one.is_changed}
    return Tuning(
        source=scan.source,
        n_frames=scan.n_frames,
        frames=part.n_frames,
        epochs=epochs,
        changes=changes,
        gain=gain,
        error=error,
        trials=study.records,
        reading=make_reading_options(scan, values),
        refinement=apply_to_options({}, values),
        seconds=round(time.perf_counter() - begun, 3),
        notes=notes,
    )


def _polish(study: Study, parameters: Sequence[Parameter]) -> None:
    """Try the vertex of the parabola through three values around the best one, of scale and rotation in turn."""
    for part in _POLISH_PARTS:
        for one in parameters:
            if one.name in ("scale", "rotation"):
                _polish_one(study, one, part * (one.to_line(one.high) - one.to_line(one.low)))


def _polish_one(study: Study, one: Parameter, step: float) -> None:
    best = study.best
    middle = one.to_line(float(best[one.name]))

    def measure(along: float) -> float | None:
        if along == middle:
            return study.try_values(best)
        return study.try_values({**best, one.name: one.from_line(along)})

    below, at, above = (measure(middle + offset) for offset in (-step, 0.0, step))
    if below is None or at is None or above is None:
        return
    curvature = below + above - 2 * at
    # Without a vertex, further on where it rises.
    vertex = math.copysign(_FARTHEST * step, above - below)
    if curvature < 0:
        vertex = step * (below - above) / (2 * curvature)
    measure(middle + min(max(vertex, -_FARTHEST * step), _FARTHEST * step))


def _judge_changes(
    runner: TrialRunner, parameters: Sequence[Parameter], best: dict[str, Value]
) -> tuple[tuple[ParameterChange, ...], float, float]:
    """Put back each parameter of the best trial, one after the other, and keep what loses nothing by that.

    Returns:
        what each gains, the largest gain first; and the gain of all that is kept, with its standard error.
    """
    given = {one.name: one.given for one in parameters}
    current, changes = dict(best), []
    judged = runner.run(current)
    first = judged if current == given else _judge_or_nothing(runner, given, judged)
    for one in parameters:
        if current[one.name] == one.given:
            changes.append(_make_change(one, best, 0.0, 0.0, False))
            continue
        candidate = current | {one.name: one.given}
        without = first if candidate == given else _judge_or_nothing(runner, candidate, judged)
        found = compare(judged, without)
        is_changed = found.per_count > MIN_SIGMA * found.error
        changes.append(_make_change(one, best, found.per_count, found.error, is_changed))
        if not is_changed:
            current, judged = candidate, without
    total = compare(judged, first)
    return tuple(sorted(changes, key=lambda one: -one.gain)), total.per_count, total.error


def _judge_or_nothing(runner: TrialRunner, values: dict[str, Value], other: Judgement) -> Judgement:
    """Judge these values; a refinement that fails with them is no better than the mean pattern."""
    try:
        return runner.run(values)
    except (TorchptychoError, FloatingPointError):
        return dataclasses.replace(other, log_ratio=np.zeros_like(other.log_ratio), misfit=math.inf)


def _make_change(
    one: Parameter, best: dict[str, Value], gain: float, error: float, is_changed: bool
) -> ParameterChange:
    return ParameterChange(parameter=one, best=best[one.name], gain=gain, error=error, is_changed=is_changed)
