"""The pictures of a watch, in files that are replaced at once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

__all__ = ["draw"]


def draw(object: np.ndarray, coverage: np.ndarray, object_pixel_m: float | None, folder: Path) -> None:
    """Write amplitude.png, phase.png and coverage.png into a folder."""
    from matplotlib import image

    for name, values in (("amplitude", np.abs(object)), ("phase", np.angle(object)), ("coverage", coverage)):
        temporary = folder / f".{name}.tmp.png"
        image.imsave(temporary, values, cmap="gray")
        os.replace(temporary, folder / f"{name}.png")
