"""Error bars on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import Command

from torchptycho.io import read_reconstruction
from torchptycho.reconstructors import iterative


@pytest.mark.contract("refine.uncertainty.command")
@pytest.mark.contract("report.uncertainty")
def test_refine_writes_error_bars_that_evaluate_judges(command: Command, tiny_scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "refined.npz"
    given = ["refine", tiny_scan, "--out", out, "--device", "cpu", "--epochs", "4", "--report", "--overwrite"]
    assert command(*given).code == 0
    assert read_reconstruction(out).amplitude_sigma is None
    assert "Error bars" not in out.with_suffix(".html").read_text(encoding="utf-8")
    answer = command(*given, "--uncertainty", "fisher", "--n-slices", "2", "--slice-spacing-m", "1e-6")
    assert answer.code == 1
    assert "--uncertainty: expected one slice; found --n-slices 2" in answer.err
    answer = command(*given, "--uncertainty", "bootstrap", "--uncertainty-replicas", "2")
    assert (answer.code, answer.err) == (0, "")
    image = read_reconstruction(out)
    assert image.amplitude_sigma is not None
    assert image.provenance["uncertainty"]["method"] == "bootstrap"
    assert image.provenance["uncertainty"]["draws"] == 2
    assert "Error bars" in out.with_suffix(".html").read_text(encoding="utf-8")
    found = json.loads(command("evaluate", out, tiny_scan, "--json").out)
    assert 0 < found["amplitude_within_sigma"] < 1
    assert 0 < found["phase_within_sigma"] < 1


@pytest.mark.contract("refine.uncertainty.refused")
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--uncertainty", "bootstrap", "--uncertainty-replicas", "0"], "expected 1 or more; found 0"),
        (["--uncertainty", "fisher", "--uncertainty-replicas", "3"], "expected --uncertainty bootstrap with it"),
        (["--uncertainty-replicas", "3"], "expected --uncertainty bootstrap with it"),
    ],
)
def test_replicas_that_would_do_nothing_are_refused_before_the_refinement(
    command: Command, tiny_scan: Path, tmp_path: Path, options: list[str], why: str
) -> None:
    answer = command("refine", tiny_scan, "--out", tmp_path / "image.npz", *options)
    assert answer.code == 1
    assert why in answer.err
    assert not (tmp_path / "image.npz").exists()


@pytest.mark.contract("refine.uncertainty.command")
def test_an_interruption_of_the_estimate_leaves_the_image(
    command: Command, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(iterative, "estimate_uncertainty", stop)
    out = tmp_path / "image.npz"
    answer = command("refine", tiny_scan, "--out", out, "--epochs", "2", "--uncertainty", "fisher")
    assert answer.code == 130
    assert "written without error bars" in caplog.text
    assert read_reconstruction(out).amplitude_sigma is None
