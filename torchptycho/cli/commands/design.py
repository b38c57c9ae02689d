"""The command that predicts what a planned scan will give."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torchptycho.cli.base import WritingCommand, require_png
from torchptycho.core.config import SimulateConfig
from torchptycho.core.errors import ConfigError

__all__ = ["Design"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design(WritingCommand):
    """Predict error and resolution of a planned scan, and advise on it.

    The options that describe object, probe, positions and dose are those of `simulate`. No counts are drawn: the error
    follows from the Cramer-Rao bound.

    torchptycho design --n-frames 400 --photons-per-frame 1e5 --plot design.png
    torchptycho design --scan earlier.npz --photons-per-frame 1e6 --resolution-m 20e-9
    """

    scan: Path | None = None
    """Scan file whose probe, positions and lengths are taken; N and the size of the object follow from it."""
    object_pixel_m: float | None = None
    """Edge of an object pixel in metres; None takes the scan's, where it is known."""
    resolution_px: float | None = None
    """Wanted half period in object pixels."""
    resolution_m: float | None = None
    """Wanted half period in metres."""
    dose_per_px: float | None = None
    """Photons that the sample bears through an object pixel."""
    fixed_probe: bool = False
    """Predict for a probe that is known and not refined."""
    measure_time: bool = True
    """Time two epochs of a refinement of a part of the scan on this machine."""
    plot: Path | None = None
    """Draw the prediction into this PNG."""
    json: bool = False
    """Print one JSON object instead of a table."""
    simulation: SimulateConfig = dataclasses.field(default_factory=SimulateConfig)

    def run(self) -> None:
        require_png("--plot", self.plot)
        self.claim_files("--plot", self.plot, inputs=[] if self.scan is None else [self.scan])
        if self.resolution_px is not None and self.resolution_m is not None:
            raise ConfigError("--resolution-m: expected it or --resolution-px; found both.")
        from torchptycho.reconstructors.scan_design import (
            measure_seconds,
            plan_design,
            plan_from_scan,
            require_positive,
        )
        from torchptycho.reconstructors.scan_prediction import predict_scan
        from torchptycho.visualization.tables import format_value, make_table

        for name in ("object_pixel_m", "resolution_px", "resolution_m", "dose_per_px"):
            require_positive(f"--{name.replace('_', '-')}", getattr(self, name))
        if self.scan is None:
            design = plan_design(self.simulation, object_pixel_m=self.object_pixel_m)
        else:
            from torchptycho.io import read_scan

            design = plan_from_scan(read_scan(self.scan), self.simulation, object_pixel_m=self.object_pixel_m)
        wanted_px = self.resolution_px
        if self.resolution_m is not None:
            if design.object_pixel_m is None:
                raise ConfigError(
                    "--resolution-m: expected --object-pixel-m, or a scan that has it; found none. Give it, or take "
                    "--resolution-px."
                )
            wanted_px = self.resolution_m / design.object_pixel_m
        with self.show_status("predicting"):
            found = predict_scan(
                design,
                resolution_px=wanted_px,
                photons_per_px=self.dose_per_px,
                fits_probe=not self.fixed_probe,
            )
            seconds = measure_seconds(design) if self.measure_time else None
        if self.plot:
            from torchptycho.visualization.plot import plot_design

            plot_design(design, found, self.plot)
        table = make_table("", "", title="expected of this scan", show_header=False)
        shown = found.to_dict() | {"refinement_seconds": seconds}
        for name, value in shown.items():
            if name in ("frequency_cycles_per_px", "frc", "advice") or value is None:
                continue
            if name.endswith("_bytes"):
                table.add_row(name.replace("_bytes", ", MB").replace("_", " "), format_value(value / 1e6))
            else:
                table.add_row(name, format_value(value))
        picture = [] if self.plot is None else [f"picture: {self.plot}"]
        self.print_result(
            shown | {"plot": None if self.plot is None else str(self.plot)},
            table,
            *(f"- {line}" for line in found.advice),
            *picture,
            json=self.json,
        )
