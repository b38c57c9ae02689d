"""The trials of a search, kept in a file, so that it can be continued: Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchptycho.core.errors import ConfigError, TorchptychoError
from torchptycho.core.text import format_error
from torchptycho.reconstructors.tuning.parameters import Parameter, Value
from torchptycho.reconstructors.tuning.results import TrialRecord
from torchptycho.reconstructors.tuning.trials import TrialRunner, compute_value

if TYPE_CHECKING:
    import optuna

__all__ = ["Study", "import_optuna"]

_log = logging.getLogger(__name__)

# Trials that are drawn at random before the sampler learns from them, and that run in full before any is given up.
_RANDOM_TRIALS, _FULL_TRIALS = 8, 4
_KEY, _EXTRA = "torchptycho", "polishes"

OnTrial = Callable[[int, float | None], None]


def import_optuna() -> Any:
    """Import and return Optuna.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("tuning needs Optuna, which is not installed: pip install 'torchptycho[tune]'.") from None
    return optuna


class Study:
    """A search for the parameters that make held-out counts likeliest.

    Arguments:
        runner: of the trials.
        parameters: to search over.
        fingerprint: what has to be the same for trials to be compared; a study that is continued is checked by it.
        file: journal of the trials; None keeps them in memory.
        resume: continue what the journal holds.
        seed: of the sampler.

    Raises:
        ConfigError: Optuna is not installed, or the journal is damaged, or holds another search.
    """

    def __init__(
        self,
        runner: TrialRunner,
        parameters: Sequence[Parameter],
        *,
        fingerprint: dict[str, Any],
        file: Path | None,
        resume: bool,
        seed: int,
    ) -> None:
        self._optuna = import_optuna()
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        self._runner, self._parameters = runner, tuple(parameters)
        self._study = self._open(fingerprint, file, resume, seed)

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """All trials that ended."""
        return tuple(_make_record(trial) for trial in self._study.trials if trial.state.is_finished())

    @property
    def best(self) -> dict[str, Value]:
        """Values of the best trial.

        Raises:
            ConfigError: no trial succeeded.
        """
        done = [one for one in self.records if one.state == "complete"]
        if not done:
            raise ConfigError("no trial succeeded: the refinement of this scan fails with every value that was tried.")
        return max(done, key=lambda one: one.likelihood or 0.0).values

    def search(self, trials: int, until: float | None, on_trial: OnTrial) -> None:
        """Run trials until there are as many as wanted, or the time is over.

        Arguments:
            trials: with those that the journal holds.
            until: by `time.perf_counter`; at least one trial runs.
            on_trial: called with the number of trials and the best likelihood before each.
        """
        if not self.records:
            self._study.enqueue_trial({one.name: one.given for one in self._parameters})
        while (number := self._count_searched()) < trials and (until is None or time.perf_counter() < until):
            done = [one.likelihood for one in self.records if one.state == "complete" and one.likelihood is not None]
            on_trial(number, max(done) if done else None)
            self._run(self._study.ask())

    def try_values(self, values: dict[str, Value]) -> float | None:
        """Run a trial of these values to its end, unless there was one; return its likelihood, None where it failed."""
        for known in self.records:
            if known.state == "complete" and known.values == values:
                return known.likelihood
        self._study.enqueue_trial(values, user_attrs={_EXTRA: True})
        return self._run(self._study.ask(), may_end=False)

    def _count_searched(self) -> int:
        trials = self._study.trials
        return sum(one.state.is_finished() and _EXTRA not in one.user_attrs for one in trials)

    def _run(self, trial: optuna.Trial, *, may_end: bool = True) -> float | None:
        states = self._optuna.trial.TrialState
        values = {one.name: _suggest(trial, one) for one in self._parameters}
        begun = time.perf_counter()

        def report(epoch: int, likelihood: float) -> None:
            trial.report(likelihood, epoch)
            if may_end and trial.should_prune():
                raise self._optuna.TrialPruned

        value = None
        try:
            value = compute_value(self._runner.run(values, report))
        except self._optuna.TrialPruned:
            self._study.tell(trial, state=states.PRUNED)
        except (TorchptychoError, FloatingPointError) as error:
            _log.info("%s: %s", values, error)
            self._study.tell(trial, state=states.FAIL)
        else:
            if not math.isfinite(value):
                self._study.tell(trial, state=states.FAIL)
                return None
            trial.report(value, self._runner.epochs)
            self._study.tell(trial, value)
        _log.debug("trial %d took %.2f s", trial.number, time.perf_counter() - begun)
        return value

    def _open(self, fingerprint: dict[str, Any], file: Path | None, resume: bool, seed: int) -> optuna.Study:
        storage = None if file is None else self._open_journal(file, resume)
        try:
            study: optuna.Study = self._optuna.create_study(
                study_name=_KEY, storage=storage, direction="maximize", load_if_exists=True
            )
            known = study.user_attrs.get(_KEY)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{file}: expected the journal of a search; found something else ({format_error(error)}). Begin again "
                "with --overwrite."
            ) from None
        wanted = json.loads(json.dumps(fingerprint))
        if known is None:
            study.set_user_attr(_KEY, wanted)
        elif known != wanted:
            changed = [name for name in wanted if known.get(name) != wanted[name]]
            raise ConfigError(
                f"{file}: expected the search of the same scan and options; found another {' and '.join(changed)}. "
                "Begin again with --overwrite, or in another folder."
            )
        done = len(study.trials)
        study.sampler = self._optuna.samplers.TPESampler(
            # A sampler that goes on must not draw again what it drew at the beginning.
            seed=seed + done,
            n_startup_trials=_RANDOM_TRIALS,
            multivariate=True,
        )
        study.pruner = self._optuna.pruners.MedianPruner(n_startup_trials=_FULL_TRIALS)
        return study

    def _open_journal(self, file: Path, resume: bool) -> Any:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        if not resume:
            file.unlink(missing_ok=True)
        elif file.exists() and not _is_journal(file):
            raise ConfigError(
                f"{file}: expected the journal of a search; found something else. Begin again with --overwrite."
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file))))


def _is_journal(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8") as lines:
            return "op_code" in json.loads(lines.readline())
    except (ValueError, TypeError):
        return False


def _suggest(trial: optuna.Trial, one: Parameter) -> Value:
    if one.choices:
        chosen: Value = trial.suggest_categorical(one.name, one.choices)  # type: ignore[assignment]
        return chosen
    return trial.suggest_float(one.name, one.low, one.high, log=one.is_log)


def _make_record(trial: optuna.trial.FrozenTrial) -> TrialRecord:
    states = {"COMPLETE": "complete", "PRUNED": "pruned"}
    last = max(trial.intermediate_values, default=0)
    value = trial.value if trial.value is not None else trial.intermediate_values.get(last)
    return TrialRecord(
        number=trial.number,
        state=states.get(trial.state.name, "failed"),
        likelihood=value,
        epochs=last,
        values=dict(trial.params),
    )
