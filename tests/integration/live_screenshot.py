"""Makes docs/pictures/live.png again: the live page in the middle of a replayed scan.

    python tests/integration/live_screenshot.py runs/first scan.npz docs/pictures/live.png

Wants a Chromium, as the tests of the page do.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

from browser import NO_BROWSER, find_browser, open_tab
from PIL import Image

import torchptycho as tp
from torchptycho.live import replay, watch
from torchptycho.live.web_page import serve

HZ, PART = 40.0, 0.6


def main(model: str, scan: str, path: str) -> None:
    browser = find_browser()
    if not browser:
        sys.exit(NO_BROWSER)
    network = tp.load_network(model)
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as name, serve(Path(name), port=0) as url, open_tab(browser) as tab:
        address = f"ipc://{name}/frames"
        played = threading.Thread(target=replay, args=(scan,), kwargs={"hz": HZ, "address": address, "stop": stop})
        seen = threading.Thread(
            target=watch, args=(address, network, name), kwargs={"refresh_s": 0.5, "stop": stop, "progress": False}
        )
        tab.open(url, width=1280, height=760)
        played.start()
        seen.start()
        try:
            tab.wait_for(f"status && status.image && status.reconstructed > {PART} * status.expected")
            # What is written into the page is of the folder of this picture, which has a random name.
            tab.ask("document.getElementById('source').textContent = 'tcp://beamline:5555'")
            tab.ask("document.getElementById('model').textContent = 'model runs/first/checkpoints/best.ckpt'")
            shot = Path(name) / "shot.png"
            tab.screenshot(shot)
            with Image.open(shot) as picture:
                picture.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
                    path, optimize=True
                )
        finally:
            stop.set()
            seen.join()
            played.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
