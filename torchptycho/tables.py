"""Figures as text: tables for people, JSON for scripts."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from torchptycho.evaluation import Metrics
    from torchptycho.orientation import Orientation

__all__ = ["json_text", "metrics_table", "orientation_table", "show"]


def json_text(values: dict[str, Any]) -> str:
    """Plain data as JSON; not-a-number and infinity, which JSON does not know, as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(values), indent=1)


def metrics_table(metrics: Metrics) -> Table:
    """The figures that say how close a reconstruction is."""
    table = Table(show_header=False, title="reconstruction against truth")
    for name, value in metrics.to_dict().items():
        if isinstance(value, (int, float, str)):
            table.add_row(name, show(value))
    return table


def orientation_table(ranked: list[Orientation]) -> Table:
    """The orientations of the positions, the best first, with the misfit that each leaves."""
    table = Table(title="orientation of the positions")
    for column in ("options to add", "misfit (1 is the photon noise)", "relative to the best"):
        table.add_column(column)
    for one in ranked:
        flags = [f"--{name.replace('_', '-')}" for name in ("swap_xy", "flip_y", "flip_x") if getattr(one, name)]
        table.add_row(" ".join(flags) or "none", show(one.misfit), show(one.misfit / ranked[0].misfit))
    return table


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(show(item) for item in value[:8])
        return shown + (f", ... ({len(value)} in all)" if len(value) > 8 else "")
    return str(value)
