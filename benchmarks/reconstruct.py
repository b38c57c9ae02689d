"""Frames per second of `reconstruct`, end to end and by stage, and the whole command from its start.

    python benchmarks/reconstruct.py --n-px 64 128 256 --frames 1000 500 100 --threads 1 --out benchmarks/results

Each row is a generator and a frame size, on the CPU and, where there is one, on a GPU; networks are almost
untrained, which takes the same time. Stages:

- look through: checking, measuring and grouping the frames
- network: forward passes
- keep: patches to the file, or onto the canvas where phases need not agree
- phases: finding each group's phase
- place: patches from the file onto the canvas
- image: division, NPZ and PNG
- command: `torchptycho reconstruct`, a separate process, from its start to the image; its peak memory includes
  mapped files
- oracle: the network of tf_reference, that of `cnn` with gridsize 1 in every row, and its `reassemble_position`, in a
  separate process with as many threads. It processes a few of the frames, and its time is scaled. The comparison is of
  both programs from frames to image; the networks are equal only for `cnn`

With `--engine torch onnx aot` each row is repeated with the exported network; exporting is not included.

Writes reconstruct.csv.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COMMAND = "import sys; from torchptycho.cli.app import main; sys.exit(main(sys.argv[1:]))"


class StageTimer:
    """Seconds in calls, by the name of their stage."""

    def __init__(self, clock: Callable[[], float], wait: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._clock, self._wait = clock, wait

    def time_calls(self, owner: Any, name: str, stage: str) -> None:
        """Count the time of every call of a function or method."""
        inner = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            self._wait()
            begin = self._clock()
            try:
                return inner(*arguments, **options)
            finally:
                self._wait()
                self.seconds[stage] = self.seconds.get(stage, 0.0) + self._clock() - begin

        setattr(owner, name, timed)


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def measure_stages(
    checkpoint: str, scan: str, device: str, frames_per_batch: str, clock: str, engine: str
) -> dict[str, float]:
    """Seconds of the stages, of all of them, and of all but writing and drawing the image; imports do not count."""
    import torch

    from torchptycho.core.config import ReconstructConfig
    from torchptycho.data import inference_dataset
    from torchptycho.io import write_reconstruction
    from torchptycho.models.loading import open_network
    from torchptycho.reconstructors import network_reconstruction, phase_sync, stitcher
    from torchptycho.visualization.plot import plot_reconstruction

    network = open_network(checkpoint, engine, accelerator=device)  # type: ignore[arg-type]
    config = ReconstructConfig(
        predict_batch_size="auto" if frames_per_batch == "auto" else int(frames_per_batch),
        agree_phases=network.config.reconstruct.agree_phases,
    )
    now = CLOCKS[clock]
    watch = StageTimer(now, torch.cuda.synchronize if device == "gpu" else lambda: None)
    watch.time_calls(network, "forward", "network")
    watch.time_calls(stitcher.PatchStitcher, "add", "keep")
    watch.time_calls(phase_sync, "synchronize_phases", "phases")
    watch.time_calls(stitcher.PatchStitcher, "finish", "finish")
    watch.time_calls(inference_dataset.InferenceDataset, "from_scan", "look through")
    with tempfile.TemporaryDirectory() as folder:
        begin = now()
        image = network_reconstruction.reconstruct(
            network, scan, config, accelerator=device, progress=False, scratch=folder
        )
        pass_ = now() - begin
        write_reconstruction(image, Path(folder) / "image.npz")
        plot_reconstruction(image, Path(folder) / "image.png")
        whole = now() - begin
    found = dict(watch.seconds)
    finish = found.pop("finish")
    return {**found, "place": finish - found.get("phases", 0.0), "image": whole - pass_, "pass": pass_, "whole": whole}


def measure_oracle(n_px: int, few: int, frames: int, extent_px: int, threads: int, clock: str) -> dict[str, float]:
    """Seconds of the oracle for all frames, from a few. Runs in its own process."""
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    import tf_reference

    rng = np.random.default_rng(0)
    network = tf_reference.create_network(1, n_px)
    inputs = rng.random((few, n_px, n_px, 1), dtype=np.float32)
    places = rng.uniform(0, extent_px, (few, 1, 2, 1))
    places[0], places[1] = 0, extent_px
    times = {}
    for _ in range(2):
        begin = CLOCKS[clock]()
        objects = np.concatenate([network.predict(inputs[i : i + 32]) for i in range(0, few, 32)])
        middle = CLOCKS[clock]()
        tf_reference.reassemble_position(objects.astype(np.complex64), places, M=n_px // 2)
        times = {"network": middle - begin, "stitching": CLOCKS[clock]() - middle}
    return {name: seconds * frames / few for name, seconds in times.items()}


def run_in_process(option: str, *arguments: object) -> dict[str, float]:
    """What a function of this file finds in a process of its own; nothing where it fails."""
    command = [sys.executable, __file__, option, *(str(argument) for argument in arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        print(f"{option}: {answer.stderr.strip().splitlines()[-1] if answer.stderr else answer.returncode}")
        return {}
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def make_trained_network(generator: str, n_px: int, frames: int, folder: Path) -> tuple[Path, Path, int]:
    """A checkpoint after one step, a scan and the edge of its object."""
    from torchptycho.core.config import GroupConfig, ModelConfig, RunConfig, SimulateConfig, TrainConfig
    from torchptycho.data.simulation import simulate
    from torchptycho.io import write_scan
    from torchptycho.training.train import train

    edge = int(n_px + 6 * np.sqrt(frames) * n_px / 64)
    scan = simulate(SimulateConfig(n_px=n_px, object_px=edge, n_frames=frames))
    write_scan(scan, folder / "scan.npz")
    config = RunConfig(
        model=ModelConfig(generator=generator),
        group=GroupConfig(gridsize=1 if generator == "cnn" else 2),
        train=TrainConfig(steps=1, batch_size=4, accelerator="cpu", on_flat="warn"),
    )
    # On the scan itself: groups of a sparser one would make the canvases of all groups larger.
    return train(scan, config, folder / "run", progress=False).last, folder / "scan.npz", edge - n_px


def export_checkpoint(checkpoint: Path, scan: Path, engine: str, device: str, folder: Path) -> Path:
    """What the engine takes in the place of a checkpoint, with room for the groups of this scan."""
    if engine == "torch":
        return checkpoint
    from torchptycho.data.inference_dataset import InferenceDataset
    from torchptycho.io import read_scan
    from torchptycho.models.checkpoints import load_network
    from torchptycho.models.export.export import export_network

    network = load_network(checkpoint)
    stream = InferenceDataset.from_scan(
        read_scan(scan), folder, gridsize=network.gridsize, nphotons=None, training_scan=0
    )
    file = folder / f"network{'.onnx' if engine == 'onnx' else '.pt2'}"
    export_network(network.to("cuda" if device == "gpu" else "cpu"), file, max_offset_px=stream.max_offset_px)
    return file


def time_command(checkpoint: Path, scan: Path, device: str, folder: Path, clock: str, engine: str) -> dict[str, float]:
    """Seconds and peak memory of the command in a process of its own."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            COMMAND,
            "reconstruct",
            str(checkpoint),
            str(scan),
            "--out",
            str(folder / "image.npz"),
            "--accelerator",
            device,
            "--engine",
            engine,
        ],
        stdout=subprocess.DEVNULL,
    )
    # Of this child alone: `getrusage` has the largest of all that there were.
    _, process.returncode, used = os.wait4(process.pid, 0)
    if process.returncode:
        raise RuntimeError(f"the command ended with {process.returncode}")
    seconds = used.ru_utime + used.ru_stime if clock == "processor" else time.perf_counter() - begin
    return {"command": seconds, "peak": used.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", nargs="+", default=["pie_unet", "resunet", "cnn"])
    parser.add_argument("--n-px", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--frames", type=int, nargs="+", default=[1000, 500, 100], help="of each frame size")
    parser.add_argument("--oracle-frames", type=int, default=32)
    parser.add_argument("--batch", default="auto", help="frames per forward pass")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU, for both; 0 as the libraries choose")
    parser.add_argument("--engine", nargs="+", default=["torch"], choices=["torch", "onnx", "aot"])
    parser.add_argument("--no-oracle", action="store_true")
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall", help="processor: with one thread, while other programs run"
    )
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--stages", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--oracle", nargs=6, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stages:
        print(json.dumps(measure_stages(*given.stages)))
        return
    if given.oracle:
        *numbers, clock = given.oracle
        print(json.dumps(measure_oracle(*(int(number) for number in numbers), clock)))
        return
    if given.threads:
        os.environ["OMP_NUM_THREADS"] = str(given.threads)
    import torch

    table, oracles = [], dict[tuple[int, int], dict[str, float]]()
    for generator in given.generator:
        for n_px, frames in zip(given.n_px, given.frames, strict=True):
            if generator == "cnn" and n_px < 64:
                continue
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                checkpoint, scan, extent_px = make_trained_network(generator, n_px, frames, folder)
                if (n_px, frames) not in oracles and n_px >= 64 and not given.no_oracle:
                    oracles[n_px, frames] = run_in_process(
                        "--oracle",
                        n_px,
                        min(frames, given.oracle_frames),
                        frames,
                        extent_px,
                        given.threads,
                        given.clock,
                    )
                theirs = oracles.get((n_px, frames), {})
                devices = ["cpu", *(["gpu"] if torch.cuda.is_available() else [])]
                for device, engine in itertools.product(devices, given.engine):
                    file = export_checkpoint(checkpoint, scan, engine, device, folder)
                    found = run_in_process("--stages", file, scan, device, given.batch, given.clock, engine)
                    cold = time_command(file, scan, device, folder, given.clock, engine)
                    row: dict[str, Any] = {
                        "device": device,
                        "engine": engine,
                        "generator": generator,
                        "n_px": n_px,
                        "frames": frames,
                        "clock": given.clock,
                        "frames/s": round(frames / found["whole"], 1),
                        "frames/s, image not written": round(frames / found["pass"], 1),
                    }
                    for stage in ("look through", "network", "keep", "phases", "place", "image"):
                        row[f"{stage} (s)"] = round(found.get(stage, 0.0), 3)
                    row["command (s)"] = round(cold["command"], 2)
                    row["peak memory (MB)"] = round(cold["peak"])
                    row["oracle network (s)"] = round(theirs["network"], 2) if theirs else ""
                    row["oracle stitching (s)"] = round(theirs["stitching"], 2) if theirs else ""
                    row["times faster than the oracle"] = (
                        round(sum(theirs.values()) / found["pass"], 1) if theirs else ""
                    )
                    table.append(row)
                    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "reconstruct.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
