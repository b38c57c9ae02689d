"""The page in a real browser: at the widths of a phone and of a desk, light and dark.

Wants a Chromium: one that is on the path, or the one that TORCHPTYCHO_BROWSER names.
"""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import NO_BROWSER, find_browser
from PIL import Image

from torchptycho.core.config import SimulateConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.data.simulation import simulate
from torchptycho.visualization.report import write_report

# Put into a copy of the page, whose own policy would not let it run.
LOOK = """<script>
addEventListener('load', () => {
  const all = [...document.querySelectorAll('body *')];
  const wide = all.filter(e => !e.closest('.wide') && !e.closest('svg'))
                  .filter(e => e.getBoundingClientRect().right > innerWidth + 1);
  const told = {
    width: innerWidth, page: document.documentElement.scrollWidth, wide: wide.map(e => e.tagName + '.' + e.className),
    images: [...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width]),
    scales: [...document.querySelectorAll('.scale i')].map(e => [
      parseFloat(e.getAttribute('style').match(/[0-9.]+/)[0]),
      e.getBoundingClientRect().width / e.closest('.image').getBoundingClientRect().width]),
    drawings: [...document.querySelectorAll('figure > svg')].map(s => s.getBoundingClientRect().height),
    back: getComputedStyle(document.body).backgroundColor, text: getComputedStyle(document.body).color,
    smallest: Math.min(...all.filter(e => e.innerText && !e.children.length && !e.closest('svg'))
                             .map(e => parseFloat(getComputedStyle(e).fontSize))),
  };
  document.body.setAttribute('data-told', JSON.stringify(told));
});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = find_browser()
    if not found:
        pytest.skip(NO_BROWSER)
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scan = simulate(SimulateConfig(n_px=32, object_px=80, n_frames=49, photons_per_frame=1e5))
    assert scan.truth is not None
    image = Reconstruction(
        object=scan.truth,
        coverage=np.ones(scan.truth.shape, np.float32),
        valid=np.ones(scan.truth.shape, bool),
        origin_px=(0, 0),
        object_pixel_m=8e-9,
        probe=np.repeat(scan.probe, 5, axis=0),
        positions_px=scan.positions_px + 0.1,
        history={"misfit": [5.0, 2.0, 1.0]},
        provenance={
            "frames": 49,
            "seconds": 1.0,
            "epochs": 3,
            "complete": True,
            "source": "x" * 90,
            "refine": {"epochs": 3},
            "scan_sha256": "0" * 64,
        },
    )
    return write_report(image, scan, tmp_path_factory.mktemp("page") / "page.html")


def run(browser: str, *arguments: str) -> str:
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def look(browser: str, page: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    """What the page measures when it has been laid out at this width."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    copy = page.with_name("looked_at.html")
    copy.write_text(text.replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    dom = run(browser, f"--window-size={width},900", *scheme, "--dump-dom", copy.as_uri())
    found = re.search(r'data-told="([^"]*)"', dom)
    assert found, "the page was not laid out"
    told = json.loads(unescape(found[1]))
    assert isinstance(told, dict)
    return told


def light(colour: str) -> float:
    return float(np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]]))


@pytest.mark.contract("report.browser")
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_its_window_and_shows_every_image(browser: str, page: Path, width: int) -> None:
    told = look(browser, page, width)
    assert told["width"] == width
    assert told["page"] <= width, told["wide"]
    assert len(told["images"]) > 15
    assert all(complete and natural > 0 and drawn > 20 for complete, natural, drawn in told["images"])
    assert all(height > 40 for height in told["drawings"])
    assert told["scales"]
    assert all(drawn == pytest.approx(meant, rel=0.01) for meant, drawn in told["scales"])
    assert told["smallest"] >= 12


@pytest.mark.contract("report.browser")
def test_page_follows_the_light_of_the_reader(browser: str, page: Path) -> None:
    day, night = look(browser, page, 1280), look(browser, page, 1280, dark=True)
    assert light(day["back"]) > 200 > 80 > light(day["text"])
    assert light(night["back"]) < 60 < 180 < light(night["text"])


@pytest.mark.contract("report.browser")
def test_page_as_it_is_is_drawn(browser: str, page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    run(browser, "--window-size=1280,1200", f"--screenshot={shot}", page.as_uri())
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    # Not a blank page, nor one without its images.
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
