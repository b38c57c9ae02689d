"""Rate of convergence of training over many seeds, each with another object, dose and weights.

    python benchmarks/convergence.py --n-px 64 128 --seeds 10 --steps 100 --out benchmarks/results

Seed s is an object of kind s mod 4 (dead leaves, lines, Siemens star, natural) at 10^(3 + s mod 7) photons per frame.
The network is trained on one scan and evaluated on another object with the same probe at the same dose, every
`--every` steps. A run has converged if the structural similarity of amplitude and of phase both reach 0.55 or, at low
dose, nine tenths of that of 40 epochs of refinement on the same scan. A run that was ended as collapsed has not.
Frames of more than 64 px are predicted twice, with other neighbours. Compared are the same network untrained, and with
`--compare-with` another generator trained for as long.

Writes convergence.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import platform
import statistics
import tempfile
from pathlib import Path

import torch

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import (
    GroupConfig,
    ModelConfig,
    ReconstructConfig,
    RefineConfig,
    RunConfig,
    SimulateConfig,
    TrainConfig,
)
from torchptycho.core.errors import TrainingError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.models.checkpoints import load_checkpoint
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.training.train import train

KINDS = ("dead_leaves", "lines", "siemens_star", "natural")
SSIM_THRESHOLD = 0.55
REFINED_FRACTION = 0.9


def simulate_pair(n_px: int, seed: int, photons: float | None = None) -> tuple[Scan, Scan]:
    """Simulate the training and the test scan: the same probe and dose, another object and other positions."""
    config = SimulateConfig(
        n_px=n_px,
        object_px=4 * n_px,
        n_frames=800,
        object_kind=KINDS[seed % 4],
        amplitude_min=0.4,  # type: ignore[arg-type]
        photons_per_frame=photons or 10.0 ** (3 + seed % 7),
        simulation_seed=2 * seed,
    )
    return simulate(config), simulate(dataclasses.replace(config, simulation_seed=2 * seed + 1))


def compute_ssim(image: Reconstruction | None, scan: Scan) -> tuple[float, float]:
    assert scan.truth is not None
    if image is None:
        return 0.0, 0.0
    found = evaluate(image, scan.truth, min_coverage=0.3)
    return found.amplitude_ssim, found.phase_ssim


def train_until(
    scan: Scan, judged: Scan, config: RunConfig, every: int, seconds: float, wanted: tuple[float, float]
) -> tuple[Reconstruction | None, float | None, float]:
    """Train; return the final image or None, the seconds until it was good enough or None, and the total seconds."""
    spent, reached, image = 0.0, None, None
    with tempfile.TemporaryDirectory() as folder:
        for steps in range(every, config.train.steps + 1, every):
            part = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))
            try:
                result = train(scan, part, Path(folder) / "run", resume=steps > every, progress=False)
            except TrainingError:
                return None, None, spent
            spent += result.seconds
            image = reconstruct(load_checkpoint(result.last), judged, accelerator="cpu", progress=False)
            if reached is None and all(a >= b for a, b in zip(compute_ssim(image, judged), wanted, strict=True)):
                reached = spent
            if spent > seconds:
                break
    return image, reached, spent


def evaluate_untrained(scan: Scan, judged: Scan, config: RunConfig) -> tuple[float, float]:
    """Evaluate the untrained network, whose result comes from its classical iterations."""
    with tempfile.TemporaryDirectory() as folder:
        module = PtychoPINN.for_store(prepare([scan], config, Path(folder) / "store"), config)
    return compute_ssim(reconstruct(module, judged, accelerator="cpu", progress=False), judged)


def format_short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-px", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--gridsize", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=50, help="steps between two judgements")
    parser.add_argument("--seconds", type=float, default=900, help="of training, for one seed at most")
    parser.add_argument("--predict-passes", type=int, help="None takes 1 for N = 64, and 2 for larger frames")
    parser.add_argument("--generator", default="pie_unet")
    parser.add_argument("--compare-with", help="another generator, trained for as long")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = []
    for n_px in options.n_px:
        for seed in range(options.seeds):
            scan, judged = simulate_pair(n_px, seed)
            config = RunConfig(
                group=GroupConfig(gridsize=options.gridsize),
                model=ModelConfig(generator=options.generator),
                train=TrainConfig(steps=options.steps, seed=seed, accelerator="cpu"),
                reconstruct=ReconstructConfig(predict_passes=options.predict_passes or (1 if n_px <= 64 else 2)),
            )
            best = compute_ssim(
                refine(judged, config=RefineConfig(epochs=40, probe_update=False, regularization="none")), judged
            )
            wanted = (min(SSIM_THRESHOLD, REFINED_FRACTION * best[0]), min(SSIM_THRESHOLD, REFINED_FRACTION * best[1]))
            before = evaluate_untrained(scan, judged, config)
            image, reached, spent = train_until(scan, judged, config, options.every, options.seconds, wanted)
            found = compute_ssim(image, judged)
            row = {
                "n_px": n_px,
                "seed": seed,
                "kind": KINDS[seed % 4],
                "photons_per_frame": 10.0 ** (3 + seed % 7),
                "converged": reached is not None,
                "seconds_to_threshold": None if reached is None else round(reached, 1),
                "seconds": round(spent, 1),
                "amplitude_ssim": found[0],
                "phase_ssim": found[1],
                "untrained_amplitude_ssim": before[0],
                "untrained_phase_ssim": before[1],
                "refined_amplitude_ssim": best[0],
                "refined_phase_ssim": best[1],
            }
            if options.compare_with:
                other = dataclasses.replace(
                    config,
                    model=ModelConfig(generator=options.compare_with),
                    train=dataclasses.replace(config.train, steps=100 * options.steps),
                )
                image = train_until(scan, judged, other, options.every, spent, wanted)[0]
                row["other_amplitude_ssim"], row["other_phase_ssim"] = compute_ssim(image, judged)
            rows.append(row)
            columns = [
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            ]
            print(", ".join(columns), flush=True)
        here = [row for row in rows if row["n_px"] == n_px]
        amplitude, phase = ([float(row[f"{part}_ssim"]) for row in here] for part in ("amplitude", "phase"))  # type: ignore[arg-type]
        times = [float(row["seconds_to_threshold"]) for row in here if row["converged"]]  # type: ignore[arg-type]
        print(
            f"N = {n_px}: {len(times)} of {len(here)} converged, SSIM median {statistics.median(amplitude):.2f} / "
            f"{statistics.median(phase):.2f}, worst {min(amplitude):.2f} / {min(phase):.2f}, "
            f"median time to threshold {statistics.median(times) if times else float('nan'):.0f} s"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "convergence.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
            )


if __name__ == "__main__":
    main()
