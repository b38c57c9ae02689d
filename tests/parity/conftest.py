"""What the parity tests share: the recorded vectors of the original, and the table of the errors seen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import agreement
import numpy as np
import pytest

_GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"

Vectors = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Folder of recorded inputs and outputs of the original; the test skips where it is absent."""
    if not _GOLDEN.is_dir():
        pytest.skip(f"recorded vectors of the original are not at {_GOLDEN}")
    return _GOLDEN


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> Vectors:
    """Reads one file of them, by its name without the suffix."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(golden_folder / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)

    return read


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The worst error of each operator, when asked for by PARITY_TABLE; in one process only (-n 0)."""
    if not (path := os.environ.get("PARITY_TABLE")):
        return
    rows = [
        {"operator": name, "worst": record.worst, "limit": record.limit, "comparisons": record.count}
        for name, record in sorted(agreement.RECORDS.items())
    ]
    Path(path).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    terminalreporter.write_sep("=", "worst relative L2 error seen")
    for row in rows:
        terminalreporter.write_line("{operator:44} {worst:9.2e} <= {limit:7.1e} {comparisons:7d}".format(**row))
