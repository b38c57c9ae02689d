"""The images of the live page, drawn repeatedly during a scan: without matplotlib figures, in tenths of a second."""

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
from torchptycho.visualization.plot.panels import Limits, choose_phase_map, choose_scale_length, compute_limits
from torchptycho.visualization.plot.png import TRANSPARENT_INDEX, apply_colour_map, downsample, list_colour_stops

__all__ = ["IMAGE_FILES", "LEGEND_FILE", "write_live_images"]

IMAGE_FILES = ("amplitude.png", "phase.png", "coverage.png")
LEGEND_FILE = "legend.json"

# A larger image shows no more detail on a screen and takes longer to encode and to send.
_MAX_EDGE_PX = 1500
# Colour limits and the phase ramp are measured on an image subsampled to this size.
_STATISTICS_EDGE_PX = 300


def write_live_images(
    object: Complex64[np.ndarray, "h w"],
    coverage: Num[np.ndarray, "h w"],
    object_pixel_m: float | None,
    folder: Path,
) -> None:
    """Write `IMAGE_FILES` into the folder, and `LEGEND_FILE` with their colour scales and scale bar.

    Each file is replaced atomically. Amplitude and phase are transparent where the coverage is below `MIN_COVERAGE` of
    its maximum or the object is not finite; the coverage is transparent where it is 0. The global phase and the phase
    ramp, which ptychography does not determine, are removed. Colours are those of `plot_reconstruction`. Images larger
    than 1500 px are averaged down to that size.

    Arguments:
        coverage: sum of the weights at each pixel, in any unit.

    Raises:
        ScanError: the folder does not exist or cannot be written to.
    """
    width = object.shape[1]
    known = np.isfinite(coverage) & (coverage > 0)
    top = float(coverage[known].max()) if known.any() else 1.0
    mask = known & (coverage > MIN_COVERAGE * top) & np.isfinite(object)
    image, shown = downsample(object, mask, _MAX_EDGE_PX)
    weight, reached = downsample(np.asarray(coverage, dtype=np.float32), known, _MAX_EDGE_PX)
    step = max(1, -(-max(image.shape) // _STATISTICS_EDGE_PX))
    image = np.where(shown, image, np.complex64(0))
    image = remove_phase_ramp(image, shown, estimate_display_ramp(image[::step, ::step], shown[::step, ::step]) / step)
    part, seen = image[::step, ::step], shown[::step, ::step]
    phase_map, phase_limits = choose_phase_map(part, seen)
    amplitude = _write_image(np.abs(image), shown, "gray", compute_limits(np.abs(part), seen), folder / IMAGE_FILES[0])
    phase = _write_image(np.angle(image), shown, phase_map, phase_limits, folder / IMAGE_FILES[1])
    covered = _write_image(weight, reached, "cividis", (0.0, top), folder / IMAGE_FILES[2])
    length_px, label = choose_scale_length(width, object_pixel_m)
    legend = {
        "amplitude": amplitude,
        "phase": phase | {"unit": "rad"},
        "coverage": covered,
        "scale": {"percent": 100 * length_px / width, "label": label},
    }
    with replace_atomically(folder / LEGEND_FILE) as file:
        file.write(json.dumps(legend).encode("utf-8"))


def _write_image(
    values: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], colour_map: str, limits: Limits, path: Path
) -> dict[str, Any]:
    """Write one image and return its entry of the legend."""
    image = apply_colour_map(values, mask, colour_map, limits)
    with replace_atomically(path) as file:
        # Twice the bytes of the best compression in a tenth of its time; the browser is usually on this machine.
        image.save(file, format="png", compress_level=1, transparency=TRANSPARENT_INDEX)
    low, high = ("−π", "π") if limits == (-math.pi, math.pi) else (f"{v:.3g}".replace("-", "−") for v in limits)
    return {"low": low, "high": high, "stops": list_colour_stops(colour_map)}
