"""Commands that evaluate and compare images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from torchptycho.cli.base import WritingCommand, require_png
from torchptycho.visualization.tables import make_comparison_lines, make_metrics_table

__all__ = ["Compare", "Evaluate"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(WritingCommand):
    """Compare a reconstruction with a ground truth or a reference.

    torchptycho evaluate image.npz scan.npz
    """

    reconstruction: Positional[Path]
    """Image file written by `reconstruct`."""
    truth: Positional[Path]
    """Scan with `objectGuess`, or any image file with `object`."""
    min_coverage: float = 0.1
    """Compare only pixels whose coverage is at least this fraction of the maximum."""
    plot: Path | None = None
    """Draw both images and the errors into this PNG."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        require_png("--plot", self.plot)
        self.claim_files("--plot", self.plot, inputs=[self.reconstruction, self.truth])
        import numpy as np

        from torchptycho.analysis.evaluation import evaluate, evaluate_slices
        from torchptycho.core.reconstruction import project_slices
        from torchptycho.io import read_reconstruction

        image, truth = read_reconstruction(self.reconstruction), read_reconstruction(self.truth)
        # Pixels where the reference is not valid cannot be compared.
        known = np.where(truth.valid, project_slices(truth).object, np.nan).astype(np.complex64)
        metrics = evaluate(image, known, truth_origin_px=truth.origin_px, min_coverage=self.min_coverage)
        if self.plot:
            from torchptycho.visualization.plot import plot_reconstruction

            plot_reconstruction(image, self.plot, truth=known, truth_origin_px=truth.origin_px, metrics=metrics)
        notes = [
            f"- {path}: {int((~one.valid).sum())} of {one.valid.size} pixels are not valid and are not compared."
            for path, one in ((self.reconstruction, image), (self.truth, truth))
            if not one.has_coverage and not one.valid.all()
        ]
        slices = evaluate_slices(image, truth, min_coverage=self.min_coverage)
        values = {**metrics.to_dict(), "notes": notes}
        if slices:
            values["slices"] = [each.to_dict() for each in slices]
            notes.append("- The product of the slices is compared; below each slice on its own.")
        lines = [
            f"- slice {number}: phase correlation {each.phase_correlation:.4f}, amplitude correlation "
            f"{each.amplitude_correlation:.4f}, complex nRMSE {each.complex_nrmse:.4g}"
            for number, each in enumerate(slices, start=1)
        ]
        self.print_result(values, *notes, make_metrics_table(metrics), *lines, json=self.json)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(WritingCommand):
    """Compare two images of any origin, and each with a ground truth.

    They are first brought to the same pixel size, position, phase ramp and scale. Supported are image files of this
    program, Ptychodus products, PtyPy .ptyr files, CXI files, and any NPZ with a complex `object`.

    torchptycho compare image.npz refined.npz --out compare.png
    torchptycho compare ours.npz theirs.ptyr --truth scan.npz
    """

    first: Positional[Path]
    """Image file; the reference if there is no ground truth."""
    second: Positional[Path]
    """Image file."""
    truth: Path | None = None
    """Scan with `objectGuess`, or an image file, with which both are compared."""
    out: Path = Path("compare.png")
    """PNG to draw: both images, their differences, and the Fourier ring correlations."""
    min_coverage: float = 0.1
    """Compare only pixels whose coverage is at least this fraction of the maximum."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        require_png("--out", self.out)
        self.claim_files("--out", self.out)
        from torchptycho.analysis.comparison import compare
        from torchptycho.io import read_reconstruction

        first, second = read_reconstruction(self.first), read_reconstruction(self.second)
        truth = None if self.truth is None else read_reconstruction(self.truth)
        names = _choose_names(self.first, self.second)
        with self.show_status("comparing"):
            comparison = compare(first, second, truth, names=(*names, "truth"), min_coverage=self.min_coverage)
            from torchptycho.visualization.plot import plot_comparison

            plot_comparison(comparison, self.out)
        notes = [f"- {note}" for note in comparison.notes]
        self.print_result(
            {"picture": str(self.out), **comparison.to_dict()},
            *notes,
            *make_comparison_lines(comparison.metrics),
            f"picture: {self.out}",
            json=self.json,
        )


def _choose_names(first: Path, second: Path) -> tuple[str, str]:
    """Choose names as short as possible that distinguish the two."""
    if first.name != second.name:
        return first.name, second.name
    return ("A", "B") if first == second else (str(first), str(second))
