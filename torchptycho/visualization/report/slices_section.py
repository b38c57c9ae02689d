"""The section about the slices of a thick object."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchptycho.analysis.evaluation import evaluate_slices
from torchptycho.analysis.registration import flatten_phase
from torchptycho.core.angular_spectrum import compute_depth_of_focus_m
from torchptycho.core.errors import EvaluationError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.visualization.plot.panels import (
    choose_length_unit,
    choose_phase_map,
    compute_limits,
    find_bounding_box,
)
from torchptycho.visualization.report.html_blocks import Block, Section, Table, make_mapped_figure

__all__ = ["make_slices_section"]


def make_slices_section(image: Reconstruction, scan: Scan) -> Section | None:
    """Show amplitude and phase of each slice, and with a ground truth how close each is; None for a thin object."""
    if image.object.ndim == 2:
        return None
    everything = image.valid & np.isfinite(image.object).all(0)
    box = find_bounding_box(everything)
    mask = everything[box]
    flat = [flatten_phase(np.where(mask, each[box], 0), mask) for each in image.object]
    masks = np.concatenate([mask] * len(flat))
    limits = compute_limits(np.abs(np.concatenate(flat)), masks)
    phase_map, phase_limits = choose_phase_map(np.concatenate(flat), masks)
    amplitudes: list[Block] = []
    phases: list[Block] = []
    for number, each in enumerate(flat, start=1):
        amplitudes.append(make_mapped_figure(f"Amplitude of slice {number}", np.abs(each), mask, "gray", limits))
        phases.append(
            make_mapped_figure(f"Phase of slice {number}", np.angle(each), mask, phase_map, phase_limits, unit="rad")
        )
    rows: list[tuple[Any, list[Block]]] = [("small", amplitudes), ("small", phases)]
    warnings: list[str] = []
    try:
        found = evaluate_slices(image, scan)
    except EvaluationError as error:
        found, warnings = [], [str(error)]
    if found:
        lines = [
            (f"Slice {number}", f"{each.amplitude_correlation:.4f}", f"{each.phase_correlation:.4f}")
            for number, each in enumerate(found, start=1)
        ]
        head = ("against the file's object", "amplitude correlation", "phase correlation")
        rows.append(("", [Table(rows=lines, head=head)]))
    return Section(id="slices", title="Slices", rows=rows, text=_describe_spacing(image, scan), warnings=warnings)


def _describe_spacing(image: Reconstruction, scan: Scan) -> str:
    text = "The image above is the product of the slices; the probe enters the first one."
    pixel_m, wavelength_m = image.object_pixel_m, scan.geometry.wavelength_m
    if image.slice_spacing_m is None or not pixel_m or not wavelength_m:
        return text
    factor, unit = choose_length_unit(image.slice_spacing_m)
    focus_m = compute_depth_of_focus_m(pixel_m, wavelength_m)
    return (
        f"{text} Neighbouring slices are {image.slice_spacing_m / factor:.4g} {unit} from each other, "
        f"{image.slice_spacing_m / focus_m:.3g} times the depth of focus. Structure that is large compared with what "
        "the angles of the illumination shift from slice to slice is shared among the slices."
    )
