"""Scans that are reconstructed while they are recorded: from a stream, from a file that grows, killed and gone on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from tiny_run import Command

from torchptycho.core.config import (
    GroupConfig,
    MappingConfig,
    ModelConfig,
    PrepareConfig,
    ReadConfig,
    ReconstructConfig,
    RunConfig,
    SimulateConfig,
    TrainConfig,
    save_config,
)
from torchptycho.core.errors import ScanError, StoreError
from torchptycho.core.geometry import Geometry
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_reconstruction, read_scan, write_scan
from torchptycho.live import WatchResult, replay, status_reporter, watch, watch_session
from torchptycho.live.preview import LivePreview
from torchptycho.live.replay import ReplayResult, make_layout
from torchptycho.live.scan_header import Chunk, ScanLayout
from torchptycho.live.status import WatchStatus
from torchptycho.live.sources import open_source
from torchptycho.models.checkpoints import load_network
from torchptycho.reconstructors.inference import predict_patches
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.training.train import train

ROOT = Path(__file__).resolve().parents[2]
SIMULATION = SimulateConfig(n_px=32, object_px=120, n_frames=900, photons_per_frame=1e5)
LENGTHS = Geometry(energy_eV=8000.0, distance_m=1.0, detector_pixel_m=75e-6)
OFFLINE: dict[str, Any] = {"accelerator": "cpu", "progress": False}


def quick(folder: Path, gridsize: int, *, agree_phases: bool) -> Path:
    """A network that costs next to nothing."""
    config = RunConfig(
        group=GroupConfig(gridsize=gridsize),
        model=ModelConfig(generator="fast_generator:Quick"),
        train=TrainConfig(steps=1, batch_size=8, accelerator="cpu", on_flat="warn"),
        reconstruct=ReconstructConfig(agree_phases=agree_phases),
    )
    small = simulate(dataclasses.replace(SIMULATION, n_frames=64, object_px=80))
    return train(small, config, folder / "run", progress=False).checkpoint


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick(tmp_path_factory.mktemp("single"), 1, agree_phases=False)


@pytest.fixture(scope="session")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick(tmp_path_factory.mktemp("paired"), 2, agree_phases=True)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "scan.npz"
    write_scan(dataclasses.replace(simulate(SIMULATION), geometry=LENGTHS.with_object_pixel(32)), path)
    return path


def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@contextlib.contextmanager
def playing(scan: Scan | Path, where: str, hz: float, **more: Any) -> Iterator[dict[str, Any]]:
    """A replay beside what the block does, and what it found."""
    told: dict[str, Any] = {}
    stop = more.pop("stop", threading.Event())

    def play() -> None:
        told["found"] = replay(scan, hz=hz, address=where, stop=stop, **more)

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield told
        thread.join(5)
    finally:
        stop.set()
        thread.join()


def watched(source: Any, model: Path, out: Path, **more: Any) -> WatchResult:
    """A watch that does not wait for ever."""
    stop = threading.Event()
    timer = threading.Timer(60, stop.set)
    timer.start()
    try:
        return watch(source, model, out, accelerator="cpu", progress=False, stop=stop, **more)
    finally:
        timer.cancel()


def same(one: Reconstruction | None, other: Reconstruction) -> bool:
    assert one is not None
    assert one.spread is not None
    assert other.spread is not None
    return (
        np.array_equal(one.object, other.object)
        and np.array_equal(one.spread, other.spread)
        and np.array_equal(one.coverage, other.coverage)
        and one.origin_px == other.origin_px
    )


def until(ready: Callable[[], bool]) -> None:
    """Wait for something that comes."""
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.02)


def received(out: Path) -> int:
    """Whole frames in the spool of a watch, of 32x32 counts in 4 bytes or less."""
    file = out / "spool" / "positions.raw"
    return file.stat().st_size // 16 if file.exists() else 0


@contextlib.contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The command line in a process of its own."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    code = "import sys; from torchptycho.cli.app import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    try:
        yield done
    finally:
        if done.poll() is None:
            done.kill()
        done.communicate()


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
            killed.wait()
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
    np.testing.assert_allclose(read_scan(growing, guess_of()).positions_px, read_scan(recorded).positions_px, atol=1e-9)


def guess_of() -> ReadConfig:
    return ReadConfig(guess_probe=True)


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

    with exclusive_receiver(out), pytest.raises(StoreError, match="another watch at work"):
        watched(where, single, out)


class InMemory:
    """A source of one's own, which shows what is asked of one."""

    idle_s = None

    def __init__(
        self,
        scan: Scan,
        fault_at: int | None = None,
        end_at: int | None = None,
        name: str = "memory",
        answers: bool = True,
        **layout: Any,
    ) -> None:
        self.scan, self.fault_at, self.closed = scan, fault_at, -1
        self.end_at, self.name, self.answers = scan.n_frames if end_at is None else end_at, name, answers
        self.layout = dataclasses.replace(make_layout(scan), **layout)

    def describe(self) -> ScanLayout | None:
        return self.layout if self.answers else None

    def fetch(self, start: int, at_most: int) -> Chunk:
        if self.fault_at is not None and start >= self.fault_at:
            raise ZeroDivisionError("a fault of the source")
        stop = min(start + min(at_most, 30), self.end_at)
        return Chunk(
            frames=self.scan.frames[start:stop],
            positions_px=self.scan.positions_px[start:stop],
            end=stop == self.end_at,
        )

    def explain_wait(self) -> None:
        return None

    def close(self, received: int) -> None:
        self.closed = received


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
    missing = "40 of 100 expected frames did not come"
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
    assert "stopped when the image was already complete: it is written, and the spool is kept" in answer.out
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
    assert status.message == f"stopped before the first frame came: no answer from {where}"


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


