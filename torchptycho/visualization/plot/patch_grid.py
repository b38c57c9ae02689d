"""Some object patches side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Complex, Float

from torchptycho.core.reconstruction import MIN_COVERAGE
from torchptycho.visualization.plot import panels
from torchptycho.visualization.plot.figure import make_figure, save

__all__ = ["plot_patches"]


def plot_patches(
    patches: Complex[np.ndarray, "k n n"],
    path: str | Path,
    *,
    weight: Float[np.ndarray, "n n"],
    truth: Complex[np.ndarray, "k n n"] | None = None,
) -> Path:
    """Plot amplitude above phase, one column for each patch, and the ground truth below them if it is given.

    Arguments:
        weight: illumination of each pixel; those with less than a thousandth of the maximum are left blank.
    """
    mask = weight > MIN_COVERAGE * weight.max()
    shown = [np.where(np.isfinite(patches), patches, 0)]
    if truth is not None:
        # One common phase and amplitude factor, which ptychography does not determine.
        overlap = (truth * shown[0].conj() * mask).sum()
        turn = overlap.conj() / abs(overlap) if abs(overlap) > 0 else 1.0
        shown.append(truth * turn)
    figure = make_figure(1.5 * len(patches) + 0.8, 3.2 * len(shown))
    axes = figure.subplots(2 * len(shown), len(patches), squeeze=False)
    inside = np.broadcast_to(mask, patches.shape)
    limits = panels.compute_limits(np.abs(shown[-1]), inside)
    phase_map, phase_limits = panels.choose_phase_map(shown[-1], inside)
    for row, (images, name) in enumerate(zip(shown, ("", "truth: "), strict=False)):
        for column, image in enumerate(images):
            titles = (f"{name}amplitude", f"{name}phase") if column == 0 else ("", "")
            upper, lower = axes[2 * row, column], axes[2 * row + 1, column]
            panels.draw_image(upper, np.abs(image), mask, "gray", limits, titles[0])
            panels.draw_image(lower, np.angle(image), mask, phase_map, phase_limits, titles[1])
    return save(figure, path, ("gray", phase_map))
