"""A scan with some of its frames."""

from __future__ import annotations

import dataclasses

import numpy as np

from torchptycho.core.scan import Scan
from torchptycho.io.frames.frame_stacks import random_access_is_slow
from torchptycho.io.frames.views import PickedFrames

__all__ = ["pick_frames"]


def pick_frames(scan: Scan, rows: np.ndarray) -> Scan:
    """Return the scan with these of its frames (ascending), which are read when they are asked for."""
    patches, nominal = scan.truth_patches, scan.nominal_positions_px
    return dataclasses.replace(
        scan,
        frames=PickedFrames(scan.frames, rows, streamed=random_access_is_slow(scan.frames)),
        positions_px=scan.positions_px[rows],
        scan_id=scan.scan_id[rows],
        truth_patches=None if patches is None else patches[rows],
        nominal_positions_px=None if nominal is None else nominal[rows],
    )
