"""Resolution without a reference: two halves of the frames, refined separately, and their Fourier ring correlation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy.spatial import cKDTree

from torchptycho.analysis.evaluation import Metrics, evaluate
from torchptycho.core.config import RefineConfig, as_config
from torchptycho.core.errors import EvaluationError
from torchptycho.core.reconstruction import Reconstruction, project_slices
from torchptycho.core.scan import Scan
from torchptycho.io.frames.selection import pick_frames
from torchptycho.io.inputs import as_scan
from torchptycho.io.near_field import refuse_near_field, state_propagation
from torchptycho.io.scan_choice import refuse_several_scans
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.iterative.job import refine_side_by_side

__all__ = ["Resolution", "resolution", "split_into_halves"]

_MIN_FRAMES_PER_HALF = 8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Resolution:
    """Agreement of two halves of a scan.

    Arguments:
        metrics: of the first half's image relative to the second's; `frc_half_bit_cycles_per_px` is the frequency at
            which a Fourier pixel of each half carries half a bit.
        halves: the two images.
    """

    metrics: Metrics
    halves: tuple[Reconstruction, Reconstruction]

    @property
    def half_period_px(self) -> float:
        """Half period in pixels at the half-bit threshold; infinite if nothing is resolved."""
        frequency = self.metrics.frc_half_bit_cycles_per_px
        return 0.5 / frequency if frequency > 0 else float("inf")

    @property
    def half_period_m(self) -> float | None:
        """The same in metres; None if the pixel size is unknown."""
        pixel_m = self.metrics.object_pixel_m
        return None if pixel_m is None else self.half_period_px * pixel_m


def split_into_halves(
    positions_px: Float64[np.ndarray, "m 2"],
) -> tuple[Int64[np.ndarray, " a"], Int64[np.ndarray, " b"]]:
    """Split the frames into two halves: neighbours in space go to different halves, so that both cover the field."""
    along = cKDTree(positions_px, leafsize=2).indices
    return np.sort(along[0::2]).astype(np.int64), np.sort(along[1::2]).astype(np.int64)


def resolution(
    scan: Scan | str | Path,
    *,
    config: RefineConfig | dict[str, Any] | None = None,
    device: str = "auto",
    devices: int = 1,
) -> Resolution:
    """Refine each half of the frames from a uniform start, and compare the images by Fourier ring correlation.

    Of a thick object the products of the slices are compared.

    Noise and ambiguities differ between the halves; errors that both share (positions, probe) do not and are not
    detected. Both start from the scan's probe, and no prior acts, because both would follow it. Each half has half
    the photons, so the resolution of all frames is slightly better.
    Reference: van Heel, Schatz, J. Struct. Biol. 151, 250 (2005).

    Arguments:
        devices: of this machine; with two or more the halves are refined at the same time, each on its part of them, in
            processes of their own, so that a script needs `if __name__ == "__main__":`.

    Raises:
        EvaluationError: too few frames, or the images overlap too little.
        KeyboardInterrupt: it was interrupted.
    """
    scan, config = as_scan(scan), as_config(RefineConfig, config)
    refuse_several_scans(scan, "two images of its halves")
    if scan.n_frames < 2 * _MIN_FRAMES_PER_HALF:
        raise EvaluationError(
            f"{scan.source}: expected {2 * _MIN_FRAMES_PER_HALF} frames or more; found {scan.n_frames}."
        )
    plain = config.without_prior()
    if scan.geometry.propagation == "far":
        refuse_near_field(scan)
    stated = state_propagation(scan)
    halves = [pick_frames(stated, rows) for rows in split_into_halves(scan.positions_px)]
    images = []
    if devices > 1:
        images = refine_side_by_side(halves, config=plain, device=device, devices=devices)
    for half in halves if devices == 1 else ():
        images.append(refine(half, config=plain, device=device))
        if not images[-1].provenance["complete"]:
            break
    if not all(image.provenance["complete"] for image in images):
        raise KeyboardInterrupt
    first, second = images
    known = np.where(second.valid, project_slices(second).object, np.nan).astype(np.complex64)
    metrics = evaluate(first, known, truth_origin_px=second.origin_px)
    return Resolution(metrics=metrics, halves=(first, second))
