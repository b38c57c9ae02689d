"""Time of an epoch of `refine` on canvases of different size with the same frames.

    python benchmarks/canvas.py --frames 4000 --edges-px 449 2999 --out benchmarks/results

An update should take as long as its frames need, whatever lies around them. Each row has the same number of frames of
64 x 64 pixels at random places of a square canvas; columns are processor seconds of an epoch with small batches and
of one while polishing, when an update gathers many frames, and their ratio to those of the first canvas. Writes
canvas.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.reconstructors.iterative import refine

N_PX = 64


def make_scan(edge_px: int, n_frames: int) -> Scan:
    """Frames of an empty field, at random places."""
    rng = np.random.default_rng(0)
    axis = np.arange(N_PX) - N_PX // 2
    probe = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 10**2))
    probe *= np.sqrt(1e5 / (probe**2).sum())
    pattern = np.fft.fftshift(np.abs(np.fft.fft2(probe, norm="ortho")) ** 2)
    return Scan(
        frames=ArrayFrames(rng.poisson(pattern, (n_frames, N_PX, N_PX)).astype(np.uint16)),
        domain="counts",
        positions_px=rng.uniform(N_PX, edge_px - 1, (n_frames, 2)),
        probe=probe.astype(np.complex64)[None],
        mask=np.ones((N_PX, N_PX), bool),
        scan_id=np.zeros(n_frames, np.int64),
        probe_is_calibrated=True,
    )


def time_epochs(scan: Scan, method: str, epochs: int) -> tuple[float, float]:
    """Median processor seconds of an epoch before polishing, and of one in the last part of it."""
    seconds = []
    for polish in (0.0, 1.0):
        ends = [time.process_time()]
        refine(
            scan,
            config={"method": method, "epochs": epochs, "patience": None, "polish": polish, "regularization": "none"},
            device="cpu",
            judge=False,
            on_epoch=lambda epoch, misfit, ends=ends: ends.append(time.process_time()),
        )
        seconds.append(statistics.median(np.diff(ends)[-max(1, epochs // 2) :].tolist()))
    return seconds[0], seconds[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--edges-px", type=int, nargs="+", default=[449, 2999])
    parser.add_argument("--methods", nargs="+", default=["rpie", "lsqml"])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", default="benchmarks/results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for method in given.methods:
        first: tuple[float, float] | None = None
        for edge_px in given.edges_px:
            small, polishing = time_epochs(make_scan(edge_px, given.frames), method, given.epochs)
            first = first or (small, polishing)
            rows.append(
                {
                    "method": method, "canvas_px": edge_px, "frames": given.frames,
                    "epoch_s": round(small, 3), "ratio": round(small / first[0], 2),
                    "polishing_epoch_s": round(polishing, 3), "polishing_ratio": round(polishing / first[1], 2),
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "canvas.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
