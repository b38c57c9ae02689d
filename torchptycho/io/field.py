"""How large a field positions span: what one of them that is wrong, or their unit, would make of the image."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.core.text import format_first
from torchptycho.io.frames.frame_stacks import to_file_rows
from torchptycho.io.position_scale import estimate_probe_diameter_px
from torchptycho.io.raw_scan import RawScan
from torchptycho.io.units import compute_position_factor, is_pixels

__all__ = ["check_field", "check_scan_field", "find_islands", "refuse_outliers"]

# Patches side by side cover M N^2 pixels; a larger image is mostly empty. One of this many is allowed in any case.
_MAX_EMPTY_PX = 2**25
# A frame is an outlier when it lies this many times as far from the middle as nine tenths of the frames.
_OUTLIER_RATIO, _OUTLIER_QUANTILE = 20.0, 0.9
_MAX_OUTLIER_PART = 0.1
_MAX_EXTENT_M = 0.5
_MAX_LISTED = 5


def check_scan_field(scan: Scan) -> None:
    """Check that the image of a scan, however it was made, is no larger than its frames can fill; see `check_field`."""
    rows = np.asarray(to_file_rows(scan.frames, list(range(scan.n_frames))))
    check_field(scan.positions_px, scan.n_px, scan.source, ("positions", "positions"), rows)


def check_field(
    positions_px: Float64[np.ndarray, "m 2"],
    n_px: int,
    source: str | Path,
    keys: tuple[str, str],
    rows: Int64[np.ndarray, " m"] | None = None,
) -> None:
    """Check that the image at these positions is no larger than its frames can fill.

    Arguments:
        positions_px: (y, x) of each frame.
        n_px: frame edge N.
        source: file, or description of the origin.
        keys: the arrays they came from, (y, x).
        rows: numbers of the frames in the file; None counts from 0.

    Raises:
        ScanError: naming the frames that lie apart from the others, or the field.
    """
    low, high = positions_px.min(axis=0), positions_px.max(axis=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ScanError(
            source,
            "', '".join(dict.fromkeys(reversed(keys))),
            expected="finite positions",
            found="NaN or infinity",
            remedy="Leave these frames out.",
        )
    height, width = (high - low + n_px).tolist()
    if height * width <= max(_MAX_EMPTY_PX, len(positions_px) * n_px**2):
        return
    outliers = _find_outliers(positions_px)
    if len(outliers):
        raise _make_outlier_error(source, keys, positions_px, outliers, rows, "px")
    raise ScanError(
        source,
        "', '".join(dict.fromkeys(reversed(keys))),
        expected=f"a field that {len(positions_px)} frames of {n_px} px can fill",
        found=f"{height:.4g} x {width:.4g} px",
        remedy="Check the unit of the positions (--positions-unit) and the lengths that make the object pixel "
        "(--energy-eV, --distance-m, --detector-pixel-m).",
    )


def refuse_outliers(recorded: RawScan) -> None:
    """Refuse single positions in lengths so far away that they hide whether the unit is right.

    Raises:
        ScanError: naming their frames.
    """
    if is_pixels(recorded.unit):
        return
    positions = recorded.positions
    most = _MAX_EXTENT_M / compute_position_factor(recorded.path, recorded.position_keys[0], recorded.unit, None)
    if float(np.ptp(positions, axis=0).max()) <= most:
        return
    outliers = _find_outliers(positions)
    if len(outliers) and float(np.ptp(np.delete(positions, outliers, axis=0), axis=0).max()) <= most:
        rows = np.asarray(recorded.rows)
        raise _make_outlier_error(recorded.path, recorded.position_keys, positions, outliers, rows, recorded.unit)


def _find_outliers(positions: Float64[np.ndarray, "m 2"]) -> Int64[np.ndarray, " k"]:
    """Find the few frames that lie far away from all others; none when they are many."""
    distance = np.abs(positions - np.median(positions, axis=0)).max(axis=1)
    usual = float(np.sort(distance)[int(_OUTLIER_QUANTILE * (len(distance) - 1))])
    outliers = np.flatnonzero(distance > _OUTLIER_RATIO * max(usual, 1e-300))
    return outliers if len(outliers) <= max(1, _MAX_OUTLIER_PART * len(distance)) else outliers[:0]


def _make_outlier_error(
    source: str | Path,
    keys: tuple[str, str],
    positions: np.ndarray,
    outliers: np.ndarray,
    rows: np.ndarray | None,
    unit: str,
) -> ScanError:
    numbers = outliers if rows is None else rows[outliers]
    y, x = positions[outliers[0]]
    rest = np.delete(positions, outliers, axis=0)
    low, high = rest.min(axis=0), rest.max(axis=0)
    listed = format_first(numbers.tolist(), _MAX_LISTED)
    few = " ".join(map(str, numbers.tolist())) if len(numbers) <= _MAX_LISTED else "and their numbers"
    return ScanError(
        source,
        "', '".join(dict.fromkeys(reversed(keys))),
        expected=f"positions from ({low[0]:.4g}, {low[1]:.4g}) to ({high[0]:.4g}, {high[1]:.4g}) {unit}, (y, x), as of "
        f"the other {len(rest)} frames",
        found=f"({y:.6g}, {x:.6g}) for frame {listed}, counted from 0",
        remedy=f"Leave out with --drop-frames {few}, or correct the position.",
    )


def find_islands(scan: Scan) -> str | None:
    """Describe the parts of a scan that lie apart, so that nothing ties their phases together; None for one part.

    Two frames are taken to overlap up to about twice the diameter of the probe; no part is reported that is not one.
    """
    diameter_px = estimate_probe_diameter_px(scan.probe)
    if np.abs(np.diff(scan.positions_px, axis=0)).max() <= diameter_px:
        return None
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    parts = []
    for one in np.unique(scan.scan_id):
        frames = np.flatnonzero(scan.scan_id == one)
        moves = np.abs(np.diff(scan.positions_px[frames], axis=0))
        if not len(moves) or moves.max() <= diameter_px:
            parts.append([frames])
            continue
        cells, where = np.unique(
            np.floor(scan.positions_px[frames] / (diameter_px / 2)).astype(np.int64), axis=0, return_inverse=True
        )
        pairs = cKDTree(cells).query_pairs(2.5, p=math.inf, output_type="ndarray")
        links = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(len(cells), len(cells)))
        n_parts, part = connected_components(links, directed=False)
        parts.append([frames[part[where.reshape(-1)] == number] for number in range(n_parts)])
    apart = [sorted(of_scan, key=len)[:-1] for of_scan in parts]
    n_apart = sum(map(len, apart))
    if not n_apart:
        return None
    smaller = sorted((frames for of_scan in apart for frames in of_scan), key=len)
    numbers = to_file_rows(scan.frames, np.concatenate(smaller)[:_MAX_LISTED].tolist())
    total = sum(map(len, smaller))
    return (
        f"{total} frame(s) overlap none of the others: {format_first(numbers, _MAX_LISTED, total)}, in {n_apart} "
        "part(s) apart. Their phase is not tied to the rest; check their positions, or leave them out with "
        "--drop-frames."
    )
