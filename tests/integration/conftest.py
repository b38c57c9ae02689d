"""A tiny scan, a tiny trained run, and the command line as a function."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import TINY, TINY_SIMULATION, Command, CommandResult

from torchptycho.cli.app import main
from torchptycho.data.simulation import simulate
from torchptycho.io import write_scan
from torchptycho.training.train import TrainResult, train


@pytest.fixture(scope="session")
def tiny_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated scan of 64 frames of 32x32 with its truth."""
    path = tmp_path_factory.mktemp("tiny") / "scan.npz"
    write_scan(simulate(TINY_SIMULATION), path)
    return path


@pytest.fixture(scope="session")
def tiny_result(tiny_scan: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """What a dozen steps on the tiny scan left; its run folder is shared, so leave it as it is."""
    return train(tiny_scan, TINY, tmp_path_factory.mktemp("runs") / "run", progress=False)


@pytest.fixture(scope="session")
def tiny_run(tiny_result: TrainResult) -> Path:
    return tiny_result.checkpoint.parents[1]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process."""

    def run(*arguments: object) -> CommandResult:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as left:  # how the option parser leaves
            code = left.code if isinstance(left.code, int) else -1
        out, err = capsys.readouterr()
        return CommandResult(code, out, err)

    return run
