"""The live page in a real browser, beside a folder that changes as a watcher would change it.

Wants a Chromium: one that is on the path, or the one that TORCHPTYCHO_BROWSER names.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import NO_BROWSER, Tab, find_browser, open_tab

from torchptycho.io.storage.file_access import replace_atomically
from torchptycho.live.live_images import write_live_images
from torchptycho.live.web_page import serve

BEGUN: dict[str, Any] = {
    "state": "receiving",
    "source": "tcp://127.0.0.1:5555",
    "model": "runs/first",
    "received": 4180,
    "reconstructed": 3600,
    "expected": 10000,
    "backlog": 580,
    "largest_backlog": 1210,
    "paused_s": 0.0,
    "latest_wait_s": 0.41,
    "longest_wait_s": 83.0,
    "received_per_s": 1987.3,
    "reconstructed_per_s": 1412.2,
    "left_out": {"17": "no position", "20": "no position", "21": "no position", "900": "not finite"},
    "image": {"version": 1, "height_px": 60, "width_px": 90, "object_pixel_m": 8e-9, "provisional": True},
    "message": None,
}
TEXT_OF = "document.getElementById('{}').textContent"
IMAGES = "document.querySelectorAll('.frame img').length"


class Folder:
    """What a watcher writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.status = copy.deepcopy(BEGUN)
        self.started = datetime.now(UTC)

    def tell(self, *, age_s: float = 0.0, **values: Any) -> None:
        self.status |= values
        told = self.status | {"started": self.started.isoformat()}
        told["updated"] = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
        with replace_atomically(self.path / "status.json") as file:
            file.write(json.dumps(told).encode("utf-8"))

    def draw(self, contrast: float) -> None:
        y, x = np.indices((60, 90)) / 60
        image = (0.6 + contrast * np.sin(9 * x)) * np.exp(1j * np.cos(7 * y))
        write_live_images(image.astype(np.complex64), np.ones(image.shape, np.float32), 8e-9, self.path)


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    browser = find_browser()
    if not browser:
        pytest.skip(NO_BROWSER)
    with open_tab(browser) as tab:
        yield tab


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def text(tab: Tab, name: str) -> str:
    return str(tab.ask(TEXT_OF.format(name)))


def wait_for_words(tab: Tab, name: str, words: str) -> None:
    tab.wait_for(f"{TEXT_OF.format(name)}.includes({json.dumps(words)})")


@pytest.mark.contract("live.page.browser")
def test_page_follows_its_folder(tab: Tab, folder: Folder) -> None:
    with serve(folder.path, port=0) as url:
        tab.open(url)
        wait_for_words(tab, "words", "Waiting for the first frames")
        assert tab.ask(IMAGES) == 0

        folder.draw(0.1)
        folder.tell()
        tab.wait_for(f"{IMAGES} === 3")
        assert text(tab, "words") == "Receiving frames, reconstructing"
        assert text(tab, "received").startswith("4,180 frames1,990 per second")
        assert text(tab, "backlog") == "580 framesat most 1,210 so far"
        assert text(tab, "wait") == "0.4 sthe longest: 83 s"
        assert text(tab, "image").startswith("provisional60 × 90 px")
        assert "4,180 frames received, 3,600 reconstructed, 10,000 expected; about 4.5 s left" in text(tab, "share")
        assert tab.ask("[...document.querySelectorAll('#left li')].map(e => e.textContent)") == [
            "17, 20, 21: no position",
            "900: not finite",
        ]
        assert tab.ask("document.querySelector('#progress').getAttribute('aria-valuenow')") == "3600"
        assert tab.ask("[...document.images].every(i => i.alt.length > 20 && i.naturalWidth === 90)")
        # The bar is as long as it says: 90 px of 8 nm are 720 nm.
        label, part = tab.ask(
            "(s => [s.textContent.trim(), s.querySelector('i').getBoundingClientRect().width /"
            " s.parentElement.getBoundingClientRect().width])(document.querySelector('#phase .scale'))"
        )
        assert (label, part) == ("100 nm", pytest.approx(100 / 720, rel=0.01))

        before = tab.ask("document.querySelector('#amplitude img').src")
        folder.tell(received=5000)
        wait_for_words(tab, "received", "5,000 frames")
        assert tab.ask("document.querySelector('#amplitude img').src") == before

        folder.draw(0.3)
        folder.tell(image=BEGUN["image"] | {"version": 2, "provisional": False}, state="done", left_out={})
        tab.wait_for(f"document.querySelector('#amplitude img').src !== {json.dumps(before)}")
        assert tab.ask(IMAGES) == 3
        assert text(tab, "words").startswith("Finished")
        assert text(tab, "image").startswith("final")
        assert (
            tab.ask("document.querySelector('#amplitude').parentElement.querySelector('.bar span').textContent")
            == "0.3"
        )
        assert tab.ask("document.getElementById('left').hidden")
    # It ends with the watch, which is no alarm then.
    wait_for_words(tab, "news", "The watcher has ended")
    assert text(tab, "words").startswith("Finished")
    assert tab.ask("getComputedStyle(document.querySelector('#phase img')).opacity") == "1"
    assert tab.errors == []


