"""Replays, watches and sources that the tests of live reconstruction share."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from programs import Program

from torchptycho.core.config import (
    SimulateConfig,
)
from torchptycho.core.geometry import Geometry
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.live import WatchResult, replay, watch
from torchptycho.live.replay import make_layout
from torchptycho.live.scan_header import Chunk, ScanLayout

ROOT = Path(__file__).resolve().parents[3]


SIMULATION = SimulateConfig(n_px=32, object_px=120, n_frames=900, photons_per_frame=1e5)


LENGTHS = Geometry(energy_eV=8000.0, distance_m=1.0, detector_pixel_m=75e-6)


OFFLINE: dict[str, Any] = {"accelerator": "cpu", "progress": False}


def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@contextlib.contextmanager
def playing(scan: Scan | Path, where: str, hz: float, **more: Any) -> Iterator[dict[str, Any]]:
    """Replay a scan in a thread while the block runs; yield a dictionary that gets its result."""
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
    """Watch a source, for at most 60 s."""
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
    """Wait until a condition holds, for at most 60 s."""
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.02)


def received(out: Path) -> int:
    """Count the frames in the spool of a watch."""
    file = out / "spool" / "positions.raw"
    return file.stat().st_size // 16 if file.exists() else 0


@contextlib.contextmanager
def process(*arguments: object) -> Iterator[Program]:
    """Run the command line in another process; kill it when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        program = Program(*arguments, folder=Path(folder))
        try:
            yield program
        finally:
            program.end()


class InMemory:
    """A source of the frames of a scan in memory, with faults on request."""

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
