"""Data that a reconstruction does not see and that judge it: no truth is needed."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from scipy.spatial import cKDTree

from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.io import iter_checked_chunks
from torchptycho.io.frames.selection import pick_frames
from torchptycho.io.frames.thinning import ThinnedFrames, are_whole_numbers

__all__ = ["HeldOut", "hold_out"]

How = Literal["photons", "frames"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """A scan in two parts whose noise is independent.

    Arguments:
        kept: what a reconstruction may see; its probe is scaled to it when photons were held out.
        held: what judges it.
        kept_fraction: part of the photons, or of the frames, that was kept.
        model_factor: the expected counts of a held frame are those of the reconstruction at its position times this.
        how: `photons` were held out of each frame, or whole `frames`.
    """

    kept: Scan
    held: Scan
    kept_fraction: float
    model_factor: float
    how: How


def hold_out(scan: Scan, *, kept_fraction: float = 0.85, seed: int = 0, how: How | None = None) -> HeldOut:
    """Hold out a part of a scan; nothing is read or copied until the parts are.

    Photons are drawn one by one where the frames count them. Amplitudes, and counts that are not whole numbers (after a
    subtracted dark, say), hold no photons to draw: there whole frames are held out, evenly over the field.

    Arguments:
        scan: what was measured.
        kept_fraction: part that is kept, above 0 and below 1.
        seed: of the draws; the same seed gives the same parts.
        how: None chooses as above, and reads frames of floating-point counts once for it.

    Raises:
        ScanError: photons are asked for and the scan has none to draw, or too few frames.
    """
    if not 0 < kept_fraction < 1:
        raise ValueError(f"kept_fraction: expected a number above 0 and below 1; found {kept_fraction}")
    if how is None:
        how = "photons" if _counts_photons(scan) else "frames"
    if how == "frames":
        return _hold_out_frames(scan, kept_fraction)
    if scan.domain != "counts":
        raise ScanError(
            scan.source,
            "frames",
            expected="photon counts to hold out a part of them",
            found="amplitudes",
            remedy="Hold out whole frames.",
        )
    kept, held = (
        dataclasses.replace(
            scan, frames=ThinnedFrames(scan.frames, kept_fraction, seed, is_held, scan.mask, scan.source)
        )
        for is_held in (False, True)
    )
    if scan.probe_is_calibrated:
        kept = dataclasses.replace(kept, probe=scan.probe * np.float32(np.sqrt(kept_fraction)))
    return HeldOut(
        kept=kept,
        held=held,
        kept_fraction=kept_fraction,
        model_factor=(1 - kept_fraction) / kept_fraction,
        how="photons",
    )


def _counts_photons(scan: Scan) -> bool:
    if scan.domain != "counts":
        return False
    return scan.frames.dtype.kind != "f" or all(are_whole_numbers(chunk) for chunk in iter_checked_chunks(scan))


def _hold_out_frames(scan: Scan, kept_fraction: float) -> HeldOut:
    every = max(2, round(1 / (1 - kept_fraction)))
    if scan.n_frames < 2 * every:
        raise ScanError(
            scan.source,
            "frames",
            expected=f"{2 * every} frames or more, to hold out one in {every}",
            found=str(scan.n_frames),
            remedy="Hold out a larger part.",
        )
    # Neighbours in this order are neighbours in space.
    along = cKDTree(scan.positions_px, leafsize=2).indices
    is_held = np.zeros(scan.n_frames, dtype=bool)
    is_held[along[every // 2 :: every]] = True
    kept, held = (pick_frames(scan, np.flatnonzero(rows)) for rows in (~is_held, is_held))
    return HeldOut(kept=kept, held=held, kept_fraction=kept.n_frames / scan.n_frames, model_factor=1.0, how="frames")
