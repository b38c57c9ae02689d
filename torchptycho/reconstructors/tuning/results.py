"""What a search for parameters found."""

from __future__ import annotations

import dataclasses
from typing import Any

from torchptycho.reconstructors.tuning.parameters import Parameter, Value

__all__ = ["ParameterChange", "TrialRecord", "Tuning"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial of a search.

    Arguments:
        number: from 0, the trial of the options as given.
        state: complete, pruned (given up early) or failed.
        likelihood: log-likelihood per held-out photon above that under the mean pattern; of a pruned trial the last.
        epochs: that it ran.
        values: of the parameters.
    """

    number: int
    state: str
    likelihood: float | None
    epochs: int
    values: dict[str, Value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterChange:
    """What the best value of a parameter gains.

    Arguments:
        parameter: its name and its given value.
        best: value of the best trial.
        gain: log-likelihood per held-out photon that is lost where this parameter alone gets its given value back.
        error: the standard error of this gain, from the spread over the frames.
        is_changed: whether the gain is above three standard errors, so that the value is taken over.
    """

    parameter: Parameter
    best: Value
    gain: float
    error: float
    is_changed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """Result of a search.

    Arguments:
        source: the scan.
        n_frames: of the scan.
        frames: that were refined.
        epochs: of a trial.
        changes: what each parameter gains, the most important one first.
        gain: log-likelihood per held-out photon of all values that are taken over together.
        error: its standard error.
        trials: all of them.
        reading: options of reading that are changed.
        refinement: options of the refinement that are changed.
        seconds: that the search took.
        notes: what is worth knowing.
    """

    source: str
    n_frames: int
    frames: int
    epochs: int
    changes: tuple[ParameterChange, ...]
    gain: float
    error: float
    trials: tuple[TrialRecord, ...]
    reading: dict[str, Any]
    refinement: dict[str, Any]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, Value]:
        """The values that are taken over, by the names of their parameters."""
        return {one.parameter.name: one.best for one in self.changes if one.is_changed}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changes = [
            {
                "parameter": one.parameter.name,
                "given": one.parameter.given,
                "best": one.best,
                "gain": one.gain,
                "error": one.error,
                "is_changed": one.is_changed,
            }
            for one in self.changes
        ]
        return plain | {"changes": changes, "trials": [dataclasses.asdict(one) for one in self.trials]}
