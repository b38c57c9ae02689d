"""Time and peak memory of each command from a scan to a metric, each in a new process.

    python benchmarks/steps.py                      on a simulated scan (64x64, 1000 frames)
    python benchmarks/steps.py scan.npz --probe refined.npz --truth reference.npz

Memory is the peak resident set, which counts mapped pages of the store too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


def run_command(*arguments: str) -> tuple[float, float, str]:
    """Run one command; seconds, peak GB and what it printed."""
    start = time.perf_counter()
    program = "import sys; from torchptycho.cli.app import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"torchptycho {' '.join(arguments)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20, printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", nargs="?", help="scan file; simulated when absent")
    parser.add_argument("--probe", help="NPZ with a better probe than the scan's own")
    parser.add_argument("--test", help="another scan to reconstruct instead of the training scan")
    parser.add_argument("--truth", help="NPZ with the true or a reference object")
    parser.add_argument("--steps", type=int, help="optimiser steps; the default of `train` when absent")
    parser.add_argument("--train-options", default="", help="more options of `train`, in one string")
    parser.add_argument("--out", help="keep everything in this folder")
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.out or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[tuple[str, float, float]] = []

        def step(name: str, *arguments: str) -> str:
            seconds, peak_GB, printed = run_command(*arguments)
            rows.append((name, seconds, peak_GB))
            print(f"{name:<28} {seconds:8.1f} s {peak_GB:8.2f} GB", flush=True)
            return printed

        scan = given.scan or str(folder / "scan.npz")
        probe = ["--probe", given.probe] if given.probe else []
        more = given.train_options.split()
        if not given.scan:
            step("simulate", "simulate", scan)
        step("inspect", "inspect", scan)
        step("prepare", "prepare", scan, "--out", str(folder / "store"), *probe)
        step("train, one epoch", "train", scan, "--out", str(folder / "epoch"), "--epochs", "1", *probe, *more)
        steps = ["--steps", str(given.steps)] if given.steps else []
        print(step("train", "train", scan, "--out", str(folder / "run"), *probe, *steps, *more).strip())
        test, image = given.test or scan, str(folder / "image.npz")
        step("reconstruct", "reconstruct", str(folder / "run"), test, "--out", image)
        truth = given.truth or (test if not given.scan or given.test else None)
        metrics = {}
        if truth:
            printed = step("evaluate", "evaluate", image, truth, "--json", "--plot", str(folder / "evaluated.png"))
            metrics = {name: value for name, value in json.loads(printed).items() if isinstance(value, float)}
            for name, value in metrics.items():
                print(f"  {name:<28} {value:.4g}")
        report = {
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
            "rows": [{"step": n, "seconds": round(s, 2), "peak_GB": round(m, 3)} for n, s, m in rows],
            "metrics": metrics,
        }
        (folder / "steps.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
