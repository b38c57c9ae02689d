"""Refinement from nothing: quality against time for each method, beside a plain batched PIE in the same run.

    python benchmarks/refine.py                      # a simulated scan
    python benchmarks/refine.py scan.npz --epochs 10 20 40 --update-probe

The plain PIE (regularised, mini-batches of 16, no momentum) is what a few dozen lines of torch give; every other row is
a cold `refine` with so many epochs. Ratios of time are against the plain PIE's. Each row is a run of its own, and
reading the frames counts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from torchptycho.config import RefineConfig, SimulateConfig
from torchptycho.evaluation import evaluate
from torchptycho.io import read_scan
from torchptycho.physics.patches import extract_inside, place_inside
from torchptycho.reconstruction import MIN_COVERAGE, Reconstruction
from torchptycho.refinement import refine
from torchptycho.refinement.problem import open_problem
from torchptycho.scan import Scan
from torchptycho.simulation import simulate


def plain_pie(scan: Scan, epochs: int, batch_size: int = 16, alpha: float = 0.1) -> Reconstruction:
    """Maiden, Johnson, Li, Optica 4, 736 (2017), with the frames of a batch at once; the probe stays."""
    from torchptycho.physics.scaling import probe_factor

    with torch.no_grad(), open_problem(scan) as problem:
        probe = torch.from_numpy(scan.probe[0]) * probe_factor(scan, problem.scaling)
        power = probe.real.square() + probe.imag.square()
        corners = problem.corners_px(torch.from_numpy(scan.positions_px))
        image = torch.ones(problem.shape, dtype=torch.complex64)
        generator = torch.Generator().manual_seed(0)
        for _ in range(epochs):
            for index in torch.randperm(scan.n_frames, generator=generator).split(batch_size):
                patches = extract_inside(image, corners[index], scan.n_px)
                wave = torch.fft.fft2(patches * probe, norm="ortho")
                modulus = wave.abs()
                wave = wave * (problem.counts(index).sqrt() / modulus.clamp_min(1e-9) - 1)
                numerator, denominator = torch.zeros_like(image), torch.zeros_like(image.real)
                place_inside(numerator, torch.fft.ifft2(wave, norm="ortho") * probe.conj(), corners[index])
                place_inside(denominator, power.expand(len(index), -1, -1), corners[index])
                image = image + numerator / ((1 - alpha) * denominator + alpha * denominator.max())
        light = torch.zeros(problem.shape)
        place_inside(light, power.expand(scan.n_frames, -1, -1), corners)
        coverage = (light / light.max()).numpy()
        return Reconstruction(
            object=image.numpy(), coverage=coverage, valid=coverage >= MIN_COVERAGE, origin_px=problem.origin_px
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, nargs="?", help="scan with its truth; None simulates one")
    parser.add_argument("--epochs", type=int, nargs="+", default=[8, 12, 20, 40])
    parser.add_argument("--plain-epochs", type=int, default=40)
    parser.add_argument("--methods", nargs="+", default=["rpie", "lsqml", "gradient"])
    parser.add_argument("--update-probe", action="store_true")
    options = parser.parse_args()

    if options.scan is None:
        scan = simulate(SimulateConfig(n_px=64, object_px=320, n_frames=2000, photons_per_frame=1e9))
    else:
        scan = read_scan(options.scan)
    if scan.truth is None:
        parser.error(f"{scan.source}: expected a scan with its truth")
    truth = scan.truth
    print(f"{scan!r}, {torch.get_num_threads()} threads")
    print(
        f"{'method':>10} {'epochs':>6} {'seconds':>8} {'ratio':>6} {'MAE amp':>8} {'MAE ph':>7} {'SSIM':>5} {'SSIM':>5}"
        f" {'nRMSE':>6}"
    )
    refine(scan, config=RefineConfig(epochs=1))  # what torch does once only

    def row(name: str, epochs: int, seconds: float, image: Reconstruction, base: float) -> None:
        m = evaluate(image, truth)
        print(
            f"{name:>10} {epochs:6d} {seconds:8.2f} {seconds / base:6.2f} {m.amplitude_mae:8.4f} "
            f"{m.phase_mae_rad:7.4f} {m.amplitude_ssim:5.2f} {m.phase_ssim:5.2f} {m.complex_nrmse:6.4f}",
            flush=True,
        )

    begun = time.perf_counter()
    image = plain_pie(scan, options.plain_epochs)
    base = time.perf_counter() - begun
    row("plain PIE", options.plain_epochs, base, image, base)
    for method in options.methods:
        for epochs in options.epochs:
            config = RefineConfig(method=method, epochs=epochs, probe_update=options.update_probe, patience=None)
            begun = time.perf_counter()
            image = refine(scan, config=config)
            row(method, epochs, time.perf_counter() - begun, image, base)


if __name__ == "__main__":
    main()
