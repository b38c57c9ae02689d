"""The pictures of the live page."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchptycho.core.errors import ScanError
from torchptycho.live.live_images import IMAGE_FILES, LEGEND_FILE, write_live_images


def an_object(n: int = 64, turn_rad: float = 0.5) -> np.ndarray:
    y, x = np.indices((n, n)) / n
    image: np.ndarray = (0.6 + 0.2 * np.sin(9 * x)) * np.exp(1j * turn_rad * np.cos(9 * y + 5 * x))
    return image.astype(np.complex64)


def rgba(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGBA"))


def legend(folder: Path) -> dict[str, dict[str, str]]:
    told = json.loads((folder / LEGEND_FILE).read_text(encoding="utf-8"))
    assert isinstance(told, dict)
    return told


@pytest.mark.contract("live.pictures.limits")
def test_colours_span_what_is_covered(tmp_path: Path) -> None:
    image, coverage = an_object(), np.ones((64, 64), np.float32)
    write_live_images(image, coverage, None, tmp_path)
    plain, told = rgba(tmp_path / "amplitude.png"), legend(tmp_path)
    assert float(told["amplitude"]["low"]) == pytest.approx(0.4, abs=0.01)
    assert float(told["amplitude"]["high"]) == pytest.approx(0.8, abs=0.01)
    assert (plain[..., 0].min(), plain[..., 0].max()) == (0, 255)
    # What no frame has reached plays no part, and one wild pixel hardly any.
    image[:16], coverage[:16] = 1e6, 0
    image[40, 40] = 1e4
    write_live_images(image, coverage, None, tmp_path)
    differ = np.abs(rgba(tmp_path / "amplitude.png")[16:].astype(int) - plain[16:])
    assert np.median(differ) <= 2
    assert float(legend(tmp_path)["amplitude"]["high"]) == pytest.approx(0.8, abs=0.01)


@pytest.mark.contract("live.pictures.limits")
def test_brightness_follows_the_amplitude(tmp_path: Path) -> None:
    image = an_object()
    write_live_images(image, np.ones(image.shape), None, tmp_path)
    order = np.argsort(np.abs(image).ravel())
    assert (np.diff(rgba(tmp_path / "amplitude.png")[..., 0].ravel()[order].astype(int)) >= 0).all()


@pytest.mark.contract("live.pictures.limits")
def test_small_phases_have_their_own_range_and_large_ones_cyclic_colours(tmp_path: Path) -> None:
    coverage = np.ones((64, 64), np.float32)
    write_live_images(an_object(turn_rad=0.5), coverage, None, tmp_path)
    small = legend(tmp_path)["phase"]
    write_live_images(an_object(turn_rad=2.5), coverage, None, tmp_path)
    large = legend(tmp_path)["phase"]
    assert float(small["low"].replace("−", "-")) > -1
    assert float(small["high"]) < 1
    assert (large["low"], large["high"], large["unit"]) == ("−π", "π", "rad")
    assert large["stops"][0] == large["stops"][-1] != large["stops"][8]
    assert small["stops"][0] != small["stops"][-1]


@pytest.mark.contract("live.pictures.limits")
def test_what_ptychography_leaves_free_makes_no_difference(tmp_path: Path) -> None:
    image = an_object()
    y, x = np.indices(image.shape)
    plane = np.exp(1j * (0.7 + 0.05 * y - 0.1 * x)).astype(np.complex64)
    pictures = []
    for turned in (image, image * plane):
        write_live_images(turned, np.ones(image.shape), None, tmp_path)
        pictures.append(rgba(tmp_path / "phase.png").astype(int))
    assert np.abs(pictures[0] - pictures[1]).mean() < 3


@pytest.mark.contract("live.pictures.transparent")
def test_pixels_without_data_are_transparent(tmp_path: Path) -> None:
    image, coverage = an_object(), np.ones((64, 64), np.float32)
    coverage[:8] = 0
    coverage[8:16] = 1e-3
    image[20, 20] = np.nan
    image[:8] = np.inf
    write_live_images(image, coverage, None, tmp_path)
    reached = np.ones((64, 64), bool)
    reached[:8] = False
    np.testing.assert_array_equal(rgba(tmp_path / "coverage.png")[..., 3] == 255, reached)
    reached[8:16] = False
    reached[20, 20] = False
    for name in ("amplitude.png", "phase.png"):
        alpha = rgba(tmp_path / name)[..., 3]
        np.testing.assert_array_equal(alpha == 255, reached)
        assert (alpha[~reached] == 0).all()


@pytest.mark.contract("live.pictures.transparent")
def test_an_image_of_nothing_is_drawn(tmp_path: Path) -> None:
    write_live_images(np.zeros((30, 40), np.complex64), np.zeros((30, 40)), 1e-8, tmp_path)
    for name in IMAGE_FILES:
        assert rgba(tmp_path / name).shape == (30, 40, 4)
        assert not rgba(tmp_path / name)[..., 3].any()


@pytest.mark.contract("live.pictures.size")
@pytest.mark.parametrize(
    ("shape", "drawn"), [((1500, 700), (1500, 700)), ((1600, 401), (800, 200)), ((3, 3100), (1, 1033))]
)
def test_large_images_are_averaged(tmp_path: Path, shape: tuple[int, int], drawn: tuple[int, int]) -> None:
    image = np.ones(shape, np.complex64)
    image[:, ::2] = 3
    write_live_images(image, np.ones(shape, np.float32), None, tmp_path)
    for name in IMAGE_FILES:
        assert rgba(tmp_path / name).shape == (*drawn, 4)
    if shape == (1600, 401):
        assert float(legend(tmp_path)["amplitude"]["low"]) == pytest.approx(1.5)  # 2 within limits of 1 around it


@pytest.mark.contract("live.pictures.size")
def test_the_scale_bar_is_a_part_of_the_image(tmp_path: Path) -> None:
    for n in (200, 2000):
        image = np.ones((20, n), np.complex64)
        write_live_images(image, np.ones(image.shape, np.float32), 1e-8, tmp_path)
        scale = legend(tmp_path)["scale"]
        assert scale == {"percent": pytest.approx(25), "label": "500 nm" if n == 200 else "5 µm"}
    write_live_images(image, np.ones(image.shape, np.float32), None, tmp_path)
    assert legend(tmp_path)["scale"]["label"] == "500 px"


@pytest.mark.contract("live.pictures.whole")
def test_a_reader_finds_whole_pictures_only(tmp_path: Path) -> None:
    coverage = np.ones((300, 300), np.float32)
    images = [an_object(300, turn) for turn in (0.5, 2.5)]
    write_live_images(images[0], coverage, None, tmp_path)
    done = threading.Event()

    def write() -> None:
        for i in range(12):
            write_live_images(images[i % 2], coverage, None, tmp_path)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not done.is_set():
            for name in IMAGE_FILES:
                content = (tmp_path / name).read_bytes()
                assert content.startswith(b"\x89PNG")
                assert content.endswith(b"IEND\xaeB`\x82")
            assert set(legend(tmp_path)) == {"amplitude", "phase", "coverage", "scale"}
    finally:
        writer.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*IMAGE_FILES, LEGEND_FILE])


@pytest.mark.contract("live.pictures.whole")
def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="no folder"):
        write_live_images(an_object(), np.ones((64, 64)), None, tmp_path / "nowhere")
