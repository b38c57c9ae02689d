"""Refinement compared with other programs: quality against time on the same scans, in one run.

    python benchmarks/peers.py                     # all scans and programs, into benchmarks/results
    python benchmarks/peers.py --scans defocused --programs "torchptycho rpie" "PtyLab mPIE" --out /tmp/peers

Three scans: `defocused` (simulated, 400 frames 64x64, 6.3e5 photons per frame, whole-pixel positions; the probe guess
has the wrong focus, and the probe is refined), `known probe` (2,000 frames, 1e9 photons per frame, sub-pixel positions,
the probe known and kept; synth64-test.npz if it exists, otherwise a similar simulation) and `star` (measured, own probe
guess; compared with an iterative reconstruction of the same frames, which is a good image but not a ground truth). Each
program runs in a separate process (`peer_programs.py`), with the same number of threads; programs that are not
installed are skipped. Every image is evaluated by `torchptycho.evaluate` with the same coverage, after removal of
shift, phase plane and scale. `ratio` is the time of a row divided by that of the fastest peer that is at least as good.
Writes peers.csv, peers.png (error against seconds) and peers_phase.png (every program's last image).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from torchptycho.analysis.evaluation import Metrics, evaluate
from torchptycho.analysis.truth_alignment import align_to_truth
from torchptycho.core.config import SimulateConfig
from torchptycho.core.errors import EvaluationError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.core.versions import collect_versions
from torchptycho.data.simulation import simulate
from torchptycho.data.simulation.probes import make_probe
from torchptycho.io import read_reconstruction, read_scan
from torchptycho.physics.patches import locate_corner, place
from torchptycho.physics.scaling import compute_gauge_factor

ROOT = Path(__file__).resolve().parents[1]
OURS = "torchptycho"
NEEDS = {"pty-chi": "ptychi", "PtyLab": "PtyLab"}
"""First word of a program's name, and the module that it is; the others need nothing."""

