"""Which way do the positions run? The mistake that costs a beamtime, settled by the counts."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np

from torchptycho.core.config import RefineConfig
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.io.inputs import as_scan
from torchptycho.reconstructors.iterative import refine

__all__ = ["Orientation", "rank_orientations"]

_DEFAULT_FRAMES, _DEFAULT_EPOCHS = 100, 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Orientation:
    """One of the eight orientations of the positions, relative to the opened scan.

    Arguments:
        swap_xy, flip_y, flip_x: operations on the positions, in this order.
        misfit: squared deviation of the counts over that of photon noise, after a short refinement.
    """

    swap_xy: bool
    flip_y: bool
    flip_x: bool
    misfit: float

    @property
    def name(self) -> str:
        done = [name for name in ("swap_xy", "flip_y", "flip_x") if getattr(self, name)]
        return ", ".join(done) or "as it is"


def rank_orientations(
    scan: Scan | str | Path, *, frames: int = _DEFAULT_FRAMES, epochs: int = _DEFAULT_EPOCHS
) -> list[Orientation]:
    """Rank the eight orientations of the positions, best first.

    The criterion is the misfit after a few epochs of refinement of object and probe on a compact part of the scan. With
    a guessed probe without structure, an orientation and its reverse (both flips) fit equally well: the second image is
    the twin of the first.

    Arguments:
        frames: number of frames, nearest to the centre of the field of the first scan in the file.
        epochs: passes over them.

    Raises:
        ScanError: the frames are unusable.
    """
    part = _select_central_frames(as_scan(scan), frames)
    config = RefineConfig(
        epochs=epochs, batch_size=max(1, min(16, part.n_frames // 4)), patience=None, regularization="none"
    )
    ranked = []
    for swap, flip_y, flip_x in itertools.product((False, True), repeat=3):
        places = part.positions_px[:, ::-1] if swap else part.positions_px
        turned = np.ascontiguousarray(places * (-1.0 if flip_y else 1.0, -1.0 if flip_x else 1.0))
        try:
            image = refine(dataclasses.replace(part, positions_px=turned), config=config, judge=False)
            misfit = image.history["misfit"][-1]
        except FloatingPointError:
            misfit = math.inf
        ranked.append(Orientation(swap_xy=swap, flip_y=flip_y, flip_x=flip_x, misfit=misfit))
    return sorted(ranked, key=lambda one: one.misfit)


def _select_central_frames(scan: Scan, most: int) -> Scan:
    """Load the frames nearest to the middle of the field."""
    members = np.flatnonzero(scan.scan_id == scan.scan_id[0])
    places = scan.positions_px[members]
    middle = (places.min(axis=0) + places.max(axis=0)) / 2
    rows = np.sort(members[np.argsort(np.hypot(*(places - middle).T), kind="stable")[:most]])
    return dataclasses.replace(
        scan,
        frames=ArrayFrames(scan.frames[rows]),
        positions_px=scan.positions_px[rows],
        scan_id=scan.scan_id[rows],
        truth=None,
        truth_patches=None,
        nominal_positions_px=None,
    )
