"""A layout and chunks of frames that the tests of this package share."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from torchptycho.core.geometry import Geometry
from torchptycho.live.scan_header import Chunk, ScanLayout

N = 4


LAYOUT = ScanLayout(
    scan="a scan",
    n_px=N,
    dtype=np.dtype("<u2"),
    domain="counts",
    mask=np.ones((N, N), bool),
    geometry=Geometry(),
    total=40,
)


def chunk(count: int, layout: ScanLayout = LAYOUT, first: int = 0, *, end: bool = False) -> Chunk:
    frames = (np.arange(first * N * N, (first + count) * N * N) % 100).reshape(count, N, N).astype(layout.dtype)
    positions_px = np.stack([np.arange(first, first + count) * 1.25, np.arange(first, first + count) * -0.5], axis=1)
    return Chunk(frames=frames, positions_px=positions_px.reshape(count, 2), end=end)


def described(layout: ScanLayout = LAYOUT, **changes: Any) -> bytes:
    return json.dumps(layout.to_dict() | changes).encode()
