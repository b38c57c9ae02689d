"""Locks between processes: what a killed one leaves is taken over, also where the file system knows no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import Timeout

from torchptycho.core.config import GroupConfig, RunConfig, SimulateConfig
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.io.storage.locks import hold_lock
from torchptycho.live.spool import exclusive_receiver

HOLD = """
import errno, fcntl, sys, time
from pathlib import Path
from torchptycho.io.storage.locks import hold_lock
if sys.argv[2] == "no locks":
    def flock(*_):
        raise OSError(errno.ENOSYS, "no locks here")
    fcntl.flock = flock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
KINDS = ["locks", "no locks"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the file system can do."""
    if request.param == "no locks":

        def flock(*_: object) -> None:
            raise OSError(errno.ENOSYS, "no locks here")

        monkeypatch.setattr(fcntl, "flock", flock)
    return str(request.param)


def start_holder(file: Path, kind: str) -> subprocess.Popen[str]:
    """Start a process that holds a lock."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file), kind], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.contract("files.locks")
def test_file_of_a_killed_process_is_taken_over_and_removed(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ".lock"
    process = start_holder(file, kind)
    with pytest.raises(Timeout), hold_lock(file):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert file.exists()
    with hold_lock(file):
        assert file.exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.contract("files.locks")
@pytest.mark.parametrize("content", ["", "999999999\nsomewhere\n", "12"])
def test_files_without_an_owner_do_not_lock(tmp_path: Path, kind: str, content: str) -> None:
    for name in (".watch.lock", ".store.lock"):
        (tmp_path / name).write_text(content)
        os.utime(tmp_path / name, (0, 0))
    if kind == "no locks" and content != "12":
        pytest.skip("it may be the lock of another machine, or of an older filelock")
    with exclusive_receiver(tmp_path):
        pass
    scan = simulate(SimulateConfig(n_px=32, object_px=64, n_frames=8))
    prepare([scan], RunConfig(group=GroupConfig(gridsize=1)), tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.contract("files.locks")
def test_lock_waits_for_its_owner_on_request(tmp_path: Path) -> None:
    file, waits = tmp_path / ".lock", []
    process = start_holder(file, "locks")

    def end_it() -> None:
        waits.append(1)
        process.kill()

    with hold_lock(file, on_wait=end_it):
        assert waits == [1]
    process.wait()
