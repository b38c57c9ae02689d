"""Frames of a detector that does not wait: received, lost, and seconds from the last frame to the final image.

    python benchmarks/detectors.py --frames 10000 --hz 1000 --versions 1 2 --out benchmarks/results

For each version of the DECTRIS stream, a separate process (examples/simulated_detector.py) pushes frames of 128 x 128
in 16 bits, compressed by bslz4, on this computer. A watch joins them with the positions of a CSV file, crops them to
64 x 64 and reconstructs them with an almost untrained network, which takes the same time as a trained one. The frame
rate is above what the network sustains, so that frames wait on the disk. Writes detectors.csv.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import socket
import sys
import tempfile
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RECORDED, N_PX = 128, 64


def push_frames(frames: np.ndarray, version: int, port: int, hz: float, ready: Event, result: Any) -> None:
    """Compress all frames, then push them; put the number sent, its seconds and the time of the last into a queue."""
    sys.path.insert(0, str(ROOT / "examples"))
    import simulated_detector as simulated

    settings = {"photon_energy": 8000.0, "detector_distance": 1.0, "x_pixel_size": 75e-6}
    make = simulated.make_messages_v1 if version == 1 else simulated.make_messages_v2
    messages = list(make(frames, np.zeros(frames.shape[1:], bool), settings, "bslz4"))
    ready.set()
    began = time.time()
    sent = simulated.push(iter(messages), f"tcp://127.0.0.1:{port}", hz)
    result.put((sent, time.time() - began, time.time()))


def measure(frames: np.ndarray, positions_m: np.ndarray, checkpoint: Path, version: int, hz: float) -> dict[str, Any]:
    """Watch one series; return what is known about it."""
    from torchptycho.core.config import ReadConfig
    from torchptycho.live import watch
    from torchptycho.live.sources import BeamlineConfig

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ready, result = context.Event(), context.Queue()
    sender = context.Process(target=push_frames, args=(frames, version, port, hz, ready, result))
    sender.start()
    ready.wait()
    with tempfile.TemporaryDirectory() as name:
        motors = Path(name) / "motors.csv"
        lines = (f"{i},{float(y)!r},{float(x)!r}\n" for i, (y, x) in enumerate(positions_m))
        motors.write_text("index,y,x\n" + "".join(lines), encoding="utf-8")
        found = watch(
            f"dectris-v{version}://127.0.0.1:{port}",
            checkpoint,
            Path(name) / "live",
            progress=False,
            reading=ReadConfig(crop_px=N_PX),
            beamline=BeamlineConfig(positions_from=str(motors)),
            stop=threading.Event(),
        )
        ended = time.time()
    sent, sending_s, last_at = result.get()
    sender.join()
    status = found.status
    return {
        "version": version,
        "frames sent": sent,
        "sent (frames/s)": round(sent / sending_s),
        "received": status.received,
        "lost": status.lost,
        "left out": len(status.left_out),
        "largest backlog (frames)": status.largest_backlog,
        "longest wait (s)": round(status.longest_wait_s, 2),
        "last frame to final image (s)": round(ended - last_at, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--hz", type=float, default=1000.0)
    parser.add_argument("--versions", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--generator", default="pie_unet")
    parser.add_argument("--out", default="benchmarks/results")
    given = parser.parse_args()
    from torchptycho.core.config import GroupConfig, ModelConfig, RunConfig, SimulateConfig, TrainConfig
    from torchptycho.data.simulation import simulate
    from torchptycho.training.train import train

    different = 1000
    scan = simulate(SimulateConfig(n_px=N_PX, object_px=6 * N_PX, n_frames=different))
    frames = np.zeros((different, RECORDED, RECORDED), np.uint16)
    inner = slice((RECORDED - N_PX) // 2, (RECORDED + N_PX) // 2)
    frames[:, inner, inner] = np.minimum(np.asarray(scan.frames[:different]), 60_000)
    rows = np.arange(given.frames) % different
    # The object pixel of 64 pixels of 75 um at 1 m and 8 keV.
    positions_m = scan.positions_px[rows] * (1.2398419843320026e-6 / 8000.0 / (N_PX * 75e-6))
    table = []
    with tempfile.TemporaryDirectory() as name:
        config = RunConfig(
            model=ModelConfig(generator=given.generator),
            group=GroupConfig(gridsize=1),
            train=TrainConfig(steps=1, batch_size=4, accelerator="cpu", on_flat="warn"),
        )
        few = simulate(SimulateConfig(n_px=N_PX, object_px=2 * N_PX, n_frames=8))
        checkpoint = train(few, config, Path(name) / "run", progress=False).last
        for version in given.versions:
            row = measure(frames[rows], positions_m, checkpoint, version, given.hz)
            table.append(row)
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "detectors.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
