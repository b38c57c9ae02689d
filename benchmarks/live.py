"""Frames per second of a watch: to disk only, and through the network, compared with a plain write of the same bytes.

    python benchmarks/live.py --n-px 64 128 --frames 2000 500 --received 32000 8000 --out benchmarks/results

For each frame size, a separate process replays a scan as fast as it is fetched, over ZeroMQ on this computer:

- plain write: the bytes of the frames into one file, 8 MiB at a time, and into one that is then synced to disk
- received: into the spool, without a network; `of plain` is the ratio to the speed of the plain write
- sustained: received, through the network and to the canvas, with an image every two seconds; the source waits, so that
  this is the rate of the network
- final image: seconds of the following pass over all frames

Networks are almost untrained, which takes the same time. Writes live.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

COMMAND = "import sys; from torchptycho.cli.app import main; sys.exit(main(sys.argv[1:]))"
CHUNK_BYTES = 8 << 20


def time_plain_write(frames: np.ndarray, folder: Path, *, sync: bool) -> float:
    """Seconds."""
    flat = frames.reshape(-1).view(np.uint8)
    begin = time.perf_counter()
    with (folder / "plain.raw").open("wb", buffering=0) as file:
        for start in range(0, len(flat), CHUNK_BYTES):
            file.write(flat[start : start + CHUNK_BYTES].data)
        if sync:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    (folder / "plain.raw").unlink()
    return seconds


def start_replay(scan: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A process that plays a scan as fast as it is fetched, and where."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-c", COMMAND, "replay", str(scan), "--hz", "1e9", "--address", address]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL), address


def time_receiving(scan: Path, frames: int, folder: Path) -> float:
    """Seconds from the first frame to the last, into the spool alone."""
    from torchptycho.live.receiver import Receiver
    from torchptycho.live.zmq_source import StreamSource

    process, address = start_replay(scan)
    with Receiver(StreamSource(address), folder / "alone", 2 * frames, None, None) as receiver:
        first = 0.0
        while not receiver.ended:
            with receiver.changed:
                receiver.changed.wait(1)
            if not first and receiver.spool is not None:
                first = time.perf_counter()
        seconds = time.perf_counter() - first
    process.wait()
    receiver.raise_if_failed()
    assert receiver.spool is not None
    assert receiver.spool.count == frames
    receiver.spool.drop()
    return seconds


def time_reconstruction(scan: Path, checkpoint: Path, folder: Path, accelerator: str) -> dict[str, float]:
    """Seconds from the first frame until the last is in the image, and of the final image."""
    from torchptycho.live import watch
    from torchptycho.live.status_reporter import StatusReporter

    times: dict[str, float] = {}
    inner = StatusReporter.report

    def record_state(self: Any, state: Any, *more: Any) -> None:
        times.setdefault(state, time.perf_counter())
        inner(self, state, *more)

    StatusReporter.report = record_state  # type: ignore[method-assign, assignment]
    process, address = start_replay(scan)
    try:
        found = watch(
            address,
            checkpoint,
            folder / "live",
            spool_frames=256,
            accelerator=accelerator,
            progress=False,
            drop_spool=True,
            stop=threading.Event(),
        )
    finally:
        StatusReporter.report = inner  # type: ignore[method-assign]
    process.wait()
    return {
        "whole": times["finishing"] - times["receiving"],
        "final": times["done"] - times["finishing"],
        "paused": found.status.paused_s,
        "wait": found.status.longest_wait_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-px", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--frames", type=int, nargs="+", default=[2000, 500], help="that go through the network")
    parser.add_argument("--received", type=int, nargs="+", default=[32000, 8000], help="that go to the disk alone")
    parser.add_argument("--generator", default="pie_unet")
    parser.add_argument("--gridsize", type=int, default=2)
    parser.add_argument("--out", default="benchmarks/results")
    given = parser.parse_args()
    import torch

    from torchptycho.core.config import GroupConfig, ModelConfig, RunConfig, SimulateConfig, TrainConfig
    from torchptycho.core.scan import ArrayFrames
    from torchptycho.data.simulation import simulate
    from torchptycho.io import write_scan
    from torchptycho.training.train import train

    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    table = []
    for n_px, frames, many in zip(given.n_px, given.frames, given.received, strict=True):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            edge = int(n_px + 6 * np.sqrt(frames) * n_px / 64)
            scan = simulate(SimulateConfig(n_px=n_px, object_px=edge, n_frames=frames))
            write_scan(scan, folder / "scan.npz")
            config = RunConfig(
                model=ModelConfig(generator=given.generator),
                group=GroupConfig(gridsize=given.gridsize),
                train=TrainConfig(steps=1, batch_size=4, accelerator="cpu", on_flat="warn"),
            )
            few = simulate(SimulateConfig(n_px=n_px, object_px=2 * n_px, n_frames=8))
            checkpoint = train(few, config, folder / "run", progress=False).last
            stack = np.random.default_rng(0).poisson(3, (many, n_px, n_px)).astype(np.uint16)
            where = np.random.default_rng(1).uniform(0, 500, (many, 2))
            write_scan(
                dataclasses.replace(
                    scan, frames=ArrayFrames(stack), positions_px=where, scan_id=np.zeros(many, np.int64), truth=None
                ),
                folder / "many.npz",
            )
            plain = min(time_plain_write(stack, folder, sync=False) for _ in range(3))
            synced = min(time_plain_write(stack, folder, sync=True) for _ in range(3))
            alone = time_receiving(folder / "many.npz", many, folder)
            whole = time_reconstruction(folder / "scan.npz", checkpoint, folder, accelerator)
            row = {
                "device": accelerator,
                "generator": given.generator,
                "gridsize": given.gridsize,
                "n_px": n_px,
                "frames": frames,
                "frames received": many,
                "MB received": round(stack.nbytes / 1e6),
                "plain write (frames/s)": round(many / plain),
                "plain write, to the disk (frames/s)": round(many / synced),
                "received (frames/s)": round(many / alone),
                "of plain": round(plain / alone, 3),
                "of plain, to the disk": round(synced / alone, 3),
                "sustained (frames/s)": round(frames / whole["whole"], 1),
                "final image (s)": round(whole["final"], 2),
                "source held back (s)": round(whole["paused"], 2),
                "longest wait (s)": round(whole["wait"], 2),
            }
            table.append(row)
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "live.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
