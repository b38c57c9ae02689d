"""Logged metrics of a run."""

from __future__ import annotations

import csv
from pathlib import Path

__all__ = ["LOGS_FOLDER", "read_history"]

LOGS_FOLDER = "logs"
"""Folder of a run that holds its CSV files."""


def read_history(run: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read logged metrics of a run by name, as (optimiser step, value).

    A resumed run has several logs; entries of an earlier one for repeated steps are omitted.
    """
    history: dict[str, list[tuple[int, float]]] = {}
    for log in sorted(
        (Path(run) / LOGS_FOLDER).glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime_ns
    ):
        with log.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            for name, text in row.items():
                if text and name not in ("step", "epoch"):
                    curves.setdefault(name, []).append((int(row["step"]), float(text)))
        for name, values in curves.items():
            earlier = [(step, value) for step, value in history.get(name, []) if step < values[0][0]]
            history[name] = earlier + values
    return history
