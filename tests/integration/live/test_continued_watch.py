"""A watch that was killed or stopped continues after the frames in its spool."""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from live_scans import (
    OFFLINE,
    SIMULATION,
    InMemory,
    address,
    playing,
    process,
    received,
    same,
    until,
    watched,
)

from torchptycho.core.errors import ScanError, StoreError
from torchptycho.io import read_scan
from torchptycho.live import replay
from torchptycho.live.preview import LivePreview
from torchptycho.reconstructors.network_reconstruction import reconstruct


@pytest.mark.contract("live.resume")
@pytest.mark.contract("live.stop")
def test_a_killed_and_a_stopped_watch_go_on_from_their_spool(single: Path, recorded: Path, tmp_path: Path) -> None:
    out, where = tmp_path / "live", address()
    command = ("watch", where, "--model", single, "--out", out, "--accelerator", "cpu")
    # So slow that no process comes to the end before it is ended.
    enough = threading.Event()
    with playing(recorded, where, 40, stop=enough):
        with process(*command) as killed:
            until(lambda: received(out) > 20)
            killed.send_signal(signal.SIGKILL)
            killed.communicate(timeout=60)
        kept = received(out)
        with process(*command, "--json") as stopped:
            until(lambda: received(out) > kept + 40)
            stopped.send_signal(signal.SIGTERM)
            printed, errors = stopped.communicate(timeout=60)
        assert stopped.returncode == 130
        assert errors.endswith("torchptycho: interrupted\n")
        answer = json.loads(printed)
        assert (answer["state"], answer["out"]) == ("stopped", None)
        assert "the same command continues" in answer["message"]
        assert SIMULATION.n_frames > answer["received"] >= kept + 40
        assert json.loads((out / "status.json").read_text())["state"] == "stopped"
        enough.set()
    with playing(recorded, where, 1e5) as told:
        found = watched(where, single, out)
    assert told["found"].played == found.status.received == SIMULATION.n_frames
    assert same(found.image, reconstruct(single, recorded, **OFFLINE))


@pytest.mark.contract("live.source-returns")
def test_a_source_that_ends_and_returns_is_gone_on_with(single: Path, recorded: Path, tmp_path: Path) -> None:
    where, stop, late, played = address(), threading.Event(), threading.Event(), []

    def cut_short(done: int, total: int) -> None:
        if done > 100:
            stop.set()

    def play() -> None:
        played.append(replay(recorded, hz=300, address=where, stop=stop, on_progress=cut_short))
        played.append(replay(recorded, hz=1e5, address=where, stop=late))

    thread = threading.Thread(target=play)
    thread.start()
    try:
        found = watched(where, single, tmp_path / "live")
        thread.join(10)
    finally:
        late.set()
        thread.join()
    assert 100 < played[0].played < played[1].played == SIMULATION.n_frames
    assert same(found.image, reconstruct(single, recorded, **OFFLINE))


