"""Comparison of the generators: size, work, speed, and image quality after equal training time on four scans.

    python benchmarks/generators.py --seconds 25

Scans and evaluation are those of `convergence.py` (N = 64, 1e6 photons per frame). GMAC counts the convolutions of one
forward pass, by `torch.utils.flop_counter`; the cost of transforms and interpolation is included in the frames per
second. Writes generators.csv, and generators.png with the truth and every network's image of each scan.
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

import numpy as np
import torch
from convergence import KINDS, compute_ssim, evaluate_untrained, format_short, simulate_pair, train_until
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from torchptycho.analysis.truth_alignment import align_to_truth
from torchptycho.core.config import ModelConfig, RunConfig, TrainConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.datasets import GroupDataset
from torchptycho.data.prepare import prepare
from torchptycho.models.lightning_module import PtychoPINN

GROUPS = 16


def measure_rate(call: Callable[[], object], frames: int) -> float:
    """Frames per second, the best of five calls after two."""
    for _ in range(2):
        call()
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return frames / min(seconds)


def measure_cost(scan: Scan, config: RunConfig) -> dict[str, object]:
    """Parameters, GMAC per frame, and frames per second of training and of the forward pass."""
    with tempfile.TemporaryDirectory() as folder:
        store = prepare([scan], config, Path(folder) / "store")
        module = PtychoPINN.for_store(store, config)
        batch = GroupDataset(store, "train").__getitems__(range(GROUPS))
        frames = batch.frames.shape[0] * batch.frames.shape[1]
        optimizer = torch.optim.Adam(module.generator.parameters(), lr=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            module._evaluate_loss(batch)["loss"].backward()
            optimizer.step()

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(batch)
        training = measure_rate(step, frames)
        module.eval()
        with torch.no_grad():
            inference = measure_rate(lambda: module(batch), frames)
    return {
        "parameters": sum(parameter.numel() for parameter in module.generator.parameters()),
        "GMAC_per_frame": counter.get_total_flops() / 2 / frames / 1e9,
        "training_frames_per_s": training,
        "forward_frames_per_s": inference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generators", nargs="+", default=["pie_unet", "resunet", "cnn"])
    parser.add_argument("--seconds", type=float, default=25, help="of training, on each scan")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    pairs = [simulate_pair(64, seed, photons=1e6) for seed in range(len(KINDS))]
    rows = []
    images: dict[str, list[tuple[Reconstruction | None, float]]] = {}
    for name in options.generators:
        config = RunConfig(
            model=ModelConfig(generator=name), train=TrainConfig(steps=100_000, accelerator="cpu", on_flat="warn")
        )
        row: dict[str, object] = {"generator": name} | measure_cost(pairs[0][0], config)
        for kind, (scan, judged) in zip(KINDS, pairs, strict=True):
            # Judged once, when the time is over: a rhythm that no step of any network falls short of.
            pace = max(10, int(options.seconds * float(row["training_frames_per_s"]) / 64))  # type: ignore[arg-type]
            timed = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=pace))
            image, _, seconds = train_until(scan, judged, timed, pace, options.seconds, (2.0, 2.0))
            images.setdefault(name, []).append((image, seconds))
            found = compute_ssim(image, judged)
            before = evaluate_untrained(scan, judged, timed)
            row |= {f"{kind}_amplitude_ssim": found[0], f"{kind}_phase_ssim": found[1], f"{kind}_seconds": seconds}
            row |= {f"{kind}_untrained_amplitude_ssim": before[0], f"{kind}_untrained_phase_ssim": before[1]}
        rows.append(row)
        print(", ".join(f"{key} {format_short(value)}" for key, value in row.items()), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "generators.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow({key: format_short(value) for key, value in row.items()})
    draw([judged for _, judged in pairs], images, options.out / "generators.png")


def draw(judged: list[Scan], images: dict[str, list[tuple[Reconstruction | None, float]]], out: Path) -> None:
    """Amplitude and phase of the truth and of each network's image, aligned, one line for each scan."""
    figure = Figure(figsize=(2.3 * 2 * (1 + len(images)), 2.4 * len(judged)), layout="constrained")
    grid = figure.subplots(len(judged), 2 * (1 + len(images)), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, scan in enumerate(judged):
        assert scan.truth is not None
        limits: dict[str, tuple[float, float]] = {}
        seen = {name: found[row] for name, found in images.items() if found[row][0] is not None}
        for column, (name, (image, seconds)) in enumerate(seen.items(), start=1):
            assert image is not None
            pair = align_to_truth(image, scan.truth, min_coverage=0.3)
            turn = np.exp(-1j * np.angle(pair.truth[pair.mask].sum()))
            shown = {column: (f"{name}, {seconds:.0f} s", pair.object)}
            if not limits:
                shown[0] = (KINDS[row].replace("_", " "), pair.truth)
                known = pair.truth[pair.mask] * turn
                for part, values in (("amplitude", np.abs(known)), ("phase", np.angle(known))):
                    limits[part] = tuple(np.percentile(values, [1, 99]))
            for place, (label, field) in shown.items():
                for number, (part, of) in enumerate((("amplitude", np.abs), ("phase", np.angle))):
                    axes = grid[row, 2 * place + number]
                    values = np.where(pair.mask, of(field * turn), np.nan)
                    axes.imshow(values, cmap="gray", vmin=limits[part][0], vmax=limits[part][1])
                    axes.set_title(f"{label}: {part}", fontsize=8)
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main()
