"""Images of one simulated sample, refined from a scan with each fault: docs/pictures/faults.png.

python benchmarks/fault_pictures.py
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from diagnose import FAULTS
from matplotlib.figure import Figure

from torchptycho.core.config import SimulateConfig
from torchptycho.core.errors import TorchptychoError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative import refine
from torchptycho.visualization.plot.figure import save

COMMON: dict[str, object] = {
    "n_px": 64, "object_px": 144, "n_frames": 110, "photons_per_frame": 1e5, "simulation_seed": 5,
    "probe_diameter_px": 22.0, "probe_defocus_waves": 2.0, "object_kind": "dead_leaves",
}  # fmt: skip
LEFT_OUT = ("near field", "lost positions")
EDGE = 84


def make_image(fault: str | None, epochs: int) -> tuple[Reconstruction, float] | None:
    options, plant = FAULTS[fault] if fault else ({}, None)
    scan = simulate(SimulateConfig(**(COMMON | options)))  # type: ignore[arg-type]
    if plant is not None:
        scan = plant(scan, np.random.default_rng(2))
    try:
        image = refine(
            scan, config={"epochs": epochs, "regularization": "none", "patience": None}, device="cpu", judge=False
        )
    except TorchptychoError as error:
        print(f"{fault}: {error}")
        return None
    return image, image.history["unexplained"][-1]


def crop_middle(image: Reconstruction) -> np.ndarray:
    """The phase of the middle of the image, relative to its mean."""
    values = np.where(image.coverage > 0.02, image.object, 0)
    shape = values.shape
    top, left = ((edge - EDGE) // 2 for edge in shape)
    part = values[max(top, 0) : max(top, 0) + EDGE, max(left, 0) : max(left, 0) + EDGE]
    return np.angle(part * np.exp(-1j * np.angle(part.sum())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "pictures" / "faults.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)

    names: list[str | None] = [None, *(name for name in FAULTS if name not in LEFT_OUT)]
    columns = 6
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(1.75 * columns, 1.95 * rows), layout="compressed", facecolor="white")
    axes = figure.subplots(rows, columns).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, name in zip(axes, names, strict=False):
        made = make_image(name, options.epochs)
        if made is None:
            axis.set_title(f"{name}: refused", fontsize=8)
            continue
        image, unexplained = made
        axis.imshow(crop_middle(image), cmap="twilight", vmin=-np.pi / 2, vmax=np.pi / 2, interpolation="nearest")
        axis.set_title(f"{name or 'without a fault'}\n{unexplained:.1%} unexplained", fontsize=8)
        print(name, f"{unexplained:.4f}", flush=True)
    save(figure, options.out, ("twilight",))


if __name__ == "__main__":
    main()
