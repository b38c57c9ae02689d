"""Figures: that they are written, that they show what they say, and that nothing else changes."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from torchptycho.analysis.evaluation import Metrics, evaluate
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.io import read_scan, write_scan
from torchptycho.io.frames.npz_frames import ZippedFrames
from torchptycho.visualization import plot
from torchptycho.visualization.plot.panels import choose_phase_map, choose_scale_length, compute_limits
from torchptycho.visualization.plot.phase_colors import complex_to_rgb, make_wheel_rgba, phase_to_rgb
from torchptycho.visualization.plot.scan_figures import average_counts


def make_object(shape: tuple[int, int] = (96, 110), phase_rad: float = 0.8) -> np.ndarray:
    rng = np.random.default_rng(0)
    fields = [gaussian_filter(rng.normal(size=shape), 3) for _ in range(2)]
    amplitude, phase = (field / np.abs(field).max() for field in fields)
    return ((0.75 + 0.25 * amplitude) * np.exp(1j * phase_rad * phase)).astype(np.complex64)


def make_reconstruction(image: np.ndarray, pixel_m: float | None = None) -> Reconstruction:
    coverage = np.zeros(image.shape, dtype=np.float32)
    coverage[10:-10, 12:-12] = 1
    return Reconstruction(
        object=np.where(coverage > 0, image, 0).astype(np.complex64),
        coverage=coverage,
        valid=coverage > 0,
        origin_px=(0, 0),
        object_pixel_m=pixel_m,
    )


def make_scan(*, truth: np.ndarray | None = None, n_frames: int = 30) -> Scan:
    rng = np.random.default_rng(1)
    n = 16
    y, x = np.indices((n, n)) - n // 2
    pattern = 4e4 * np.exp(-np.hypot(y, x) / 2)
    return Scan(
        frames=ArrayFrames(rng.poisson(pattern, (n_frames, n, n)).astype(np.uint16)),
        domain="counts",
        positions_px=rng.uniform(12, 80, (n_frames, 2)),
        probe=np.exp(-(y**2 + x**2) / 20 + 0.05j * (y**2 + x**2)).astype(np.complex64)[None],
        mask=np.hypot(y, x) > 1,
        scan_id=np.zeros(n_frames, dtype=np.int64),
        truth=truth,
    )


def is_picture(path: Path) -> bool:
    content = path.read_bytes()
    return content.startswith(b"\x89PNG") and 4_000 < len(content) < 500_000


@functools.cache
def compared() -> tuple[Reconstruction, Metrics]:
    truth = make_object()
    found = make_reconstruction(gaussian_filter(truth.real, 1) + 1j * gaussian_filter(truth.imag, 1), 12e-9)
    return found, evaluate(found, truth)


HISTORY = {
    "train_loss": [(i, 50.0 / (1 + i)) for i in range(50)],
    "val/loss": [(0, 5.0), (49, float("nan"))],
    "rate": [(0, 1e-3)],
}
NOISE = 1 + 0.3 * (np.random.default_rng(2).normal(size=(2, 450, 450)).T @ (1, 1j))
FIGURES: dict[str, Callable[[Path], Path]] = {
    "large and noisy": lambda path: plot.plot_reconstruction(make_reconstruction(NOISE), path, title="scan_0042.npz"),
    "with truth": lambda path: plot.plot_reconstruction(
        compared()[0], path, truth=make_object(), metrics=compared()[1]
    ),
    "frc": lambda path: plot.plot_frc(compared()[1], str(path)),
    "history": lambda path: plot.plot_history(HISTORY, path),
    "scan": lambda path: plot.plot_scan(make_scan(), path),
    "overview": lambda path: plot.plot_overview(make_scan(truth=make_object()), {"refined": compared()}, path),
}


@pytest.mark.contract("plot.whole")
def test_a_figure_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.png"
    before = plot.plot_history(HISTORY, path).read_bytes()
    inner, saved = Image.Image.save, []

    def broken_off(self: Image.Image, fp: Any, **options: Any) -> None:
        inner(self, fp, **options)
        saved.append(fp)
        # The first is matplotlib's own.
        if len(saved) > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", broken_off)
    with pytest.raises(KeyboardInterrupt):
        plot.plot_reconstruction(make_reconstruction(NOISE), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.contract("plot.files")
@pytest.mark.contract("plot.no-global-state")
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_small_png_and_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # its import now fails
    monkeypatch.delattr(matplotlib, "pyplot", raising=False)
    before = matplotlib.rcParams.copy()
    path = tmp_path / "new" / "folder" / "figure.png"
    assert FIGURES[name](path) == path
    assert is_picture(path)
    assert matplotlib.rcParams.copy() == before


def test_an_image_without_a_valid_pixel_is_drawn(tmp_path: Path) -> None:
    nothing = dataclasses.replace(make_reconstruction(make_object()), valid=np.zeros((96, 110), dtype=bool))
    assert is_picture(plot.plot_reconstruction(nothing, tmp_path / "nothing.png"))


def test_limits_of_a_flat_image_lie_around_it() -> None:
    assert compute_limits(np.full((4, 4), 3.0), np.ones((4, 4), dtype=bool)) == (2.5, 3.5)


def test_one_dark_frame_and_an_empty_history_are_drawn(tmp_path: Path) -> None:
    dark = dataclasses.replace(make_scan(n_frames=1), frames=ArrayFrames(np.zeros((1, 16, 16), np.uint16)))
    assert is_picture(plot.plot_scan(dark, tmp_path / "dark.png"))
    assert plot.plot_history({}, tmp_path / "no_history.png").is_file()


def test_overview_needs_a_truth(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="truth"):
        plot.plot_overview(make_scan(), {"refined": compared()}, tmp_path / "x.png")


@pytest.mark.contract("plot.phase-map")
def test_phases_that_span_more_than_pi_have_a_cyclic_map() -> None:
    everywhere = np.ones((96, 110), dtype=bool)
    name, limits = choose_phase_map(make_object(phase_rad=3.1), everywhere)
    assert (name, limits) == ("twilight", (-math.pi, math.pi))
    name, (low, high) = choose_phase_map(make_object(phase_rad=0.8), everywhere)
    assert name == "viridis"
    assert -0.8 <= low < high <= 0.8


@pytest.mark.contract("plot.scale-bar")
@pytest.mark.parametrize(
    ("width_px", "pixel_m", "label"),
    [
        (276, 12e-9, "500 nm"),
        (400, None, "100 px"),
        (64, None, "10 px"),
        (1000, 12e-9, "2 µm"),
        (200, 1e-6, "50 µm"),
        (400, 10e-9, "1 µm"),
        (90, 1e-11, "200 pm"),
    ],
)
def test_scale_bar_has_a_round_length(width_px: int, pixel_m: float | None, label: str) -> None:
    length_px, found = choose_scale_length(width_px, pixel_m)
    assert found == label
    assert width_px / 10.1 <= length_px <= width_px / 4 * (1 + 1e-9)


@pytest.mark.contract("plot.counts")
def test_amplitudes_and_counts_give_the_same_mean_pattern() -> None:
    counts = make_scan()
    frames = counts.frames[:]
    assert int(frames.max()) ** 2 > 65535
    amplitude = dataclasses.replace(
        counts, frames=ArrayFrames(np.sqrt(frames.astype(np.float64)).astype(np.float32)), domain="amplitude"
    )
    integers = dataclasses.replace(counts, frames=ArrayFrames(frames), domain="amplitude")
    index, mean, totals, shown = average_counts(counts, 1000, 17)
    np.testing.assert_array_equal(shown, frames[17])
    np.testing.assert_allclose(average_counts(amplitude, 1000)[1], mean, rtol=1e-5)
    np.testing.assert_allclose(mean, frames.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(totals, frames[:, counts.mask].sum(axis=1, dtype=np.float64), rtol=1e-12)
    np.testing.assert_array_equal(index, np.arange(30))
    squared = average_counts(integers, 1000)[1]
    np.testing.assert_allclose(squared, (frames.astype(np.float64) ** 2).mean(axis=0), rtol=1e-12)
    assert len(average_counts(counts, 7)[0]) == 7


@pytest.mark.contract("plot.counts")
def test_a_compressed_file_is_read_once_and_gives_the_same_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = make_scan(n_frames=200)
    write_scan(scan, tmp_path / "scan.npz")
    zipped = read_scan(tmp_path / "scan.npz")
    expected, found = (average_counts(one, 90, 130) for one in (scan, zipped))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(expected[1], scan.frames[expected[0]].mean(axis=0, dtype=np.float64), rtol=1e-12)
    passes, chunks = [], ZippedFrames.chunks
    monkeypatch.setattr(ZippedFrames, "chunks", lambda frames, k: passes.append(k) or chunks(frames, k))
    plot.plot_scan(zipped, tmp_path / "scan.png")
    assert len(passes) == 1


@pytest.mark.contract("plot.complex")
def test_hue_is_the_phase_and_every_phase_is_as_light() -> None:
    phase = np.linspace(-math.pi, math.pi, 361)
    rgb = phase_to_rgb(phase)
    assert rgb.shape == (361, 3)
    np.testing.assert_allclose(rgb[0], rgb[-1], atol=1e-12)
    assert rgb.min() > 0.05
    assert rgb.max() < 1
    # CIE Y of sRGB: perceived lightness is nearly that, and never that of another grey.
    luminance = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92) @ (0.2126, 0.7152, 0.0722)
    assert np.ptp(luminance) < 0.12
    steps = np.linalg.norm(np.diff(rgb, axis=0), axis=1)
    assert steps.max() < 3 * steps.min()
    assert rgb[180].argmax() == 0  # red is phase 0


@pytest.mark.contract("plot.complex")
def test_brightness_is_the_amplitude_and_the_wheel_is_the_key() -> None:
    image = np.array([[0, 0.5, 1.0, 4.0]]) * np.exp(1j * 0.7)
    rgb = complex_to_rgb(image, 1.0).astype(int)
    assert (rgb[0, 0] == 0).all()
    np.testing.assert_allclose(rgb[0, 1], rgb[0, 2] / 2, atol=1)
    np.testing.assert_array_equal(rgb[0, 3], rgb[0, 2])
    assert (complex_to_rgb(np.zeros((2, 2), complex)) == 0).all()
    wheel = make_wheel_rgba(101).astype(int)
    assert wheel[0, 0, 3] == 0
    # Up is +pi/2.
    np.testing.assert_allclose(wheel[5, 50, :3], 255 * phase_to_rgb(np.array(math.pi / 2)) * 0.89, atol=4)
