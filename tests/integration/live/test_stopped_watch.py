"""A watch that is stopped leaves complete files and says how to continue."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from live_scans import (
    OFFLINE,
    address,
    playing,
    received,
    same,
)
from tiny_run import Command

from torchptycho.core.reconstruction import Reconstruction
from torchptycho.io import read_reconstruction, read_scan
from torchptycho.live import status_reporter, watch, watch_session
from torchptycho.reconstructors.network_reconstruction import reconstruct


@pytest.mark.contract("live.stop")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, KeyboardInterrupt])
def test_a_watch_is_stopped_while_the_final_image_is_made(
    how: Any, command: Command, single: Path, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any, **options: Any) -> Reconstruction:
        if how is KeyboardInterrupt:
            raise KeyboardInterrupt
        os.kill(os.getpid(), how)
        return reconstruct(*arguments, **options)

    out, where = tmp_path / "live", address()
    monkeypatch.setattr("torchptycho.live.watch_session.reconstruct", stopped)
    with playing(read_scan(recorded, frames=slice(None, 100)), where, 1e5):
        answer = command("watch", where, "--model", single, "--out", out, "--accelerator", "cpu")
    assert (answer.code, answer.err.endswith("torchptycho: interrupted\n")) == (130, True), answer.err
    told = json.loads((out / "status.json").read_text())
    assert told["state"] == "stopped"
    assert told["message"].startswith("stopped with 100 frames in ")
    assert not (out / "reconstruction.npz").exists()


@pytest.mark.contract("live.stop.files")
@pytest.mark.parametrize(
    ("module", "name"), [(watch_session, "write_reconstruction"), (status_reporter, "write_live_images")]
)
def test_a_stop_while_the_last_files_are_written_comes_after_them(
    module: ModuleType,
    name: str,
    command: Command,
    single: Path,
    recorded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = getattr(module, name)

    def stopped(*arguments: Any) -> None:
        # The picture on the way is drawn before.
        if name != "write_live_images" or (out / "reconstruction.npz").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        inner(*arguments)

    out, scan = tmp_path / "live", read_scan(recorded, frames=slice(None, 100))
    monkeypatch.setattr(module, name, stopped)
    where = address()
    with playing(scan, where, 1e5):
        answer = command("watch", where, "--model", single, "--out", out, "--accelerator", "cpu", "--drop-spool")
    assert (answer.code, answer.err.endswith("torchptycho: interrupted\n")) == (130, True), answer.err
    assert "stopped after the image was complete: it is written, and the spool is kept" in answer.out
    assert json.loads((out / "status.json").read_text())["state"] == "done"
    assert same(read_reconstruction(out / "reconstruction.npz"), reconstruct(single, scan, **OFFLINE))
    assert (out / "reconstruction.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert received(out) == 100


@pytest.mark.contract("live.command")
def test_a_watch_that_is_stopped_before_the_first_frame_says_what_it_waited_for(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchptycho.live.zmq_source._RETRY_S", 0.2)
    stop, where = threading.Event(), address()
    threading.Timer(1, stop.set).start()
    status = watch(where, single, tmp_path / "live", accelerator="cpu", progress=False, stop=stop).status
    assert status.message == f"stopped before the first frame arrived: no answer from {where}"
