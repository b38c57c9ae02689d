"""The pictures of the live page, drawn many times while a scan is recorded: without a figure, in tenths of a second."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex64, Float, Num

from torchptycho.analysis.registration import estimate_display_ramp, remove_phase_ramp
from torchptycho.core.reconstruction import MIN_COVERAGE
from torchptycho.io.storage.file_access import replace_atomically
from torchptycho.visualization.plot.panels import Limits, limits_of, nice_length, phase_map_of
from torchptycho.visualization.plot.png import TRANSPARENT, colour_stops, mapped_picture, reduced

__all__ = ["LEGEND", "PICTURES", "draw"]

PICTURES = ("amplitude.png", "phase.png", "coverage.png")
LEGEND = "legend.json"

# More is not seen on a screen, and takes its time to encode and to send.
_LARGEST_PX = 1500
# Limits and the phase plane are found on an image of this size: what is drawn does not depend on every pixel.
_LOOKED_AT_PX = 300


def draw(
    object: Complex64[np.ndarray, "h w"],
    coverage: Num[np.ndarray, "h w"],
    object_pixel_m: float | None,
    folder: Path,
) -> None:
    """Write `PICTURES` into the folder, and `LEGEND`, which says what their colours and lengths are.

    Each file is replaced as a whole. Amplitude and phase are transparent where the coverage is below `MIN_COVERAGE` of
    the largest or the object is not finite, the coverage where it is 0. A constant phase and a phase plane, which
    ptychography leaves free, are removed. Colours are those of `plot_reconstruction`; what exceeds 1500 px is averaged.

    Arguments:
        coverage: sum of the weights that met at a pixel, in any unit.

    Raises:
        ScanError: the folder is not there or cannot be written to.
    """
    width = object.shape[1]
    known = np.isfinite(coverage) & (coverage > 0)
    top = float(coverage[known].max()) if known.any() else 1.0
    mask = known & (coverage > MIN_COVERAGE * top) & np.isfinite(object)
    image, shown = reduced(object, mask, _LARGEST_PX)
    weight, reached = reduced(np.asarray(coverage, dtype=np.float32), known, _LARGEST_PX)
    step = max(1, -(-max(image.shape) // _LOOKED_AT_PX))
    image = np.where(shown, image, np.complex64(0))
    image = remove_phase_ramp(image, shown, estimate_display_ramp(image[::step, ::step], shown[::step, ::step]) / step)
    part, seen = image[::step, ::step], shown[::step, ::step]
    phase_map, phase_limits = phase_map_of(part, seen)
    amplitude = _drawn(np.abs(image), shown, "gray", limits_of(np.abs(part), seen), folder / PICTURES[0])
    phase = _drawn(np.angle(image), shown, phase_map, phase_limits, folder / PICTURES[1])
    covered = _drawn(weight, reached, "cividis", (0.0, top), folder / PICTURES[2])
    length_px, label = nice_length(width, object_pixel_m)
    legend = {
        "amplitude": amplitude,
        "phase": phase | {"unit": "rad"},
        "coverage": covered,
        "scale": {"percent": 100 * length_px / width, "label": label},
    }
    with replace_atomically(folder / LEGEND) as file:
        file.write(json.dumps(legend).encode("utf-8"))


def _drawn(
    values: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], colour_map: str, limits: Limits, path: Path
) -> dict[str, Any]:
    """Writes the picture; returns what its colours stand for."""
    picture = mapped_picture(values, mask, colour_map, limits)
    with replace_atomically(path) as file:
        # Twice the bytes of the best compression in a tenth of its time; the page is beside the file.
        picture.save(file, format="png", compress_level=1, transparency=TRANSPARENT)
    low, high = ("−π", "π") if limits == (-math.pi, math.pi) else (f"{v:.3g}".replace("-", "−") for v in limits)
    return {"low": low, "high": high, "stops": colour_stops(colour_map)}