@pytest.mark.contract("live.fits")
def test_frames_that_the_network_was_not_trained_on_are_refused(single: Path, tmp_path: Path) -> None:
    scan = simulate(SimulateConfig(n_px=64, object_px=140, n_frames=20))
    where = address()
    with playing(scan, where, 1e5), pytest.raises(ScanError, match="expected 32x32 frames of counts"):
        watched(where, single, tmp_path / "live")
    assert json.loads((tmp_path / "live" / "status.json").read_text())["state"] == "failed"


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


@pytest.mark.contract("live.command")
def test_the_commands_tell_what_they_did(command: Command, single: Path, recorded: Path, tmp_path: Path) -> None:
    where = address()
    with playing(recorded, where, 1e5):
        answer = command(
            "watch",
            where,
            "--model",
            single,
            "--out",
            tmp_path / "live",
            "--page",
            "--page-port",
            "0",
            "--accelerator",
            "cpu",
            "--refresh-s",
            "20",
        )
    assert answer.code == 0, answer.err
    assert "http://127.0.0.1:" in answer.err
    assert "reconstruction.npz" in answer.out
    assert "from 900 frames" in answer.out
    for name in ("reconstruction.npz", "reconstruction.png", "status.json", "amplitude.png", "spool/spool.json"):
        assert (tmp_path / "live" / name).is_file()
    # By it the page knows when to expect the next word.
    assert json.loads((tmp_path / "live" / "status.json").read_text())["refresh_s"] == 20
    assert "status.refresh_s" in (ROOT / "torchptycho" / "live" / "page.html").read_text(encoding="utf-8")
    answer = command(
        "watch",
        where,
        "--model",
        single,
        "--out",
        tmp_path / "live",
        "--frames",
        "901",
        "--idle-s",
        "0.2",
        "--accelerator",
        "cpu",
    )
    assert answer.out.endswith("; 1 of 901 expected frames did not come\n"), answer.out
    for wrong, words in (
        (["--spool-frames", "3"], "spool_frames: expected at least 16"),
        (["--refresh-s", "0"], "refresh_s: expected 0.05"),
        (["--page-port", "99999"], "--page-port: expected 0 to 65535"),
    ):
        answer = command("watch", where, "--model", single, "--out", tmp_path / "none", *wrong)
        assert (answer.code, words in answer.err) == (1, True), answer.err
        assert not (tmp_path / "none").exists()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answer = command(
            "watch",
            where,
            "--model",
            single,
            "--out",
            tmp_path / "none",
            "--page",
            "--page-port",
            str(taken.getsockname()[1]),
        )
    assert (answer.code, "is in use" in answer.err) == (1, True), answer.err
    assert not (tmp_path / "none").exists()
    answer = command("watch", where, "--model", single, "--out", recorded)
    assert (answer.code, "out: expected a folder" in answer.err) == (1, True), answer.err
    for source, words in (
        ("http://x", "expected an HDF5 file, or an address"),
        ("tcp:/127.0.0.1:5555", "expected an HDF5 file, or an address"),
        ("tcp://127.0.0.1:70000", "expected a port from 1 to 65535; found 70000"),
    ):
        answer = command("watch", source, "--model", single, "--out", tmp_path / "none")
        assert (answer.code, words in answer.err) == (1, True), answer.err
    answer = command("watch", where, "--model", single, "--out", "/dev/null/live")
    assert (answer.code, "out: expected a folder that can be created; found /dev/null/live" in answer.err) == (1, True)
    answer = command("replay", recorded, "--hz", "0")
    assert "--hz: expected frames per second" in answer.err
    answer = command("replay", recorded, "--swmr", tmp_path / "none" / "x.cxi")
    assert (answer.code, "--swmr: expected a file in a folder that can be written to" in answer.err) == (1, True)
    answer = command("replay", recorded, "--address", "tcp://nowhere")
    assert "--address: expected one that is free" in answer.err


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
    assert read_scan(tmp_path / "y.cxi", guess_of()).n_frames == 20
