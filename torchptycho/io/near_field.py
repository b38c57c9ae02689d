"""Whether frames are shadow images of the sample (near field) and not far-field diffraction."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float64

from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.io.frames.frame_stacks import random_access_is_slow
from torchptycho.io.frames.npz_frames import count_frames_in
from torchptycho.io.frames.views import PickedFrames

__all__ = ["NearFieldEvidence", "detect_near_field", "measure_magnification", "refuse_near_field"]

_CHUNK_BYTES = 16 * 2**20
_SPECTRA_BYTES = 16 * 2**20
_MAX_FRAMES, _MIN_PAIRS, _MAX_PAIRS = 200, 20, 300
_MAX_CANDIDATES = 1000
_NEIGHBOURS = 3
# Fraction of the frames' movement that the scan must explain, and number of frame pairs within 2 px of it.
_MIN_EXPLAINED, _MIN_INLIERS, _INLIER_PX, _MIN_SHIFT_PX = 0.9, 0.8, 2.0, 2.0
# Estimated width of the probe, in frames, above which it does not fit into one.
_MIN_WIDTH_FRAMES = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearFieldEvidence:
    """Evidence of near-field data.

    Arguments:
        shift: detector pixels by which the frames move for each object pixel that the probe moves.
        explained: part of all movement that is proportional to the probe's.
        probe_px: width of the probe that follows, in object pixels.
    """

    shift_per_px: float
    explained_fraction: float
    probe_px: float

    def __str__(self) -> str:
        return (
            f"neighbouring frames show the same picture, moved by {self.shift_per_px:.2g} detector pixels for each "
            f"object pixel of the scan ({self.explained_fraction:.0%} of the movement); the probe is then "
            f"about {self.probe_px:.0f} object pixels wide, more than a frame"
        )


def detect_near_field(scan: Scan) -> NearFieldEvidence | None:
    """Return the evidence that the frames are near-field shadow images, or None.

    Behind a focus, neighbouring frames show the sample moved by the magnified step of the scan. The diameter of the
    pattern over that magnification is the width of the probe; when this is more than twice the N object
    pixels of a frame, a far-field model of N pixels cannot hold the probe. Reads up to 200 frames.
    """
    movement = _measure_movement(scan)
    if movement is None:
        return None
    per_px, explained_fraction = movement.shift_per_px, movement.explained_fraction
    probe_px = _measure_diameter(movement.pattern) / per_px if per_px > 0 else 0.0
    # A scan that could be used must not be refused: the width is an estimate, good to a factor.
    wide = probe_px > _MIN_WIDTH_FRAMES * scan.n_px
    return (
        NearFieldEvidence(shift_per_px=per_px, explained_fraction=explained_fraction, probe_px=probe_px)
        if wide
        else None
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Movement:
    """How the images of neighbouring frames move: shift = move @ matrix."""

    matrix: Float64[np.ndarray, "2 2"]
    explained_fraction: float
    pattern: Float64[np.ndarray, "n n"]

    @property
    def shift_per_px(self) -> float:
        return float(np.sqrt(np.abs(np.linalg.det(self.matrix))))


def _measure_movement(scan: Scan) -> _Movement | None:
    """Measure how the images of neighbouring frames move; None where no common movement explains them."""
    rows = _select_neighbourhood(scan)
    if len(rows) < _NEIGHBOURS + 2:
        return None
    pattern, spectra = _compute_spectra(scan, rows)
    first, second = _find_pairs(scan.positions_px[rows])
    if len(first) < _MIN_PAIRS:
        return None
    shifts = np.stack([_estimate_shift(spectra[a], spectra[b]) for a, b in zip(first, second, strict=True)])
    moves = scan.positions_px[rows][first] - scan.positions_px[rows][second]
    matrix = np.linalg.lstsq(moves, shifts, rcond=None)[0]
    # Once more without pairs whose correlation has its peak elsewhere.
    inlier = np.abs(shifts - moves @ matrix).max(axis=1) < _INLIER_PX
    rest = shifts - moves @ matrix
    total = float((shifts**2).sum())
    explained_fraction = 1 - float((rest**2).sum()) / total if total > 0 else 0.0
    if (
        explained_fraction < _MIN_EXPLAINED
        or inlier.mean() < _MIN_INLIERS
        or np.median(np.hypot(*shifts.T)) < _MIN_SHIFT_PX
    ):
        return None
    return _Movement(np.linalg.lstsq(moves[inlier], shifts[inlier], rcond=None)[0], explained_fraction, pattern)


def measure_magnification(scan: Scan) -> tuple[float, Float64[np.ndarray, "2 2"]] | None:
    """Measure the magnification of near-field images from how far those of neighbouring frames move.

    Arguments:
        scan: its positions in detector pixels.

    Returns:
        the magnification, and the 2x2 matrix of signs and exchanges by which positions (y, x) have to be multiplied so
        that images move against them, as they do behind a probe that moves; None where the frames do not show it.
    """
    movement = _measure_movement(scan)
    if movement is None:
        return None
    magnification = movement.shift_per_px
    turn = -movement.matrix / magnification
    return magnification, np.round(turn)


def refuse_near_field(scan: Scan) -> None:
    """Refuse a scan that only a near-field model can explain, unless it was stated to be far-field.

    Raises:
        ScanError: with the evidence.
    """
    if scan.geometry.propagation == "near":
        raise ScanError(
            scan.source,
            None,
            expected="far-field diffraction, which networks are made for",
            found="near-field frames",
            remedy="Use `refine`, which models both.",
        )
    found = None if scan.reading.propagation == "far" else detect_near_field(scan)
    if found is not None:
        raise ScanError(
            scan.source,
            None,
            expected="far-field diffraction",
            found=f"near-field frames: {found}",
            remedy="Refine them with --propagation near. If they are diffraction patterns, state --propagation far.",
        )


def state_propagation(scan: Scan) -> Scan:
    """Return the scan as one that was stated to be what it was found to be, from all of its frames.

    A part of it, or counts that are drawn like its own, are then not asked again, and do not give another answer.
    """
    reading = dataclasses.replace(scan.reading, propagation=scan.geometry.propagation)
    return dataclasses.replace(scan, reading=reading)


def _select_neighbourhood(scan: Scan) -> np.ndarray:
    """Select frames of one scan that lie close together, in ascending order."""
    most = max(8, min(_MAX_FRAMES, _SPECTRA_BYTES // (scan.n_px**2 * 8)))
    candidates = np.flatnonzero(scan.scan_id == scan.scan_id[0])
    if random_access_is_slow(scan.frames):
        candidates = candidates[:_MAX_CANDIDATES]
    places = scan.positions_px[candidates]
    distance = np.hypot(*(places - np.median(places, axis=0)).T)
    return np.sort(candidates[np.argsort(distance, kind="stable")[:most]])


def _compute_spectra(scan: Scan, rows: np.ndarray) -> tuple[Float64[np.ndarray, "n n"], np.ndarray]:
    """Compute the mean pattern, and the Fourier transforms of the relative deviation of each frame from it where it has
    counts."""
    picked = PickedFrames(scan.frames, rows, streamed=random_access_is_slow(scan.frames))
    frames = np.empty(picked.shape, np.float32)
    start = 0
    for chunk in picked.chunks(count_frames_in(_CHUNK_BYTES, picked)):
        values = np.nan_to_num(chunk.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
        frames[start : start + len(chunk)] = values**2 if scan.domain == "amplitude" else values
        start += len(chunk)
    frames[:, ~scan.mask] = 0
    pattern = frames.mean(axis=0, dtype=np.float64)
    has_counts = pattern > 1e-2 * pattern.max()
    # At low counts the ratio is noise.
    trust = np.where(has_counts, np.minimum(1.0, 3 * np.sqrt(pattern / max(pattern.max(), 1e-30))), 0.0).astype(
        np.float32
    )
    frames /= np.where(has_counts, pattern, 1.0).astype(np.float32)
    deviation = (frames - 1) * trust
    deviation -= deviation.mean(axis=(1, 2), keepdims=True)
    return pattern, np.fft.rfft2(deviation).astype(np.complex64)


def _find_pairs(positions_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.spatial import cKDTree

    near = cKDTree(positions_px).query(positions_px, k=_NEIGHBOURS + 1)[1][:, 1:]
    pairs = {(min(a, int(b)), max(a, int(b))) for a, found in enumerate(near) for b in found if a != int(b)}
    chosen = np.array(sorted(pairs)[:_MAX_PAIRS], np.int64).reshape(-1, 2)
    return chosen[:, 0], chosen[:, 1]


def _estimate_shift(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Estimate the whole pixels (y, x) by which the second must move to match the first."""
    correlation = np.fft.irfft2(first * second.conj())
    n = correlation.shape[-1]
    row, column = divmod(int(correlation.argmax()), n)
    return np.array([(row + n // 2) % n - n // 2, (column + n // 2) % n - n // 2])


def _measure_diameter(pattern: Float64[np.ndarray, "n n"]) -> float:
    """Measure the diameter of the disc around the centre of mass that holds 90 % of the intensity."""
    from scipy.ndimage import median_filter

    # A single hot pixel can hold more counts than the direct beam.
    pattern = median_filter(pattern, size=3)
    rows, columns = np.indices(pattern.shape)
    total = pattern.sum()
    y, x = (pattern * rows).sum() / total, (pattern * columns).sum() / total
    radius = np.hypot(rows - y, columns - x).ravel()
    order = np.argsort(radius)
    held = np.cumsum(pattern.ravel()[order]) / total
    return 2 * float(radius[order][np.searchsorted(held, 0.9)])
