"""Scans whose frames are near-field shadow images, which do not say so."""

from __future__ import annotations

import dataclasses

import numpy as np

from torchptycho.core.config import SimulateConfig
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate

N, M = 32, 80


def shadows(magnification: float = 0.25, field_px: float = 120) -> Scan:
    """Frames of a smooth beam with the shadow of a sample, so many detector pixels for each object pixel."""
    rng = np.random.default_rng(4)
    coarse = rng.uniform(0.4, 1, (40, 40))
    rows, columns = np.indices((N, N)) - N / 2
    light = 2000 * np.exp(-(rows**2 + columns**2) / (2 * 8.0**2))
    positions_px = rng.uniform(0, field_px, (M, 2))
    frames = []
    for y, x in positions_px:
        places = ((rows / magnification + y + 100) / 8, (columns / magnification + x + 100) / 8)
        frames.append(rng.poisson(light * coarse[places[0].astype(int) % 40, places[1].astype(int) % 40]))
    like = simulate(SimulateConfig(n_px=N, object_px=200, n_frames=M))
    return dataclasses.replace(
        like,
        frames=ArrayFrames(np.array(frames, np.uint16)),
        positions_px=positions_px,
        truth=None,
        probe_is_calibrated=False,
    )
