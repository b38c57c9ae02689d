"""Detectors that push their frames, positions from elsewhere, and folders that fill, watched to the final image."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from live_scans import OFFLINE, ROOT, InMemory, address, received, until, watched
from tiny_run import Command

from torchptycho.core.config import PrepareConfig, ReadConfig, RunConfig, save_config
from torchptycho.core.errors import ConfigError, StoreError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.io import read_reconstruction, read_scan
from torchptycho.live import watch
from torchptycho.live.beamline.folder import FrameFolder
from torchptycho.live.beamline.joined_source import JoinedSource
from torchptycho.live.beamline.joining import JoinConfig
from torchptycho.live.sources import BeamlineConfig, open_source
from torchptycho.live.spool import LOST
from torchptycho.models.checkpoints import load_network
from torchptycho.reconstructors.network_reconstruction import reconstruct

pytest.importorskip("cbor2")

N = 64
# The detector is larger than the frames, and the beam is not in its middle.
SHAPE, CENTER = (40, 44), (18, 25)
READING = ReadConfig(crop_px=32, beam_center_px=(18.0, 25.0), flip_y=True)


def load_simulated_detector() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulated_detector", ROOT / "examples" / "simulated_detector.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SIMULATED = load_simulated_detector()


@pytest.fixture(scope="module")
def scan(recorded: Path) -> Scan:
    return read_scan(recorded, frames=slice(None, N))


def make_images(scan: Scan) -> np.ndarray:
    """The frames of a scan on a larger detector, with a gap that holds a code."""
    top, left = CENTER[0] - 16, CENTER[1] - 16
    images = np.zeros((scan.n_frames, *SHAPE), np.uint32)
    images[:, top : top + 32, left : left + 32] = scan.frames[: scan.n_frames]
    images[:, top + 3] = 2**32 - 1
    return images


def make_bad_pixels() -> np.ndarray:
    bad = np.zeros(SHAPE, bool)
    bad[CENTER[0] + 5, CENTER[1] + 6] = True
    return bad


def make_settings(scan: Scan) -> dict[str, float]:
    lengths = (scan.geometry.energy_eV, scan.geometry.distance_m, scan.geometry.detector_pixel_m)
    return dict(zip(("photon_energy", "detector_distance", "x_pixel_size"), map(float, lengths), strict=True))


def write_positions(path: Path, scan: Scan, rows: Any) -> None:
    """Append the positions of some frames in metres, with y as the motor has it."""
    unit_m = float(scan.geometry.with_object_pixel(32).object_pixel_m or 0)
    new = not path.exists()
    with path.open("a") as file:
        file.write("trigger,y,x\n" if new else "")
        for row in rows:
            y, x = (float(value) for value in scan.positions_px[row] * unit_m)
            file.write(f"{row + 1},{-y!r},{x!r}\n")


@contextlib.contextmanager
def pushing(messages: list[list[bytes]], where: str, **more: Any) -> Iterator[None]:
    sender = threading.Thread(target=SIMULATED.push, args=(iter(messages), where), kwargs={"hz": 1e4, **more})
    sender.start()
    try:
        yield
    finally:
        sender.join()


def expect(single: Path, scan: Scan, keep: list[int]) -> Reconstruction:
    mask = scan.mask.copy()
    mask[3, :] = False
    mask[21, 22] = False
    kept = np.array(keep)
    whole = dataclasses.replace(
        scan,
        frames=ArrayFrames(np.asarray(scan.frames[: scan.n_frames])[kept].astype(np.uint32)),
        positions_px=scan.positions_px[kept],
        scan_id=np.zeros(len(kept), np.int64),
        mask=mask,
    )
    return reconstruct(single, whole, **OFFLINE)


def assert_alike(found: Reconstruction | None, expected: Reconstruction) -> None:
    assert found is not None
    np.testing.assert_allclose(found.coverage, expected.coverage, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.object, expected.object, rtol=1e-3, atol=1e-3)


def join(path: Path | str, **more: Any) -> BeamlineConfig:
    return BeamlineConfig(positions_from=str(path), join=JoinConfig(first_index=1, **more))


@pytest.mark.contract("live.detector.image")
@pytest.mark.parametrize("version", [1, 2])
def test_a_pushed_scan_with_late_positions_gives_the_image_of_the_finished_scan(
    version: int, single: Path, scan: Scan, tmp_path: Path
) -> None:
    make = SIMULATED.make_messages_v1 if version == 1 else SIMULATED.make_messages_v2
    messages = list(make(make_images(scan), make_bad_pixels(), make_settings(scan), "bslz4"))
    where, motors = address(), tmp_path / "motors.csv"
    late = threading.Timer(0.7, write_positions, (motors, scan, range(20, N)))
    write_positions(motors, scan, range(20))
    late.start()
    with pushing(messages, where):
        found = watched(
            where.replace("tcp", f"dectris-v{version}"),
            single,
            tmp_path / "live",
            reading=READING,
            beamline=join(motors),
        )
    assert (found.status.received, found.status.expected, found.status.lost) == (N, N, 0)
    assert found.status.left_out == {}
    assert_alike(found.image, expect(single, scan, list(range(N))))


@pytest.mark.contract("live.detector.lost")
def test_lost_frames_and_frames_without_position_are_named_and_the_exit_code_says_so(
    command: Command, single: Path, scan: Scan, tmp_path: Path
) -> None:
    messages = list(SIMULATED.make_messages_v2(make_images(scan), make_bad_pixels(), make_settings(scan), "lz4"))
    where, motors = address(), tmp_path / "motors.csv"
    write_positions(motors, scan, [row for row in range(N) if row != 11])
    save_config(RunConfig(prepare=PrepareConfig(**dataclasses.asdict(READING))), tmp_path / "reading.yaml")
    with pushing(messages, where, drop=10):
        answer = command(
            "watch", where.replace("tcp", "dectris-v2"), "--model", single, "--out", tmp_path / "live",
            "--config", tmp_path / "reading.yaml", "--positions-from", motors, "--positions-first-index", "1",
            "--positions-wait-s", "0.3", "--accelerator", "cpu", "--json",
        )  # fmt: skip
    lost = list(range(9, N, 10))
    assert answer.code == 3, answer.err
    assert f"found that {len(lost)} were lost" in answer.err
    told = json.loads(answer.out)
    assert told["lost"] == len(lost)
    assert told["unused_positions"] == len(lost)
    reasons = {str(row): LOST for row in lost} | {"11": "no position for index 12"}
    assert told["left_out"] == dict(sorted(reasons.items(), key=lambda item: int(item[0])))
    assert f"{len(lost)} frames were lost on their way here" in told["message"]
    keep = [row for row in range(N) if str(row) not in reasons]
    assert_alike(read_reconstruction(tmp_path / "live" / "reconstruction.npz"), expect(single, scan, keep))


@pytest.mark.contract("live.detector.series")
def test_a_series_that_begins_before_the_end_of_another_ends_it(single: Path, scan: Scan, tmp_path: Path) -> None:
    parts = (make_images(scan), make_bad_pixels(), make_settings(scan), "bslz4")
    first = list(SIMULATED.make_messages_v1(*parts, series=7))
    second = list(SIMULATED.make_messages_v1(*parts, series=8))
    where, motors = address(), tmp_path / "motors.csv"
    write_positions(motors, scan, range(N))
    # Frames of a series whose header was not received are ignored.
    messages = [first[-1], *second[3:5], *first[:40], *second[:2]]
    with pushing(messages, where):
        found = watched(
            where.replace("tcp", "dectris-v1"),
            single,
            tmp_path / "live",
            reading=READING,
            beamline=join(motors, wait_s=0.3),
        )
    assert found.status.received == 39
    assert found.status.message is not None
    assert "series 8 has begun before the end of series 7" in found.status.message
    assert f"{N - 39} of {N} expected frames did not arrive" in found.status.message


@pytest.mark.contract("live.detector.resume")
def test_a_watch_that_was_killed_in_the_middle_of_a_series_continues_it(
    single: Path, scan: Scan, tmp_path: Path
) -> None:
    messages = list(SIMULATED.make_messages_v2(make_images(scan), make_bad_pixels(), make_settings(scan), "bslz4"))
    where, motors, out = address(), tmp_path / "motors.csv", tmp_path / "live"
    write_positions(motors, scan, range(N))
    stop = threading.Event()
    source = where.replace("tcp", "dectris-v2")
    with pushing(messages[:31], where):
        watching = threading.Thread(
            target=watch, args=(source, single, out),
            kwargs={**OFFLINE, "stop": stop, "reading": READING, "beamline": join(motors)},
        )  # fmt: skip
        watching.start()
        until(lambda: received(out) >= 30)
        stop.set()
        watching.join()
    # The detector goes on, and some frames are lost.
    with pushing(messages[35:], where):
        found = watched(source, single, out, reading=READING, beamline=join(motors, wait_s=0.3))
    header = (out / "series.json").read_bytes()
    other = list(
        SIMULATED.make_messages_v2(make_images(scan), make_bad_pixels(), make_settings(scan), "none", series=9)
    )
    with pushing(other[:12], where), pytest.raises(StoreError, match="It is another scan"):
        watched(source, single, out, reading=READING, beamline=join(motors))
    assert (out / "series.json").read_bytes() == header
    assert (found.status.received, found.status.lost) == (N, 4)
    assert set(found.status.left_out) == {30, 31, 32, 33}
    assert_alike(found.image, expect(single, scan, [row for row in range(N) if row not in found.status.left_out]))


@pytest.mark.contract("live.detector.options")
def test_options_of_detectors_belong_to_detectors(single: Path, tmp_path: Path) -> None:
    network = load_network(single)

    def refuse(name: str, words: str, reading: ReadConfig | None = None, **more: Any) -> None:
        with pytest.raises(ConfigError, match=words):
            open_source(name, network, reading, beamline=BeamlineConfig(**more))

    refuse("dectris-v1://127.0.0.1:9", "expected the positions of the frames.*--positions-from")
    refuse("tcp://127.0.0.1:9", "has positions of its own", positions_from="x.csv")
    refuse("scan.cxi", "has positions of its own", positions_from="x.csv")
    refuse("scan.cxi", "expected a stream dectris-v2://, which --channel is for", channel="threshold_1")
    refuse("dectris-v3://x", r"known: tcp, ipc, dectris-v1, dectris-v2")
    for options in ({"beam_center_px": "estimated"}, {"raster_step_px": (1.0, 1.0)}):
        refuse("dectris-v1://127.0.0.1:9", "beam_center_px|--positions-from", ReadConfig(**options), positions_from="x")


@pytest.mark.contract("live.folder.image")
def test_a_folder_that_fills_is_watched(single: Path, scan: Scan, tmp_path: Path) -> None:
    folder, motors = tmp_path / "raw", tmp_path / "motors.csv"
    folder.mkdir()
    images = make_images(scan)
    write_positions(motors, scan, range(N))

    def fill() -> None:
        # The second file of each pair first, and the first in two parts.
        for row in [pair ^ 1 for pair in range(N)]:
            path = folder / f"s2_{row + 100:05d}.tif"
            tifffile.imwrite(path, images[row])
            if row == 6:
                content = path.read_bytes()
                path.write_bytes(content[: len(content) // 2])
                time.sleep(0.1)
                path.write_bytes(content)

    filling = threading.Thread(target=fill)
    filling.start()
    reading = dataclasses.replace(READING, energy_eV=8000.0, distance_m=1.0, detector_pixel_m=75e-6)
    found = watched(f"{folder}/s2_*.tif", single, tmp_path / "live", reading=reading, beamline=join(motors), frames=N)
    filling.join()
    assert (found.status.received, found.status.left_out) == (N, {})
    mask = scan.mask.copy()
    mask[3] = False
    whole = dataclasses.replace(scan, mask=mask)
    assert_alike(found.image, reconstruct(single, whole, **OFFLINE))


@pytest.mark.contract("live.detector.entry-points")
def test_sources_of_other_packages_are_opened_by_their_scheme(
    single: Path, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, opened = load_network(single), []

    def open_memory(address: str) -> InMemory:
        opened.append(address)
        return InMemory(scan)

    class Counting(FrameFolder):
        pass

    def open_camera(address: str) -> Counting:
        opened.append(address)
        return Counting("raw/a_*.tif")

    points = [
        SimpleNamespace(name=name, load=lambda made=made: made)
        for name, made in (("memory", open_memory), ("camera", open_camera))
    ]
    monkeypatch.setattr("torchptycho.live.sources.entry_points", lambda group: points)
    found = open_source("memory://a", network, None)
    assert isinstance(found, InMemory)
    joined = open_source("camera://b", network, None, beamline=BeamlineConfig(positions_from="motors.csv"))
    assert isinstance(joined, JoinedSource)
    assert opened == ["memory://a", "camera://b"]
    with pytest.raises(ConfigError, match="known: tcp, ipc, dectris-v1, dectris-v2, memory, camera"):
        open_source("other://c", network, None)
    with pytest.raises(ConfigError, match="has positions of its own"):
        open_source("memory://a", network, None, beamline=BeamlineConfig(positions_from="motors.csv"))
