"""Error of an image against the dose, compared with the photon limit.

    python benchmarks/photon_limit.py --doses 1e2 1e3 1e4 1e5 1e6 1e7 1e8 1e9 --out benchmarks/results

If n photons pass through a pixel of the object, the standard deviation of its amplitude, and of its phase times the
amplitude, is at least 1 / sqrt(2 n). The table shows the RMS error over the well-covered part (half of the largest
coverage) as a multiple of this limit: of the network (trained on another object with the same probe at the same dose),
of refinements from its image and from a uniform object, and of one from the ground truth, the smallest error of the
model. Positions lie on whole pixels: at fractions of a pixel bilinear interpolation removes the
finest detail, and doubles the noise of a perfect fit (shown by --subpixel).
Writes photon_limit.csv and photon_limit.png.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from torchptycho.core.config import GroupConfig, RefineConfig, RunConfig, SimulateConfig, TrainConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.physics.patches import locate_corner, place
from torchptycho.reconstructors.iterative import refine


def simulate_at_dose(dose: float, seed: int, *, subpixel: bool) -> Scan:
    config = SimulateConfig(n_px=64, object_px=192, n_frames=600, photons_per_frame=dose, simulation_seed=seed)
    scan = simulate(config)
    return scan if subpixel else simulate(config, positions_px=np.round(scan.positions_px))


def compute_errors(image: Reconstruction, scan: Scan) -> tuple[float, float]:
    """RMS error of amplitude and phase as multiples of the line, after a complex factor and a phase plane."""
    assert scan.truth is not None
    y, x = image.origin_px
    height, width = image.object.shape
    shape = scan.truth.shape
    power = torch.from_numpy(np.sum(np.abs(scan.probe) ** 2, axis=0)).double()
    corners = locate_corner(torch.from_numpy(scan.positions_px), scan.n_px)
    photons = place(power.expand(len(corners), -1, -1).contiguous(), corners, shape).numpy()
    whole = np.zeros(shape, np.complex64)
    top, left = max(y, 0), max(x, 0)
    part = image.object[top - y : min(height, shape[0] - y), left - x : min(width, shape[1] - x)]
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    where = photons > 0.5 * photons.max()
    found, truth = whole[where].astype(complex), scan.truth[where].astype(complex)
    amplitude = np.abs(found) * (np.abs(found) @ np.abs(truth)) / (np.abs(found) @ np.abs(found))
    phase = np.angle(found * np.conj(truth) * np.exp(-1j * np.angle(np.vdot(truth, found))))
    plane = np.c_[np.argwhere(where), np.ones(len(found))]
    phase = phase - plane @ np.linalg.lstsq(plane, phase, rcond=None)[0]
    line = np.sqrt(np.mean(1 / (2 * photons[where])))
    off = (np.sqrt(np.mean((amplitude - np.abs(truth)) ** 2)), np.sqrt(np.mean((phase * np.abs(truth)) ** 2)))
    return float(off[0] / line), float(off[1] / line)


def reconstruct_with_network(dose: float, scan: Scan, steps: int, *, subpixel: bool) -> Reconstruction:
    from torchptycho.reconstructors.network_reconstruction import reconstruct
    from torchptycho.training.train import train

    config = RunConfig(group=GroupConfig(gridsize=2), train=TrainConfig(steps=steps))
    with tempfile.TemporaryDirectory() as folder:
        run = train(simulate_at_dose(dose, 1, subpixel=subpixel), config, Path(folder) / "run", progress=False)
        return reconstruct(run.checkpoint, scan, progress=False)


def make_true_image(scan: Scan) -> Reconstruction:
    assert scan.truth is not None
    everywhere = np.ones(scan.truth.shape, np.float32)
    return Reconstruction(object=scan.truth, coverage=everywhere, valid=everywhere > 0, origin_px=(0, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doses", type=float, nargs="+", default=[1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9])
    parser.add_argument("--epochs", type=int, default=200, help="of each refinement")
    parser.add_argument("--network-steps", type=int, default=400, help="0 leaves the network out")
    parser.add_argument("--subpixel", action="store_true", help="positions at fractions of a pixel")
    parser.add_argument("--method", default="rpie", choices=["rpie", "lsqml"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()

    config = RefineConfig(
        method=options.method, epochs=options.epochs, probe_update=False, patience=None, regularization="none"
    )
    rows: list[dict[str, float | str]] = []
    print(
        f"{'dose':>8} {'image':>18} {'amplitude':>10} {'phase':>8} {'epochs':>7} {'seconds':>8}"
        "   (errors as multiples of the line)"
    )
    for dose in options.doses:
        scan = simulate_at_dose(dose, 3, subpixel=options.subpixel)
        network = None
        if options.network_steps:
            network = reconstruct_with_network(dose, scan, options.network_steps, subpixel=options.subpixel)
        starts: dict[str, Reconstruction | None] = {"cold": None, "from the truth": make_true_image(scan)}
        if network is not None:
            starts["from the network"] = network
        images = {} if network is None else {"network": (network, 0, 0.0)}
        for name, start in starts.items():
            begun = time.perf_counter()
            plain = None if start is None else dataclasses.replace(start, probe=None)
            image = refine(scan, plain, config=config)
            images[name] = (image, len(image.history["misfit"]), time.perf_counter() - begun)
        for name, (image, epochs, seconds) in images.items():
            amplitude, phase = compute_errors(image, scan)
            rows.append(
                {
                    "dose": dose,
                    "image": name,
                    "amplitude": amplitude,
                    "phase": phase,
                    "epochs": epochs,
                    "seconds": seconds,
                }
            )
            print(f"{dose:8.0e} {name:>18} {amplitude:10.2f} {phase:8.2f} {epochs:7d} {seconds:8.1f}", flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    name = "photon_limit_subpixel" if options.subpixel else "photon_limit"
    with (options.out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, options.out / f"{name}.png")


def draw(rows: list[dict[str, float | str]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, quantity in zip(axes, ("amplitude", "phase"), strict=True):
        for name in dict.fromkeys(row["image"] for row in rows):
            of_image = [row for row in rows if row["image"] == name]
            axis.loglog([r["dose"] for r in of_image], [r[quantity] for r in of_image], "o-", label=name)
        axis.axhline(1, color="0.3", linewidth=1)
        axis.set(title=quantity, xlabel="photons per frame")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("error over 1 / sqrt(2 n)")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
