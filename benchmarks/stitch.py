"""Time of stitching, compared with the oracle and with a memory copy of the same bytes, in one run.

    python benchmarks/stitch.py --patches 1000 10000 --n-px 64 128 --threads 1 --out benchmarks/results

Patches of N x N pixels are placed at random on a square of 1.2 N * sqrt(patches) / 10 pixels. Rows are a size with and
without spread, on the CPU and, where there is one, on a GPU. `copy` copies the patches once (8 bytes read and 8 written
per pixel), `bound` is the number of bytes that stitching must move at least (patches in, sums in and out), divided by
the bandwidth of that copy. The oracle's `reassemble_position` takes time in proportion to its patches, so it processes
a few of them, at the corners of the scan and between, and its time is scaled; so is ours beyond 500 patches, which are
added repeatedly. Medians over the repetitions. Writes stitch.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DISTINCT = 500


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def measure_median_s(
    run: Callable[[], Any], repetitions: int, clock: str, wait: Callable[[], None] = lambda: None
) -> float:
    """Median time of a call in seconds, after one that does not count."""
    run()
    times = []
    for _ in range(repetitions):
        wait()
        start = CLOCKS[clock]()
        run()
        wait()
        times.append(CLOCKS[clock]() - start)
    return statistics.median(times)


def compute_extent_px(patches: int, n_px: int) -> float:
    """Edge of the square in which the positions lie."""
    return 1.2 * n_px * math.sqrt(patches) / 10


def measure_canvas(patches: int, n_px: int, device: str, repetitions: int, clock: str) -> list[dict[str, float]]:
    """Seconds of the canvas with and without spread, and of the copy."""
    import torch

    from torchptycho.reconstructors.canvas import Canvas

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    generator = torch.Generator().manual_seed(0)
    distinct = min(patches, DISTINCT)
    values = torch.randn(distinct, n_px, n_px, dtype=torch.complex64, generator=generator).to(device)
    places = (torch.rand(distinct, 2, dtype=torch.float64, generator=generator) * compute_extent_px(patches, n_px)).to(
        device
    )
    weight = torch.rand(n_px, n_px, generator=generator).to(device)
    target = torch.empty_like(values)
    times = patches / distinct
    copy = measure_median_s(lambda: target.copy_(values), repetitions, clock, wait) * times
    bandwidth = 2 * values.nbytes * times / copy
    rows = []
    for spread in (False, True):
        canvas = Canvas.for_positions(places.cpu(), n_px, device, with_spread=spread)

        def add(canvas: Canvas = canvas) -> None:
            canvas.add(values, places, weight)

        found = measure_median_s(add, repetitions, clock, wait) * times
        # Patches, and sums in float64 (three numbers, four with the spread) in and out.
        least = patches * n_px**2 * (8 + 16 * (4 if spread else 3)) / bandwidth
        rows.append({"spread": spread, "seconds": found, "copy": copy, "bound": least})
    return rows


def measure_oracle(patches: int, n_px: int, few: int, threads: int, clock: str) -> float:
    """Seconds of the oracle for all patches, from a few. Runs in its own process."""
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    import tf_reference

    rng = np.random.default_rng(0)
    values = rng.standard_normal((few, n_px, n_px, 2)).astype(np.float32).view(np.complex64)
    edge = compute_extent_px(patches, n_px)
    places = rng.uniform(0, edge, (few, 1, 2, 1))
    places[0], places[1] = 0, edge

    def run() -> None:
        tf_reference.reassemble_position(values, places, M=n_px)

    return measure_median_s(run, 1, clock) * patches / few


def run_in_process(*arguments: object) -> float | None:
    """`oracle` where TensorFlow has not met torch's threads; None when it is not installed."""
    command = [sys.executable, __file__, "--oracle", *(str(argument) for argument in arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        print(f"no oracle: {answer.stderr.strip().splitlines()[-1] if answer.stderr else answer.returncode}")
        return None
    return float(json.loads(answer.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--n-px", type=int, nargs="+", default=[64, 128], help="of each number of patches")
    parser.add_argument("--oracle-patches", type=int, nargs="+", default=[64, 8], help="that the oracle gets")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU, for both; 0 as the libraries choose")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall", help="processor: with one thread, while other programs run"
    )
    parser.add_argument("--no-oracle", action="store_true")
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--oracle", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.oracle:
        *numbers, clock = given.oracle
        print(json.dumps(measure_oracle(*(int(number) for number in numbers), clock)))
        return
    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
    table = []
    for patches, n_px, few in zip(given.patches, given.n_px, given.oracle_patches, strict=True):
        theirs = None if given.no_oracle else run_in_process(patches, n_px, few, given.threads, given.clock)
        for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
            for found in measure_canvas(patches, n_px, device, given.repetitions, given.clock):
                seconds = found["seconds"]
                row: dict[str, Any] = {
                    "device": device,
                    "threads": torch.get_num_threads(),
                    "clock": given.clock,
                    "patches": patches,
                    "n_px": n_px,
                    "spread": bool(found["spread"]),
                    "seconds": round(seconds, 4),
                    "patches/s": round(patches / seconds),
                    "ns per pixel": round(1e9 * seconds / patches / n_px**2, 2),
                    "copy (s)": round(found["copy"], 4),
                    "times copy": round(seconds / found["copy"], 1),
                    "times bound": round(seconds / found["bound"], 1),
                    "oracle (s)": "" if theirs is None else round(theirs, 1),
                    "oracle patches": "" if theirs is None else few,
                    "times faster than the oracle": "" if theirs is None else round(theirs / seconds),
                }
                table.append(row)
                print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "stitch.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
