"""Effect of each option of the model of the experiment on the image, on four scans.

    python benchmarks/options.py --steps 60

Scans and evaluation are those of `convergence.py` (N = 64, 1e6 photons per frame): trained on one object, evaluated on
another with the same probe, without the option and with it, from the same seed: on data without a fault (`as it is`),
and on data with the fault that the option corrects (a defocused probe guess, a background).
Writes options.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from convergence import KINDS, compute_ssim, simulate_pair
from robustness import defocus

from torchptycho.core.config import ExperimentConfig, ModelConfig, RunConfig, TrainConfig
from torchptycho.core.errors import TrainingError
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.models.checkpoints import load_checkpoint
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.training.train import train


def out_of_focus(scan: Scan) -> Scan:
    return dataclasses.replace(scan, probe=defocus(scan.probe, 0.5))


def with_background(scan: Scan) -> Scan:
    frames = scan.frames[:]
    mean = 0.2 * float(frames.mean())
    noise = np.random.default_rng(0).poisson(mean, frames.shape).astype(frames.dtype)
    return dataclasses.replace(scan, frames=ArrayFrames(frames + noise))


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Scan], Scan] | None]] = {
    "probe_trainable": ({"probe_trainable": True}, {}, out_of_focus),
    "probe_trainable, probe_power fixed": ({"probe_trainable": True}, {"probe_power": "fixed"}, out_of_focus),
    "probe_trainable, probe_support_px": ({"probe_trainable": True}, {"probe_support_px": 44.0}, out_of_focus),
    "scale_trainable": ({}, {"scale_trainable": True}, None),
    "background_trainable": ({}, {"background_trainable": True}, with_background),
    "exit_smoothing_px": ({}, {"exit_smoothing_px": 0.5}, None),
}
"""By name: fields of the model, fields of the experiment, and what spoils a scan so that the option is needed."""


def train_and_evaluate(pair: tuple[Scan, Scan], config: RunConfig) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = train(pair[0], config, Path(folder) / "run", progress=False)
        except TrainingError:
            return 0.0, 0.0
        image = reconstruct(load_checkpoint(result.last), pair[1], accelerator="cpu", progress=False)
    return compute_ssim(image, pair[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--generator", default="pie_unet")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--options", nargs="+", choices=list(OPTIONS), default=list(OPTIONS), metavar="OPTION")
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows: list[dict[str, object]] = []
    for seed, kind in enumerate(KINDS):
        clean = simulate_pair(64, seed, photons=1e6)
        plain = RunConfig(
            model=ModelConfig(generator=options.generator),
            train=TrainConfig(steps=options.steps, accelerator="cpu", on_flat="warn"),
        )
        without: dict[Any, tuple[float, float]] = {}
        for name, (model, experiment, spoil) in ((name, OPTIONS[name]) for name in options.options):
            config = dataclasses.replace(
                plain, model=dataclasses.replace(plain.model, **model), experiment=ExperimentConfig(**experiment)
            )
            for case in (None, spoil) if spoil is not None else (None,):
                pair = clean if case is None else (case(clean[0]), case(clean[1]))
                if case not in without:
                    without[case] = train_and_evaluate(pair, plain)
                found = train_and_evaluate(pair, config)
                row: dict[str, object] = {
                    "option": name,
                    "scan": kind,
                    "data": "as it is" if case is None else case.__name__,
                    "amplitude_ssim_without": without[case][0],
                    "phase_ssim_without": without[case][1],
                    "amplitude_ssim_with": found[0],
                    "phase_ssim_with": found[1],
                }
                rows.append(row)
                print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "options.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
