"""Sections of the page about the run: the scan, its configuration, its provenance."""

from __future__ import annotations

from typing import Any

from torchptycho.analysis.inspection import ScanSummary
from torchptycho.analysis.verdict import Verdict
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.visualization.report.html_blocks import (
    Details,
    Section,
    Table,
)
from torchptycho.visualization.report.quantities import LABELS
from torchptycho.visualization.tables import format_value

_ABOUT_DATA = "What `inspect` reports of the scan. Pairs are (y, x): down and to the right, as arrays are indexed."

__all__ = ["make_configuration_section", "make_data_section", "make_provenance_section", "make_verdict_section"]


def make_verdict_section(verdict: Verdict) -> Section:
    """Say in words what to think of the image."""
    reasons = list(verdict.reasons)
    if verdict.word in ("good", "unknown"):
        return Section(id="verdict", title=f"Verdict: {verdict.word}", rows=[], text=" ".join(reasons))
    return Section(id="verdict", title=f"Verdict: {verdict.word}", rows=[], text="", warnings=reasons)


def make_data_section(summary: ScanSummary) -> Section:
    """Show what `inspect` says about the scan."""
    apart = ("problems", "notes", "metadata", "left_out", "dead_pixels", "hot_pixels", "dim_frames", "bright_frames")
    rows = [
        (_format_label(name), _format_cell(value))
        for name, value in summary.to_dict().items()
        if name not in (*apart, "usable", "near_field")
    ]
    rows += [("how it was read" if number == 0 else "", note) for number, note in enumerate(summary.notes)]
    return Section(
        id="data",
        title="Data",
        rows=[("", [Table(rows=rows)])],
        text=_ABOUT_DATA,
        warnings=list(summary.problems),
    )


def make_configuration_section(image: Reconstruction) -> Section | None:
    """Show every option of the run, section by section."""
    sections: dict[str, Any] = dict(image.provenance.get("config") or {})
    refined = image.provenance.get("refinement", image.provenance)
    if "refine" in refined:
        sections["refine"] = refined["refine"]
    tables = [
        (name, Table(rows=[(key, _format_cell(value)) for key, value in options.items()]))
        for name, options in sections.items()
        if isinstance(options, dict)
    ]
    if not tables:
        return None
    return Section(
        id="configuration",
        title="Configuration",
        rows=[("", [Details(tables=tables)])],
        text="All options, defaults included.",
    )


def make_provenance_section(image: Reconstruction, report_seconds: float) -> Section:
    """Show the provenance of the image: source, software and time."""
    provenance = image.provenance
    refined = provenance.get("refinement", provenance)
    rows = [
        (label, str(source[key]))
        for source, key, label in (
            (provenance, "source", "scan"),
            (refined, "scan_sha256", "scan, SHA-256"),
            (provenance, "checkpoint", "checkpoint"),
            (provenance, "checkpoint_sha256", "checkpoint, SHA-256"),
            (refined, "epochs", "epochs of refinement"),
        )
        if source.get(key) is not None
    ]
    if refined.get("complete") is False:
        rows.append(("refinement", "interrupted; intermediate image"))
    network = provenance["seconds"] - refined["seconds"] if refined is not provenance else provenance.get("seconds")
    if "epochs" in refined:
        rows.append(("time, refinement", f"{refined['seconds']:.1f} s"))
        rows.append(("time per epoch", f"{refined['seconds'] / max(1, refined['epochs']):.3g} s"))
        network = network if refined is not provenance else None
    if network is not None:
        rows.append(("time, network and stitching", f"{network:.1f} s"))
    rows.append(("time, this page", f"{report_seconds:.1f} s"))
    rows += [(name, str(version)) for name, version in (provenance.get("versions") or {}).items()]
    return Section(id="provenance", title="Provenance, versions and timings", rows=[("", [Table(rows=rows)])])


def _format_label(name: str) -> str:
    """Format the name of a field for people: n_dead_pixels is dead pixels, step_px is step (px)."""
    if name in LABELS:
        return LABELS[name]
    words, _, unit = name.removeprefix("n_").replace("_", " ").rpartition(" ")
    return f"{words} ({unit})" if unit in ("px", "m") else f"{words} {unit}".strip()


def _format_cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ([], (), {}):
        return "—"
    return format_value(value)
