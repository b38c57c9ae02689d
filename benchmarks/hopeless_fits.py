"""How far a fit is from the counts when the scan is right, imperfect or wrong: a table over faults and doses.

    python benchmarks/hopeless_fits.py --out benchmarks/results

One simulated scan (N = 64) at several doses is read rightly, with faults as measured scans have them, and wrongly. Each
is refined with the probe free. Written are the misfit (1 is photon noise), the residual relative to the counts, the
part of the differences between the frames that the fit leaves unexplained, by which `refine` warns, and the error of
the image against the truth. Writes hopeless_fits.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path

import numpy as np

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import EvaluationError, TorchptychoError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative import refine, summarize_fit

DOSES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)


def make_scan(photons: float, seed: int, object_kind: str, **options: object) -> Scan:
    return simulate(
        SimulateConfig(
            n_px=64,
            object_px=144,
            n_frames=120,
            photons_per_frame=photons,
            simulation_seed=seed,
            object_kind=object_kind,
            **options,  # type: ignore[arg-type]
        )
    )


def make_variants(scan: Scan) -> dict[str, tuple[str, Scan]]:
    """By name: the kind ("right", "imperfect" or "wrong"), and the scan."""
    rng = np.random.default_rng(0)
    frames, positions = np.asarray(scan.frames[:], np.float64), scan.positions_px
    middle, n_px = positions.mean(0), scan.n_px

    def with_frames(values: np.ndarray, mask: np.ndarray | None = None, **other: object) -> Scan:
        return dataclasses.replace(
            scan,
            frames=ArrayFrames(values.astype(np.float32)),
            mask=scan.mask if mask is None else mask,
            **other,  # type: ignore[arg-type]
        )

    def with_positions(values: np.ndarray) -> Scan:
        return dataclasses.replace(scan, positions_px=np.ascontiguousarray(values))

    def turn(values: np.ndarray) -> np.ndarray:
        return middle + (values - middle)[:, ::-1]

    peak = frames.mean(0).max()
    background = rng.poisson(0.003 * peak, frames.shape)
    gain = 1 + 0.02 * rng.standard_normal((n_px, n_px))
    brightness = rng.uniform(0.8, 1.2, (len(frames), 1, 1))
    module = np.ones((n_px, n_px), bool)
    module[: n_px // 2, : n_px // 3] = False
    rows, columns = np.indices((n_px, n_px)) - n_px // 2
    disc = np.hypot(rows, columns) < n_px // 6
    blurred = sum(np.roll(frames, (y, x), (1, 2)) for y in (-1, 0, 1) for x in (-1, 0, 1)) / 9
    hot = frames.copy()
    hot[:, rng.random((n_px, n_px)) < 0.002] = frames.max()
    return {
        "as simulated": ("right", scan),
        "positions off by 0.5 px RMS": ("imperfect", with_positions(positions + rng.normal(0, 0.5, positions.shape))),
        "positions off by 1 px RMS": ("imperfect", with_positions(positions + rng.normal(0, 1, positions.shape))),
        "scale 3 % too small": ("imperfect", with_positions(middle + 0.97 * (positions - middle))),
        "background, 0.3 % of the peak": ("imperfect", with_frames(frames + background)),
        "gain of pixels 2 % RMS": ("imperfect", with_frames(frames * gain)),
        "brightness 20 % up and down": ("imperfect", with_frames(frames * brightness)),
        "partial coherence, one mode": ("imperfect", with_frames(blurred)),
        "0.2 % hot pixels": ("imperfect", with_frames(hot)),
        "x and y exchanged": ("wrong", with_positions(turn(positions))),
        "y reversed": ("wrong", with_positions(2 * middle - positions * (1, -1) - middle * (0, 2) + 0)),
        "positions of other frames": ("wrong", with_positions(positions[rng.permutation(len(positions))])),
        "unit: positions half as large": ("wrong", with_positions(middle + 0.5 * (positions - middle))),
        "unit: positions 1000 times smaller": ("wrong", with_positions(middle + 0.001 * (positions - middle))),
        "unit: positions twice as large": ("wrong", with_positions(middle + 2 * (positions - middle))),
        "mask: the middle is left out": ("wrong", with_frames(frames * ~disc, ~disc)),
        "mask: bad module is taken for good": ("wrong", with_frames(frames * module)),
        "domain: counts read as amplitudes": ("wrong", with_frames(frames**2)),
        "domain: amplitudes read as counts": ("wrong", with_frames(np.sqrt(frames))),
        "frames are not centred (4 px)": ("imperfect", with_frames(np.roll(frames, (4, -3), (1, 2)))),
        "frames not shifted (fftshift)": ("wrong", with_frames(np.fft.fftshift(frames, (1, 2)))),
        "background, as bright as the peak": ("wrong", with_frames(frames + rng.poisson(peak, frames.shape))),
        "detector codes as counts": ("wrong", with_frames(np.where(module, frames, 65535.0))),
    }


def compute_error(image: Reconstruction, scan: Scan) -> float:
    assert scan.truth is not None
    try:
        return evaluate(image, scan.truth, min_coverage=0.3).complex_nrmse
    except EvaluationError:
        return 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--doses", type=float, nargs="*", default=DOSES)
    parser.add_argument("--objects", nargs="*", default=("dead_leaves", "siemens_star"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()

    config = RefineConfig(epochs=options.epochs, patience=None, regularization="none")
    rows = []
    print(
        f"{'object':>12} {'dose':>7} {'fault':>35} {'kind':>9} {'misfit':>9} {'residual':>9} {'unexplained':>11} "
        f"{'warned':>6} {'error':>6}"
    )
    for object_kind in options.objects:
        for photons in options.doses:
            scan = make_scan(photons, 3, object_kind)
            for name, (kind, spoilt) in make_variants(scan).items():
                try:
                    image = refine(spoilt, config=config)
                except TorchptychoError as error:
                    print(f"{name}: refused: {error}")
                    continue
                fit = summarize_fit(image.history)
                rows.append(
                    {
                        "object": object_kind,
                        "photons_per_frame": f"{photons:.0e}",
                        "fault": name,
                        "kind": kind,
                        **{figure: f"{value:.3g}" for figure, value in fit.items()},
                        "warned": bool(image.provenance["warnings"]),
                        "error": f"{compute_error(image, scan):.3g}",
                    }
                )
                widths = (12, 7, 35, 9, 9, 9, 11, 6, 6)
                print(
                    " ".join(str(text).rjust(n) for text, n in zip(rows[-1].values(), widths, strict=True)), flush=True
                )
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "hopeless_fits.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
