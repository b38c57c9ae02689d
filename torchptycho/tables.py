"""Figures as text: tables for people, JSON for scripts."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from torchptycho.data.store import Store
    from torchptycho.evaluation import Metrics
    from torchptycho.orientation import Orientation

__all__ = ["json_text", "metrics_table", "orientation_table", "show", "store_lines", "store_rows"]


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


def store_lines(store: Store) -> list[str]:
    """The scans of a store, one line each: a table would break the names of files."""
    return [
        f"{row['scan']}: {row['source']}: {row['frames']} frames, {row['trained_on']} trained on, "
        f"{row['held_out']} held out, {show(row['photons_per_frame'])} photons per frame, "
        f"{row['probe_modes']} probe mode(s)"
        for row in store_rows(store)
    ]


def store_rows(store: Store) -> list[dict[str, Any]]:
    """What is told of each scan of a store; frames that are in no group are neither trained on nor held out."""
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


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(show(item) for item in value[:8])
        return shown + (f", ... ({len(value)} in all)" if len(value) > 8 else "")
    return str(value)
