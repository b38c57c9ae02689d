"""The section about a probe that changes from frame to frame."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchptycho.core.reconstruction import Reconstruction
from torchptycho.visualization.report.html_blocks import Block, Chart, Section, make_complex_figure
from torchptycho.visualization.report.svg_charts import Series, draw_curves_svg

__all__ = ["make_variation_section"]


def make_variation_section(image: Reconstruction) -> Section | None:
    """Show the modes of variation, their weights and the power of each frame; None for a stable probe."""
    modes, weights, scale = image.opr_modes, image.opr_weights, image.frame_scale
    rows: list[tuple[Any, list[Block]]] = []
    if modes is not None and weights is not None and len(modes):
        everywhere = np.ones(modes.shape[1:], dtype=bool)
        root_mean_square = np.sqrt((weights.astype(np.float64) ** 2).mean(0))
        figures: list[Block] = [
            make_complex_figure(
                f"Variation {number}",
                mode,
                everywhere,
                wheel=number == 1,
                note=f"weights {100 * size:.3g} % of the probe, root mean square",
            )
            for number, (mode, size) in enumerate(zip(modes, root_mean_square, strict=True), start=1)
        ]
        rows.append(("small", figures))
        series = [
            Series(
                name=f"variation {number}",
                x=np.arange(len(weights), dtype=np.float64),
                y=column.astype(np.float64),
                colour=1 + (number - 1) % 4,
                dashed=number > 4,
            )
            for number, column in enumerate(weights.T, start=1)
        ]
        rows.append(("wide", [_make_chart("Weights of the variations", series, "weight")]))
    if scale is not None:
        power = scale.astype(np.float64) ** 2
        one = Series(name="power", x=np.arange(len(power), dtype=np.float64), y=power / power.mean())
        note = f"Standard deviation {100 * power.std() / power.mean():.3g} %."
        rows.append(("wide", [_make_chart("Power of the probe, relative to its mean", [one], "power", note)]))
    if not rows:
        return None
    return Section(
        id="variation",
        title="Variation of the probe",
        rows=rows,
        text="The probe of a frame is the root of its power times the sum of the mean probe and of the variations, "
        "each times the weight of the frame.",
    )


def _make_chart(title: str, series: list[Series], label: str, note: str = "") -> Chart:
    legend = tuple((one.name, one.colour, one.dashed) for one in series) if len(series) > 1 else ()
    return Chart(title=title, svg=draw_curves_svg(series, "frame", label), legend=legend, note=note)
