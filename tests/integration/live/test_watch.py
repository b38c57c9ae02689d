"""A watch receives every frame, and its final image is that of the finished scan."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_scans import (
    LENGTHS,
    OFFLINE,
    SIMULATION,
    InMemory,
    address,
    playing,
    same,
    watched,
)

from torchptycho.core.config import (
    SimulateConfig,
)
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import ArrayFrames
from torchptycho.data.simulation import simulate
from torchptycho.io import read_reconstruction, read_scan
from torchptycho.live.preview import LivePreview
from torchptycho.live.replay import make_layout
from torchptycho.live.status import WatchStatus
from torchptycho.models.checkpoints import load_network
from torchptycho.reconstructors.inference import predict_patches
from torchptycho.reconstructors.network_reconstruction import reconstruct


@pytest.mark.contract("live.nothing-lost")
@pytest.mark.contract("live.back-pressure")
@pytest.mark.contract("live.replay")
def test_ten_thousand_frames_above_the_sustained_rate(single: Path, tmp_path: Path) -> None:
    scan = simulate(dataclasses.replace(SIMULATION, n_frames=10_000, object_px=200))
    where = address()
    with playing(scan, where, 1e6) as told:
        found = watched(where, single, tmp_path / "live", spool_frames=600, refresh_s=0.5)
    status = found.status
    assert told["found"].played == status.received == status.reconstructed == status.expected == 10_000
    assert (status.state, status.backlog, status.left_out) == ("done", 0, {})
    # The bound was met, and never passed; then nothing was taken.
    assert status.largest_backlog == 600
    assert status.paused_s > 0
    assert status.longest_wait_s >= status.latest_wait_s > 0
    offline = reconstruct(single, scan, **OFFLINE)
    assert same(found.image, offline)
    assert same(read_reconstruction(tmp_path / "live" / "reconstruction.npz"), offline)


@pytest.mark.contract("live.groups")
@pytest.mark.contract("live.nothing-lost")
def test_frames_that_lack_a_group_wait_for_it_and_all_are_in_the_image_once(
    paired: Path, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, int]] = []
    inner = LivePreview.add

    def add(self: LivePreview, frames: Any, positions_px: Any, first: int, fresh: int = 0) -> None:
        taken.append((first + fresh, first + len(frames)))
        inner(self, frames, positions_px, first, fresh)

    monkeypatch.setattr(LivePreview, "add", add)
    # Frames that lack a group wait until the end, however slow this computer is.
    monkeypatch.setattr("torchptycho.live.watch_session._GROUP_TIMEOUT_S", 60.0)
    scan = read_scan(recorded, frames=slice(None, 303))
    where = address()
    with playing(scan, where, 2000):
        found = watched(where, paired, tmp_path / "live", refresh_s=0.2)
    assert same(found.image, reconstruct(paired, scan, **OFFLINE))
    # One after the other, nothing twice, and whole groups but for the last.
    assert [stop for _, stop in taken[:-1]] == [start for start, _ in taken[1:]]
    assert (taken[0][0], taken[-1][1]) == (0, 303)
    assert all((stop - start) % 4 == 0 for start, stop in taken[:-1])


@pytest.mark.contract("live.left-out")
def test_bad_frames_are_named_and_the_others_make_the_image(single: Path, recorded: Path, tmp_path: Path) -> None:
    whole = read_scan(recorded, frames=slice(None, 200))
    frames, positions_px = whole.frames[:].astype(np.float32), whole.positions_px.copy()
    frames[17, 3, 4], frames[40, 0, 0] = np.nan, -1
    positions_px[60] = np.inf
    bad = dataclasses.replace(whole, frames=ArrayFrames(frames), positions_px=positions_px)
    where = address()
    with playing(bad, where, 5000):
        found = watched(where, single, tmp_path / "live")
    named = {17: "NaN or infinity", 40: "negative values", 60: "its position is not a number"}
    assert found.status.left_out == named
    assert found.status.received == 200
    good = np.setdiff1d(np.arange(200), list(named))
    others = dataclasses.replace(
        whole, frames=ArrayFrames(frames[good]), positions_px=positions_px[good], scan_id=whole.scan_id[good]
    )
    assert same(found.image, reconstruct(single, others, **OFFLINE))


@pytest.mark.contract("live.status")
def test_status_and_pictures_are_whole_at_any_moment(single: Path, recorded: Path, tmp_path: Path) -> None:
    out, where, seen, ended = tmp_path / "live", address(), [], threading.Event()

    def look() -> None:
        while not ended.is_set():
            with contextlib.suppress(FileNotFoundError):
                seen.append(json.loads((out / "status.json").read_text()))
            if seen and seen[-1]["image"] is not None:
                assert (out / "amplitude.png").read_bytes().endswith(b"IEND\xaeB`\x82")
            time.sleep(0.005)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with playing(recorded, where, 900):
            found = watched(where, single, out, refresh_s=0.1, drop_spool=True)
    finally:
        ended.set()
        watcher.join()
    last = json.loads((out / "status.json").read_text())
    assert last == json.loads(json.dumps(dataclasses.asdict(found.status)))
    assert set(last) == {field.name for field in dataclasses.fields(WatchStatus)}
    order = ["waiting", "receiving", "finishing", "done"]
    states = [order.index(told["state"]) for told in seen]
    assert states == sorted(states)
    assert "receiving" in {told["state"] for told in seen}
    assert all(told["backlog"] == told["received"] - told["reconstructed"] >= 0 for told in seen)
    versions = [told["image"]["version"] for told in seen if told["image"]]
    assert versions == sorted(versions)
    assert len(set(versions)) > 1
    assert last["image"] == {
        "version": last["image"]["version"],
        "height_px": found.image.object.shape[0] if found.image else 0,
        "width_px": found.image.object.shape[1] if found.image else 0,
        "object_pixel_m": pytest.approx(LENGTHS.with_object_pixel(32).object_pixel_m),
        "provisional": False,
    }
    assert not (out / "spool").exists()


class Turns:
    """Random phases, others each time."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def random_phases(self, count: int) -> torch.Tensor:
        return 2 * torch.pi * torch.rand(count, generator=self._generator)


