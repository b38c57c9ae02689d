"""Error and time of the default network, which needs no training, by the size of its groups of frames.

    python benchmarks/default_network.py --out benchmarks/results

Ten kinds of objects, N = 64, under a known probe, scanned with many overlapping frames and with few. Complex nRMSE of
the stitched image with groups of gridsize x gridsize frames, relative to gridsize 2 on the same scan, and the processor
time of the reconstruction relative to it. Writes default_network.csv: the mean over the kinds, and the worst of them.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from prior import KINDS, N_PX, OBJECT_PX, stretch
from scipy import ndimage

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import GroupConfig, RunConfig, SimulateConfig
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.data.simulation.textures import draw_family
from torchptycho.models.default_network import build_default_network
from torchptycho.reconstructors.network_reconstruction import reconstruct

BLUR_SIGMA_PX = 0.7


def make_scan(kind: str, dose: float, n_frames: int, seed: int) -> Scan:
    maps = draw_family(kind, OBJECT_PX, np.random.default_rng([seed, 0]))
    phase, absorption = (stretch(ndimage.gaussian_filter(m, BLUR_SIGMA_PX)) for m in maps)
    truth = (1 - 0.5 * absorption) * np.exp(1.6j * (phase - 0.5))
    config = SimulateConfig(
        n_px=N_PX, object_px=OBJECT_PX, n_frames=n_frames, photons_per_frame=dose, simulation_seed=seed
    )
    return simulate(config, object=truth.astype(np.complex64))


def measure(scan: Scan, gridsize: int) -> tuple[float, float]:
    """Return the error and the processor time of one reconstruction."""
    network = build_default_network(scan, RunConfig(group=GroupConfig(gridsize=gridsize)))
    begun = time.process_time()
    image = reconstruct(network, scan, accelerator="cpu", progress=False)
    seconds = time.process_time() - begun
    assert scan.truth is not None
    return evaluate(image, scan.truth).complex_nrmse, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doses", type=float, nargs="+", default=[1e3, 1e4, 1e5, 1e7, 1e9])
    parser.add_argument("--frames", type=int, nargs="+", default=[150, 40])
    parser.add_argument("--gridsizes", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--seed", type=int, default=991, help="of objects, positions and noise")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for n_frames in options.frames:
        for dose in options.doses:
            ratios: dict[int, list[tuple[float, float]]] = {size: [] for size in options.gridsizes}
            errors = []
            for kind in options.kinds:
                scan = make_scan(kind, dose, n_frames, options.seed)
                before, seconds = measure(scan, 2)
                errors.append(before)
                for size in options.gridsizes:
                    error, took = measure(scan, size)
                    ratios[size].append((error / before, took / seconds))
            for size, found in ratios.items():
                row = {
                    "frames": n_frames,
                    "photons_per_frame": dose,
                    "gridsize": size,
                    "error_gridsize_2": statistics.mean(errors),
                    "error_ratio": statistics.mean(error for error, _ in found),
                    "worst_error_ratio": max(error for error, _ in found),
                    "time_ratio": statistics.median(took for _, took in found),
                }
                rows.append(row)
                print(", ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "default_network.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{value:.4g}" for name, value in row.items()})


if __name__ == "__main__":
    main()
