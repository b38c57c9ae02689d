"""Tables for people: nothing is cut, however narrow the window and long the names."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.ndimage import gaussian_filter

from torchptycho.analysis.comparison import Comparison, compare
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.visualization.plot import comparison_figures
from torchptycho.visualization.tables import make_comparison_lines, make_metrics_table

NAMES = tuple(f"image_of_a_sample_with_a_long_name_of_the_day_2026_11_29_run_{run}.npz" for run in (1, 2))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    rng = np.random.default_rng(0)
    object = np.exp(1j * gaussian_filter(rng.normal(size=(48, 48)), 2)).astype(np.complex64)
    ones = np.ones(object.shape, np.float32)
    image = Reconstruction(object=object, coverage=ones, valid=ones > 0, origin_px=(0, 0))
    return compare(image, image, image, names=(*NAMES, "truth"))


def show(*lines: object, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, soft_wrap=True)
    for line in lines:
        console.print(line)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.contract("cli.tables")
@pytest.mark.parametrize("width", [40, 80])
def test_no_name_is_cut(comparison: Comparison, width: int) -> None:
    text = show(*make_comparison_lines(comparison.metrics), width=width)
    assert "…" not in text
    for number, name in enumerate(comparison.metrics, 1):
        assert f"column {number}: {name}" in text.replace("\n", "")
    first = next(iter(comparison.metrics.values()))
    assert "…" not in show(make_metrics_table(first), width=width)


@pytest.mark.contract("compare.picture")
def test_long_names_are_letters_in_the_picture(comparison: Comparison, tmp_path: Path) -> None:
    short, legend = comparison_figures._shorten_names(comparison)
    assert list(short.images) == ["A", "B", "truth"]
    assert list(short.metrics) == ["B against A", "A against truth", "B against truth"]
    assert legend == [f"A: {NAMES[0]}", f"B: {NAMES[1]}"]
    assert comparison_figures.plot_comparison(comparison, tmp_path / "c.png").is_file()
