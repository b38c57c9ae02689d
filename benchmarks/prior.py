"""Error of a refined image without a prior, with the best total variation, and with the learnt prior.

    python benchmarks/prior.py --doses 1e3 1e4 1e5 1e7 --out benchmarks/results

Ten kinds of objects, none of which the prior was trained on with these seeds, three of them of families that it was
never trained on at all. Every scan is refined with its known probe. The strength of the total variation, in units of
the photon noise, is the best of those given, chosen with the help of the truth; the learnt prior has nothing to choose.
BM3D (PyPI `bm3d`, when it is installed) denoises the real and the imaginary part of the image without a prior, with the
best of four strengths.

`false` counts structures that are in the image and not in the truth: connected regions of pixels around which the truth
is flat and where the image is off by more than three times the photon noise, per 10,000 such pixels.
Writes prior.csv and, for each dose, prior_DOSE.png.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from torchptycho.analysis.evaluation import evaluate
from torchptycho.analysis.truth_alignment import align_to_truth
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.data.simulation.textures import HELD_OUT_FAMILIES, draw_family
from torchptycho.physics.illumination import compute_illumination
from torchptycho.reconstructors.iterative import refine

KINDS = (
    "dead_leaves", "gaussian_field", "grains", "spheres", "circuit", "strokes", "gratings",
    "siemens_star", "vessels", "photographs",
)  # fmt: skip
SHOWN = ("circuit", "siemens_star", "vessels", "photographs")
OBJECT_PX, N_PX, N_FRAMES = 144, 64, 150
BLUR_SIGMA_PX = 0.7


def make_scan(kind: str, dose: float, seed: int) -> Scan:
    phase, absorption = draw_family(kind, OBJECT_PX, np.random.default_rng([seed, 0]))
    phase, absorption = (stretch(ndimage.gaussian_filter(m, BLUR_SIGMA_PX)) for m in (phase, absorption))
    truth = (1 - 0.5 * absorption) * np.exp(1.6j * (phase - 0.5))
    config = SimulateConfig(
        n_px=N_PX, object_px=OBJECT_PX, n_frames=N_FRAMES, photons_per_frame=dose, simulation_seed=seed
    )
    return simulate(config, object=truth.astype(np.complex64))


def stretch(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.min()) / max(values.max() - values.min(), 1e-12))


def compute_photons(image: Reconstruction) -> np.ndarray:
    assert image.probe is not None
    assert image.positions_px is not None
    corners = image.positions_px - np.array(image.origin_px) - image.probe.shape[-1] // 2
    shape = (image.object.shape[0], image.object.shape[1])
    return compute_illumination(torch.from_numpy(image.probe), torch.from_numpy(corners), shape).numpy()


def count_false_structures(image: Reconstruction, truth: np.ndarray) -> float:
    pair = align_to_truth(image, truth)
    top, left = (int(mine - its) for mine, its in zip(pair.origin_px, image.origin_px, strict=True))
    photons = compute_photons(image)[top : top + len(pair.truth), left : left + pair.truth.shape[1]]
    sigma = 1 / np.sqrt(2 * np.maximum(photons, 1e-9))
    parts = (pair.truth.real, pair.truth.imag)
    span = sum((ndimage.maximum_filter(p, 5) - ndimage.minimum_filter(p, 5)) ** 2 for p in parts) ** 0.5
    flat = pair.mask & (span < sigma)
    if flat.sum() < 100:
        return float("nan")
    false = flat & (np.abs(pair.object - pair.truth) > 3 * sigma)
    return float(ndimage.label(false)[1] / flat.sum() * 1e4)


def denoise_bm3d(image: Reconstruction, strength: float) -> Reconstruction:
    import bm3d  # an optional package

    photons = compute_photons(image)
    sigma = strength / np.sqrt(2 * np.median(photons[image.coverage > 0.5]))
    parts = [np.asarray(bm3d.bm3d(part, sigma)) for part in (image.object.real, image.object.imag)]
    return dataclasses.replace(image, object=(parts[0] + 1j * parts[1]).astype(np.complex64))


def make_images(scan: Scan, options: argparse.Namespace) -> dict[str, tuple[Reconstruction, float, float]]:
    """Refine the scan in every way: image, weight and seconds by name; of several weights the best is kept."""
    assert scan.truth is not None
    plain = RefineConfig(epochs=options.epochs, probe_update=False, patience=None, regularization="none")
    tried: dict[str, list[tuple[float, RefineConfig]]] = {
        "none": [(0.0, plain)],
        "tv": [(w, dataclasses.replace(plain, regularization="tv", regularization_strength=w)) for w in options.tv],
        "learned": [
            (float("nan"), dataclasses.replace(plain, regularization="learned", prior_weights=options.weights))
        ],
    }
    found: dict[str, tuple[Reconstruction, float, float]] = {}
    for name, variants in tried.items():
        results = []
        for weight, config in variants:
            begun = time.process_time()
            image = refine(scan, config=config, device="cpu")
            seconds = time.process_time() - begun
            results.append((evaluate(image, scan.truth).complex_nrmse, image, weight, seconds))
        found[name] = min(results, key=lambda result: result[0])[1:]
    if options.bm3d:
        images = [(denoise_bm3d(found["none"][0], s), s) for s in (0.7, 1.0, 1.4, 2.0)]
        found["bm3d"] = (*min(images, key=lambda pair: evaluate(pair[0], scan.truth).complex_nrmse), 0.0)
    return found


def draw(pictures: dict[str, dict[str, np.ndarray]], dose: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = list(next(iter(pictures.values())))
    rows = len(pictures)
    figure, axes = plt.subplots(rows, len(columns), figsize=(2.1 * len(columns), 2.2 * rows), squeeze=False)
    for row, (kind, images) in zip(axes, pictures.items(), strict=True):
        truth = np.angle(images["truth"])
        for axis, (name, image) in zip(row, images.items(), strict=True):
            axis.imshow(np.angle(image), cmap="gray", vmin=truth.min(), vmax=truth.max())
            error = np.linalg.norm(image - images["truth"]) / np.linalg.norm(images["truth"])
            axis.set_title(f"{kind}, {name}" + (f" {error:.3f}" if name != "truth" else ""), fontsize=7)
            axis.axis("off")
    figure.suptitle(f"phase at {dose:.0e} photons per frame, and complex error", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def cut_middle(image: Reconstruction, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pair = align_to_truth(image, truth)
    middle = tuple(slice((extent - 88) // 2, (extent + 88) // 2) for extent in pair.truth.shape)
    factor = np.exp(-1j * np.angle(pair.truth[middle].mean()))
    return pair.object[middle] * factor, pair.truth[middle] * factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doses", type=float, nargs="+", default=[1e3, 1e4, 1e5, 1e7])
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--tv", type=float, nargs="+", default=[0.03, 0.06, 0.12, 0.24])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--weights", help="of the learnt prior; those of the package if omitted")
    parser.add_argument("--bm3d", action=argparse.BooleanOptionalAction, default=find_spec("bm3d") is not None)
    parser.add_argument("--seed", type=int, default=991, help="of objects, positions and noise")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()

    rows: list[dict[str, object]] = []
    for dose in options.doses:
        pictures: dict[str, dict[str, np.ndarray]] = {}
        for kind in options.kinds:
            scan = make_scan(kind, dose, options.seed)
            assert scan.truth is not None
            line = f"{dose:8.0e} {kind:>16}"
            base = None
            for name, (image, weight, seconds) in make_images(scan, options).items():
                metrics = evaluate(image, scan.truth)
                base = metrics.complex_nrmse if base is None else base
                rows.append(
                    {
                        "dose": dose,
                        "kind": kind,
                        "held_out": kind in HELD_OUT_FAMILIES,
                        "method": name,
                        "weight": weight,
                        "nrmse": metrics.complex_nrmse,
                        "relative": metrics.complex_nrmse / base,
                        "ssim_amplitude": metrics.amplitude_ssim,
                        "ssim_phase": metrics.phase_ssim,
                        "false": count_false_structures(image, scan.truth),
                        "processor_s": seconds,
                    }
                )
                line += f"  {name} {metrics.complex_nrmse:.4f}"
                if kind in SHOWN:
                    found, truth = cut_middle(image, scan.truth)
                    pictures.setdefault(kind, {"truth": truth})[name] = found
            print(line, flush=True)
        summarize([row for row in rows if row["dose"] == dose], dose)
        options.out.mkdir(parents=True, exist_ok=True)
        with (options.out / "prior.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
                for row in rows
            )
        if pictures:
            draw(pictures, dose, options.out / f"prior_{dose:.0e}.png".replace("+0", ""))


def summarize(rows: list[dict[str, object]], dose: float) -> None:
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        for label, chosen in (
            ("all", mine),
            ("held out", [row for row in mine if row["held_out"]]),
            ("families trained on", [row for row in mine if not row["held_out"]]),
        ):
            if chosen:
                values = [float(str(row["relative"])) for row in chosen]
                print(f"{dose:8.0e} {name:>8} {label:>20}: error relative to none {np.mean(values):.3f}", flush=True)


if __name__ == "__main__":
    main()