@pytest.mark.contract("live.provisional")
@pytest.mark.parametrize("kind", ["single", "paired"])
def test_the_image_on_the_way_is_that_of_the_frames_that_are_there(
    kind: str, request: pytest.FixtureRequest, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(network: Any, batch: Any, config: Any) -> Any:
        """Each group with a phase of its own, as diffraction leaves it."""
        patches = predict_patches(network, batch, config)
        return patches * torch.polar(torch.ones(len(patches)), turns.random_phases(len(patches)))[:, None, None, None]

    turns = Turns()
    if kind == "paired":
        monkeypatch.setattr("torchptycho.reconstructors.inference.predict_patches", turned)
    network = load_network(request.getfixturevalue(kind))
    scan = read_scan(recorded, frames=slice(None, 400))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with LivePreview(network, network.config.reconstruct, make_layout(scan), "here", torch.device("cpu")) as image:
        assert image.make_image() is None
        for start in range(0, 400, 80):
            image.add(scan.frames[start : start + 80], scan.positions_px[start : start + 80], start)
        found = image.make_image()
    assert found is not None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    final = reconstruct(network, scan, **OFFLINE)
    assert found.origin_px == final.origin_px
    np.testing.assert_allclose(found.coverage, final.coverage, atol=1e-6)
    if kind == "single":
        assert np.array_equal(found.object, final.object)
    else:
        # Groups are others, and phases are found from what was there; one phase is free.
        overlap = np.vdot(found.object, final.object)
        norms = np.linalg.norm(found.object) * np.linalg.norm(final.object)
        assert abs(overlap) / norms > 0.98


@pytest.mark.contract("live.left-out")
def test_frames_that_came_first_and_far_away_do_not_keep_the_others_out_of_the_final_image(
    single: Path, recorded: Path, tmp_path: Path
) -> None:
    scan = read_scan(recorded, frames=slice(None, 100))
    far = scan.positions_px.copy()
    far[:60, 0] += 8500
    odd = dataclasses.replace(scan, positions_px=far)
    found = watched(InMemory(odd), single, tmp_path / "live")
    assert found.status.left_out == {}
    assert same(found.image, reconstruct(single, odd, **OFFLINE))


@pytest.mark.contract("live.status")
def test_a_status_or_a_picture_that_cannot_be_written_is_written_the_next_time(
    single: Path, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out, inner, failed = tmp_path / "live", WatchStatus.write, []

    def write(self: WatchStatus, folder: Path) -> None:
        if len(failed) < 2:
            failed.append(self.state)
            raise OSError(116, "Stale file handle")
        inner(self, folder)

    def draw(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WatchStatus, "write", write)
    monkeypatch.setattr("torchptycho.live.status_reporter.write_live_images", draw)
    found = watched(InMemory(read_scan(recorded, frames=slice(None, 100))), single, out)
    assert (found.status.state, found.status.image, len(failed)) == ("done", None, 2)
    assert json.loads((out / "status.json").read_text())["state"] == "done"
    assert (out / "reconstruction.npz").is_file()
    assert [record.getMessage().split(":")[0] for record in caplog.records if "cannot be written" in record.msg] == [
        str(out / "status.json"),
        str(out / "amplitude.png"),
    ]


@pytest.mark.contract("live.fits")
def test_frames_that_the_network_was_not_trained_on_are_refused(single: Path, tmp_path: Path) -> None:
    scan = simulate(SimulateConfig(n_px=64, object_px=140, n_frames=20))
    where = address()
    with playing(scan, where, 1e5), pytest.raises(ScanError, match="expected 32x32 frames of counts"):
        watched(where, single, tmp_path / "live")
    assert json.loads((tmp_path / "live" / "status.json").read_text())["state"] == "failed"
