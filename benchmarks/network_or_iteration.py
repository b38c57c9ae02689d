"""When to train and when to refine: error against wall time over overlap, dose and size of the scan.

    python benchmarks/network_or_iteration.py --out benchmarks/results

For each scan a network is trained on another object with the same probe, with the same scan steps and the same dose;
its time is listed separately, because it is spent once for many scans. Then the scan itself: the network's image, that
image refined for a few epochs, and refinement from a uniform object. Seconds are those of whole calls, including
reading the frames. The error is the complex nRMSE over the well illuminated area, after shift, phase plane and scale.
Writes network_or_iteration.csv and network_or_iteration.png.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig, RunConfig, SimulateConfig, TrainConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.models.checkpoints import load_checkpoint
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.training.train import train

N_PX = 64
PROBE_PX = 0.4 * N_PX


@dataclasses.dataclass(frozen=True)
class Case:
    """One scan: linear overlap of neighbouring probe positions, photons per frame, edge of the scanned field."""

    overlap: float
    photons: float
    field_px: int = 200

    @property
    def n_frames(self) -> int:
        return round((self.field_px / (PROBE_PX * (1 - self.overlap))) ** 2)

    @property
    def title(self) -> str:
        return f"{self.overlap:.0%} overlap, {self.photons:.0e} photons, {self.n_frames} frames"

    def scan(self, seed: int) -> Scan:
        return simulate(
            SimulateConfig(
                n_px=N_PX,
                object_px=self.field_px + N_PX,
                n_frames=self.n_frames,
                photons_per_frame=self.photons,
                amplitude_min=0.3,
                simulation_seed=seed,
            )
        )


CASES = (
    *(Case(overlap, 1e6) for overlap in (0.3, 0.5, 0.7, 0.8)),
    *(Case(0.7, photons) for photons in (1e3, 1e4, 1e5, 1e7)),
    Case(0.7, 1e6, 400),
)


def measure_case(case: Case, steps: int, epochs: list[int], device: str) -> list[dict[str, object]]:
    scan, other = case.scan(2), case.scan(1)
    assert scan.truth is not None
    truth = scan.truth
    rows: list[dict[str, object]] = []

    def row(
        what: str, count: int, call: Callable[[], Reconstruction], before: float = 0.0
    ) -> tuple[Reconstruction, float]:
        begun = time.perf_counter()
        image = call()
        seconds = before + time.perf_counter() - begun
        found = evaluate(image, truth, min_coverage=0.3)
        rows.append(
            {
                "case": case.title,
                "overlap": case.overlap,
                "photons_per_frame": case.photons,
                "frames": case.n_frames,
                "what": what,
                "epochs": count,
                "seconds": round(seconds, 3),
                "complex_nrmse": round(found.complex_nrmse, 4),
                "amplitude_ssim": round(found.amplitude_ssim, 3),
                "phase_ssim": round(found.phase_ssim, 3),
            }
        )
        print(f"{case.title}: {what:>16} {count:3d} {seconds:7.2f} s  {found.complex_nrmse:.4f}", flush=True)
        return image, seconds

    accelerator = "gpu" if device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(train=TrainConfig(steps=steps, accelerator=accelerator))
        begun = time.perf_counter()
        result = train(other, config, Path(folder) / "run", progress=False)
        training = time.perf_counter() - begun
        module = load_checkpoint(result.checkpoint)
    print(f"{case.title}: trained {steps} steps on another object in {training:.0f} s", flush=True)
    options = {"accelerator": accelerator, "progress": False}
    reconstruct(module, other, **options)  # what torch does once only
    image, seconds = row("network", 0, lambda: reconstruct(module, scan, **options))
    for count in epochs:
        settings = RefineConfig(epochs=count, probe_update=False, patience=None, regularization="none")
        row("network, refined", count, lambda s=settings: refine(scan, image, config=s, device=device), seconds)
    for count in (*epochs, 2 * epochs[-1]):
        settings = RefineConfig(epochs=count, probe_update=False, patience=None, regularization="none")
        row("refined", count, lambda s=settings: refine(scan, config=s, device=device))
    for each in rows:
        each["training_seconds"] = round(training, 1)
    return rows


def draw(rows: list[dict[str, object]], path: Path) -> None:
    titles = list(dict.fromkeys(str(row["case"]) for row in rows))
    figure = Figure(figsize=(12, 3.2 * -(-len(titles) // 3)), layout="constrained")
    axes = figure.subplots(-(-len(titles) // 3), 3, squeeze=False, sharey=True).ravel()
    for axis, title in zip(axes, titles, strict=False):
        for what, marker in (("refined", "o-"), ("network, refined", "s-"), ("network", "*")):
            found = [row for row in rows if row["case"] == title and row["what"] == what]
            size = 12 if what == "network" else 4
            axis.loglog(
                [row["seconds"] for row in found],
                [row["complex_nrmse"] for row in found],
                marker,
                label=what,
                markersize=size,
            )
        axis.set(title=title, xlabel="seconds", ylabel="complex nRMSE")
        axis.title.set_fontsize(9)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    for axis in axes[len(titles) :]:
        axis.set_visible(False)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="of training")
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 5, 10, 20])
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))), help="numbers of the cases")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {device}")
    rows = [
        row for number in options.cases for row in measure_case(CASES[number], options.steps, options.epochs, device)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    suffix = "" if device == "cpu" else f"_{device}"
    with (options.out / f"network_or_iteration{suffix}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, options.out / f"network_or_iteration{suffix}.png")


if __name__ == "__main__":
    main()
