"""The page about an image: whole, without anything from elsewhere, and true to what it is told."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.reconstruction import Reconstruction, get_frame_probe
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.visualization.plot.png import downsample
from torchptycho.visualization.report import write_report
from torchptycho.visualization.report.inline_png import encode_mapped_png
from torchptycho.visualization.report.pattern_panels import compare_patterns
from torchptycho.visualization.report.svg_charts import Series, draw_curves_svg, draw_positions_svg
from torchptycho.visualization.report.variation_section import make_variation_section

VOID = {"meta", "link", "br", "hr", "img", "input"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WithSpread(Reconstruction):
    """An image that tells how much its patches disagree."""

    spread: np.ndarray | None = None


class Page(HTMLParser):
    """A page taken apart; an end tag that does not fit the open one is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.scripts = 0
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections.append(told["id"] or "")
        if tag == "img":
            self.images.append(told)
        self.scripts += tag == "script"
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "data", "srcset")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return simulate(SimulateConfig(n_px=32, object_px=80, n_frames=49, photons_per_frame=1e5))


def image_of(scan: Scan, **more: object) -> Reconstruction:
    """The truth as an image, as a refinement would leave it."""
    assert scan.truth is not None
    coverage = np.zeros(scan.truth.shape, np.float32)
    coverage[6:-6, 6:-6] = 1
    told: dict[str, object] = {
        "object": scan.truth,
        "coverage": coverage,
        "valid": coverage > 0,
        "origin_px": (0, 0),
        "probe": scan.probe,
        "history": {"misfit": [4.0, 1.5, 1.1], "seconds": [0.1, 0.2, 0.3]},
        "provenance": {
            "source": scan.source,
            "frames": scan.n_frames,
            "epochs": 3,
            "seconds": 0.3,
            "complete": True,
            "refine": {"method": "rpie", "epochs": 3},
            "versions": {"torch": "2.13.0"},
        },
    }
    return WithSpread(**(told | more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def full(scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    """A page with everything in it."""
    moved = scan.positions_px + np.linspace(0, 0.4, 2 * scan.n_frames).reshape(-1, 2)
    assert scan.truth is not None
    spread = np.abs(scan.truth).astype(np.float32) / 50
    image = image_of(scan, positions_px=moved, spread=spread, object_pixel_m=8e-9)
    history = {"train/loss": [(i, 1 / (1 + i)) for i in range(9)], "val/loss": [(8, 0.2)], "plateau": [(1, 0.1)]}
    path = tmp_path_factory.mktemp("page") / "new" / "page.html"
    halves = evaluate(image, scan.truth)
    assert write_report(image, scan, path, history=history, halves=halves, title='<scan> & "42"') == path
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.mark.contract("report.whole")
def test_page_is_well_formed_and_has_every_part(full: tuple[str, Page]) -> None:
    text, page = full
    assert text.startswith("<!doctype html>")
    assert page.sections == [
        "verdict",
        "image",
        "truth",
        "patterns",
        "curves",
        "resolution",
        "probe",
        "positions",
        "data",
        "configuration",
        "provenance",
    ]
    for words in ("Amplitude", "Phase", "Coverage", "Disagreement", "Training: loss", "Refinement", "method", "torch"):
        assert any(words in data for data in page.words), words
    assert not any("plateau" in data for data in page.words)


@pytest.mark.contract("report.whole")
def test_every_drawing_is_xml_and_has_no_number_that_is_none(full: tuple[str, Page]) -> None:
    drawings = re.findall(r"<svg.*?</svg>", full[0], flags=re.DOTALL)
    assert len(drawings) > 5
    for drawing in drawings:
        assert ET.fromstring(drawing).tag == "svg"
        assert not re.search(r"\b(nan|inf)\b", drawing)


@pytest.mark.contract("report.alone")
def test_page_loads_nothing_and_runs_nothing(full: tuple[str, Page]) -> None:
    text, page = full
    assert page.scripts == 0
    own = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:|\son[a-z]+=", own)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "default-src 'none'" in text


@pytest.mark.contract("report.alone")
def test_every_image_is_in_the_page_and_can_be_decoded(full: tuple[str, Page]) -> None:
    assert len(full[1].images) > 15
    for told in full[1].images:
        source = told["src"] or ""
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True))) as picture:
            picture.load()
            assert (str(picture.width), str(picture.height)) == (told["width"], told["height"])
        assert told["alt"]


