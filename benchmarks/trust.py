"""Whether error bars and predictions are right: against the truth of simulated scans.

    python benchmarks/trust.py --out benchmarks/results

Error bars: scans of two objects at 1e3 to 1e7 photons per frame are refined, without a prior and with the one that
held-out counts choose, and their error bars estimated. The table has the part of the pixels that are within one
standard deviation of the truth (0.68 if the bars are right), over all, its extremes over ten deciles of coverage, and
the processor time of the estimate over that of the refinement.
Designs: the error that `torchptycho design` predicts for twelve scans, and that of a refinement of each.
Writes error_bars.csv, error_bars.png, designs.csv and designs.png, and the pictures of docs/error_bars.md and
docs/scan_design.md.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchptycho.analysis.calibration import find_within_sigma
from torchptycho.analysis.evaluation import evaluate
from torchptycho.analysis.truth_alignment import align_to_truth
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative import estimate_uncertainty, refine
from torchptycho.reconstructors.scan_design import plan_design
from torchptycho.reconstructors.scan_prediction import predict_scan
from torchptycho.visualization.plot import plot_design

_SCAN: dict[str, Any] = {"n_px": 64, "object_px": 128, "n_frames": 100}
_OBJECTS = ("dead_leaves", "siemens_star")


def make_speckled_probe(n_px: int, seed: int = 0) -> np.ndarray:
    """Make a disc behind a diffuser."""
    from scipy.ndimage import gaussian_filter

    along = np.arange(n_px) - n_px // 2
    radius = np.hypot(along[:, None], along)
    phase = gaussian_filter(np.random.default_rng(seed).normal(size=(n_px, n_px)), 1.5)
    disc = np.clip((14 - radius) / 4 + 0.5, 0, 1)
    return np.asarray(disc * np.exp(2.5j * phase / phase.std()), dtype=np.complex64)


_DESIGNS: dict[str, dict[str, Any]] = {
    "zone plate, 1e4 photons": {"photons_per_frame": 1e4},
    "zone plate, 1e5": {"photons_per_frame": 1e5},
    "zone plate, 1e7": {"photons_per_frame": 1e7},
    "wires, 1e6": {"photons_per_frame": 1e6, "object_kind": "lines"},
    "Gaussian probe, 1e6": {"photons_per_frame": 1e6, "probe_kind": "gaussian", "probe_diameter_px": 16},
    "disc, 1e6": {"photons_per_frame": 1e6, "probe_kind": "disk", "probe_diameter_px": 24},
    "50 frames, 1e5": {"photons_per_frame": 1e5, "n_frames": 50},
    "raster, 1e6": {"photons_per_frame": 1e6, "position_kind": "raster"},
    "star, 1e6": {"photons_per_frame": 1e6, "object_kind": "siemens_star"},
    "two modes, 1e6": {"photons_per_frame": 1e6, "probe_modes": 2},
    "diffuser, 1e5": {"photons_per_frame": 1e5, "speckled": True},
    "diffuser, 1e6": {"photons_per_frame": 1e6, "speckled": True},
}


def judge_error_bars(doses: list[float], methods: list[str], objects: list[str]) -> list[dict[str, Any]]:
    """Refine a scan of each object and dose, without and with a prior, and compare its error bars with the truth."""
    rows = []
    for dose, kind, regularization in itertools.product(doses, objects, ("none", "auto")):
        seed = 5 + _OBJECTS.index(kind)
        scan = simulate(SimulateConfig(**_SCAN, photons_per_frame=dose, object_kind=kind, simulation_seed=seed))
        assert scan.truth is not None
        begun = time.process_time()
        image = refine(scan, config=RefineConfig(regularization=regularization), judge=False)
        seconds = time.process_time() - begun
        pair = align_to_truth(image, scan.truth)
        prior = image.provenance["regularization"]
        for method in methods:
            if method == "fisher" and prior["strength"] > 0:
                continue
            begun = time.process_time()
            found = estimate_uncertainty(image, scan, method=method)
            cost = (time.process_time() - begun) / seconds
            parts = find_within_sigma(found, pair.object, pair.truth, pair.mask, pair.origin_px, pair.amplitude_factor)
            row: dict[str, Any] = {
                "photons_per_frame": dose,
                "object": kind,
                "prior": prior["kind"] if prior["strength"] > 0 else "none",
                "method": method,
            }
            y, x = (a - b for a, b in zip(pair.origin_px, image.origin_px, strict=True))
            known = parts[2]
            coverage = image.coverage[y : y + known.shape[0], x : x + known.shape[1]][known]
            decile = np.argsort(np.argsort(coverage)) * 10 // len(coverage)
            for name, part in zip(("amplitude", "phase"), parts[:2], strict=True):
                by_decile = [float(part[known][decile == number].mean()) for number in range(10)]
                row |= {
                    f"{name}_within": float(part[known].mean()),
                    f"{name}_least_decile": min(by_decile),
                    f"{name}_greatest_decile": max(by_decile),
                }
            rows.append(row | {"cost": cost})
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    return rows


def judge_designs() -> list[dict[str, Any]]:
    """Predict each design, and refine a simulation of it."""
    rows = []
    for name, given in _DESIGNS.items():
        options = dict(given)
        probe = make_speckled_probe(_SCAN["n_px"]) if options.pop("speckled", False) else None
        config = SimulateConfig(**_SCAN | {"simulation_seed": 7} | options)
        begun = time.process_time()
        found = predict_scan(plan_design(config, probe=probe))
        seconds = time.process_time() - begun
        scan = simulate(config, probe=probe)
        begun = time.process_time()
        image = refine(scan, config=RefineConfig(regularization="none"), judge=False)
        of_refinement = time.process_time() - begun
        achieved = evaluate(image, scan)
        rows.append(
            {
                "design": name,
                "predicted_nrmse": found.complex_nrmse,
                "achieved_nrmse": achieved.complex_nrmse,
                "ratio": found.complex_nrmse / achieved.complex_nrmse,
                "predicted_half_period_px": found.half_period_px,
                "achieved_half_period_px": achieved.resolution_half_px,
                "efficiency_at_0.04_cycles_per_px": found.efficiency[2],
                "efficiency_at_0.24_cycles_per_px": found.efficiency[5],
                "seconds_predict": seconds,
                "seconds_refine": of_refinement,
            }
        )
        print({key: round(v, 4) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    return rows


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )


def draw_error_bars(rows: list[dict[str, Any]], path: Path) -> None:
    from torchptycho.visualization.plot.figure import BLUE, GREEN, ORANGE, make_figure, save, style_axes

    figure = make_figure(9.0, 3.6)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, quantity in zip(axes, ("amplitude", "phase"), strict=True):
        axis.axhspan(0.6, 0.76, color="0.9")
        axis.axhline(0.683, color="0.5", linewidth=0.8)
        kinds = (("bootstrap", False, BLUE, "o", "bootstrap, no prior"), ("bootstrap", True, ORANGE, "s",
                 "bootstrap, with a prior"), ("fisher", False, GREEN, "^", "fisher, no prior"))  # fmt: skip
        for number, (method, prior, colour, marker, label) in enumerate(kinds):
            of_kind = [row for row in rows if row["method"] == method and (row["prior"] != "none") == prior]
            x = np.array([row["photons_per_frame"] for row in of_kind]) * 1.18 ** (number - 1)
            y = np.array([row[f"{quantity}_within"] for row in of_kind])
            ends = np.array([[row[f"{quantity}_least_decile"], row[f"{quantity}_greatest_decile"]] for row in of_kind])
            if len(of_kind):
                axis.errorbar(
                    x, y, np.abs(ends.T - y), fmt=marker, color=colour, markersize=4, elinewidth=0.7, label=label
                )
        axis.set_xscale("log")
        axis.set_ylim(0.3, 1.0)
        style_axes(axis, "photons per frame", "within one sigma" if quantity == "amplitude" else "")
        axis.set_title(quantity, fontsize=9)
    axes[0].legend(frameon=False, fontsize=8, loc="upper right")
    save(figure, path)


def draw_designs(rows: list[dict[str, Any]], path: Path) -> None:
    from torchptycho.visualization.plot.figure import BLUE, make_figure, save, style_axes

    figure = make_figure(5.2, 4.4)
    axis = figure.subplots()
    achieved, predicted = (np.array([row[f"{kind}_nrmse"] for row in rows]) for kind in ("achieved", "predicted"))
    ends = np.array([achieved.min() / 1.4, achieved.max() * 1.4])
    axis.fill_between(ends, ends * 0.8, ends * 1.2, color="0.9", label="20 %")
    axis.loglog(achieved, predicted, "o", color=BLUE, markersize=5)
    order = np.argsort(achieved)
    for rank, number in enumerate(order):
        place = achieved[number], predicted[number]
        axis.annotate(str(rank + 1), place, fontsize=7, xytext=(4, -9), textcoords="offset points")
    names = "\n".join(f"{rank}  {rows[number]['design']}" for rank, number in enumerate(order, 1))
    axis.text(0.62, 0.04, names, fontsize=7, transform=axis.transAxes)
    style_axes(axis, "nRMSE of the refined image", "predicted nRMSE")
    axis.legend(frameon=False, fontsize=8)
    save(figure, path)


def draw_example(path: Path) -> None:
    """Draw the phase of a refined image, its error, its standard deviation, and the one in units of the other."""
    from torchptycho.visualization.plot.figure import make_figure, save
    from torchptycho.visualization.plot.panels import find_bounding_box

    scan = simulate(SimulateConfig(**_SCAN, photons_per_frame=1e5, object_kind="siemens_star", simulation_seed=6))
    assert scan.truth is not None
    image = estimate_uncertainty(refine(scan, judge=False), scan)
    assert image.phase_sigma_rad is not None
    pair = align_to_truth(image, scan.truth)
    y, x = (a - b for a, b in zip(pair.origin_px, image.origin_px, strict=True))
    sigma = image.phase_sigma_rad[y : y + pair.mask.shape[0], x : x + pair.mask.shape[1]]
    box = find_bounding_box(pair.mask)
    error = np.where(pair.mask, np.angle(pair.object * pair.truth.conj()), np.nan)
    high = float(np.nanpercentile(np.where(pair.mask, sigma, np.nan), 99))
    panels = (
        ("phase (rad)", np.where(pair.mask, np.angle(pair.object), np.nan), "viridis", None, None),
        ("error of the phase (rad)", error, "RdBu_r", -2 * high, 2 * high),
        ("standard deviation (rad)", np.where(pair.mask, sigma, np.nan), "cividis", 0.0, high),
        ("error / standard deviation", error / sigma, "RdBu_r", -3.0, 3.0),
    )
    figure = make_figure(11.0, 2.9)
    for axis, (title, values, colours, low, top) in zip(figure.subplots(1, 4), panels, strict=True):
        shown = axis.imshow(values[box], cmap=colours, vmin=low, vmax=top, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
        figure.colorbar(shown, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doses", type=float, nargs="+", default=[1e3, 1e4, 1e5, 1e6, 1e7])
    parser.add_argument("--methods", nargs="+", default=["bootstrap", "fisher"])
    parser.add_argument("--objects", nargs="+", default=list(_OBJECTS))
    parser.add_argument("--parts", nargs="+", default=["error_bars", "designs", "pictures"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    options.out.mkdir(parents=True, exist_ok=True)
    if "designs" in options.parts:
        designs = judge_designs()
        write_table(designs, options.out / "designs.csv")
        draw_designs(designs, options.out / "designs.png")
    if "pictures" in options.parts:
        pictures = Path(__file__).parents[1] / "docs/pictures"
        draw_example(pictures / "error_bars.png")
        config = SimulateConfig(object_px=192, n_frames=300, photons_per_frame=1e5)
        design = plan_design(config, object_pixel_m=1e-8)
        plot_design(design, predict_scan(design), pictures / "design.png")
    if "error_bars" in options.parts:
        rows = judge_error_bars(options.doses, options.methods, options.objects)
        write_table(rows, options.out / "error_bars.csv")
        draw_error_bars(rows, options.out / "error_bars.png")


if __name__ == "__main__":
    main()
