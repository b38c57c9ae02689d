"""What a scan must satisfy: shapes and positions when a file is opened, values while the frames stream by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import Frames, Scan
from torchptycho.core.text import format_first
from torchptycho.io.frames.frame_stacks import to_file_rows
from torchptycho.io.frames.npz_frames import count_frames_in
from torchptycho.io.position_scale import describe_unit_error, suggest_units
from torchptycho.io.raw_scan import RawScan
from torchptycho.io.source_files import refuse_changes

__all__ = [
    "advise_crop",
    "check_finite",
    "check_frame_shape",
    "check_positions",
    "iter_checked_chunks",
    "iter_raw_chunks",
]

_CHUNK_BYTES = 16 * 2**20
# A scan that has just begun spans little.
_FEW_FRAMES, _MIN_EXTENT_OF_FEW_PX = 16, 1e-2
_MAX_LISTED = 5


def advise_crop(size: int, wanted: int) -> str:
    """Describe how an axis of `size` pixels gets `wanted` of them while its centre [size//2] becomes [wanted//2]."""
    if size >= wanted:
        start = size // 2 - wanted // 2
        return f"crop to {start}:{start + wanted}"
    before = wanted // 2 - size // 2
    after = wanted - size - before
    return f"pad by {before} zeros on each side" if before == after else f"pad by {before} zeros before, {after} after"


def check_frame_shape(source: Path, key: str, height: int, width: int) -> None:
    """Check that frames are square with an even edge; otherwise the zero frequency cannot lie at [N//2, N//2].

    Raises:
        ScanError: with the rows and columns to keep.
    """
    n = min(height, width) // 2 * 2
    if height == width == n:
        return
    expected = "square frames (M, N, N)" if height != width else "frames with an even edge N"
    remedy = (
        f"Keep the centre: rows {advise_crop(height, n)}, columns {advise_crop(width, n)}; --crop-px N and "
        "--beam-center-px Y X do it."
    )
    found = f"frames of {height}x{width} pixels"
    raise ScanError(source, key, expected=expected, found=found, remedy=remedy, part="frame-size")


def check_finite(recorded: RawScan) -> None:
    """Check that every frame has a position.

    Raises:
        ScanError: naming the frames without one, as the file counts them, and how they are left out.
    """
    rows = np.asarray(recorded.rows)
    for axis, key in enumerate(recorded.position_keys):
        bad = rows[~np.isfinite(recorded.positions[:, axis])].tolist()
        if bad:
            few = " ".join(map(str, bad)) if len(bad) <= _MAX_LISTED else "and their numbers"
            raise ScanError(
                recorded.path,
                key,
                expected="finite positions",
                found=f"NaN or infinity for {_describe_frames(bad, len(bad))}",
                remedy=f"Leave these frames out with --bad-frames leave-out, or with --drop-frames {few}.",
            )


def check_positions(
    source: Path,
    positions_px: Float64[np.ndarray, "m 2"],
    geometry: Geometry,
    keys: tuple[str, str],
    unit: str,
    n_px: int,
) -> None:
    """Check that positions differ and can be in pixels.

    Arguments:
        positions_px: (y, x) of each frame.
        geometry: tells which unit the positions turn out to be in.
        keys: the arrays they came from, (y, x).
        unit: that they were read in.
        n_px: frame edge N.

    Raises:
        ScanError: naming the entries at fault.
    """
    extent = float(np.ptp(positions_px, axis=0).max())
    both = "', '".join(dict.fromkeys(reversed(keys)))
    if extent == 0:
        raise ScanError(
            source,
            both,
            expected="positions that differ",
            found=f"all {len(positions_px)} frames at (y, x) = ({positions_px[0, 0]:g}, {positions_px[0, 1]:g})",
            remedy="Ptychography needs a probe that moves over the sample; "
            "save the positions of the scan in object pixels.",
        )
    few = len(positions_px) < _FEW_FRAMES
    if extent < (_MIN_EXTENT_OF_FEW_PX if few else 1.0):
        known = geometry.with_object_pixel(n_px)
        raise ScanError(
            source,
            both,
            expected="positions that span more than an object pixel",
            found=f"{extent:.2g} px, read in {unit}",
            remedy=describe_unit_error(suggest_units(positions_px, unit, known, n_px, in_px=True), known),
        )


def iter_checked_chunks(scan: Scan, frames_per_chunk: int | None = None) -> Iterator[np.ndarray]:
    """Stream the frames [K, N, N] in order and refuse values that no detector gives.

    What lies under the scan's mask is neither judged nor passed on: it is set to 0. From the first frame at fault on
    nothing more is yielded; the rest is read only to say how many there are.

    Arguments:
        frames_per_chunk: None takes about 16 MiB at a time.

    Raises:
        ScanError: NaN, infinite or negative values, all frames zero or all equal, a damaged file, or one that changed
            since the scan was opened.
    """
    for _, checked in _iter_checked(scan, frames_per_chunk):
        yield checked


def iter_raw_chunks(scan: Scan, frames_per_chunk: int | None = None) -> Iterator[np.ndarray]:
    """Iterate as `iter_checked_chunks` does, but leave values under the mask unchanged, for writing a scan again."""
    for raw, _ in _iter_checked(scan, frames_per_chunk):
        yield raw


def _iter_checked(scan: Scan, frames_per_chunk: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    frames = scan.frames
    not_finite, negative = _FaultyFrames(), _FaultyFrames()
    first: np.ndarray | None = None
    start, all_equal, all_zero = 0, True, True
    masked = ~scan.mask
    for raw in _iter_unchanged(scan, frames.chunks(frames_per_chunk or count_frames_in(_CHUNK_BYTES, frames))):
        chunk = raw
        if masked.any():
            chunk = raw.copy()
            chunk[:, masked] = 0
        if chunk.dtype.kind in "if" and not _is_valid(chunk):
            with np.errstate(invalid="ignore"):
                not_finite.add(start, ~np.isfinite(chunk).all(axis=(1, 2)))
                negative.add(start, (chunk < 0).any(axis=(1, 2)))
        first = chunk[0].copy() if first is None else first
        all_equal = all_equal and bool((chunk == first).all())
        all_zero = all_zero and not chunk.any()
        start += len(chunk)
        if not (not_finite.total or negative.total):
            yield raw, chunk
    key = _get_key(frames)
    if not_finite.total or negative.total:
        worst, what = (not_finite, "NaN or infinity") if not_finite.total else (negative, "negative values")
        raise ScanError(
            scan.source,
            key,
            expected="finite values of at least 0" if worst is not_finite else f"{scan.domain} of at least 0",
            found=f"{what} in {_describe_frames(to_file_rows(frames, worst.first), worst.total)}",
            remedy=_advise_on_faulty_frames(what, worst.total, start),
            part="negative" if what == "negative values" and worst.total > start / 2 else "frames",
        )
    if start != scan.n_frames:
        found = f"a stream that ended after {start}"
        raise ScanError(scan.source, key, expected=f"{scan.n_frames} frames", found=found, remedy="Export it again.")
    if all_zero or all_equal:
        raise ScanError(
            scan.source,
            key,
            expected="frames with counts" if all_zero else "frames that differ",
            found=f"{start} frames that are all zero" if all_zero else f"{start} frames that are all equal",
            remedy="The detector or the shutter did not work, or one frame was exported many times; record it again.",
        )


def _iter_unchanged(scan: Scan, chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    with refuse_changes(scan):
        yield from chunks


def _is_valid(chunk: np.ndarray) -> bool:
    """Return whether all values are finite and none is negative, in two quick passes; a NaN is neither above nor
    below."""
    with np.errstate(invalid="ignore"):
        return bool(chunk.min() >= 0 and chunk.max() < np.inf)


def _advise_on_faulty_frames(what: str, n_faulty: int, n_frames: int) -> str:
    if n_faulty <= n_frames / 2:
        return (
            "Drop these frames (--bad-frames leave-out), or mark the pixels as bad with an array 'bad_pixels' "
            "(True = bad)."
        )
    clip = ", or set them to 0 with --clip-negative" if what == "negative values" else ""
    return f"Most frames have them: mark the pixels as bad (--mask FILE:KEY){clip}."


class _FaultyFrames:
    """The first few frames at fault, and how many there are in all."""

    def __init__(self) -> None:
        self.first: list[int] = []
        self.total = 0

    def add(self, start: int, at_fault: Any) -> None:
        where = np.flatnonzero(at_fault) + start
        self.total += where.size
        self.first += where[: _MAX_LISTED - len(self.first)].tolist()


def _describe_frames(first: list[int], total: int) -> str:
    return f"{total} frame{'s' if total != 1 else ''}: {format_first(first, _MAX_LISTED, total)} (counted from 0)"


def _get_key(frames: Frames) -> str:
    return str(getattr(frames, "key", "diffraction"))
