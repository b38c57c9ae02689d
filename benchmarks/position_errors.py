"""How large position errors refinement takes out: a table over their size, the probe and the options.

    python benchmarks/position_errors.py --out benchmarks/results

Simulated scans of 82 % overlap with a zone plate's probe (with central stop) and one behind a diffuser; the given
positions are off by normal errors, RMS per axis. Written are what is left of the errors (RMS and median, without the
shift that all have in common), the area of the probe relative to the true one, and the unexplained part of the frames'
differences. Writes position_errors.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative import refine

OVERLAP = 0.82
OPTIONS: dict[str, dict[str, Any]] = {
    "80 epochs, probe free": {"epochs": 80},
    "100 epochs, probe fixed, limit 24 px, step 1 px": {
        "epochs": 100,
        "probe_update": False,
        "position_limit_px": 24.0,
        "position_step_px": 1.0,
    },
    # 60 passes before the first epoch: 160 in all, twice those of a plain run.
    "100 epochs after a search of 4 RMS": {"epochs": 100},
}


def make_diffuser_probe(n_px: int, diameter_px: float) -> np.ndarray:
    """A disc with a random phase of 1.5 rad RMS that varies over about 8 px."""
    rng = np.random.default_rng(5)
    f = np.fft.fftfreq(n_px)
    spectrum = np.fft.fft2(rng.standard_normal((n_px, n_px))) * np.exp(-((np.hypot(f[:, None], f) * 8) ** 2))
    phase = np.fft.ifft2(spectrum).real
    along = np.arange(n_px) - n_px // 2
    amplitude = 1 / (1 + np.exp(np.hypot(along[:, None], along) - diameter_px / 2))
    return (amplitude * np.exp(1.5j * phase / phase.std())).astype(np.complex64)[None]


def make_scan(kind: str, n_px: int, n_frames: int) -> Scan:
    diameter_px = 30 if n_px == 64 else 0.46 * n_px
    step_px = (1 - OVERLAP) * diameter_px
    options: dict[str, Any] = {
        "n_px": n_px,
        "object_px": int((step_px * round(n_frames**0.5) + n_px + 24) // 2 * 2),
        "n_frames": n_frames,
        "photons_per_frame": 1e6,
        "simulation_seed": 3,
        "position_kind": "raster",
        "position_jitter_px": 0.25 * step_px,
    }
    if kind == "zone_plate":
        return simulate(SimulateConfig(probe_diameter_px=0.65 * diameter_px, probe_defocus_waves=2.5, **options))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.npz"
        np.savez(path, probeGuess=make_diffuser_probe(n_px, diameter_px))
        return simulate(SimulateConfig(probe_file=str(path), **options))


def compute_area(probe: np.ndarray) -> float:
    intensity = np.square(np.abs(probe)).sum(0)
    return float(intensity.sum() ** 2 / np.square(intensity).sum())


def read_others(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of an earlier table that are not measured again."""
    if not path.is_file():
        return []

    def get_key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in ("n_px", "probe", "rms_px", "options"))

    again = {get_key(row) for row in rows}
    with path.open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if get_key(row) not in again]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-px", type=int, nargs="*", default=(64, 128))
    parser.add_argument("--rms-px", type=float, nargs="*", default=(2, 4, 8, 12))
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--options", nargs="*", default=list(OPTIONS), help="rows of these options; others are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()

    rows = []
    for n_px in options.n_px:
        for kind in ("zone_plate", "diffuser"):
            scan = make_scan(kind, n_px, options.frames)
            for rms_px in options.rms_px:
                off = np.random.default_rng(1).normal(0, rms_px, scan.positions_px.shape)
                wrong = dataclasses.replace(scan, positions_px=scan.positions_px + off)
                for name, given in ((name, OPTIONS[name]) for name in options.options):
                    reach = {"position_search_px": 4 * rms_px} if "search" in name else {}
                    config = RefineConfig(
                        position_update="frames", patience=None, regularization="none", **given, **reach
                    )
                    image = refine(wrong, config=config, judge=False)
                    assert image.positions_px is not None
                    assert image.probe is not None
                    left = image.positions_px - scan.positions_px
                    left = left - np.median(left, axis=0)
                    rows.append(
                        {
                            "n_px": n_px,
                            "probe": kind,
                            "rms_px": f"{rms_px:g}",
                            "options": name,
                            "left_rms_px": f"{np.std(left - left.mean(0)):.2f}",
                            "left_median_px": f"{np.median(np.abs(left)):.2f}",
                            "probe_area": f"{compute_area(image.probe) / compute_area(scan.probe):.2f}",
                            "unexplained": f"{image.history['unexplained'][-1]:.3f}",
                            "warnings": len(image.provenance["warnings"]),
                        }
                    )
                    print(" ".join(str(value).rjust(8) for value in rows[-1].values()), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [*read_others(options.out / "position_errors.csv", rows), *rows]
    with (options.out / "position_errors.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
