"""The section about error bars: standard deviations of amplitude and phase at each pixel."""

from __future__ import annotations

import numpy as np

from torchptycho.core.reconstruction import Reconstruction
from torchptycho.visualization.plot.panels import compute_limits, find_bounding_box
from torchptycho.visualization.report.html_blocks import Block, Section, make_mapped_figure, make_scale_bar

__all__ = ["make_uncertainty_section"]

_METHODS = {
    "bootstrap": "from refinements of counts that were simulated from the image",
    "fisher": "to first order in the noise, from the information of the counts",
}


def make_uncertainty_section(image: Reconstruction) -> Section | None:
    """Show the standard deviations of an image; None where they were not estimated."""
    if image.amplitude_sigma is None or image.phase_sigma_rad is None:
        return None
    known = image.valid & np.isfinite(image.amplitude_sigma) & np.isfinite(image.phase_sigma_rad)
    if not known.any():
        return None
    box = find_bounding_box(known)
    mask, scale = known[box], make_scale_bar(known[box].shape[1], image.object_pixel_m)
    shown: list[Block] = []
    for title, values, unit in (
        ("Standard deviation of the amplitude", image.amplitude_sigma, ""),
        ("Standard deviation of the phase", image.phase_sigma_rad, "rad"),
    ):
        cut = np.where(mask, values[box], 0)
        _, high = compute_limits(cut, mask)
        shown.append(make_mapped_figure(title, cut, mask, "cividis", (0.0, high), unit=unit, scale=scale))
    amplitude, phase_rad = (
        float(np.median(values[known])) for values in (image.amplitude_sigma, image.phase_sigma_rad)
    )
    found = image.provenance.get("uncertainty", {})
    method = _METHODS.get(found.get("method", ""))
    excess = float(found.get("excess_of_misfit", 1.0))
    text = (
        f"A pixel is uncertain by {amplitude:.2g} in amplitude and by {phase_rad:.2g} rad in phase (median of one "
        f"standard deviation{'' if method is None else ', ' + method}). The true value lies within one standard "
        "deviation at 68 % of the pixels. Neighbouring pixels err together, and the global phase, scale, shift and "
        "phase plane are not included. Transparent pixels were not measured."
    )
    if excess > 1:
        text += f" The counts scatter {excess:.2g} times as much as photon noise explains, which is included."
    warnings = []
    if not found.get("reliable", True):
        warnings.append(
            f"Only {found['photons_per_px']:.3g} photons pass an object pixel: the error bars can be wrong by a factor "
            "of two, those of the phase mostly too small."
        )
    return Section(id="uncertainty", title="Error bars", rows=[("wide", shown)], text=text, warnings=warnings)
