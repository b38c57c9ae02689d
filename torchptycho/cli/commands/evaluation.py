"""The commands that tell how good an image is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from torchptycho.cli.base import Command, require_png
from torchptycho.core.config import ReadConfig, RefineConfig
from torchptycho.visualization.tables import make_comparison_table, make_metrics_table

__all__ = ["Compare", "Evaluate", "RefinementCommand", "Resolution"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefinementCommand(Command):
    """Options of the commands that refine a scan."""

    scan: Positional[Path]
    """Scan file."""
    device: str = "auto"
    """Where to compute: auto, cpu, gpu."""
    config: Path | None = None
    """YAML or TOML file with the sections prepare and refine; flags override it."""
    reading: ReadConfig = dataclasses.field(default_factory=ReadConfig)
    refine: RefineConfig = dataclasses.field(default_factory=RefineConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolution(RefinementCommand):
    """Tell how fine an image the data allow, without a truth.

    Two halves of the frames are refined and correlated.

    torchptycho resolution scan.npz --plot frc.png
    """

    plot: Path | None = None
    """Draw the Fourier ring correlation into this PNG."""
    json: bool = False
    """Print one JSON object instead of a sentence."""

    def run(self) -> None:
        require_png("--plot", self.plot)
        from torchptycho.io import read_scan
        from torchptycho.reconstructors.resolution import resolution

        scan = read_scan(self.scan, self.reading)
        with self.show_status("refining two halves of the frames"):
            found = resolution(scan, config=self.refine, device=self.device)
        if self.plot:
            from torchptycho.visualization.plot import plot_frc

            plot_frc(found.metrics, self.plot, halves=True)
        metres = "" if found.half_period_m is None else f" ({found.half_period_m * 1e9:.3g} nm)"
        values = {"half_period_px": found.half_period_px, "half_period_m": found.half_period_m}
        self.print_result(
            values | {"metrics": found.metrics.to_dict()},
            f"{self.scan}: half period {found.half_period_px:.3g} px{metres} at the 1/2-bit threshold, from two halves "
            f"of {scan.n_frames} frames",
            json=self.json,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Compare a reconstruction with a true or reference object.

    torchptycho evaluate image.npz scan.npz
    """

    reconstruction: Positional[Path]
    """Image file written by `reconstruct`."""
    truth: Positional[Path]
    """Scan with `objectGuess`, or any image file with `object`."""
    min_coverage: float = 0.1
    """Look only where at least this part of the largest weight met."""
    plot: Path | None = None
    """Draw both and their errors into this PNG."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        require_png("--plot", self.plot)
        import numpy as np

        from torchptycho.analysis.evaluation import evaluate
        from torchptycho.io import read_reconstruction

        image, truth = read_reconstruction(self.reconstruction), read_reconstruction(self.truth)
        # Where a reference is not valid itself there is nothing to compare with.
        known = np.where(truth.valid, truth.object, np.nan).astype(np.complex64)
        metrics = evaluate(image, known, truth_origin_px=truth.origin_px, min_coverage=self.min_coverage)
        if self.plot:
            from torchptycho.visualization.plot import plot_reconstruction

            plot_reconstruction(image, self.plot, truth=known, truth_origin_px=truth.origin_px, metrics=metrics)
        self.print_result(metrics.to_dict(), make_metrics_table(metrics), json=self.json)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """Compare two reconstructions of any origin, also with a truth.

    They are brought onto one pixel size, one place, and one gauge of phase and scale first. Read are image files of
    this program, Ptychodus products, PtyPy .ptyr files, CXI files, and any NPZ with a complex `object`.

    torchptycho compare image.npz refined.npz --out compare.png
    torchptycho compare ours.npz theirs.ptyr --truth scan.npz
    """

    first: Positional[Path]
    """Image file; the reference where there is no truth."""
    second: Positional[Path]
    """Image file."""
    truth: Path | None = None
    """Scan with `objectGuess`, or an image file, that both are compared with."""
    out: Path = Path("compare.png")
    """Picture to draw: both, their differences, and the ring correlations."""
    min_coverage: float = 0.1
    """Look only where at least this part of the largest weight met."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        require_png("--out", self.out)
        from torchptycho.analysis.comparison import compare
        from torchptycho.io import read_reconstruction

        first, second = read_reconstruction(self.first), read_reconstruction(self.second)
        truth = None if self.truth is None else read_reconstruction(self.truth)
        names = _choose_names(self.first, self.second)
        with self.show_status("comparing"):
            found = compare(first, second, truth, names=(*names, "truth"), min_coverage=self.min_coverage)
            from torchptycho.visualization.plot import plot_comparison

            plot_comparison(found, self.out)
        notes = [f"- {note}" for note in found.notes]
        self.print_result(
            {"picture": str(self.out), **found.to_dict()},
            *notes,
            make_comparison_table(found.metrics),
            f"picture: {self.out}",
            json=self.json,
        )


def _choose_names(first: Path, second: Path) -> tuple[str, str]:
    """Choose names as short as possible that distinguish the two."""
    if first.name != second.name:
        return first.name, second.name
    return ("A", "B") if first == second else (str(first), str(second))
