"""Experiments beyond a stable probe on a thin object: errors and times, next to pty-chi in one run.

    python benchmarks/experiments.py                         # all scans and programs, into benchmarks/results
    python benchmarks/experiments.py --scans unstable --out /tmp/experiments

Scans of 400 frames 64x64, 1e6 photons per frame, whole-pixel positions. `stable`: the same object with a stable probe.
`unstable`: the power fluctuates by 10 %, and the shape of the probe wanders by 30 % in three components. `drifting`:
the probe also drifts by 2 px during the scan, which the positions that are refined take up. Every program begins with
the mean probe and a uniform object, in a process of its own (`peer_programs.py`), with the same number of threads;
programs that are not installed are skipped. `ratio` is the time of a row over that of the fastest row of pty-chi on
this scan that is at least as good; `to_stable` is its error over our least one of the stable scan.
Writes experiments.csv, experiments.png (error against seconds) and unstable_probe.png (the images, and what varied).
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import math
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from peers import NEEDS, ROOT, Case, add_ratios, compute_illumination, draw_errors, format_table, run_program

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.versions import collect_versions
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative import refine

UNSTABLE: dict[str, Any] = {"power_fluctuation": 0.1, "probe_wander": 0.3}
SCANS: dict[str, dict[str, Any]] = {
    "stable": {},
    "unstable": UNSTABLE,
    "drifting": {**UNSTABLE, "probe_drift_px": 2.0},
}
EPOCHS: dict[str, dict[str, list[int]]] = {
    "stable": {"torchptycho rpie": [20, 40, 80], "pty-chi LSQML": [20, 50, 100]},
    "unstable": {
        "torchptycho rpie": [80],
        "torchptycho rpie, OPR": [10, 20, 30, 40, 80],
        "torchptycho lsqml, OPR": [20, 40, 80],
        "torchptycho gradient, OPR": [40, 80],
        "pty-chi LSQML": [100],
        "pty-chi LSQML, OPR": [20, 50, 100, 200],
        "pty-chi LSQML, OPR, momentum": [20, 50, 100, 200],
    },
    "drifting": {
        "torchptycho rpie, OPR": [80],
        "torchptycho rpie, OPR, positions": [20, 40, 80],
        "pty-chi LSQML, OPR, positions": [50, 100, 200],
    },
}
COLUMNS = ("scan", "program", "epochs", "seconds", "complex_nrmse", "misfit", "ratio", "to_stable")


def make_case(name: str) -> Case:
    config = SimulateConfig(
        n_px=64, object_px=224, n_frames=400, photons_per_frame=1e6, simulation_seed=1, **SCANS[name]
    )
    scan = simulate(config, positions_px=np.rint(simulate(config).positions_px))
    assert scan.truth is not None
    return Case(scan, scan.probe[0], True, scan.truth, compute_illumination(scan, scan.truth.shape), (48, 176, 48, 176))


def draw_unstable_probe(case: Case, rows: list[dict[str, Any]], out: Path) -> None:
    """Draw the phase of the truth and of the images without and with OPR, and the weights found against the true
    power."""
    last = {row["program"]: row for row in rows}
    names = [name for name in ("torchptycho rpie", "torchptycho rpie, OPR") if name in last]
    figure = Figure(figsize=(4.2 * (1 + len(names)), 7.6), layout="constrained")
    grid = figure.subplots(2, 1 + len(names), squeeze=False)
    box = (slice(48, 176), slice(48, 176))
    for axes, name in zip(grid[0], [None, *names], strict=True):
        image = case.truth if name is None else last[name]["image"].object
        turned = image[box] * np.exp(-1j * np.angle(np.vdot(case.truth[box], image[box])))
        axes.imshow(np.angle(turned), cmap="gray", vmin=-0.8, vmax=0.8)
        title = "object (phase)" if name is None else f"{name}: nRMSE {last[name]['complex_nrmse']:.3f}"
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    refined = refine(
        case.scan, config=RefineConfig(opr_modes=3, frame_scale=True, epochs=40, patience=None, regularization="none")
    )
    assert refined.opr_weights is not None
    assert refined.frame_scale is not None
    power = np.array(case.scan.metadata["probe_power"])
    weights, time = np.array(case.scan.metadata["probe_weights"]), np.arange(len(power))
    left, middle = grid[1][:2]
    left.plot(time, weights)
    left.set_title("weights of the three shapes, true", fontsize=9)
    # The basis is free: the true weights, fitted by the found ones.
    design = np.c_[refined.opr_weights, np.ones(len(time))]
    middle.plot(time, design @ np.linalg.lstsq(design, weights, rcond=None)[0])
    middle.set_title("the same, from the weights found", fontsize=9)
    for axes in (left, middle):
        axes.set_xlabel("frame")
    if grid.shape[1] > 2:
        scatter = grid[1][2]
        scatter.plot(power, refined.frame_scale**2 / np.mean(refined.frame_scale**2), ".", markersize=3)
        scatter.set_xlabel("power of the frame, true")
        scatter.set_ylabel("found")
        scatter.set_title("power of each frame", fontsize=9)
    figure.savefig(out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", nargs="+", choices=list(SCANS), default=list(SCANS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    results: dict[str, tuple[Case, list[dict[str, Any]]]] = {}
    for name in options.scans:
        case, rows = make_case(name), []
        for program, epochs in EPOCHS[name].items():
            needed = NEEDS.get(program.split()[0])
            if needed is not None and importlib.util.find_spec(needed) is None:
                print(f"{program}: not installed; `pip install --no-deps -r benchmarks/peers.txt` brings it")
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = run_program(case, program, epochs, options.threads, Path(folder))
            if isinstance(found, str):
                print(f"{name}, {program}: failed: {found}", flush=True)
            else:
                rows += found
        if rows:
            add_ratios(case, rows)
            results[name] = case, rows
            print(f"\n{name}\n{format_table(rows)}", flush=True)
    ours = [row["complex_nrmse"] for row in results.get("stable", (None, []))[1] if row["program"].startswith("torch")]
    with (options.out / "experiments.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, (_, rows) in results.items():
            for row in rows:
                row["to_stable"] = row["complex_nrmse"] / min(ours) if ours else math.nan
                values = [f"{row[key]:.5g}" if isinstance(row[key], float) else row[key] for key in COLUMNS[1:]]
                writer.writerow([name, *("" if value == "nan" else value for value in values)])
    versions = ", ".join(f"{name} {version}" for name, version in collect_versions().items())
    machine = f"{os.cpu_count()} cores {platform.machine()}, {options.threads} threads, load {load:.1f}"
    draw_errors(results, f"{machine}; {versions}", options.out / "experiments.png")
    if "unstable" in results:
        draw_unstable_probe(*results["unstable"], options.out / "unstable_probe.png")


if __name__ == "__main__":
    main()
