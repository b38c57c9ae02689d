"""Figures as text: tables for people, JSON for scripts."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table

if TYPE_CHECKING:
    from torchptycho.analysis.evaluation import Metrics
    from torchptycho.data.store import Store
    from torchptycho.reconstructors.orientation import Orientation

__all__ = [
    "format_value",
    "make_comparison_lines",
    "make_doctor_table",
    "make_metrics_table",
    "make_orientation_table",
    "make_plan_lines",
    "make_plan_table",
    "make_store_lines",
    "make_store_rows",
    "make_table",
    "to_json",
]  # fmt: skip


def to_json(values: dict[str, Any]) -> str:
    """Convert plain data to JSON; NaN and infinity, which JSON does not have, become null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(values), indent=1)


def make_metrics_table(metrics: Metrics) -> Table:
    """Make the table of metrics of a reconstruction."""
    table = make_table("", "", title="reconstruction against truth", show_header=False)
    for name, value in metrics.to_dict().items():
        if isinstance(value, (int, float, str)):
            table.add_row(name, format_value(value))
    return table


def make_table(*columns: str, title: str | None = None, show_header: bool = True) -> Table:
    """Make a table whose cells are continued on the next line where the window is narrow, and never cut."""
    table = Table(title=title, show_header=show_header)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def make_comparison_lines(metrics: dict[str, Metrics]) -> list[RenderableType]:
    """Make the table of metrics of several comparisons, and what its columns are: names of files may be long."""
    legend = [f"column {number}: {name}" for number, name in enumerate(metrics, 1)]
    return [*legend, _make_comparison_table(metrics)]


def _make_comparison_table(metrics: dict[str, Metrics]) -> Table:
    table = make_table("", *(str(number) for number in range(1, len(metrics) + 1)), title="comparison")
    columns = [found.to_dict() for found in metrics.values()]
    for name, value in columns[0].items():
        if isinstance(value, (int, float, str)):
            table.add_row(name, *(format_value(column[name]) for column in columns))
    return table


def make_doctor_table(found: dict[str, Any]) -> Table:
    """Make the table of what `doctor` found."""
    table = make_table("", "", show_header=False)
    for name, version in found["versions"].items():
        table.add_row(name, version)
    available = found["memory_available_GB"]
    table.add_row("platform", found["platform"])
    table.add_row("CPU cores", str(found["cpu_cores"]))
    if found["memory_GB"] is not None:
        free = "" if available is None else f", {available:.1f} GB available"
        table.add_row("memory", f"{found['memory_GB']:.1f} GB{free}")
    for gpu in found["gpus"]:
        size = "" if gpu["memory_GB"] is None else f", {gpu['memory_GB']:.1f} GB, {gpu['free_GB']:.1f} GB free"
        table.add_row("GPU", gpu["name"] + size)
    if not found["gpus"]:
        table.add_row("GPU", "none")
    table.add_row("compiler (for `train --compile`)", found["compiler"] or "none")
    disk = found["disk"]
    speed = ""
    if disk["write_MB_per_s"] is not None:
        speed = f", writes {disk['write_MB_per_s']:.0f} MB/s, reads {disk['read_MB_per_s']:.0f} MB/s"
    table.add_row(f"disk at {disk['path']}", f"{disk['free_GB']:.1f} GB free{speed}")
    for name, package in found["optional"].items():
        table.add_row(name, f"{package['installed'] or 'not installed: ' + package['get']} (for {package['for']})")
    for group, entries in found["plug_ins"].items():
        table.add_row(group, ", ".join(f"{name} ({value})" for name, value in entries.items()) or "none")
    return table


def make_plan_table(plan: dict[str, Any]) -> Table:
    """Make the table of what `prepare --dry-run` and `train --dry-run` would make."""
    table = make_table("", "", title="nothing was written", show_header=False)
    for scan in plan["scans"]:
        held = " (held out)" if scan["held_out"] else ""
        table.add_row(
            f"{scan['source']}{held}",
            f"{scan['n_frames']} frames {scan['n_px']}x{scan['n_px']} {scan['dtype'] or 'prepared'} {scan['domain']}, "
            f"{scan['n_modes']} probe mode(s)",
        )
    for name, value in plan.items():
        if name not in ("scans", "config", "problems") and value is not None:
            shown = f"{value / 1e6:.4g} MB" if name.endswith("_bytes") else format_value(value)
            table.add_row(name.removesuffix("_bytes").replace("_", " "), shown)
    return table


def make_plan_lines(plan: dict[str, Any]) -> list[RenderableType]:
    """Make the lines of a dry run of `prepare` or `train`, with the problems of the scans."""
    return [make_plan_table(plan), *(f"! {problem}" for problem in plan["problems"])]


def make_orientation_table(ranked: list[Orientation]) -> Table:
    """Make the table of the orientations of the positions, the best first, with the misfit that each leaves."""
    columns = ("options to add", "misfit (1 is the photon noise)", "relative to the best")
    table = make_table(*columns, title="orientation of the positions")
    for one in ranked:
        flags = [f"--{name.replace('_', '-')}" for name in ("swap_xy", "flip_y", "flip_x") if getattr(one, name)]
        table.add_row(" ".join(flags) or "none", format_value(one.misfit), format_value(one.misfit / ranked[0].misfit))
    return table


def make_store_lines(store: Store) -> list[str]:
    """Make one line for each scan of a store: a table would break the names of files."""
    return [
        f"{row['scan']}: {row['source']}: {row['frames']} frames, {row['trained_on']} trained on, "
        f"{row['held_out']} held out, {format_value(row['photons_per_frame'])} photons per frame, "
        f"{row['probe_modes']} probe mode(s)"
        for row in make_store_rows(store)
    ]


def make_store_rows(store: Store) -> list[dict[str, Any]]:
    """Make what is reported of each scan of a store; frames that are in no group are neither trained on nor held
    out."""
    used = {split: set(store.groups(split).members[:, 0].tolist()) for split in ("train", "val")}
    used["train"] = set(store.groups("train").members.ravel().tolist())
    rows: list[dict[str, Any]] = []
    for number, entry in enumerate(store.scans):
        frames = range(entry.first_frame, entry.first_frame + entry.n_frames)
        modes = int(store.tensors["probes"][number].abs().amax((-2, -1)).count_nonzero())
        rows.append(
            {
                "scan": number,
                "source": entry.source,
                "frames": entry.n_frames,
                "trained_on": len(used["train"].intersection(frames)),
                "held_out": len(used["val"].intersection(frames)),
                "photons_per_frame": entry.scaling.photons_per_frame,
                "probe_modes": modes,
            }
        )
    return rows


def format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(format_value(item) for item in value[:8])
        return shown + (f", ... ({len(value)} in all)" if len(value) > 8 else "")
    return str(value)
