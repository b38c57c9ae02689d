"""`torchptycho pretrain` on files: weights for a probe, resuming, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from torchptycho.cli.app import main
from torchptycho.models.prior import load_prior

QUICK = ["--minutes", "0.01", "--pairs", "3", "--seed", "6", "--json"]


@pytest.mark.contract("prior.command")
def test_the_shipped_prior_is_adapted_to_the_probe_of_a_scan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = str(tmp_path / "scan.npz"), tmp_path / "prior"
    options = ["--n-px", "32", "--object-px", "80", "--n-frames", "9", "--probe-kind", "gaussian"]
    assert main(["simulate", scan, *options]) == 0
    capsys.readouterr()
    command = ["pretrain", "--out", str(out), "--probe-from", scan, *QUICK]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    prior = load_prior(out / "prior.safetensors")
    assert found["sha256"] == prior.sha256
    assert prior.network.config == load_prior().network.config
    # The weights that it began with act in the simulated refinements, also of a training that is resumed.
    begun, shipped = load_prior(out / "start.safetensors").network, load_prior().network
    assert all(torch.equal(begun.state_dict()[name], value) for name, value in shipped.state_dict().items())
    assert found["step"] >= 1

    assert main(command) == 1
    assert "holds a training already" in capsys.readouterr().err
    assert main([*command, "--resume", "--seed", "7"]) == 1
    assert "seed 6" in capsys.readouterr().err


@pytest.mark.contract("prior.command.refused")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--resume"], "expected the checkpoint of an earlier training"),
        (["--minutes", "0"], "minutes"),
        (["--pairs", "0"], "pairs"),
        (["--workers", "0"], "--workers: expected 1 or more"),
        (["--seed", "-1"], "seed"),
        (["--probe-from", "none.npz"], "none.npz"),
        (["--start", "none.safetensors"], "none.safetensors: expected weights of a prior"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(
    options: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "--out", str(tmp_path / "prior"), *options]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (tmp_path / "prior").exists()
