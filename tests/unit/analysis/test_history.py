"""Logged metrics of runs that were resumed."""

from __future__ import annotations

import os
from pathlib import Path

from torchptycho.analysis.history import LOGS_FOLDER, read_history


def write_log(run: Path, version: int, text: str, modified_s: int) -> None:
    log = run / LOGS_FOLDER / f"version_{version}" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text(text)
    os.utime(log, (modified_s, modified_s))


def test_values_are_listed_by_name_and_step(tmp_path: Path) -> None:
    write_log(tmp_path, 0, "epoch,loss,rate,step\n0,2.5,,9\n0,,0.1,9\n1,1.5,0.2,19\n", 100)
    assert read_history(tmp_path) == {"loss": [(9, 2.5), (19, 1.5)], "rate": [(9, 0.1), (19, 0.2)]}
    assert read_history(str(tmp_path / "elsewhere")) == {}


def test_a_resumed_run_replaces_the_steps_that_it_repeats(tmp_path: Path) -> None:
    # By time and not by name: version_10 sorts before version_2.
    write_log(tmp_path, 2, "step,loss,first_only\n4,3.0,8.0\n9,2.0,7.0\n14,1.0,6.0\n", 100)
    write_log(tmp_path, 10, "step,loss,second_only\n9,2.5,5.0\n14,1.5,4.0\n", 200)
    assert read_history(tmp_path) == {
        "loss": [(4, 3.0), (9, 2.5), (14, 1.5)],
        "first_only": [(4, 8.0), (9, 7.0), (14, 6.0)],
        "second_only": [(9, 5.0), (14, 4.0)],
    }
