"""The picture of a diagnosis: a panel of evidence for each fault."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from torchptycho.visualization.plot.figure import (
    BLUE,
    FONT_SIZE,
    GREEN,
    ORANGE,
    SMALL_FONT_SIZE,
    make_figure,
    save,
    style_axes,
)
from torchptycho.visualization.plot.panels import add_colour_bar, compute_limits, draw_image, draw_pattern
from torchptycho.visualization.plot.phase_colors import draw_complex, sample_wheel_colours

if TYPE_CHECKING:
    from torchptycho.reconstructors.diagnosis import Diagnosis, Evidence, Finding

__all__ = ["draw_evidence", "plot_diagnosis"]

_MOST_COLUMNS, _LINE = 3, 62


def plot_diagnosis(diagnosis: Diagnosis, path: str | Path) -> Path:
    """Draw what a diagnosis found, the first fault first; without any, what was tried.

    Raises:
        ScanError: the file cannot be written.
    """
    findings = diagnosis.findings
    count = max(1, len(findings))
    columns = min(_MOST_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = make_figure(4.4 * columns, 4.1 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes[count:]:
        axis.set_axis_off()
    if not findings:
        _write(axes[0], "nothing was found", "")
    for number, (axis, finding) in enumerate(zip(axes, findings, strict=False), 1):
        _draw_finding(axis, number, finding)
    name = Path(diagnosis.source).name if len(diagnosis.source) > 60 else diagnosis.source
    misfit = "" if diagnosis.misfit is None else f", misfit {diagnosis.misfit:.3g}"
    if diagnosis.findings and diagnosis.corrected_misfit is not None:
        misfit += f", corrected {diagnosis.corrected_misfit:.3g}"
    figure.suptitle(f"{name}: {diagnosis.frames} of {diagnosis.n_frames} frames{misfit}", fontsize=FONT_SIZE + 2)
    return save(figure, path, ("gray", "inferno"), sample_wheel_colours())


def draw_evidence(axis: Axes, evidence: Evidence) -> None:
    """Draw one picture of evidence."""
    values = evidence.values
    if evidence.kind == "pattern":
        draw_pattern(axis, values, np.ones(values.shape, bool), evidence.title, "")
    elif evidence.kind == "complex":
        draw_complex(axis, values, evidence.title)
    elif evidence.kind == "image":
        everywhere = np.ones(values.shape, bool)
        drawn = draw_image(axis, values, everywhere, "gray", compute_limits(values, everywhere), evidence.title)
        add_colour_bar(axis, drawn)
    elif evidence.kind == "bars":
        places = np.arange(len(values))
        axis.barh(places, values, color=[BLUE if value == values.max() else "0.7" for value in values])
        axis.set_yticks(places, [textwrap.shorten(label, 26) for label in evidence.labels])
        axis.invert_yaxis()
        style_axes(axis, evidence.y_label, "")
    elif evidence.kind == "curve":
        assert evidence.x is not None
        axis.plot(evidence.x, values, ".-", color=BLUE, linewidth=1, markersize=5)
        style_axes(axis, evidence.x_label, evidence.y_label)
    elif evidence.kind == "arrows":
        assert evidence.x is not None
        y, x = evidence.x.T
        axis.scatter(x, y, s=5, color="0.6", linewidths=0)
        axis.quiver(x, y, values[:, 1], values[:, 0], angles="xy", scale_units="xy", scale=1, color=ORANGE, width=0.006)
        _style_map(axis, evidence)
    else:
        assert evidence.x is not None
        y, x = evidence.x.T
        for value, colour in ((0.0, BLUE), (1.0, ORANGE)):
            chosen = values == value
            axis.scatter(x[chosen], y[chosen], s=6, color=colour, linewidths=0)
        _style_map(axis, evidence)
    axis.set_title(evidence.title, fontsize=FONT_SIZE)
    if isinstance(evidence.mark, tuple):
        axis.plot(evidence.mark[1], evidence.mark[0], "+", color=GREEN, markersize=12, markeredgewidth=1.6)
    elif evidence.mark is not None:
        axis.axvline(evidence.mark, color=ORANGE, linewidth=1, linestyle="--")


def _draw_finding(axis: Axes, number: int, finding: Finding) -> None:
    gain = "" if finding.gain is None else f" (gain {finding.gain:.2g} ± {finding.error:.1g} per photon)"
    title = f"{number}. {finding.fault}{gain}"
    if finding.evidence is None:
        _write(axis, title, finding.sentence)
        return
    draw_evidence(axis, finding.evidence)
    below = textwrap.fill(finding.sentence, _LINE)
    axis.set_title(f"{title}\n{finding.evidence.title}", fontsize=FONT_SIZE)
    has_label = bool(axis.get_xlabel())
    axis.annotate(
        below,
        (0.0, -0.24 if has_label else -0.04),
        xycoords="axes fraction",
        fontsize=SMALL_FONT_SIZE,
        va="top",
        ha="left",
        annotation_clip=False,
    )


def _style_map(axis: Axes, evidence: Evidence) -> None:
    axis.set_aspect("equal")
    axis.invert_yaxis()
    style_axes(axis, evidence.x_label, evidence.y_label)


def _write(axis: Axes, title: str, text: str) -> None:
    axis.set_axis_off()
    axis.set_title(title, fontsize=FONT_SIZE)
    axis.text(0.0, 0.9, textwrap.fill(text, _LINE), fontsize=SMALL_FONT_SIZE, va="top", transform=axis.transAxes)
