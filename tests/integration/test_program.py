"""The program as a process: as a module, at the head of a pipe, interrupted, and on devices that are not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import TINY_FLAGS, Command

PROGRAM = [sys.executable, "-m", "torchptycho"]
# Python's own path does not hold the project where it is not installed.
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.mark.contract("cli.program")
def test_module_is_the_program() -> None:
    done = subprocess.run([*PROGRAM, "trian"], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "torchptycho: unknown command 'trian'. Did you mean 'train'?\n"


@pytest.mark.contract("cli.program")
@pytest.mark.parametrize(
    "arguments", [["--version"], ["train", "--help"], ["inspect", "SCAN"], ["inspect", "SCAN", "--json"]]
)
def test_reader_that_leaves_early_is_no_error(tiny_scan: Path, arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [*PROGRAM, *(str(tiny_scan) if one == "SCAN" else one for one in arguments)]
    with open(write, "wb") as gone:
        done = subprocess.run(command, env=ENVIRONMENT, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.contract("cli.program")
@pytest.mark.parametrize("module", ["pydantic", "torch"])
def test_interrupt_while_importing_is_one_line(tiny_scan: Path, tmp_path: Path, module: str) -> None:
    """A library that is found first, says that it is being imported, and takes its time, as the real one does."""
    (tmp_path / f"{module}.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'importing')!r}).touch()\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt as error:\n    raise RuntimeError('wrapped') from error\n"
        if module == "pydantic"
        else f"import pathlib, time\npathlib.Path({str(tmp_path / 'importing')!r}).touch()\ntime.sleep(60)\n"
    )
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    process = subprocess.Popen(
        [*PROGRAM, "refine", str(tiny_scan), "--out", str(tmp_path / "x.npz")],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "importing").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said == "torchptycho: interrupted\n"
    # Python itself may end by the signal, which a shell reports as 130, too.
    assert process.returncode in (130, -signal.SIGINT)


@pytest.mark.contract("cli.program")
@pytest.mark.parametrize("device", ["mps", "tpu", "cuda", "cuda:1", "banana", ""])
@pytest.mark.parametrize("name", ["refine", "resolution", "train", "reconstruct"])
def test_device_that_is_not_there_is_one_short_line(
    command: Command, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, device: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    more = ["--out", "run", *TINY_FLAGS[:-2]] if name == "train" else []
    option = "--accelerator" if name in ("train", "reconstruct") else "--device"
    answer = command(name, tiny_scan, *more, option, device)
    assert answer.code == 1
    assert len(answer.err.splitlines()) == 1
    assert f"{option[2:]} '{device}': " in answer.err
    assert len(answer.err) < 160
    assert not list(tmp_path.iterdir())
