"""Sources of frames: growing files, streams, replays and objects of the user."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from live_scans import (
    LENGTHS,
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
from tiny_run import Command

from torchptycho.core.config import (
    MappingConfig,
    PrepareConfig,
    ReadConfig,
    RunConfig,
    save_config,
)
from torchptycho.core.errors import ScanError
from torchptycho.data.simulation import simulate
from torchptycho.io import read_reconstruction, read_scan, write_scan
from torchptycho.live import replay
from torchptycho.live.preview import LivePreview
from torchptycho.live.replay import ReplayResult
from torchptycho.live.sources import open_source
from torchptycho.models.checkpoints import load_network
from torchptycho.reconstructors.network_reconstruction import reconstruct


@pytest.mark.contract("live.swmr")
def test_a_file_is_watched_while_another_process_writes_it(single: Path, recorded: Path, tmp_path: Path) -> None:
    growing = tmp_path / "growing.cxi"
    with process("replay", recorded, "--swmr", growing, "--hz", "900", "--json") as writer:
        found = watched(growing, single, tmp_path / "live")
        printed, errors = writer.communicate(timeout=60)
    assert errors == ""
    assert json.loads(printed)["played"] == found.status.received == SIMULATION.n_frames
    assert found.status.state == "done"
    offline = reconstruct(single, growing, **OFFLINE)
    assert same(found.image, offline)
    np.testing.assert_allclose(
        read_scan(growing, ReadConfig(guess_probe=True)).positions_px, read_scan(recorded).positions_px, atol=1e-9
    )


@pytest.mark.contract("live.swmr")
def test_a_file_of_any_layout_is_watched_by_its_mapping(
    command: Command, single: Path, recorded: Path, tmp_path: Path
) -> None:
    scan = read_scan(recorded, frames=slice(None, 120))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"], file["y"], file["x"] = scan.frames[:], scan.positions_px[:, 0], scan.positions_px[:, 1]
    mapping = MappingConfig(frames="/data", positions_y="/y", positions_x="/x", positions_unit="px")
    prepare = PrepareConfig(mapping=mapping, flip_x=True)
    save_config(RunConfig(prepare=prepare), tmp_path / "x.yaml")
    answer = command(
        "watch",
        tmp_path / "x.h5",
        "--model",
        single,
        "--out",
        tmp_path / "live",
        "--config",
        tmp_path / "x.yaml",
        "--idle-s",
        "0.3",
        "--accelerator",
        "cpu",
        "--json",
    )
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert (told["state"], told["received"], told["left_out"]) == ("done", 120, {})
    whole = read_scan(tmp_path / "x.h5", ReadConfig(mapping=mapping, flip_x=True, guess_probe=True))
    assert same(read_reconstruction(tmp_path / "live" / "reconstruction.npz"), reconstruct(single, whole, **OFFLINE))


@pytest.mark.contract("live.own-source")
def test_a_source_of_ones_own_is_watched_and_its_fault_is_not_taken_for_the_end(
    single: Path, recorded: Path, tmp_path: Path
) -> None:
    scan = read_scan(recorded, frames=slice(None, 100))
    good, bad = InMemory(scan), InMemory(scan, fault_at=50)
    with pytest.raises(ZeroDivisionError):
        watched(bad, single, tmp_path / "live")
    assert json.loads((tmp_path / "live" / "status.json").read_text())["state"] == "failed"
    assert not (tmp_path / "live" / "reconstruction.npz").exists()
    assert received(tmp_path / "live") == bad.closed == 60
    found = watched(good, single, tmp_path / "live")
    assert same(found.image, reconstruct(single, scan, **OFFLINE))
    assert good.closed == 100


@pytest.mark.contract("live.own-source")
def test_a_fault_of_the_source_is_told_at_once(
    single: Path, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, after, inner = InMemory(read_scan(recorded), fault_at=600), [], LivePreview.add

    def add(self: LivePreview, *arguments: Any) -> None:
        until(lambda: source.closed >= 0)
        after.append(arguments)
        inner(self, *arguments)

    monkeypatch.setattr(LivePreview, "add", add)
    with pytest.raises(ZeroDivisionError):
        watched(source, single, tmp_path / "live")
    assert (len(after), source.closed) == (1, 600)


@pytest.mark.contract("live.ready")
def test_what_is_done_to_a_file_and_not_to_a_stream_is_told(
    command: Command, single: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = load_network(single)
    open_source("tcp://127.0.0.1:9", network, None).close(0)
    assert caplog.text == ""
    prepare = dataclasses.replace(network.config.prepare, crop_px=32, swap_xy=True)
    network.config = dataclasses.replace(network.config, prepare=prepare)
    open_source("tcp://127.0.0.1:9", network, None).close(0)
    assert "were read with swap_xy, crop_px; these options are not applied to a stream" in caplog.text
    open_source(tmp_path / "x.cxi", network, ReadConfig(frames=":5", drop_frames=(1,)))
    assert "frames is ignored while the scan grows" in caplog.text
    assert "drop_frames is ignored" in caplog.text
    save_config(RunConfig(prepare=PrepareConfig(flip_x=True)), tmp_path / "x.yaml")
    answer = command(
        "watch", "tcp://127.0.0.1:9", "--model", single, "--out", tmp_path / "none", "--config", tmp_path / "x.yaml"
    )
    assert (answer.code, "config: expected none for tcp://127.0.0.1:9" in answer.err) == (1, True), answer.err
    assert not (tmp_path / "none").exists()


@pytest.mark.contract("live.messages.answers")
def test_a_plain_request_is_answered(recorded: Path) -> None:
    import zmq

    where, enough = address(), threading.Event()
    with playing(recorded, where, 1e6, stop=enough), zmq.Context() as context, context.socket(zmq.REQ) as asking:
        asking.connect(where)
        asking.send(b'{"torchptycho": 1, "ask": "scan"}')
        told = json.loads(asking.recv())
        assert (told["n_px"], told["total"], told["positions_unit"]) == (32, 900, "px")
        time.sleep(0.01)
        asking.send(b'{"torchptycho": 1, "from": 0, "at_most": 3}')
        header, frames, positions = asking.recv_multipart()
        assert json.loads(header) == {"torchptycho": 1, "from": 0, "count": 3, "end": False, "scan": told["scan"]}
        scan = read_scan(recorded)
        assert frames == scan.frames[:3].astype(told["dtype"]).tobytes()
        assert positions == scan.positions_px[:3].astype("<f8").tobytes()
        asking.send(b"what?")
        assert "expected a request" in json.loads(asking.recv())["error"]
        enough.set()


@pytest.mark.contract("live.replay")
def test_what_cannot_be_played_is_refused(recorded: Path, tmp_path: Path) -> None:
    scan = simulate(dataclasses.replace(SIMULATION, n_frames=20))
    with pytest.raises(ScanError, match="energy, distance and detector pixel"):
        replay(scan, swmr=tmp_path / "x.cxi")
    two = dataclasses.replace(scan, scan_id=np.arange(20) // 10)
    with pytest.raises(ScanError, match="expected one scan"):
        replay(two, address=address())
    done = replay(dataclasses.replace(scan, geometry=LENGTHS), hz=1e5, swmr=tmp_path / "y.cxi")
    assert done == ReplayResult(frames=20, played=20, seconds=done.seconds)
    assert read_scan(tmp_path / "y.cxi").n_frames == 20


@pytest.mark.contract("live.replay.probe")
def test_replayed_file_keeps_the_probe_and_no_guess(recorded: Path, tmp_path: Path) -> None:
    scan = dataclasses.replace(simulate(dataclasses.replace(SIMULATION, n_frames=20, probe_modes=2)), geometry=LENGTHS)
    write_scan(scan, tmp_path / "scan.npz")
    for given in (scan, tmp_path / "scan.npz"):
        replay(given, hz=1e5, swmr=tmp_path / "growing.cxi", overwrite=True)
        np.testing.assert_array_equal(read_scan(tmp_path / "growing.cxi").probe, scan.probe)
    with np.load(tmp_path / "scan.npz") as arrays:
        np.savez(tmp_path / "bare.npz", **{name: arrays[name] for name in arrays if name != "probeGuess"})
    replay(tmp_path / "bare.npz", hz=1e5, swmr=tmp_path / "bare.cxi")
    with pytest.raises(ScanError, match="probe"):
        read_scan(tmp_path / "bare.cxi")
    replay(tmp_path / "bare.npz", hz=1e5, swmr=tmp_path / "guess.cxi", reading=ReadConfig(guess_probe=True))
    assert read_scan(tmp_path / "guess.cxi").probe.shape == (1, 32, 32)