@pytest.mark.contract("report.escaped")
def test_what_a_file_says_is_text_and_never_markup(scan: Scan, full: tuple[str, Page], tmp_path: Path) -> None:
    assert any('<scan> & "42"' in data for data in full[1].words)
    bad = "</td><script>alert(1)</script>"
    image = image_of(scan)
    image.provenance["refine"][bad] = bad
    hostile = dataclasses.replace(scan, source=bad, notes=(bad,))
    text = write_report(image, hostile, tmp_path / "page.html", history={f"train/{bad}": [(0, 1.0)]}).read_text()
    assert Page(text).scripts == 0
    assert bad not in text


@pytest.mark.contract("report.absent")
def test_what_is_not_known_is_left_out(scan: Scan, tmp_path: Path) -> None:
    plain = dataclasses.replace(scan, truth=None)
    bare = image_of(scan, probe=None, history={}, provenance={"source": "x", "frames": 49, "seconds": 1.0})
    page = Page(write_report(bare, plain, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.sections == ["verdict", "image", "positions", "data", "provenance"]
    assert not any("Disagreement" in data for data in page.words)
    assert any("not corrected" in data for data in page.words)


@pytest.mark.contract("report.absent")
def test_an_image_that_cannot_be_compared_is_shown_and_says_so(scan: Scan, tmp_path: Path) -> None:
    elsewhere = image_of(scan, origin_px=(5000, 5000), probe=None)
    text = write_report(elsewhere, scan, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "do not overlap" in text


@pytest.mark.contract("report.absent")
def test_an_image_without_a_valid_pixel_is_shown(scan: Scan, tmp_path: Path) -> None:
    nothing = image_of(scan, valid=np.zeros_like(image_of(scan).valid))
    assert "image" in Page(write_report(nothing, scan, tmp_path / "page.html").read_text(encoding="utf-8")).sections


@pytest.mark.contract("refine.opr.report")
def test_variation_of_the_probe_is_shown(scan: Scan, tmp_path: Path) -> None:
    weights = np.linspace(-0.2, 0.2, scan.n_frames, dtype=np.float32)[:, None]
    scale = np.linspace(0.9, 1.1, scan.n_frames, dtype=np.float32)
    image = image_of(scan, opr_modes=np.roll(scan.probe, 3, 1), opr_weights=weights, frame_scale=scale)
    text = write_report(image, scan, tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "variation" in page.sections
    assert "Variation 1" in text
    assert "Weights of the variations" in text
    assert "Power of the probe" in text
    assert image.probe is not None
    patterns = compare_patterns(scan, image, image.probe)
    for frame, expected in zip(patterns.frames, patterns.expected, strict=True):
        alone = dataclasses.replace(image, opr_modes=None, opr_weights=None, frame_scale=None)
        own = compare_patterns(scan, alone, get_frame_probe(image, frame)).expected[patterns.frames.index(frame)]
        np.testing.assert_allclose(expected, own, rtol=1e-4, atol=1e-3)
    assert make_variation_section(image_of(scan)) is None


class TestPatterns:
    @pytest.mark.contract("report.patterns")
    @pytest.mark.parametrize(
        ("domain", "told"),
        [
            ("counts", lambda photons: {}),
            ("amplitude", lambda photons: {"photons_per_frame": photons}),
            ("amplitude", lambda photons: {"config": {"prepare": {"nphotons": photons}}}),
        ],
    )
    def test_true_image_predicts_the_counts_to_their_noise(
        self, scan: Scan, domain: str, told: Callable[[float], dict[str, object]]
    ) -> None:
        frames = np.asarray(scan.frames[:])
        photons = float(frames.sum(axis=(1, 2), dtype=np.float64).mean())
        if domain == "amplitude":
            # Half the unit, as normalised files have it; the dose is told apart.
            halved = (0.5 * np.sqrt(frames)).astype(np.float32)
            scan = dataclasses.replace(scan, frames=ArrayFrames(halved), domain="amplitude", metadata={})
        image = image_of(scan, provenance=told(photons))
        found = compare_patterns(scan, image, scan.probe, n_frames=5)
        assert found.frames == sorted(set(found.frames))
        assert len(found.frames) == 5
        np.testing.assert_allclose(found.measured, frames[found.frames], rtol=1e-3, atol=1e-3)
        misfit = ((found.measured - found.expected) ** 2 / (found.expected + 1)).sum()
        misfit /= (found.expected / (found.expected + 1)).sum()
        assert 0.9 < misfit < 1.1

    @pytest.mark.contract("report.patterns")
    def test_background_and_the_model_of_the_detector_are_predicted_too(self, scan: Scan) -> None:
        image = image_of(scan)
        plain = compare_patterns(scan, image, scan.probe).expected
        background = np.full((32, 32), 2.0, np.float32)
        with_own = compare_patterns(scan, dataclasses.replace(image, background=background), scan.probe)
        np.testing.assert_allclose(with_own.expected, plain + 2, rtol=1e-5)
        told = compare_patterns(scan, image, scan.probe, detect=lambda counts: 3 * counts)
        np.testing.assert_allclose(told.expected, 3 * plain, rtol=1e-5)

    @pytest.mark.contract("report.patterns")
    def test_found_positions_are_those_that_count(self, scan: Scan) -> None:
        image = image_of(scan)
        away = dataclasses.replace(image, positions_px=scan.positions_px + 3)
        assert not np.allclose(
            compare_patterns(scan, away, scan.probe).expected, compare_patterns(scan, image, scan.probe).expected
        )

    def test_one_frame_is_enough(self, scan: Scan) -> None:
        one = dataclasses.replace(
            scan, frames=ArrayFrames(scan.frames[:1]), positions_px=scan.positions_px[:1], scan_id=scan.scan_id[:1]
        )
        assert compare_patterns(one, image_of(scan), scan.probe).frames == [0]


class TestDrawings:
    def test_values_over_decades_have_a_logarithmic_axis_and_others_not(self) -> None:
        x = np.arange(5.0)
        decades = draw_curves_svg([Series(name="a", x=x, y=10.0**-x)], "x", "y")
        path = re.findall(r'class="line c1" d="M([^"]+)"', decades)[0]
        heights = [float(pair.split()[1]) for pair in path.split("L")]
        np.testing.assert_allclose(np.diff(heights), np.diff(heights)[0], atol=0.2)
        linear = draw_curves_svg([Series(name="a", x=x, y=10.0 + x)], "x", "y")
        assert ">11<" in linear

    @pytest.mark.parametrize(
        "y", [np.full(4, np.nan), np.zeros(4), np.array([1.0, np.nan, 3.0, np.inf]), np.full(1, 2.0), np.zeros(0)]
    )
    def test_what_is_not_finite_is_left_out(self, y: np.ndarray) -> None:
        drawn = draw_curves_svg([Series(name="a", x=np.arange(float(len(y))), y=y)], "x", "y")
        ET.fromstring(drawn)
        assert "nan" not in drawn
        assert "inf" not in drawn

    def test_long_curves_are_thinned_and_keep_their_end(self) -> None:
        x = np.arange(50_001.0)
        drawn = draw_curves_svg([Series(name="a", x=x, y=x)], "x", "y", y_range=(0, 50_000))
        assert len(drawn) < 30_000
        assert "L408.0 12.0" in drawn

    @pytest.mark.contract("report.positions")
    def test_corrections_are_drawn_so_long_that_they_are_seen(self) -> None:
        given = np.stack(np.meshgrid(np.arange(0.0, 100, 10), np.arange(0.0, 50, 10)), -1).reshape(-1, 2)
        moved = given.copy()
        moved[7, 0] += 0.01
        drawn, times = draw_positions_svg(given, moved, 16)
        assert times > 100
        assert math.log10(times) % 1 in (pytest.approx(0), pytest.approx(math.log10(2)), pytest.approx(math.log10(5)))
        ET.fromstring(drawn)
        assert draw_positions_svg(given, given + 30, 16)[1] == 1
        assert draw_positions_svg(given, None, 16)[1] == 1

    @pytest.mark.contract("report.small")
    def test_large_images_are_averaged_over_what_is_valid(self) -> None:
        values = np.ones((2500, 400))
        mask = np.zeros(values.shape, bool)
        mask[:, 200:] = True
        values[~mask] = np.nan
        smaller, known = downsample(values, mask, 1200)
        assert smaller.shape == known.shape == (833, 133)
        assert known[:, 67:].all()
        assert not known[:, :66].any()
        np.testing.assert_allclose(smaller[known], 1)

    @pytest.mark.contract("report.small")
    def test_values_keep_their_order_and_what_is_masked_is_transparent(self) -> None:
        values = np.linspace(-2, 2, 64).reshape(8, 8)
        mask = values > -1
        source = encode_mapped_png(values, mask, "gray", (-1.0, 1.0))
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            rgba = np.asarray(picture.convert("RGBA"))
        assert ((rgba[..., 3] == 255) == mask).all()
        grey = rgba[..., 0][mask].astype(int)
        assert (np.diff(grey) >= 0).all()
        assert (grey[0], grey[-1]) == (pytest.approx(0, abs=4), 255)


@pytest.mark.contract("report.halves")
def test_refinement_of_halves_is_made_only_when_asked_for(scan: Scan, tmp_path: Path) -> None:
    from torchptycho.visualization.report import write_refinement_report

    few = RefineConfig(epochs=2, polish=0)
    without = write_refinement_report(image_of(scan), scan, tmp_path / "a.html", few).read_text(encoding="utf-8")
    with_them = write_refinement_report(image_of(scan), scan, tmp_path / "b.html", few, halves=True, device="cpu")
    assert "resolution" not in Page(without).sections
    assert "resolution" in Page(with_them.read_text(encoding="utf-8")).sections


def test_drawing_leaves_torch_s_random_state_alone(scan: Scan, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    write_report(image_of(scan), scan, tmp_path / "page.html")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.contract("report.explained")
def test_a_reader_who_has_never_seen_the_program_finds_what_figures_mean(scan: Scan, tmp_path: Path) -> None:
    image = image_of(scan, positions_px=scan.positions_px + 0.2, object_pixel_m=8e-9)
    image = dataclasses.replace(image, history={"misfit": [1.4, 0.7]})
    history = {"contrast": [(1, 0.1), (2, 0.2)], "misfit_over_empty": [(1, 0.9), (2, 0.5)]}
    text = write_report(image, scan, tmp_path / "page.html", history=history).read_text(encoding="utf-8")
    for words in (
        "overlap: 1 − step / probe diameter",
        "photons per frame, mean",
        "lowest position (y, x) (px)",
        "misfit relative to that of an empty sample",
        "contrast of the predicted patches",
        "It is 0.7 here. Below 1, object and probe have enough unknowns to follow a part of the noise",
        "The square in the corner is one frame",
        "given scan position",
    ):
        assert words in text, words
    assert "photons mean" not in text
    # A scan without misfits above the noise is not accused of it.
    fair = dataclasses.replace(image, history={"misfit": [1.4, 1.0]})
    assert "It is" not in write_report(fair, scan, tmp_path / "fair.html").read_text(encoding="utf-8")


@pytest.mark.contract("report.explained")
@pytest.mark.parametrize(("pixel_m", "unit"), [(None, "px"), (1e-8, "nm")])
def test_scan_positions_have_axes_with_units(pixel_m: float | None, unit: str) -> None:
    given = np.array([[20.0, 30.0], [20.0, 70.0], [50.0, 30.0]])
    drawn, _ = draw_positions_svg(given, None, 16, pixel_m)
    assert f"x ({unit})" in drawn
    assert f"y ({unit}), down" in drawn
    ticks = [float(tick) for tick in re.findall(r'class="mid"[^>]*>([\d.]+)<', drawn)]
    low, high = (edge * (1.0 if pixel_m is None else pixel_m / 1e-9) for edge in (22.0, 78.0))
    assert len(ticks) >= 3
    assert low <= min(ticks) < max(ticks) <= high
    # All dots lie inside of the axes.
    left, top, bottom, right = map(
        float, re.search(r'class="axis" d="M([\d.]+) ([\d.]+)V([\d.]+)H([\d.]+)"', drawn).groups()
    )  # type: ignore[union-attr]
    dots = re.search(r'class="dots c1"[^>]* d="([^"]*)"', drawn)
    assert dots is not None
    for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", dots[1]):
        assert left < float(x) < right
        assert top < float(y) < bottom


@pytest.mark.contract("report.explained")
def test_a_curve_that_hardly_changes_does_not_fill_the_figure() -> None:
    flat = Series(name="flat", x=np.array([1.0, 2.0]), y=np.array([1.0, 1.00001]))
    drawn = draw_curves_svg([flat], "epoch", "misfit")
    path = re.search(r'class="line c1" d="M[\d.]+ ([\d.]+)L[\d.]+ ([\d.]+)"', drawn)
    assert path is not None
    assert abs(float(path[1]) - float(path[2])) < 1
