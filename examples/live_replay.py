"""Replay a scan to a watch, as if a beamline recorded it, and view the live image.

    python examples/live_replay.py runs/first
    python examples/live_replay.py runs/first --scan scan.npz --hz 500

Without a scan, one is simulated with the frame size of the network. The same in two terminals:

    torchptycho replay scan.npz --hz 500
    torchptycho watch tcp://127.0.0.1:5555 --model runs/first --out live --page
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from pathlib import Path

import torchptycho as tp
from torchptycho.live import replay, watch
from torchptycho.live.web_page import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint, or the folder of a run")
    parser.add_argument("--scan", help="scan file; without it one is simulated")
    parser.add_argument("--frames", type=int, default=2000, help="of the simulated scan")
    parser.add_argument("--hz", type=float, default=200.0, help="frames per second")
    parser.add_argument("--out", default="live", help="folder for the image, which must be new")
    parser.add_argument("--page-port", type=int, default=8765, help="of the web page; 0 takes any that is free")
    given = parser.parse_args()

    network = tp.load_network(given.model)
    if given.scan:
        scan = tp.read_scan(given.scan)
    else:
        n_px = network.n_px
        scan = tp.simulate(tp.SimulateConfig(n_px=n_px, object_px=6 * n_px, n_frames=given.frames))

    out = Path(given.out)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder, serve(out, port=given.page_port) as url:
        print(f"look at {url}")
        # Two threads instead of two programs; a file instead of a port, as both are on one machine.
        address = f"ipc://{folder}/frames"
        threading.Thread(target=replay, args=(scan,), kwargs={"hz": given.hz, "address": address}, daemon=True).start()
        watched = watch(address, network, out, refresh_s=1.0)
    status = watched.status
    print(f"{out / 'reconstruction.png'}: {status.received} frames; the longest waited {status.longest_wait_s:.1f} s")
    print(f"lost: {scan.n_frames - status.received}")


if __name__ == "__main__":
    main()
