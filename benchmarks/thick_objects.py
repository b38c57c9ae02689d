"""Thick objects in slices: correlation of each slice against time and memory, next to pty-chi and ptyrad in one run.

    python benchmarks/thick_objects.py                               # all scans and programs, into benchmarks/results
    python benchmarks/thick_objects.py --scans two-4 --out /tmp/thick

Scans of frames 64x64 at whole-pixel positions. `two-1`, `two-4`: two slices at 1 and 4 depths of focus
(5.2 p^2 / lambda), 300 frames, 1e6 photons per frame, phases of 1 rad in each slice. `eight-8`: eight slices at 8
depths of focus, 400 frames, 1e7 photons, phases of 0.5 rad. Every program begins with the true probe, which it refines,
and with uniform slices, in a process of its own, on one thread. Seconds are processor time of setup and iterations,
`peak_MB` the largest memory of the process. pty-chi runs its multislice LSQML with its default batches, and with
compact ones and momentum; ptyrad its own model and loss, by Adam with the learning rates of its defaults, and with ten
times these, in batches of 16 frames.
Each slice is compared with its truth after its own shift, phase plane, phase and scale; `least` is the smallest phase
correlation of all slices. `ratio` is the time of a row over that of the fastest row of another program on this scan
whose least correlation is as large. Writes thick_objects.csv and thick_objects.png.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
COLUMNS = ("scan", "program", "epochs", "seconds", "peak_MB", "least", "mean", "product", "ratio")
EXPERIMENT: dict[str, Any] = {"n_px": 64, "amplitude_min": 0.8, "simulation_seed": 1}
TWO: dict[str, Any] = {
    "n_slices": 2,
    "n_frames": 300,
    "object_px": 176,
    "photons_per_frame": 1e6,
    "phase_range_rad": 1.0,
}
EIGHT: dict[str, Any] = {
    "n_slices": 8,
    "n_frames": 400,
    "object_px": 176,
    "photons_per_frame": 1e7,
    "phase_range_rad": 0.5,
}
SCANS: dict[str, tuple[float, dict[str, Any]]] = {
    "two-1": (1.0, TWO),
    "two-4": (4.0, TWO),
    "eight-8": (8.0, EIGHT),
}
EPOCHS: dict[str, list[int]] = {
    "torchptycho rpie": [15, 40],
    "torchptycho lsqml": [15, 40],
    "torchptycho gradient": [40],
    "pty-chi LSQML": [30, 60],
    "pty-chi LSQML, momentum": [60],
    "ptyrad": [25],
    "ptyrad, rates x10": [25, 100],
}
EPOCHS_OF_EIGHT: dict[str, list[int]] = {
    "torchptycho rpie": [20, 80],
    "torchptycho lsqml": [80],
    "pty-chi LSQML": [30, 60],
    "pty-chi LSQML, momentum": [60],
    "ptyrad, rates x10": [25],
}
NEEDS = {"pty-chi": "ptychi", "ptyrad": "ptyrad"}


def make_scan(name: str) -> Any:
    from torchptycho.core.angular_spectrum import compute_depth_of_focus_m
    from torchptycho.core.config import SimulateConfig
    from torchptycho.data.simulation import simulate

    depths, more = SCANS[name]
    probe = simulate(SimulateConfig(**{**EXPERIMENT, **more, "n_frames": 1})).geometry
    focus_m = compute_depth_of_focus_m(probe.object_pixel_m or 0.0, probe.wavelength_m or 1.0)
    config = SimulateConfig(**EXPERIMENT, **more, slice_spacing_m=depths * focus_m)
    return simulate(config, positions_px=np.rint(simulate(config).positions_px))


Result = tuple[int, float, np.ndarray, tuple[int, int]]
"""Epochs, seconds, slices, and the object pixel of their first pixel."""


def run_torchptycho(scan: Any, epochs: list[int], method: str) -> Iterator[Result]:
    from torchptycho.core.config import RefineConfig
    from torchptycho.reconstructors.iterative import refine

    spacing_m = scan.metadata["slice_spacing_m"]
    for count in epochs:
        begun = time.process_time()
        config = RefineConfig(
            method=method, epochs=count, n_slices=len(scan.truth_slices), slice_spacing_m=spacing_m, patience=None
        )
        image = refine(scan, config=config, device="cpu", judge=False)
        yield count, time.process_time() - begun, image.object, image.origin_px


def run_pty_chi(scan: Any, epochs: list[int], **options: Any) -> Iterator[Result]:
    """pty-chi's LSQML; its transforms are not normalised, and its positions count from the middle of the object."""
    import torch

    _offer_torchvision()
    import ptychi.api as api
    from ptychi.api.task import PtychographyTask

    begun = time.process_time()
    middle = np.rint((scan.positions_px.max(0) + scan.positions_px.min(0)) / 2)
    offset = scan.positions_px - middle
    size = [2 * (math.ceil(float(np.abs(offset[:, axis]).max())) + scan.n_px // 2 + 2) for axis in (0, 1)]
    settings = api.LSQMLOptions()
    settings.data_options.wavelength_m = scan.geometry.wavelength_m
    settings.object_options.pixel_size_m = scan.geometry.object_pixel_m
    settings.object_options.slice_spacings_m = np.full(len(scan.truth_slices) - 1, scan.metadata["slice_spacing_m"])
    settings.reconstructor_options.num_epochs = max(epochs)
    settings.reconstructor_options.batch_size = math.ceil(scan.n_frames / 10)
    settings.reconstructor_options.default_device = api.Devices.CPU
    settings.reconstructor_options.random_seed = 0
    settings.probe_position_options.optimizable = False
    for name, value in options.items():
        setattr(settings.reconstructor_options, name, value)
    running = PtychographyTask(
        settings,
        diffraction_data=torch.from_numpy(np.asarray(scan.frames[:]).astype(np.float32)),
        object_data=torch.ones([len(scan.truth_slices), *size], dtype=torch.complex64),
        probe_data=torch.from_numpy(scan.probe[0] / scan.n_px)[None, None],
        probe_position_y_px=torch.from_numpy(offset[:, 0]).float(),
        probe_position_x_px=torch.from_numpy(offset[:, 1]).float(),
    )
    done, spent = 0, time.process_time() - begun
    for count in epochs:
        begun = time.process_time()
        running.run(count - done)
        done, spent = count, spent + time.process_time() - begun
        origin = (middle - np.array(size) // 2).astype(int)
        yield count, spent, running.get_data_to_cpu("object", as_numpy=True).copy(), (int(origin[0]), int(origin[1]))


def run_ptyrad(scan: Any, epochs: list[int], faster: float, batch_size: int = 16) -> Iterator[Result]:
    """ptyrad's model, loss and optimiser. Lengths are in Angstrom; patterns are relative to a mean frame."""
    import torch

    _offer_torchvision()
    from ptyrad.core import CombinedLoss
    from ptyrad.core.models import PtychoModel

    begun = time.process_time()
    torch.manual_seed(0)
    n_px, n_slices = scan.n_px, len(scan.truth_slices)
    pixel, wavelength = scan.geometry.object_pixel_m * 1e10, scan.geometry.wavelength_m * 1e10
    spacing = scan.metadata["slice_spacing_m"] * 1e10
    frames = np.asarray(scan.frames[:]).astype(np.float32)
    photons = float(frames.sum((1, 2)).mean())
    low = scan.positions_px.min(0) - n_px // 2
    corners = np.rint(scan.positions_px - n_px // 2 - low).astype(np.int64)
    height, width = corners.max(0) + n_px
    k = 2 * np.pi * np.fft.fftfreq(n_px, pixel)
    kz = np.sqrt((2 * np.pi / wavelength) ** 2 - k[:, None] ** 2 - k**2)
    rates = {"obja": 5e-4, "objp": 5e-4, "probe": 1e-4}
    update = {name: {"start_iter": 1, "end_iter": None, "lr": faster * rate} for name, rate in rates.items()}
    fixed = {"start_iter": None, "end_iter": None, "lr": 0.0}
    model = PtychoModel(
        {
            "measurements": frames / photons,
            "obj": np.ones((1, n_slices, height, width), np.complex64),
            "obj_tilts": np.zeros((1, 2)),
            "slice_thickness": spacing,
            "probe": scan.probe / np.sqrt(photons),
            "probe_pos_shifts": np.zeros((scan.n_frames, 2)),
            "omode_occu": np.ones(1),
            "H": np.exp(1j * spacing * kz),
            "N_scan_slow": 1,
            "N_scan_fast": scan.n_frames,
            "crop_pos": corners,
            "dx": pixel,
            "dk": 1 / (n_px * pixel),
            "lambd": wavelength,
            "random_seed": 0,
            "length_unit": "Ang",
            "scan_affine": None,
            "meas_Npix": n_px,
            "simu_Npix": n_px,
            "simu_match_mode": None,
            "recon_provenance": {},
        },
        {
            "detector_blur_std": None,
            "optimizer_params": {"name": "Adam", "configs": {}},
            "update_params": update | dict.fromkeys(("obj_tilts", "slice_thickness", "probe_pos_shifts"), fixed),
        },
        device="cpu",
    )
    off = {"state": False}
    loss_of = CombinedLoss(
        {"loss_single": {"state": True, "weight": 1.0, "dp_pow": 0.5}}
        | dict.fromkeys(("loss_poissn", "loss_pacbed", "loss_sparse", "loss_simlar"), off),
        device="cpu",
    )
    optimizer = torch.optim.Adam(model.optimizable_params)
    spent, done = time.process_time() - begun, 0
    for count in epochs:
        begun = time.process_time()
        for _ in range(count - done):
            for index in torch.randperm(scan.n_frames).split(batch_size):
                optimizer.zero_grad()
                found = model(index)
                parts = (*model._current_object_patches, model.omode_occu)
                total, _ = loss_of(found, model.get_measurements(index), *parts)
                total.backward()
                optimizer.step()
        done, spent = count, spent + time.process_time() - begun
        slices = torch.polar(model.opt_obja.detach(), model.opt_objp.detach())[0].numpy()
        yield count, spent, slices, (int(low[0]), int(low[1]))


def _offer_torchvision() -> None:
    """What pty-chi and ptyrad import from torchvision: a blur that is not used here."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    package, transforms, functional = modules = [types.ModuleType(name) for name in names]
    package.transforms, transforms.functional = transforms, functional  # type: ignore[attr-defined]
    transforms.GaussianBlur = functional.gaussian_blur = None  # type: ignore[attr-defined]
    for module in modules:
        module.__path__ = []
    sys.modules |= dict(zip(names, modules, strict=True))


PROGRAMS: dict[str, Callable[[Any, list[int]], Iterator[Result]]] = {
    **{
        f"torchptycho {method}": (lambda scan, epochs, method=method: run_torchptycho(scan, epochs, method))
        for method in ("rpie", "lsqml", "gradient")
    },
    "pty-chi LSQML": run_pty_chi,
    "pty-chi LSQML, momentum": lambda scan, epochs: run_pty_chi(
        scan, epochs, batching_mode="compact", momentum_acceleration_gain=0.5
    ),
    "ptyrad": lambda scan, epochs: run_ptyrad(scan, epochs, 1.0),
    "ptyrad, rates x10": lambda scan, epochs: run_ptyrad(scan, epochs, 10.0),
}


def judge(scan: Any, slices: np.ndarray, origin_px: tuple[int, int], coverage: np.ndarray) -> dict[str, float]:
    """Compare slices with their truth where the scan's illumination reaches a tenth of its maximum."""
    from torchptycho.analysis.evaluation import evaluate, evaluate_slices
    from torchptycho.core.reconstruction import Reconstruction

    (top, left), (height, width) = origin_px, slices.shape[-2:]
    covered = np.zeros((height, width), np.float32)
    rows = slice(max(0, -top), min(height, coverage.shape[0] - top))
    columns = slice(max(0, -left), min(width, coverage.shape[1] - left))
    covered[rows, columns] = coverage[rows.start + top : rows.stop + top, columns.start + left : columns.stop + left]
    image = Reconstruction(
        object=slices.astype(np.complex64), coverage=covered, valid=covered > 0.02, origin_px=origin_px
    )
    each = [metrics.phase_correlation for metrics in evaluate_slices(image, scan)]
    return {
        "least": min(each),
        "mean": float(np.mean(each)),
        "product": evaluate(image, scan).phase_correlation,
    }


def compute_coverage(scan: Any) -> np.ndarray:
    light = np.zeros(scan.truth.shape, np.float32)
    power = (np.abs(scan.probe) ** 2).sum(0)
    for y, x in scan.positions_px.astype(int) - scan.n_px // 2:
        light[y : y + scan.n_px, x : x + scan.n_px] += power
    return np.asarray(light / light.max())


def list_epochs(scan_name: str) -> dict[str, list[int]]:
    """List the numbers of epochs of each program that runs on a scan."""
    return EPOCHS_OF_EIGHT if SCANS[scan_name][1] is EIGHT else EPOCHS


def run_here(scan_name: str, program: str, out: Path) -> None:
    """Run one program in this process; its rows and last slices go to files."""
    import torch

    torch.set_num_threads(1)
    scan = make_scan(scan_name)
    for _ in PROGRAMS[program](scan, [1]):
        pass
    coverage, rows = compute_coverage(scan), []
    slices = np.zeros(0)
    for epochs, seconds, slices, origin_px in PROGRAMS[program](scan, list_epochs(scan_name)[program]):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = judge(scan, slices, origin_px, coverage)
        rows.append(
            {"scan": scan_name, "program": program, "epochs": epochs, "seconds": seconds, "peak_MB": peak} | found
        )
    out.with_suffix(".json").write_text(json.dumps(rows))
    np.savez(out.with_suffix(".npz"), slices=slices.astype(np.complex64), origin_px=np.array(origin_px))


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Add the time of each of our rows over that of the fastest peer that is at least as good, if there is one."""
    for row in rows:
        peers = [
            other["seconds"]
            for other in rows
            if other["scan"] == row["scan"]
            and not other["program"].startswith("torchptycho")
            and other["least"] >= row["least"]
        ]
        row["ratio"] = row["seconds"] / min(peers) if peers and row["program"].startswith("torch") else math.nan


def draw(
    name: str, found: dict[str, tuple[np.ndarray, tuple[int, int]]], rows: list[dict[str, Any]], out: Path
) -> None:
    """Draw the phase of the first two slices: truth, one slice for both, and each program's last image."""
    from matplotlib.figure import Figure

    from torchptycho.analysis.registration import flatten_phase

    scan = make_scan(name)
    box = (slice(44, 132), slice(44, 132))
    columns: list[tuple[str, np.ndarray]] = [("object", scan.truth_slices)]
    for program, (slices, (top, left)) in found.items():
        canvas = np.ones_like(scan.truth_slices)
        height, width = min(slices.shape[1], canvas.shape[1] - top), min(slices.shape[2], canvas.shape[2] - left)
        y, x = max(0, -top), max(0, -left)
        canvas[:, top + y : top + height, left + x : left + width] = slices[:, y:height, x:width]
        columns.append((program, canvas))
    figure = Figure(figsize=(2.6 * len(columns), 5.6), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False)
    last = {row["program"]: row for row in rows if row["scan"] == name}
    for column, (program, stack) in enumerate(columns):
        for row in (0, 1):
            cut = stack[row][box].astype(np.complex64)
            axes[row, column].imshow(
                np.angle(flatten_phase(cut, np.ones(cut.shape, bool))), cmap="gray", vmin=-0.5, vmax=0.5
            )
            axes[row, column].set_axis_off()
        least = "" if program == "object" else f"\nleast correlation {last[program]['least']:.3f}"
        axes[0, column].set_title(f"{program}, slice 1{least}", fontsize=8)
        axes[1, column].set_title("slice 2", fontsize=8)
    figure.savefig(out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", nargs="+", choices=list(SCANS), default=list(SCANS))
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--one", nargs=3, metavar=("SCAN", "PROGRAM", "FILE"), help="run one program in this process")
    options = parser.parse_args()
    if options.one:
        scan_name, program, file = options.one
        run_here(scan_name, program, Path(file))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for scan_name in options.scans:
            found = {}
            for program in (name for name in options.programs if name in list_epochs(scan_name)):
                needed = NEEDS.get(program.split()[0].rstrip(","))
                if needed is not None and importlib.util.find_spec(needed) is None:
                    print(f"{program}: not installed; `pip install --no-deps -r benchmarks/peers.txt` brings it")
                    continue
                file = Path(folder) / f"{len(rows)}"
                command = [sys.executable, __file__, "--one", scan_name, program, str(file)]
                done = subprocess.run(
                    command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
                )
                if done.returncode:
                    print(f"{scan_name}, {program}: failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
                    continue
                rows += json.loads(file.with_suffix(".json").read_text())
                for row in rows[-len(list_epochs(scan_name)[program]) :]:
                    print(
                        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()},
                        flush=True,
                    )
                with np.load(file.with_suffix(".npz")) as arrays:
                    y, x = arrays["origin_px"].tolist()
                    found[program] = arrays["slices"], (y, x)
            if scan_name == "two-1" or scan_name == options.scans[0]:
                draw(scan_name, found, rows, options.out / "thick_objects.png")
    add_ratios(rows)
    with (options.out / "thick_objects.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            values = [f"{row[key]:.4g}" if isinstance(row[key], float) else row[key] for key in COLUMNS]
            writer.writerow(["" if value == "nan" else value for value in values])


if __name__ == "__main__":
    main()