@pytest.mark.contract("live.spool.other")
@pytest.mark.contract("live.spool.alone")
def test_a_folder_takes_one_scan_and_one_watch(
    single: Path, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, where = tmp_path / "live", address()
    scan = read_scan(recorded, frames=slice(None, 100))
    with playing(scan, where, 1e5):
        watched(where, single, out)
    other = dataclasses.replace(scan, positions_px=scan.positions_px + 1)
    picture = (out / "amplitude.png").read_bytes()
    for more in ({}, {"frames": 101}):
        with playing(other, where, 1e8), pytest.raises(StoreError, match=r"'scan': expected .*It is another scan"):
            watched(where, single, out, **more)
    assert (out / "amplitude.png").read_bytes() == picture
    # It is complete, and its image is made again without its source.
    monkeypatch.setattr("torchptycho.live.receiver._SOURCE_TIMEOUT_S", 0.3)
    again = watched(where, single, out).status
    assert (again.received, again.message) == (
        100,
        "all 100 frames were in the spool already; the source was not asked",
    )
    with pytest.raises(StoreError, match="'source': expected tcp"):
        watched("tcp://127.0.0.1:9", single, out)
    from torchptycho.live.spool import exclusive_receiver

    with exclusive_receiver(out), pytest.raises(StoreError, match="found a running watch"):
        watched(where, single, out)


@pytest.mark.contract("live.missing")
@pytest.mark.contract("live.resume")
def test_a_scan_that_ended_early_is_told_as_such_and_is_over_when_it_is_gone_on_with(
    single: Path, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchptycho.live.receiver._SOURCE_TIMEOUT_S", 0.2)
    scan, out = read_scan(recorded, frames=slice(None, 100)), tmp_path / "live"

    def killed(*_: Any, **__: Any) -> None:
        told.append(json.loads((out / "status.json").read_text()))
        raise SystemExit

    told: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr("torchptycho.live.watch_session.reconstruct", killed)
        with pytest.raises(SystemExit):
            watched(InMemory(scan, end_at=60), single, out)
    assert (told[0]["state"], told[0]["message"]) == ("finishing", None)
    some = reconstruct(single, read_scan(recorded, frames=slice(None, 60)), **OFFLINE)
    missing = "40 of 100 expected frames did not arrive"
    for answers, message in (
        (True, missing),
        (False, f"all 60 frames were in the spool already; the source was not asked; {missing}"),
    ):
        again = watched(InMemory(scan, end_at=60, answers=answers), single, out)
        assert (again.status.state, again.status.message) == ("done", message)
        assert same(again.image, some)


@pytest.mark.contract("live.idle")
def test_a_number_of_frames_and_an_end_without_any_are_not_the_end_for_ever(
    single: Path, recorded: Path, tmp_path: Path
) -> None:
    scan = read_scan(recorded, frames=slice(None, 100))
    assert watched(InMemory(scan, total=None), single, tmp_path / "some", frames=50).status.received == 50
    assert watched(InMemory(scan, total=None), single, tmp_path / "some").status.received == 100
    with pytest.raises(ScanError, match="at least 2 frames"):
        watched(InMemory(scan, end_at=0), single, tmp_path / "none")
    assert watched(InMemory(scan), single, tmp_path / "none").status.received == 100


@pytest.mark.contract("live.spool.other")
def test_another_scan_is_refused_before_anything_is_reconstructed_and_another_address_is_none(
    single: Path, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, out = read_scan(recorded, frames=slice(None, 100)), tmp_path / "live"
    with pytest.raises(ZeroDivisionError):
        watched(InMemory(scan, fault_at=60), single, out)

    another = InMemory(scan)
    another.layout = dataclasses.replace(another.layout, scan="another")

    def no_frame(*_: Any) -> None:
        raise AssertionError("frames of one scan were reconstructed for another")

    with monkeypatch.context() as patch:
        patch.setattr(LivePreview, "add", no_frame)
        with pytest.raises(StoreError, match=r"'scan': expected .*move this one away"):
            watched(another, single, out)
    monkeypatch.setattr("torchptycho.live.receiver._SOURCE_TIMEOUT_S", 0.2)
    with pytest.raises(StoreError, match=r"'source': expected memory, .*which does not answer"):
        watched(InMemory(scan, name="elsewhere", answers=False), single, out, idle_s=0.1)
    found = watched(InMemory(scan, name="elsewhere"), single, out)
    assert same(found.image, reconstruct(single, scan, **OFFLINE))
    assert watched(InMemory(scan, name="elsewhere", answers=False), single, out).status.state == "done"


@pytest.mark.contract("live.idle")
def test_a_stream_without_an_end_is_over_when_it_is_quiet_for_as_long_as_was_said(
    single: Path, recorded: Path, tmp_path: Path
) -> None:
    out, where = tmp_path / "live", address()
    enough = threading.Event()
    with playing(recorded, where, 1e5, stop=enough):
        found = watched(where, single, out, frames=150)
        assert found.status.message is None
        enough.set()
    assert found.status.received == 150
    some = read_scan(recorded, frames=slice(None, 150))
    assert same(found.image, reconstruct(single, some, **OFFLINE))
    # More is expected, nobody answers, and it has been quiet.
    again = watched(where, single, out, frames=151, idle_s=0.2)
    assert same(again.image, reconstruct(single, some, **OFFLINE))
