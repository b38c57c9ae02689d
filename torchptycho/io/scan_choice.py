"""Files that hold several scans: which they are, how one is chosen, and what must not take them for one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int64

from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.core.text import format_first
from torchptycho.io.frames.frame_stacks import random_access_is_slow
from torchptycho.io.frames.salvage import find_readable
from torchptycho.io.frames.views import PickedFrames
from torchptycho.io.raw_scan import RawScan

__all__ = ["choose_scan", "describe_scans", "leave_out_unreadable", "pick_frames", "refuse_several_scans"]

_MAX_LISTED = 10


def describe_scans(scan_id: Int64[np.ndarray, " m"]) -> str:
    """Describe the scans of a file by their numbers and how many frames each has."""
    numbers, counts = np.unique(scan_id, return_counts=True)
    listed = (f"{number} ({count} frames)" for number, count in zip(numbers, counts, strict=True))
    return format_first(listed, _MAX_LISTED, len(numbers))


def refuse_several_scans(scan: Scan, what: str) -> None:
    """Refuse a scan whose frames belong to several scans, which lie over one another, where one image is meant.

    Arguments:
        what: what is to be made of one scan.

    Raises:
        ScanError: with the numbers of the scans.
    """
    n_scans = len(np.unique(scan.scan_id))
    if n_scans > 1:
        raise ScanError(
            scan.source,
            "scan_index",
            expected=f"one scan, for {what}",
            found=f"{n_scans} scans: {describe_scans(scan.scan_id)}",
            remedy="Take one with --scan N.",
        )


def choose_scan(recorded: RawScan, number: int) -> RawScan:
    """Return the frames of one of the scans in a file.

    Raises:
        ScanError: there is no scan of that number.
    """
    scan_id = np.zeros(recorded.frames.shape[0], np.int64) if recorded.scan_id is None else recorded.scan_id
    rows = np.flatnonzero(scan_id == number)
    if not len(rows):
        raise ScanError(
            recorded.path,
            "scan_index",
            expected=f"frames of scan {number}",
            found=f"scans {describe_scans(scan_id)}" if len(np.unique(scan_id)) > 1 else f"scan {scan_id[0]} only",
            remedy="Choose one of these with --scan N.",
        )
    return pick_frames(recorded, rows)


def pick_frames(recorded: RawScan, rows: Int64[np.ndarray, " k"]) -> RawScan:
    """Return some of the frames, with all that belongs to them.

    Raises:
        ScanError: fewer than two.
    """
    if len(rows) < 2:
        raise ScanError(
            recorded.path,
            None,
            expected="at least 2 overlapping frames",
            found=f"{len(rows)} of {recorded.frames.shape[0]} after the others were left out",
            remedy="Keep or record more.",
        )
    if len(rows) == recorded.frames.shape[0]:
        return recorded
    per_frame = ("positions", "scan_id", "truth_patches", "nominal_positions_px")
    picked: dict[str, Any] = {
        name: None if getattr(recorded, name) is None else getattr(recorded, name)[rows] for name in per_frame
    }
    frames = PickedFrames(recorded.frames, rows, streamed=random_access_is_slow(recorded.frames))
    return dataclasses.replace(recorded, frames=frames, rows=np.asarray(recorded.rows)[rows], **picked)


def leave_out_unreadable(recorded: RawScan) -> RawScan:
    """Leave out the frames that cannot be read, and list them; return the scan itself where all can be.

    Raises:
        ScanError: fewer than two can be read.
    """
    readable = find_readable(recorded.frames)
    if readable.all():
        return recorded
    lost = {int(row): "cannot be read" for row in np.asarray(recorded.rows)[~readable]}
    rest = pick_frames(recorded, np.flatnonzero(readable))
    return dataclasses.replace(rest, left_out=rest.left_out | lost)
