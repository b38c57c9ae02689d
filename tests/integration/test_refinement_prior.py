"""The prior of a refinement on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import Command

from torchptycho.io import read_reconstruction


@pytest.mark.contract("refine.regularise.command")
def test_the_prior_of_a_refinement_is_printed_and_reported(command: Command, tiny_scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "refined.npz"
    given = ["refine", tiny_scan, "--out", out, "--device", "cpu", "--epochs", "4", "--report"]
    answer = command(*given, "--regularization", "tv", "--regularization-strength", "0.2", "--json")
    assert (answer.code, answer.err) == (0, "")
    result = json.loads(answer.out)["regularization"]
    assert (result["kind"], result["strength"], result["reason"]) == ("tv", 0.2, "given")
    assert read_reconstruction(out).provenance["regularization"] == result
    assert "total variation of strength 0.2" in out.with_suffix(".html").read_text(encoding="utf-8")
    given[3] = tmp_path / "other.npz"
    answer = command(*given, "--regularization", "auto")
    assert answer.code == 0
    assert "no prior (" in answer.out
