"""Suspicious frames that a store keeps; its report lists them, so that they need not be found in the image."""

from __future__ import annotations

import dataclasses

import numpy as np

from torchptycho.core.scan import Scan
from torchptycho.core.text import format_first
from torchptycho.io.detector_codes import reaches_saturation
from torchptycho.io.frames.frame_stacks import to_file_rows

__all__ = ["FrameFindings", "collect_findings", "find_saturated_frames"]

_MAX_LISTED = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameFindings:
    """Unusual frames of one scan by kind, numbered as in the file.

    Arguments:
        dark: not a single count in them.
        saturated: a pixel reaches the largest value of the detector's integer type.
        repeated: at the position of an earlier frame of the same scan.
    """

    dark: tuple[int, ...] = ()
    saturated: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()

    def describe(self) -> tuple[str, ...]:
        """Describe the findings and their remedies."""
        sentences = []
        for frames, what in (
            (self.dark, "without a single count are kept (--bad-frames leave-out removes them)"),
            (self.saturated, "with saturated pixels are kept (--find-bad-pixels masks these pixels in all frames)"),
            (self.repeated, "at the position of an earlier one are kept"),
        ):
            if frames:
                sentences.append(f"{len(frames)} frame(s) {what}: {format_first(frames, _MAX_LISTED)}")
        return tuple(sentences)


def find_saturated_frames(chunk: np.ndarray) -> np.ndarray:
    """Find the frames [K, N, N] that reach the largest value of their integer type, [K]."""
    return np.asarray(reaches_saturation(chunk).any(axis=(1, 2)))


def collect_findings(scan: Scan, sums: np.ndarray, saturated: np.ndarray) -> FrameFindings:
    """Collect the findings of one scan.

    Arguments:
        sums: [M] intensity of each frame over its good pixels.
        saturated: [M] see `find_saturated_frames`.
    """

    def named(at_fault: np.ndarray) -> tuple[int, ...]:
        return tuple(to_file_rows(scan.frames, np.flatnonzero(at_fault).tolist()))

    return FrameFindings(
        dark=named(sums == 0),
        saturated=named(saturated),
        repeated=named(_find_repeated_positions(scan.positions_px, scan.scan_id)),
    )


def _find_repeated_positions(positions_px: np.ndarray, scan_id: np.ndarray) -> np.ndarray:
    """Find frames at exactly the position of an earlier one of the same scan, [M]."""
    order = np.lexsort((positions_px[:, 1], positions_px[:, 0], scan_id))
    where, of_scan = positions_px[order], scan_id[order]
    same = (where[1:] == where[:-1]).all(axis=1) & (of_scan[1:] == of_scan[:-1])
    repeated = np.zeros(len(order), bool)
    # lexsort is stable: of equal positions the first in the scan comes first.
    repeated[order[1:][same]] = True
    return repeated
