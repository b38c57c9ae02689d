"""The prediction of a planned scan on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import Command

_PLAN = ["--n-px", "32", "--object-px", "56", "--n-frames", "40", "--no-measure-time"]


@pytest.mark.contract("design.command")
def test_design_prints_and_draws_what_to_expect(command: Command, tmp_path: Path) -> None:
    picture = tmp_path / "design.png"
    answer = command("design", *_PLAN, "--photons-per-frame", "1e5", "--plot", picture, "--json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(answer.out)
    assert 0 < found["complex_nrmse"] < 1
    assert found["refinement_seconds"] is None
    assert picture.stat().st_size > 5000
    answer = command("design", *_PLAN, "--object-pixel-m", "1e-8", "--resolution-m", "4e-9")
    assert answer.code == 0
    assert "below one pixel" in answer.out


@pytest.mark.contract("design.command")
def test_design_repeats_a_scan_and_names_contradictions(command: Command, tiny_scan: Path) -> None:
    answer = command(
        "design", "--scan", tiny_scan, "--no-measure-time", "--fixed-probe", "--dose-per-px", "1", "--json"
    )
    assert answer.code == 0
    found = json.loads(answer.out)
    assert found["n_px"] == 32
    assert any("photons pass a pixel" in line for line in found["advice"])
    answer = command("design", *_PLAN, "--resolution-m", "1e-8", "--resolution-px", "2")
    assert answer.code == 1
    assert "--resolution-m: expected it or --resolution-px; found both" in answer.err
    answer = command("design", *_PLAN, "--resolution-m", "1e-8")
    assert answer.code == 1
    assert "expected --object-pixel-m" in answer.err
