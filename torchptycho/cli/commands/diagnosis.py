"""The command that says what is wrong with a scan."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from torchptycho.cli.base import WritingCommand
from torchptycho.core.config import ReadConfig

if TYPE_CHECKING:
    from torchptycho.reconstructors.diagnosis import Diagnosis, Finding

__all__ = ["Diagnose"]

# Misfit of held-out counts up to which frames are explained by photon noise alone.
_PHOTON_NOISE_MISFIT = 1.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnose(WritingCommand):
    """Say what is probably wrong with a scan, and what corrects it.

    A part of the scan is refined with each of some 40 remedies; photons that were held out judge.

    torchptycho diagnose scan.npz
    torchptycho diagnose scan.npz --out diagnosis --json
    """

    scan: Positional[Path]
    """Scan file."""
    out: Path | None = None
    """Folder for diagnosis.png, diagnosis.json, and the probe or mask that an option refers to; None writes nothing."""
    neighbours: int | None = None
    """Number of neighbouring frames that are refined; None takes 100 of 64 x 64 px, and fewer of larger ones."""
    seed: int = 0
    """Seed of the place in the scan and of the photons that are held out."""
    json: bool = False
    """Print one JSON object instead of sentences."""
    config: Path | None = None
    """YAML or TOML file with the section prepare; flags override it."""
    reading: ReadConfig = dataclasses.field(default_factory=ReadConfig)

    def run(self) -> None:
        names = ("diagnosis.png", "diagnosis.json", "probe.npz", "mask.npz")
        self.claim_files("--out", *(self.out / name for name in names if self.out), inputs=[self.scan])
        from torchptycho.io import read_scan
        from torchptycho.reconstructors.diagnosis import diagnose

        scan = read_scan(self.scan, self.reading)
        with _silence_trials(), self.show_status(f"reading {self.scan}") as status:
            found = diagnose(
                scan,
                frames=self.neighbours,
                seed=self.seed,
                on_progress=lambda what: status.update(f"diagnosing {self.scan}: {what}"),
            )
        needed = sorted({name for finding in found.findings for name in finding.files})
        if self.out is None and needed:
            note = f"--out writes {' and '.join(needed)}, to which options refer"
            found = dataclasses.replace(found, notes=(*found.notes, note))
        elif self.out is not None:
            found = dataclasses.replace(found, findings=tuple(_locate(one, self.out) for one in found.findings))
        files = [] if self.out is None else self._write(found, self.out)
        report = found.to_dict() | {"files": [str(file) for file in files]}
        self.print_result(report, *_make_lines(found), *(str(file) for file in files), json=self.json)

    def _write(self, found: Diagnosis, folder: Path) -> list[Path]:
        import numpy as np

        from torchptycho.io.storage.file_access import replace_atomically
        from torchptycho.visualization.plot import plot_diagnosis
        from torchptycho.visualization.tables import to_json

        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for finding in found.findings:
            for name, content in finding.files.items():
                known = arrays.setdefault(name, {})
                for key, values in content.items():
                    known[key] = values & known[key] if key == "mask" and key in known else values
        files = [plot_diagnosis(found, folder / "diagnosis.png"), folder / "diagnosis.json"]
        files[1].write_text(to_json(found.to_dict()) + "\n", encoding="utf-8")
        for name, content in arrays.items():
            with replace_atomically(folder / name) as file:
                np.savez(file, **content)  # type: ignore[arg-type]
            files.append(folder / name)
        return files


@contextlib.contextmanager
def _silence_trials() -> Iterator[None]:
    """Hide what trials warn of: it is what the diagnosis is about."""
    log = logging.getLogger("torchptycho.reconstructors.iterative")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _locate(finding: Finding, folder: Path) -> Finding:
    """Name the files of an option where they are written."""
    option = finding.option
    for name in finding.files:
        option = option and option.replace(f" {name}:", f" {shlex.quote(f'{folder / name}')}:")
    return dataclasses.replace(finding, option=option)


def _make_lines(found: Diagnosis) -> list[str]:
    lines = [_describe(number, finding) for number, finding in enumerate(found.findings, 1)]
    if not lines:
        lines = ["nothing is wrong that held-out counts could show"]
        if found.misfit is not None and found.misfit > _PHOTON_NOISE_MISFIT:
            lines = [
                "no fault found, but the frames are not explained to photon noise: none of the remedies gains enough"
            ]
    if found.options:
        lines.append(f"all options: {found.options}")
    if found.misfit is not None:
        corrected = found.corrected_misfit
        after = f", {corrected:.4g} with all corrections" if found.findings and corrected is not None else ""
        lines.append(
            f"misfit of held-out counts {found.misfit:.4g} as it is{after} (1 is photon noise); {found.frames} of "
            f"{found.n_frames} frames, {len(found.trials)} trials, {found.seconds:.1f} s"
        )
    return [*lines, *(f"- {note}" for note in found.notes)]


def _describe(number: int, finding: Finding) -> str:
    gain = ""
    if finding.gain is not None and finding.error is not None:
        gain = f" [held-out log-likelihood {finding.gain:+.3g} ± {finding.error:.1g} per photon]"
    option = f" Option: {finding.option}" if finding.option else ""
    return f"{number}. {finding.fault}: {finding.sentence}{option}{gain}"
