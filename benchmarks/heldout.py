"""Error of a refined image without a prior, with the strength that held-out counts choose, and with the best of twelve.

    python benchmarks/heldout.py --doses 1e3 1e4 1e5 1e6 1e9 --out benchmarks/results

Ten kinds of objects, five of them the simulator's. `auto` chooses between total variation and the learnt prior; the
best of the twelve strengths is of total variation, and known only because the truth is.
Complex nRMSE over the valid pixels; every refinement of a scan shares the epochs before polishing, in which no prior
acts. Writes heldout.csv after each scan, and heldout.png: phases of the truth, without and with the chosen strength.
A scan file (--scan FILE --photons 1e4) is thinned to that many photons per frame instead, and refined without and with
a prior: its images are written next to the others.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from torchptycho.analysis.evaluation import evaluate
from torchptycho.analysis.truth_alignment import align_to_truth
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.held_out import hold_out
from torchptycho.data.simulation import simulate
from torchptycho.data.simulation.textures import draw_family
from torchptycho.io import read_scan, write_reconstruction
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.iterative.refinement import build_fingerprint
from torchptycho.reconstructors.iterative.state import RefinementState
from torchptycho.visualization.plot import plot_reconstruction

KINDS = (
    "dead_leaves", "circuit", "gaussian_field", "siemens_star", "vessels",
    "natural", "grains", "spheres", "lines", "gratings",
)  # fmt: skip
SIMULATED = ("dead_leaves", "gaussian_field", "siemens_star", "natural", "lines")
STRENGTHS = tuple(float(f"{s:.3g}") for s in np.geomspace(0.01, 0.64, 12))
SHOWN, SHOWN_DOSES = ("dead_leaves", "circuit", "vessels", "natural"), (1e3, 1e4, 1e5)
EPOCHS = 100


def make_scan(kind: str, dose: float, seed: int) -> Scan:
    config = SimulateConfig(object_px=128, n_frames=120, photons_per_frame=dose, simulation_seed=seed)
    if kind in SIMULATED:
        return simulate(dataclasses.replace(config, object_kind=kind))  # type: ignore[arg-type]
    phase, absorption = (
        ndimage.gaussian_filter(values, 0.7, mode="reflect")
        for values in draw_family(kind, config.object_px, np.random.default_rng([seed, 0]))
    )
    return simulate(config, object=((1 - 0.5 * absorption) * np.exp(1.6j * (phase - 0.5))).astype(np.complex64))


def refine_from_polishing(scan: Scan, folder: Path, configs: dict[str, RefineConfig]) -> dict[str, Reconstruction]:
    """Refine with each configuration; the epochs before polishing, which are the same for all, are run once."""
    first = next(iter(configs.values()))
    state_file, polishing = folder / "shared.npz", first.epochs - round(first.polish * first.epochs)

    def stop(epoch: int, misfit: float) -> None:
        if epoch == polishing:
            raise KeyboardInterrupt

    refine(scan, config=first, state_file=state_file, on_epoch=stop)
    images = {}
    for name, config in configs.items():
        state = RefinementState.load(state_file, build_fingerprint(scan, first), torch.device("cpu"))
        state.save(folder / "own.npz", build_fingerprint(scan, config))
        images[name] = refine(scan, config=config, state_file=folder / "own.npz", resume=True)
    return images


def refine_plainly_and_with_prior(scan: Scan) -> dict[str, Reconstruction]:
    plain = RefineConfig(epochs=EPOCHS, patience=None, regularization="none")
    with tempfile.TemporaryDirectory() as folder:
        configs = {"none": plain, "auto": dataclasses.replace(plain, regularization="auto")}
        return refine_from_polishing(scan, Path(folder), configs)


def measure(scan: Scan, known: dict[str, str] | None) -> tuple[dict[str, Any], dict[str, Reconstruction]]:
    """Refine a scan in every way; the best of twelve is taken from an earlier row of it where there is one."""
    plain = RefineConfig(epochs=EPOCHS, patience=None, regularization="none")
    configs = {name: dataclasses.replace(plain, regularization=name) for name in ("none", "auto", "learned")}
    for strength in () if known else STRENGTHS:
        configs[str(strength)] = dataclasses.replace(plain, regularization="tv", regularization_strength=strength)
    with tempfile.TemporaryDirectory() as folder:
        images = refine_from_polishing(scan, Path(folder), configs)
    assert scan.truth is not None
    errors = {name: evaluate(image, scan.truth).complex_nrmse for name, image in images.items()}
    if known:
        best, best_error = float(known["best_strength"]), float(known["best_of_12"])
    else:
        best = min(STRENGTHS, key=lambda strength: errors[str(strength)])
        best_error = errors[str(best)]
    found = images["auto"].provenance["regularization"]
    own_seconds = images["none"].provenance["seconds"]
    row = {
        "none": errors["none"],
        "auto": errors["auto"],
        "learned": errors["learned"],
        "best_of_12": best_error,
        "auto_kind": found["kind"],
        "auto_strength": found["strength"],
        "best_strength": best,
        "auto_over_best": errors["auto"] / min(errors["none"], best_error),
        "auto_over_none": errors["auto"] / errors["none"],
        "misfit_none": images["none"].history["misfit"][-1],
        "misfit_auto": images["auto"].history["misfit"][-1],
        "choice_seconds_over_own": found["seconds"] / own_seconds,
        "photons_per_px": found["photons_per_px"],
        "reason": found["reason"],
    }
    return row, images


def draw(shown: dict[tuple[str, float], tuple[Scan, dict[str, Reconstruction]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = [kind for kind in SHOWN if any(k == kind for k, _ in shown)]
    doses = [dose for dose in SHOWN_DOSES if any(d == dose for _, d in shown)]
    figure, axes = plt.subplots(
        len(kinds), 1 + 2 * len(doses), figsize=(1.7 * (1 + 2 * len(doses)), 1.8 * len(kinds)), squeeze=False
    )
    for row, kind in zip(axes, kinds, strict=True):
        for axis in row:
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(kind.replace("_", " "))
        for number, dose in enumerate(doses):
            if (kind, dose) not in shown:
                continue
            scan, images = shown[kind, dose]
            assert scan.truth is not None
            limits = {"cmap": "gray", "vmin": -0.9, "vmax": 0.9}
            for column, name in enumerate(("none", "auto")):
                pair = align_to_truth(images[name], scan.truth)
                row[0].imshow(np.angle(np.where(pair.mask, pair.truth, 1)), **limits)
                axis = row[1 + 2 * number + column]
                axis.imshow(np.angle(np.where(pair.mask, pair.object, 1)), **limits)
                if kind == kinds[0]:
                    axis.set_title(f"{name}, {dose:.0e} photons", fontsize=8)
    axes[0][0].set_title("truth", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def refine_thinned(path: Path, photons: float, seed: int, out: Path) -> None:
    scan = read_scan(path)
    measured = float(np.mean([chunk.sum(dtype=np.float64) / len(chunk) for chunk in scan.frames.chunks(64)]))
    thinned = hold_out(scan, kept_fraction=photons / measured, seed=seed, how="photons").kept
    for name in ("none", "auto"):
        begun = time.perf_counter()
        image = refine(thinned, config=RefineConfig(regularization=name))  # type: ignore[arg-type]
        print(name, f"misfit {image.history['misfit'][-1]:.3f}", image.provenance["regularization"], flush=True)
        print(f"{time.perf_counter() - begun:.1f} s")
        write_reconstruction(image, out / f"thinned-{name}.npz")
        plot_reconstruction(image, out / f"thinned-{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doses", type=float, nargs="+", default=[1e3, 1e4, 1e5, 1e6, 1e9])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--keep-best", action="store_true", help="take the best of twelve from heldout.csv where it is")
    parser.add_argument("--pictures", action="store_true", help="draw heldout.png alone, and measure nothing")
    parser.add_argument("--scan", type=Path, help="a scan of counts to thin and refine instead")
    parser.add_argument("--photons", type=float, default=1e4, help="per frame of the thinned scan")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.scan is not None:
        refine_thinned(options.scan, options.photons, options.seed, options.out)
        return
    # Times are of the processor, because on a busy machine those of the clock say little.
    time.perf_counter = time.process_time
    table, before = options.out / "heldout.csv", {}
    if options.keep_best:
        with table.open(newline="", encoding="utf-8") as file:
            before = {(float(row["dose"]), row["kind"]): row for row in csv.DictReader(file)}
    rows: list[dict[str, Any]] = []
    shown: dict[tuple[str, float], tuple[Scan, dict[str, Reconstruction]]] = {}
    for dose in options.doses:
        for kind in options.kinds:
            scan = make_scan(kind, dose, options.seed)
            if options.pictures:
                if kind in SHOWN and dose in SHOWN_DOSES:
                    shown[kind, dose] = scan, refine_plainly_and_with_prior(scan)
                    draw(shown, options.out / "heldout.png")
                continue
            row, images = measure(scan, before.get((dose, kind)))
            rows.append({"dose": dose, "kind": kind} | row)
            print(" ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in rows[-1].values()), flush=True)
            with table.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            if kind in SHOWN and dose in SHOWN_DOSES:
                shown[kind, dose] = scan, images
                draw(shown, options.out / "heldout.png")


if __name__ == "__main__":
    main()