EPOCHS: dict[str, dict[str, list[int]]] = {
    "defocused": {
        "torchptycho rpie": [5, 8, 12, 20, 40, 80],
        "torchptycho rpie, amplitude": [5, 8, 12, 20, 40],
        "torchptycho lsqml": [5, 8, 12, 20, 40, 80],
        "torchptycho gradient": [10, 20, 40],
        "plain PIE": [5, 10, 20, 50, 100],
        "PtyLab mPIE": [5, 10, 20, 50, 100],
        "pty-chi LSQML": [5, 10, 20, 50, 100],
        "pty-chi LSQML momentum": [10, 20, 50],
        "pty-chi rPIE": [5, 10, 20, 50],
    },
    "known probe": {
        "torchptycho rpie": [6, 12, 20, 40],
        "torchptycho lsqml": [6, 12, 20, 40],
        "plain PIE": [6, 12, 20, 40],
        "PtyLab mPIE": [5, 10, 20, 40, 100],
        "pty-chi LSQML": [5, 10, 20, 50, 100],
        "pty-chi rPIE": [5, 10, 20, 50],
    },
    "star": {
        "torchptycho rpie": [5, 10, 20, 40],
        "torchptycho rpie, amplitude": [5, 10, 20, 40],
        "torchptycho lsqml": [5, 10, 20],
        "plain PIE": [5, 10, 20, 40],
        "PtyLab mPIE": [5, 10, 20, 50],
        "pty-chi LSQML": [5, 10, 20, 50],
        "pty-chi rPIE": [5, 10, 20, 50],
    },
}
COLUMNS = (
    "scan", "program", "epochs", "seconds", "complex_nrmse", "amplitude_ssim", "phase_ssim", "phase_correlation",
    "frc_half_bit_cycles_per_px", "misfit", "ratio",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A scan with the probe that the programs begin with, and what their images are compared with."""

    scan: Scan
    guess: np.ndarray
    probe_update: bool
    truth: np.ndarray
    coverage: np.ndarray
    region_px: tuple[int, int, int, int] | None = None
    measured: bool = False

    def place_image(self, image: np.ndarray, origin_px: np.ndarray) -> Reconstruction:
        """The image on the truth's grid, with the same coverage for every program."""
        whole = np.zeros(self.truth.shape, np.complex64)
        low = np.maximum(origin_px, 0)
        high = np.minimum(origin_px + np.array(image.shape), whole.shape)
        there = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        here = tuple(slice(int(a), int(b)) for a, b in zip(low - origin_px, high - origin_px, strict=True))
        whole[there] = image[here]
        known = np.zeros(whole.shape, bool)
        known[there] = np.isfinite(image[here])
        return Reconstruction(
            object=np.where(known, whole, 0),
            coverage=self.coverage,
            valid=known & (self.coverage > 0),
            origin_px=(0, 0),
        )


def make_defocused_case() -> Case:
    config = SimulateConfig(n_px=64, object_px=256, n_frames=400, photons_per_frame=6.3e5, probe_defocus_waves=2.0)
    scan = simulate(config, positions_px=np.rint(simulate(config).positions_px))
    guess = make_probe(dataclasses.replace(config, probe_defocus_waves=1.5))[0]
    assert scan.truth is not None
    return Case(scan, guess, True, scan.truth, compute_illumination(scan, scan.truth.shape), (56, 200, 56, 200))


def make_known_probe_case(data: Path) -> Case:
    file = data / "synth64-test.npz"
    if file.is_file():
        scan = read_scan(file)
    else:
        config = SimulateConfig(
            n_px=64, object_px=320, n_frames=2000, photons_per_frame=1e9, position_kind="random", simulation_seed=1
        )
        scan = simulate(config)
    assert scan.truth is not None
    return Case(scan, scale_probe(scan), False, scan.truth, compute_illumination(scan, scan.truth.shape))


def make_star_case(data: Path) -> Case | None:
    files = data / "siemens-star-128.npz", data / "siemens-star-128-reference.npz"
    if not all(file.is_file() for file in files):
        return None
    scan, reference = read_scan(files[0]), read_reconstruction(files[1])
    return Case(scan, scale_probe(scan), True, reference.object, reference.coverage, measured=True)


def scale_probe(scan: Scan) -> np.ndarray:
    """The scan's probe with as many photons as a frame has on average."""
    frames = scan.frames[:]
    photons = float(frames.sum(dtype=np.float64)) / len(frames)
    return np.asarray(scan.probe[0] * compute_gauge_factor(torch.from_numpy(scan.probe), photons), np.complex64)


def compute_illumination(scan: Scan, shape: tuple[int, ...]) -> np.ndarray:
    power = torch.from_numpy(np.sum(np.abs(scan.probe) ** 2, axis=0)).double()
    corners = locate_corner(torch.from_numpy(scan.positions_px), scan.n_px)
    light = place(power.expand(len(corners), -1, -1).contiguous(), corners, (shape[0], shape[1])).numpy()
    return np.asarray(light / light.max(), np.float32)


def run_program(case: Case, program: str, epochs: list[int], threads: int, folder: Path) -> list[dict[str, Any]] | str:
    """A row for each number of epochs, with its image; or the last line that the program said."""
    given, found = folder / "given.npz", folder / "found.npz"
    np.savez(
        given,
        frames=case.scan.frames[:],
        positions_px=case.scan.positions_px,
        probe=case.guess,
        probe_update=case.probe_update,
    )
    command = [sys.executable, str(ROOT / "benchmarks" / "peer_programs.py"), program, str(given), str(found)]
    command += ["--threads", str(threads), "--epochs", *map(str, epochs)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment["MPLBACKEND"] = "agg"
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return (done.stderr.strip() or "no message").splitlines()[-1]
    rows = []
    with np.load(found, allow_pickle=False) as file:
        for number, count in enumerate(sorted(epochs)):
            image = case.place_image(file[f"object_{number}"], file[f"origin_px_{number}"])
            row = {"program": program, "epochs": count, "seconds": float(file[f"seconds_{number}"]), "image": image}
            rows.append(row | {"misfit": float(file[f"misfit_{number}"])} | compute_metrics(case, image))
    return rows


def compute_metrics(case: Case, image: Reconstruction) -> dict[str, float]:
    names = COLUMNS[4:9]
    try:
        metrics: Metrics = evaluate(image, case.truth, region_px=case.region_px)
    except EvaluationError:  # it diverged
        return dict.fromkeys(names, math.nan)
    return {name: float(getattr(metrics, name)) for name in names}


def get_error(case: Case, row: dict[str, Any]) -> float:
    """What is compared: the error of the complex image, or of the phase where there is a reference only."""
    return float(1 - row["phase_correlation"] if case.measured else row["complex_nrmse"])


def is_peer(program: str) -> bool:
    return program.split()[0] in NEEDS


def add_ratios(case: Case, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        as_good = [
            peer["seconds"]
            for peer in rows
            if is_peer(peer["program"]) and get_error(case, peer) <= get_error(case, row)
        ]
        row["ratio"] = row["seconds"] / min(as_good) if as_good else math.nan


def summarize_best(case: Case, rows: list[dict[str, Any]]) -> str:
    """The peers' best against the first row of ours that is as good."""
    peers = [row for row in rows if is_peer(row["program"]) and math.isfinite(get_error(case, row))]
    if not peers:
        return "no peer is installed"
    best = min(peers, key=lambda row: get_error(case, row))
    ours = [row for row in rows if row["program"].startswith(OURS) and get_error(case, row) <= get_error(case, best)]
    text = (
        f"best peer {best['program']}, {best['epochs']} epochs: {get_error(case, best):.4f} in {best['seconds']:.1f} s"
    )
    if not ours:
        return f"{text}; {OURS} does not reach it"
    first = min(ours, key=lambda row: row["seconds"])
    return (
        f"{text}; {first['program']}, {first['epochs']} epochs: {get_error(case, first):.4f} in "
        f"{first['seconds']:.1f} s, ratio {first['seconds'] / best['seconds']:.2f}"
    )


def format_table(rows: list[dict[str, Any]]) -> str:
    head = f"{'program':>28} {'epochs':>6} {'seconds':>8} {'nRMSE':>7} {'aSSIM':>5} {'pSSIM':>5} {'corr':>6} {'FRC':>5}"
    lines = [f"{head} {'misfit':>9} {'ratio':>6}"]
    for row in rows:
        lines.append(
            f"{row['program']:>28} {row['epochs']:6d} {row['seconds']:8.2f} {row['complex_nrmse']:7.4f} "
            f"{row['amplitude_ssim']:5.3f} {row['phase_ssim']:5.3f} {row['phase_correlation']:6.4f} "
            f"{row['frc_half_bit_cycles_per_px']:5.3f} {row['misfit']:9.3f} "
            + (f"{row['ratio']:6.2f}" if math.isfinite(row["ratio"]) else "  best")
        )
    return "\n".join(lines)


def draw_errors(results: dict[str, tuple[Case, list[dict[str, Any]]]], title: str, out: Path) -> None:
    figure = Figure(figsize=(5.4 * len(results), 4.8), layout="constrained")
    programs = list(dict.fromkeys(row["program"] for _, rows in results.values() for row in rows))
    for axes, (name, (case, rows)) in zip(
        figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True
    ):
        for number, program in enumerate(programs):
            points = [(row["seconds"], get_error(case, row)) for row in rows if row["program"] == program]
            style = "o-" if program.startswith(OURS) else "s--"
            if points:
                axes.loglog(*zip(*points, strict=True), style, color=f"C{number}", label=program, markersize=4)
        axes.set_title(name)
        axes.set_xlabel("seconds")
        axes.set_ylabel("1 - phase correlation with the reference" if case.measured else "complex nRMSE")
        # Decades have few ticks here: label those between, plainly.
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
        axes.grid(True, which="both", alpha=0.3)
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(out, dpi=110)


def draw_phases(results: dict[str, tuple[Case, list[dict[str, Any]]]], out: Path) -> None:
    """Phase of the truth and of each program's last image, aligned."""
    columns = 1 + max(len({row["program"] for row in rows}) for _, rows in results.values())
    figure = Figure(figsize=(2.5 * columns, 2.9 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), columns, squeeze=False)
    for line, (name, (case, rows)) in zip(grid, results.items(), strict=True):
        for axes in line:
            axes.set_axis_off()
        last = {row["program"]: row for row in rows}
        limits = None
        for axes, row in zip(line, [None, *last.values()], strict=False):
            image = case.place_image(case.truth, np.zeros(2, int)) if row is None else row["image"]
            try:
                pair = align_to_truth(image, case.truth, region_px=case.region_px)
            except EvaluationError:
                axes.set_title(f"{row['program'] if row else name}\ndiverged", fontsize=8)
                continue
            turn = np.exp(-1j * np.angle(pair.truth[pair.mask].sum()))
            field = np.where(pair.mask, np.angle((pair.truth if row is None else pair.object) * turn), np.nan)
            seen_rows, seen_columns = np.flatnonzero(pair.mask.any(1)), np.flatnonzero(pair.mask.any(0))
            field = field[seen_rows[0] : seen_rows[-1] + 1, seen_columns[0] : seen_columns[-1] + 1]
            limits = limits or tuple(np.nanpercentile(field, [1, 99]))
            axes.imshow(field, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
            text = "reference" if case.measured else "truth"
            if row is not None:
                text = f"{row['program']}\n{row['epochs']} epochs, {row['seconds']:.1f} s: {get_error(case, row):.3f}"
            axes.set_title(f"{name}: {text}" if row is None else text, fontsize=8)
    figure.savefig(out, dpi=110)


def get_peer_versions() -> dict[str, str]:
    there = [module for module in NEEDS.values() if importlib.util.find_spec(module) is not None]
    return {module: importlib.metadata.version(module) for module in there}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--programs", nargs="+", choices=list(EPOCHS["defocused"]), default=list(EPOCHS["defocused"]))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most-epochs", type=int, default=100, help="leave out rows with more, for a quick look")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="where the measured scan is")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()

    begun = time.perf_counter()
    load = os.getloadavg()[0]
    programs = []
    for program in options.programs:
        needed = NEEDS.get(program.split()[0])
        if needed is not None and importlib.util.find_spec(needed) is None:
            print(f"{program}: not installed; `pip install --no-deps -r benchmarks/peers.txt` brings it")
        else:
            programs.append(program)
    print("PtyPy: left out, there is no bridge to it: PyPI does not have it (see benchmarks/results/README.md)")

    cases = {
        "defocused": make_defocused_case,
        "known probe": lambda: make_known_probe_case(options.data),
        "star": lambda: make_star_case(options.data),
    }
    results: dict[str, tuple[Case, list[dict[str, Any]]]] = {}
    for name in options.scans:
        case = cases[name]()
        if case is None:
            print(f"{name}: left out, {options.data} does not have it (--data)")
            continue
        rows: list[dict[str, Any]] = []
        for program in programs:
            epochs = [count for count in EPOCHS[name].get(program, []) if count <= options.most_epochs]
            if not epochs:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = run_program(case, program, epochs, options.threads, Path(folder))
            if isinstance(found, str):
                print(f"{name}, {program}: failed: {found}", flush=True)
            else:
                rows += found
        if not rows:
            continue
        add_ratios(case, rows)
        results[name] = case, rows
        print(f"\n{name}: {case.scan!r}\n{format_table(rows)}\n{summarize_best(case, rows)}", flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "peers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, (_, rows) in results.items():
            for row in rows:
                text = [
                    f"{row[column]:.6g}" if isinstance(row[column], float) else row[column] for column in COLUMNS[1:]
                ]
                writer.writerow([name, *("" if value == "nan" else value for value in text)])
    machine = (
        f"{os.cpu_count()} cores {platform.machine()}, {options.threads} threads, load {load:.1f} at the beginning"
    )
    text = ", ".join(f"{name} {version}" for name, version in (collect_versions() | get_peer_versions()).items())
    if results:
        draw_errors(results, f"{machine}; {text}", options.out / "peers.png")
        draw_phases(results, options.out / "peers_phase.png")
    print(f"\n{machine}; {text}; {time.perf_counter() - begun:.0f} s in all, load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
