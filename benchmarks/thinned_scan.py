"""How few photons a measured scan needs: its counts thinned, refined without a prior and with one.

    python benchmarks/thinned_scan.py scan.npz --photons 1e3 1e4 1e5 --out benchmarks/results

A photon of the scan is kept with the probability that leaves the mean number asked for, so that each thinned frame is
what the detector would have counted at that dose. Object and probe are refined at that dose from the probe guess of the
file. The reference is the refinement of all photons without a prior; correlation and error are measured against it in
the gauge of `evaluate`, over the pixels with a coverage above a half. Writes thinned_scan.csv and thinned_scan.png.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import time
from pathlib import Path

import numpy as np

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.io import read_scan
from torchptycho.io.frames.thinning import ThinnedFrames
from torchptycho.reconstructors.iterative import refine


def thin_scan(scan: Scan, photons: float, seed: int) -> Scan:
    """Keep as many photons of each frame as leave this mean; the probe is scaled to them."""
    kept = photons / scan.photons_per_frame
    frames = ThinnedFrames(scan.frames, kept, seed, held_out=False, mask=scan.mask, source=scan.source)
    return dataclasses.replace(scan, frames=frames, probe=scan.probe * np.float32(kept**0.5))


def measure(image: Reconstruction, reference: Reconstruction) -> dict[str, float]:
    metrics = evaluate(image, reference.object, truth_origin_px=reference.origin_px, min_coverage=0.5)
    return {
        "phase_correlation": metrics.phase_correlation,
        "nrmse": metrics.complex_nrmse,
        "ssim_phase": metrics.phase_ssim,
    }


def draw(pictures: list[tuple[str, Reconstruction]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(pictures), figsize=(3.1 * len(pictures), 3.4))
    for axis, (title, image) in zip(axes, pictures, strict=True):
        rows, columns = (np.flatnonzero((image.coverage > 0.5).any(1 - side)) for side in (0, 1))
        shown = image.object[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        phase = np.angle(shown * np.exp(-1j * np.angle(shown.sum())))
        low, high = np.percentile(phase, [1, 99])
        axis.imshow(phase, cmap="gray", vmin=low, vmax=high)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, help="a measured scan of photon counts")
    parser.add_argument("--photons", type=float, nargs="+", default=[1e3, 1e4, 1e5], help="per frame")
    parser.add_argument("--shown", type=float, default=1e4, help="which of them the picture shows")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()

    scan = read_scan(options.scan)
    config = RefineConfig(epochs=options.epochs, patience=None)
    reference = refine(scan, config=dataclasses.replace(config, regularization="none"), device="cpu")
    rows: list[dict[str, object]] = []
    pictures: list[tuple[str, Reconstruction]] = []
    for photons in options.photons:
        thinned = thin_scan(scan, photons, options.seed)
        for kind in ("none", "tv", "learned", "auto"):
            begun = time.process_time()
            image = refine(thinned, config=dataclasses.replace(config, regularization=kind), device="cpu")
            seconds = time.process_time() - begun
            found = measure(image, reference)
            chosen = image.provenance.get("regularization", {}) if kind == "auto" else {"kind": kind}
            rows.append(
                {"photons": photons, "prior": kind, "chosen": chosen.get("kind"), **found, "processor_s": seconds}
            )
            print({name: f"{v:.4g}" if isinstance(v, float) else v for name, v in rows[-1].items()}, flush=True)
            if photons == options.shown and kind in ("none", "learned"):
                title = "no prior" if kind == "none" else "learnt prior"
                pictures.append(
                    (f"{photons:.0e} photons per frame, {title}\ncorrelation {found['phase_correlation']:.3f}", image)
                )
    pictures.append((f"{scan.photons_per_frame:.0f} photons per frame,\nno prior", reference))
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "thinned_scan.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
        )
    draw(pictures, options.out / "thinned_scan.png")


if __name__ == "__main__":
    main()
