"""Errors of refinement with wrong inputs: a table of faults, without a remedy and with one.

    python benchmarks/robustness.py --out benchmarks/results

One simulated scan (dead leaves, N = 64, a zone plate's probe, 1e6 photons per frame) is modified by one fault at a
time. The error is the complex nRMSE of the image relative to the truth (1 if no comparison is possible): `as it is`
refines only the object, `remedy` uses the option for the fault. Writes robustness.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import EvaluationError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative import refine


def defocus(probe: np.ndarray, turns: float) -> np.ndarray:
    """The probe farther along the optical axis: a quadratic phase over its spectrum, a number of waves at the edge."""
    f = np.fft.fftfreq(probe.shape[-1])
    phase = np.exp(2j * np.pi * turns * 4 * (f[:, None] ** 2 + f**2))
    return np.fft.ifft2(np.fft.fft2(probe) * phase).astype(np.complex64)


def make_mean_pattern_probe(scan: Scan) -> np.ndarray:
    """A probe with the modulus of the mean pattern and a flat phase at the detector, tapered to the middle."""
    modulus = np.sqrt(np.mean(scan.frames[:], axis=0, dtype=np.float64))
    field = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(modulus), norm="ortho"))
    return field[None].astype(np.complex64)


def make_faults(scan: Scan) -> dict[str, tuple[Scan, dict[str, Any]]]:
    """By name: the spoilt scan, and the options that are meant for it."""
    rng = np.random.default_rng(0)
    n_px, middle = scan.n_px, scan.positions_px.mean(0)
    frames = scan.frames[:]

    def replace_positions(positions_px: np.ndarray) -> Scan:
        return dataclasses.replace(scan, positions_px=positions_px)

    def replace_frames(spoilt: np.ndarray, mask: np.ndarray | None = None) -> Scan:
        mask = scan.mask if mask is None else mask
        return dataclasses.replace(scan, frames=ArrayFrames(spoilt), mask=mask)

    hot = frames.copy()
    hot_pixels = rng.random((n_px, n_px)) < 0.01
    hot[:, hot_pixels] = frames.max()
    module = np.ones((n_px, n_px), bool)
    module[: n_px // 2, : n_px // 4] = False
    stop = np.hypot(*(np.indices((n_px, n_px)) - n_px // 2)) >= 3
    with_background = frames + rng.poisson(0.002 * frames.max(), frames.shape).astype(frames.dtype)
    free = {"probe_update": True}
    return {
        "nothing": (scan, free),
        "positions off by 1 px RMS": (
            replace_positions(scan.positions_px + rng.normal(0, 1, scan.positions_px.shape)),
            {"position_update": "frames"},
        ),
        "positions off by 5 px RMS": (
            replace_positions(scan.positions_px + rng.normal(0, 5, scan.positions_px.shape)),
            {"position_update": "frames", "position_limit_px": 16.0, "position_step_px": 1.0},
        ),
        "scan scale 3 % too small": (
            replace_positions(middle + 0.97 * (scan.positions_px - middle)),
            {"position_update": "affine", "position_limit_px": 16.0},
        ),
        "scan scale 10 % too small": (
            replace_positions(middle + 0.9 * (scan.positions_px - middle)),
            {"position_update": "affine", "position_limit_px": 24.0},
        ),
        "scan turned by 2 degrees": (
            replace_positions(
                middle + (scan.positions_px - middle) @ np.array([[0.99939, -0.0349], [0.0349, 0.99939]])
            ),
            {"position_update": "affine", "position_limit_px": 16.0},
        ),
        "defocused probe guess": (dataclasses.replace(scan, probe=defocus(scan.probe, 1.0)), free),
        "probe from the mean pattern": (
            dataclasses.replace(scan, probe=make_mean_pattern_probe(scan), probe_is_calibrated=False),
            free,
        ),
        "1 % hot pixels (remedy: masked)": (replace_frames(hot), {}),
        "dead module, masked": (replace_frames(frames * module, module), {}),
        "beam stop, masked": (replace_frames(frames * stop, stop), {}),
        "background of 0.2 % of the peak": (replace_frames(with_background), {"background": True}),
    }


def compute_error(image: Reconstruction, scan: Scan) -> float:
    assert scan.truth is not None
    try:
        return evaluate(image, scan.truth, min_coverage=0.3).complex_nrmse
    except EvaluationError:
        return 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()

    scan = simulate(SimulateConfig(n_px=64, object_px=192, n_frames=600, photons_per_frame=1e6, simulation_seed=3))
    assert scan.truth is not None
    rows = []
    print(f"{'fault':>34} {'as it is':>9} {'remedy':>8} {'misfit':>8}")
    for name, (spoilt, remedy) in make_faults(scan).items():
        plain = RefineConfig(epochs=options.epochs, probe_update=False, patience=None, regularization="none")
        with_remedy = dataclasses.replace(plain, **remedy)
        cured = spoilt
        if name.startswith("1 % hot"):
            mean = np.mean(spoilt.frames[:], axis=0)
            cured = dataclasses.replace(spoilt, mask=mean < 0.9 * spoilt.frames[:].max())
        before = compute_error(refine(spoilt, config=plain), scan)
        image = refine(cured, config=with_remedy)
        after = compute_error(image, scan)
        rows.append({"fault": name, "as_it_is": before, "remedy": after, "misfit": image.history["misfit"][-1]})
        print(f"{name:>34} {before:9.3f} {after:8.3f} {rows[-1]['misfit']:8.3g}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "robustness.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
