"""What a diagnosis found: faults, their evidence, and the options that correct them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

__all__ = ["Diagnosis", "Evidence", "Finding", "TrialResult", "merge_options"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """One small picture that shows a fault.

    Arguments:
        kind: "curve" of `x` and `values`, "bars" of `values` named by `labels`, "image" of a 2-D array `values`,
            "pattern" likewise on a logarithmic scale, "complex" of a complex one, "arrows" from `x` [K, 2] to `values`
            [K, 2], "points" at `x` [K, 2] in two colours by `values` [K].
        title: what is shown.
        x_label, y_label: of the axes.
        mark: where to draw a line on the x axis of a curve, or a cross (y, x) on an image.
    """

    kind: Literal["curve", "bars", "image", "pattern", "complex", "arrows", "points"]
    title: str
    values: np.ndarray
    x: np.ndarray | None = None
    labels: tuple[str, ...] = ()
    x_label: str = ""
    y_label: str = ""
    mark: float | tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """One fault of a scan.

    Arguments:
        fault: its name, as in docs/why_is_my_image_bad.md.
        sentence: what is wrong.
        option: options that correct it, ready to be given to `refine`; None where only another measurement does.
        gain: log-likelihood of a held-out photon with the correction above that without; None where the fault is seen
            without a refinement, or nothing can be tried.
        error: its standard error.
        share: gain relative to what the corrected image gains over the mean pattern, 0 to 1.
        is_fatal: whether nothing else can be judged before it is corrected.
        evidence: a picture of it.
        files: arrays that the option refers to, by the name of the NPZ file and of the array in it.
    """

    fault: str
    sentence: str
    option: str | None = None
    gain: float | None = None
    error: float | None = None
    share: float | None = None
    is_fatal: bool = False
    evidence: Evidence | None = None
    files: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data without pictures and arrays."""
        names = ("fault", "sentence", "option", "gain", "error", "share", "is_fatal")
        return {name: getattr(self, name) for name in names} | {"files": sorted(self.files)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One remedy that was tried.

    Arguments:
        remedy: its family.
        value: which one of it.
        round: 1 for what was tried on the scan as it is, 2 after the first remedy, and so on.
        frames, epochs: of the refinement.
        gain, error, share: over the same refinement without it, see `Finding`.
        misfit: of the held-out counts; 1 is photon noise.
    """

    remedy: str
    value: str
    round: int
    frames: int
    epochs: int
    gain: float
    error: float
    share: float
    misfit: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """Result of `diagnose`.

    Arguments:
        source: the scan.
        frames: number of frames that were refined, of `n_frames`.
        findings: faults, the first the most important: those that forbid any judgement, then by gain, then those that
            no option corrects.
        misfit, unexplained: of a refinement of these frames as they are, by held-out counts, and as `refine` has it.
        corrected_misfit: of the held-out counts with all corrections.
        trials: what was tried, in order.
        seconds: time that it took.
        notes: what limits the judgement.
    """

    source: str
    n_frames: int
    frames: int
    findings: tuple[Finding, ...]
    misfit: float | None
    unexplained: float | None
    corrected_misfit: float | None
    trials: tuple[TrialResult, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def options(self) -> str:
        """All options of the findings in one line, each once."""
        return merge_options([one.option for one in self.findings if one.option])

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON."""
        plain = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("findings", "trials", "notes")
        }
        return plain | {
            "findings": [one.to_dict() for one in self.findings],
            "options": self.options,
            "trials": [dataclasses.asdict(one) for one in self.trials],
            "notes": list(self.notes),
        }


def merge_options(options: Sequence[str]) -> str:
    """Merge the options of several findings: each once, both kinds of corrections of positions, the larger limit."""
    merged: dict[str, str] = {}
    for text in options:
        for part in text.removeprefix("--").split(" --"):
            name, _, value = part.partition(" ")
            before = merged.get(name)
            if name == "position-update" and before not in (None, value):
                value = "both"
            elif before is not None and name.endswith("-px") and " " not in value:
                value = max(before, value, key=float)
            merged[name] = value
    return " ".join(f"--{name} {value}".rstrip() for name, value in merged.items())
