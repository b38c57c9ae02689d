"""A compact part of a scan as photon counts, a part of which is held out to judge what is fitted to the others."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int64

from torchptycho.core.errors import ScanError
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.held_out import HeldOut, hold_out
from torchptycho.io.domain_inference import infer_domain
from torchptycho.io.frames.thinning import are_whole_numbers

__all__ = [
    "ASSUMED_PHOTONS",
    "choose_frame_count",
    "divide_counts",
    "find_usual_frames",
    "load_counts",
    "load_neighbourhood",
    "select_rows",
]

ASSUMED_PHOTONS = 1e5
"""Photons per frame that frames stand for whose values show none, and whose file states no dose. More would take noise
for a signal that a flexible model can fit."""

KEPT_FRACTION = 0.85
"""Part of the photons that trials are fitted to."""

# Frames of 64 x 64 px that a diagnosis takes; of larger frames fewer, but not less than these.
_FRAMES_OF_64_PX, _MIN_FRAMES = 100, 40


def choose_frame_count(n_px: int) -> int:
    """Choose the number of frames of a diagnosis, so that its time does not grow with their size up to 100 px."""
    return max(_MIN_FRAMES, min(_FRAMES_OF_64_PX, round(_FRAMES_OF_64_PX * (64 / n_px) ** 2)))


def select_rows(scan: Scan, most: int, seed: int = 0) -> Int64[np.ndarray, " k"]:
    """Select the frames of the first scan of a file that lie nearest to a place near the middle of its field.

    Arguments:
        most: number of frames.
        seed: of the place, which is drawn from the middle third of the positions.
    """
    members = np.flatnonzero(scan.scan_id == scan.scan_id[0])
    places = scan.positions_px[members]
    distance = np.hypot(*(places - np.median(places, axis=0)).T)
    central = np.argsort(distance, kind="stable")[: max(1, len(members) // 3)]
    middle = np.median(places, axis=0) if len(members) <= most else places[np.random.default_rng(seed).choice(central)]
    distance = np.hypot(*(places - middle).T)
    return np.sort(members[np.argsort(distance, kind="stable")[:most]])


def load_neighbourhood(scan: Scan, most: int, seed: int = 0) -> tuple[Scan, bool]:
    """Load neighbouring frames as photon counts, without those that are far dimmer or brighter than the others.

    Arguments:
        most: number of frames.
        seed: of their place, see `select_rows`.

    Returns:
        as `load_counts`.
    """
    rows = select_rows(scan, most, seed)
    part, assumed = load_counts(scan, rows)
    usual = find_usual_frames(part)
    return load_counts(scan, rows[usual]) if 2 <= usual.sum() < len(usual) else (part, assumed)


def load_counts(scan: Scan, rows: Int64[np.ndarray, " k"]) -> tuple[Scan, bool]:
    """Load some frames as whole photon counts.

    Returns:
        their scan, and whether its dose is an assumption: the values show no photons and the file states none.

    Raises:
        ScanError: the frames hold no counts.
    """
    values = np.nan_to_num(scan.frames[rows].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    good = np.where(scan.mask, values, 0)
    assumed = False
    if scan.domain == "counts":
        if not are_whole_numbers(good):
            found = infer_domain(ArrayFrames(good))
            values = values / found.count if found.domain == "counts" and found.count else values
        counts = np.rint(values)
    else:
        found = infer_domain(ArrayFrames(good))
        counts = values**2
        if found.domain == "amplitude" and found.count:
            counts /= found.count
        else:
            assumed = scan.photons_per_frame is None
            wanted = (scan.photons_per_frame or ASSUMED_PHOTONS) * len(counts)
            counts *= wanted / max(float((good**2).sum()), 1e-300)
        counts = np.rint(counts)
    if not (counts * scan.mask).any():
        raise ScanError(
            scan.source,
            "frames",
            expected="photon counts in the good pixels",
            found="none",
            remedy="Check the mask, the domain and the dark counts.",
        )
    part = dataclasses.replace(
        scan,
        frames=ArrayFrames(_fit_dtype(counts)),
        domain="counts",
        positions_px=np.ascontiguousarray(scan.positions_px[rows]),
        scan_id=np.zeros(len(rows), np.int64),
        probe_is_calibrated=scan.probe_is_calibrated and scan.domain == "counts",
        truth=None,
        truth_patches=None,
        nominal_positions_px=None,
    )
    return part, assumed


def find_usual_frames(scan: Scan) -> Bool[np.ndarray, " m"]:
    """Find the frames whose counts are within ten times of the median frame's."""
    totals = np.asarray((scan.frames[:] * scan.mask).sum(axis=(1, 2), dtype=np.float64))
    median = float(np.median(totals))
    return (totals >= 0.1 * median) & (totals <= 10 * median)


def divide_counts(scan: Scan, seed: int = 0) -> HeldOut:
    """Hold out 15 % of the photons of every frame, both parts in memory.

    The draws do not depend on the mask, so that scans with other masks have the same held-out counts.
    """
    everywhere = dataclasses.replace(scan, mask=np.ones_like(scan.mask))
    parts = hold_out(everywhere, kept_fraction=KEPT_FRACTION, seed=seed, how="photons")
    kept, held = (
        dataclasses.replace(part, frames=ArrayFrames(part.frames[:]), mask=scan.mask)
        for part in (parts.kept, parts.held)
    )
    return dataclasses.replace(parts, kept=kept, held=held)


def _fit_dtype(counts: Float[np.ndarray, "k n n"]) -> np.ndarray:
    # A code of the detector under the mask may be larger than any count.
    return counts.clip(max=np.iinfo(np.uint32).max - 16).astype(np.uint32)
