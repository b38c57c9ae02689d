"""The command that searches for the options of a refinement."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from torchptycho.cli.base import WritingCommand
from torchptycho.core.config import ReadConfig, RefineConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from torchptycho.core.scan import Scan
    from torchptycho.reconstructors.tuning import ParameterChange, Tuning

__all__ = ["Tune"]

_JOURNAL = "trials.journal"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tune(WritingCommand):
    """Search for the options that explain a scan best, for `refine`.

    A part of the scan is refined briefly with each choice; photons that were held out judge.

    torchptycho tune scan.npz --out tuned
    torchptycho tune scan.npz --over rotation alpha opr-modes --minutes 5
    torchptycho refine scan.npz --config tuned/tuned.yaml
    """

    scan: Positional[Path]
    """Scan file."""
    out: Path = Path("tuned")
    """Folder for tuned.yaml, trials.csv, tuning.png, tuning.json, the journal of the trials, and a probe if it is
    defocused."""
    over: tuple[str, ...] = ()
    """Parameters to search over: scale, rotation, defocus, n-modes, alpha (the default), step, momentum, opr-modes,
    method, likelihood, position-update, background, frame-scale, batch-size."""
    trials: int = 60
    """Number of trials, with those of a search that is continued."""
    minutes: float | None = None
    """Time after which no trial begins; None runs all."""
    trial_epochs: int = 24
    """Epochs of a trial; one that does worse than most is given up after a third or two."""
    neighbours: int | None = None
    """Number of neighbouring frames that are refined; None takes 100 of 64 x 64 px, and fewer of larger ones."""
    seed: int = 0
    """Seed of the place in the scan, of the photons that are held out, and of the trials."""
    resume: bool = False
    """Continue the search whose journal is in the folder, if there is one."""
    device: str = "cpu"
    """Device: cpu, gpu or auto. Trials are small, so that a GPU rarely pays."""
    json: bool = False
    """Print one JSON object instead of tables."""
    config: Path | None = None
    """YAML or TOML file with the sections prepare and refine, from which the search begins; flags override it."""
    reading: ReadConfig = dataclasses.field(default_factory=ReadConfig)
    refine: RefineConfig = dataclasses.field(default_factory=RefineConfig)

    def run(self) -> None:
        journal = self.out / _JOURNAL
        names = ("tuned.yaml", "trials.csv", "tuning.png", "tuning.json", "probe.npz")
        self.claim_files(
            "--out",
            journal,
            *(self.out / name for name in names),
            inputs=[self.scan, *([self.config] if self.config else [])],
            resumes=self.resume and journal.exists(),
        )
        from torchptycho.io import read_scan
        from torchptycho.reconstructors.tuning import tune

        # What a trial warns of is what the search is about.
        logging.getLogger("torchptycho.reconstructors.iterative").setLevel(logging.ERROR)
        scan = read_scan(self.scan, self.reading)
        with self.show_status(f"reading {self.scan}") as status:
            found = tune(
                scan,
                over=self.over or None,
                config=self.refine,
                trials=self.trials,
                minutes=self.minutes,
                epochs=self.trial_epochs,
                frames=self.neighbours,
                seed=self.seed,
                device=self.device,
                journal=journal,
                resume=self.resume,
                on_progress=lambda what: status.update(f"tuning {self.scan}: {what}"),
            )
        files = self._write(found, scan)
        self.print_result(
            found.to_dict() | {"files": [str(file) for file in files]},
            *_make_lines(found),
            *(str(file) for file in files),
            json=self.json,
        )

    def _write(self, found: Tuning, scan: Scan) -> list[Path]:
        import yaml

        from torchptycho.visualization.plot import plot_tuning
        from torchptycho.visualization.tables import to_json

        files = [self.out / name for name in ("tuned.yaml", "trials.csv", "tuning.png", "tuning.json")]
        reading: dict[str, Any] = dict(found.reading)
        probe = self._write_probe(found, scan)
        if probe is not None:
            reading["probe"] = f"{probe.resolve()}:probe"
            files.append(probe)
        sections = {
            "prepare": _list_changes(self.reading) | reading,
            "refine": _list_changes(self.refine) | found.refinement,
        }
        plain = {name: values for name, values in sections.items() if values}
        files[0].write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
        files[1].write_text(_make_trial_rows(found), encoding="utf-8")
        plot_tuning(found, files[2])
        files[3].write_text(to_json(found.to_dict()) + "\n", encoding="utf-8")
        return files

    def _write_probe(self, found: Tuning, scan: Scan) -> Path | None:
        """Write the defocused probe, if no option of reading makes it."""
        import numpy as np

        from torchptycho.io.storage.file_access import replace_atomically
        from torchptycho.reconstructors.tuning.parameters import apply_to_scan, needs_probe_file

        path = self.out / "probe.npz"
        if not needs_probe_file(scan, found.values):
            # That of an earlier search is not this one's.
            path.unlink(missing_ok=True)
            return None
        with replace_atomically(path) as file:
            np.savez(file, probe=apply_to_scan(scan, {"defocus": found.values["defocus"]}).probe)
        return path


def _list_changes(config: ReadConfig | RefineConfig) -> dict[str, Any]:
    """List the options that differ from their defaults, as plain data."""
    from torchptycho.core.config import to_dict

    default = to_dict(type(config)())
    return {name: value for name, value in to_dict(config).items() if value != default[name]}


def _make_trial_rows(found: Tuning) -> str:
    names = sorted(one.parameter.name for one in found.changes)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["trial", "state", "epochs", "log_likelihood_per_photon", *names])
    for one in found.trials:
        value = "" if one.likelihood is None else f"{one.likelihood:.6g}"
        rows.writerow([one.number, one.state, one.epochs, value, *(one.values.get(name, "") for name in names)])
    return text.getvalue()


def _make_lines(found: Tuning) -> list[RenderableType]:
    from torchptycho.visualization.tables import format_value, make_table

    table = make_table("parameter", "given", "best", "gain per photon", "", title="what mattered")
    for one in found.changes:
        parameter = one.parameter
        name = f"{parameter.name} ({parameter.unit})" if parameter.unit else parameter.name
        gain = f"{one.gain:+.3g} ± {one.error:.1g}" if one.error else "-"
        table.add_row(name, format_value(parameter.given), format_value(one.best), gain, _describe_choice(one))
    done = sum(one.state == "complete" for one in found.trials)
    changed = [f"{name} {format_value(value)}" for name, value in (found.reading | found.refinement).items()]
    if found.values:
        what = f"changed: {', '.join(changed) or 'the probe'}; held-out log-likelihood {found.gain:+.3g} ± "
        what += f"{found.error:.1g} per photon"
    else:
        what = "nothing is changed: no value gains more than three standard errors"
    return [
        table,
        what,
        f"{found.frames} of {found.n_frames} frames, {len(found.trials)} trials of {found.epochs} epochs "
        f"({done} complete), {found.seconds:.1f} s",
        *(f"- {note}" for note in found.notes),
    ]


def _describe_choice(one: ParameterChange) -> str:
    if one.is_changed:
        return "changed"
    return "as given" if one.best == one.parameter.given else "as given: no significant gain"