@pytest.mark.contract("live.page.browser")
def test_page_says_when_nothing_is_heard_any_more(tab: Tab, folder: Folder) -> None:
    folder.draw(0.1)
    with serve(folder.path, port=0) as url:
        folder.tell(age_s=60)
        tab.open(url)
        wait_for_words(tab, "news", "The watcher is running, but has not reported anything new for ")
        assert 58 < float(re.findall(r"(\d+) s", text(tab, "news"))[0]) < 90
        assert text(tab, "words") == "No updates from the watcher"
        tab.wait_for("document.querySelector('#phase img')")
        assert tab.ask("getComputedStyle(document.querySelector('#phase img')).opacity") < "1"
        folder.tell(age_s=60, state="finishing")
        wait_for_words(tab, "words", "The scan has ended")  # the final image takes its time
        folder.tell(state="receiving")
        wait_for_words(tab, "words", "Receiving")
        assert tab.ask("document.getElementById('news').hidden")
    wait_for_words(tab, "words", "No connection to the watcher")
    assert re.search(r"No updates for \d+ s\. The page shows the last state", text(tab, "news"))
    assert tab.ask("document.querySelector('#sign').getAttribute('d').length") > 10


@pytest.mark.contract("live.page.text")
def test_names_are_text(tab: Tab, folder: Folder) -> None:
    markup = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    with serve(folder.path, port=0) as url:
        folder.tell(source=markup, model=markup, message=markup, left_out={"1": markup}, state="failed", image=None)
        tab.open(url)
        wait_for_words(tab, "words", "Failed")
        assert text(tab, "source") == text(tab, "message") == markup
        assert tab.ask("document.images.length") == 0
        assert tab.ask("document.title") != "run"
        # The policy would have stopped it as well.
        tab.ask(
            "document.body.append(Object.assign(document.createElement('script'),"
            " {textContent: 'document.title = \"run\"'})) || true"
        )
        assert tab.ask("document.title") != "run"


# What the page measures when it has been laid out.
MEASURED = """(() => {
  const boxes = ['amplitude', 'phase'].map((name) => document.getElementById(name).getBoundingClientRect());
  const colour = (text) => text.match(/\\d+/g).map(Number);
  const style = getComputedStyle(document.body);
  const words = [...document.querySelectorAll('body *')].filter((e) => e.innerText && !e.children.length);
  return {
    page: document.documentElement.scrollWidth, boxes: boxes.map((b) => [b.top, b.width, b.height]),
    back: colour(style.backgroundColor), text: colour(style.color),
    smallest: Math.min(...words.map((e) => parseFloat(getComputedStyle(e).fontSize))),
  };
})()"""


@pytest.mark.contract("live.page.browser")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True), (2560, False)])
def test_page_fits_its_window(tab: Tab, folder: Folder, width: int, dark: bool, tmp_path: Path) -> None:
    folder.draw(0.1)
    folder.tell(source="/data/beamline/" + 12 * "long_name_of_a_scan_", message="because " + 90 * "x")
    with serve(folder.path, port=0) as url:
        tab.open(url, width=width, height=900, dark=dark)
        tab.wait_for(f"{IMAGES} === 3")
        told = tab.ask(MEASURED)
        assert told["page"] <= width
        (first_top, *_), (second_top, *_) = told["boxes"]
        assert (first_top == second_top) == (width > 1000)  # beside each other, or below
        for top, wide, high in told["boxes"]:
            assert wide / high == pytest.approx(1.5, rel=0.02)
            assert wide > 0.3 * min(width, 1500)
            assert width < 1000 or top + high < 900  # seen without scrolling
        assert (np.mean(told["back"]) < 60 < 180 < np.mean(told["text"])) == dark
        assert told["smallest"] >= 12
        tab.screenshot(tmp_path / "shot.png")
        assert tab.errors == []
    assert (tmp_path / "shot.png").stat().st_size > 10_000
