"""How good a reconstruction is, against a known truth."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Complex, Float64, Int64

from torchptycho.analysis import metrics as m
from torchptycho.analysis.calibration import measure_calibration
from torchptycho.analysis.registration import MAX_SHIFT_PX
from torchptycho.analysis.truth_alignment import AlignedPair, align_to_truth
from torchptycho.core.errors import EvaluationError
from torchptycho.core.reconstruction import Reconstruction, project_slices
from torchptycho.core.scan import Scan
from torchptycho.io.inputs import as_reconstruction

__all__ = ["FrcCurve", "Metrics", "evaluate", "evaluate_slices", "measure"]

MIN_SQUARE_PX = 16
"""Smallest square of comparable pixels from which a Fourier ring correlation is meaningful."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrcCurve:
    """Fourier ring correlation against the truth, with its 1-bit and half-bit thresholds, ring by ring."""

    frequency_cycles_per_px: Float64[np.ndarray, " r"]
    correlation: Float64[np.ndarray, " r"]
    one_bit: Float64[np.ndarray, " r"]
    half_bit: Float64[np.ndarray, " r"]
    pixels_per_ring: Int64[np.ndarray, " r"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Metrics:
    """Errors of a reconstruction over the compared pixels, after shift, phase plane, phase and scale are removed.

    Arguments:
        amplitude_mae, phase_mae_rad: mean absolute errors; the phase error is wrapped to (-pi, pi].
        amplitude_psnr_db, phase_psnr_db: for a peak of 1 (1 rad), whatever the range of the data; inf without error.
        amplitude_ssim, phase_ssim: structural similarity, data range from the truth; see `metrics.masked_ssim`.
        amplitude_correlation, phase_correlation: Pearson's coefficient.
        complex_nrmse: relative root-mean-square error of the complex image at its best complex factor.
        frc: Fourier ring correlation on the largest square of compared pixels, its edge even.
        frc_half_cycles_per_px, frc_one_bit_cycles_per_px, frc_half_bit_cycles_per_px: where the curve first falls below
            0.5 and below the two thresholds; Nyquist (0.5) if never, 0 if it is never above.
        object_pixel_m: edge of a pixel, or None.
        amplitude_within_sigma, phase_within_sigma: part of the pixels whose error is at most the image's own standard
            deviation, 0.68 if that is right; None without error bars.
        n_pixels: pixels compared.
        region_px: their bounding box, (y start, y stop, x start, x stop) in object pixels.
        frc_square_px: that square, in the same way.
        shift_px, ramp_rad_per_px, amplitude_factor, phase_rad: the transformation applied to the reconstruction.
        registered: False if the best translation or phase plane exceeded its bound; none is applied then.
    """

    amplitude_mae: float
    phase_mae_rad: float
    amplitude_psnr_db: float
    phase_psnr_db: float
    amplitude_ssim: float
    phase_ssim: float
    amplitude_correlation: float
    phase_correlation: float
    complex_nrmse: float
    frc: FrcCurve = dataclasses.field(repr=False)
    frc_half_cycles_per_px: float
    frc_one_bit_cycles_per_px: float
    frc_half_bit_cycles_per_px: float
    object_pixel_m: float | None
    n_pixels: int
    region_px: tuple[int, int, int, int]
    frc_square_px: tuple[int, int, int, int]
    shift_px: tuple[float, float]
    ramp_rad_per_px: tuple[float, float]
    amplitude_factor: float
    phase_rad: float
    registered: bool
    amplitude_within_sigma: float | None = None
    phase_within_sigma: float | None = None

    @property
    def resolution_half_px(self) -> float:
        """Half period in pixels at FRC = 0.5; inf where nothing is resolved."""
        return half_period_px(self.frc_half_cycles_per_px)

    @property
    def resolution_one_bit_px(self) -> float:
        """Half period in pixels at the 1-bit threshold; inf where nothing is resolved."""
        return half_period_px(self.frc_one_bit_cycles_per_px)

    @property
    def resolution_half_m(self) -> float | None:
        """Half period in metres at FRC = 0.5; None when the pixel is not known."""
        return None if self.object_pixel_m is None else self.resolution_half_px * self.object_pixel_m

    @property
    def resolution_one_bit_m(self) -> float | None:
        """Half period in metres at the 1-bit threshold; None when the pixel is not known."""
        return None if self.object_pixel_m is None else self.resolution_one_bit_px * self.object_pixel_m

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON: arrays as lists, non-finite values as None."""
        names = ("resolution_half_px", "resolution_one_bit_px", "resolution_half_m", "resolution_one_bit_m")
        values = dataclasses.asdict(self) | {name: getattr(self, name) for name in names}
        plain = _to_plain(values)
        assert isinstance(plain, dict)
        return plain


def evaluate(
    reconstruction: Reconstruction | str | Path,
    truth: Complex[np.ndarray, "..."] | Reconstruction | Scan | str | Path,
    *,
    truth_origin_px: tuple[int, int] = (0, 0),
    min_coverage: float = 0.1,
    region_px: tuple[int, int, int, int] | None = None,
    max_shift_px: float = MAX_SHIFT_PX,
) -> Metrics:
    """Compare a reconstruction with the truth over the pixels that the scan covers.

    Arguments:
        reconstruction: placed by its `origin_px`, or its file.
        truth: [H, W] complex object; or an image or a scan with one, or its file, placed by its own origin.
        truth_origin_px: (y, x) object pixel of truth[0, 0].
        min_coverage: pixels with less coverage are left out.
        region_px: (y start, y stop, x start, x stop) in object pixels, to compare a part only; None compares all.
        max_shift_px: largest translation to remove; 0 disables the search.

    Raises:
        EvaluationError: the images do not overlap, no pixel can be compared, or too few are connected for a resolution.
    """
    image = as_reconstruction(reconstruction)
    if not isinstance(truth, np.ndarray):
        truth, truth_origin_px = _open_truth(truth)
    pair = align_to_truth(
        image,
        truth,
        truth_origin_px=truth_origin_px,
        min_coverage=min_coverage,
        region_px=region_px,
        max_shift_px=max_shift_px,
    )
    within = measure_calibration(image, pair.object, pair.truth, pair.mask, pair.origin_px, pair.amplitude_factor)
    metrics = measure(pair, image.object_pixel_m)
    return dataclasses.replace(metrics, amplitude_within_sigma=within[0], phase_within_sigma=within[1])


def evaluate_slices(
    reconstruction: Reconstruction | str | Path,
    truth: Reconstruction | Scan | str | Path,
    *,
    min_coverage: float = 0.1,
) -> list[Metrics]:
    """Compare each slice of a thick object with that of the truth, as `evaluate` does: each after its own shift, phase
    plane, phase and scale, which may pass from one slice to another without a change of the counts.

    Returns:
        one per slice; none where either is thin.

    Raises:
        EvaluationError: the numbers of slices differ, or as in `evaluate`.
    """
    image = as_reconstruction(reconstruction)
    if isinstance(truth, Scan):
        slices, origin_px = truth.truth_slices, (0, 0)
    else:
        reference = as_reconstruction(truth, "truth")
        slices, origin_px = np.where(reference.valid, reference.object, np.nan), reference.origin_px
    if slices is None or slices.ndim == 2 or image.object.ndim == 2:
        return []
    if len(slices) != len(image.object):
        raise EvaluationError(f"truth: expected {len(image.object)} slices, as the image has; found {len(slices)}.")
    return [
        evaluate(
            dataclasses.replace(image, object=one),
            other.astype(np.complex64),
            truth_origin_px=origin_px,
            min_coverage=min_coverage,
        )
        for one, other in zip(image.object, slices, strict=True)
    ]


def _open_truth(truth: Reconstruction | Scan | str | Path) -> tuple[Complex[np.ndarray, "h w"], tuple[int, int]]:
    """Return an object, NaN where it is not valid, and its origin."""
    if isinstance(truth, Scan):
        if truth.truth is None:
            raise EvaluationError(f"truth: expected a scan with a true object; {truth.source} has none.")
        return truth.truth, (0, 0)
    image = project_slices(as_reconstruction(truth, "truth"))
    return np.where(image.valid, image.object, np.nan).astype(np.complex64), image.origin_px


def measure(pair: AlignedPair, object_pixel_m: float | None = None) -> Metrics:
    """Measure how far the reconstruction of a pair is from its truth, over the mask of the pair.

    Raises:
        EvaluationError: too few pixels lie together for a resolution.
    """
    mask = pair.mask
    square = m.largest_square(mask)
    edge = (square[0].stop - square[0].start) // 2 * 2
    square = slice(square[0].start, square[0].start + edge), slice(square[1].start, square[1].start + edge)
    if edge < MIN_SQUARE_PX:
        raise EvaluationError(
            f"too little to compare: the largest square of covered pixels is {edge} px, {MIN_SQUARE_PX} px are needed. "
            "Lower min_coverage, widen the region, or scan a larger field."
        )
    # Phases are taken relative to the mean of the truth, so that a truth near +-pi does not wrap.
    truth_phase = np.angle(pair.truth * np.exp(-1j * np.angle(pair.truth[mask].sum())))
    phase_error = m.wrap_rad(np.angle(pair.object * pair.truth.conj()))
    phase = truth_phase + phase_error
    amplitude, truth_amplitude = np.abs(pair.object), np.abs(pair.truth)
    amplitude_error = (amplitude - truth_amplitude)[mask]
    frequency, curve, counts = m.fourier_ring_correlation(pair.object[square], pair.truth[square])
    one_bit, half_bit = m.snr_threshold(counts, 1.0), m.snr_threshold(counts, 0.5)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    y, x = pair.origin_px
    return Metrics(
        amplitude_mae=float(np.abs(amplitude_error).mean()),
        phase_mae_rad=float(np.abs(phase_error[mask]).mean()),
        amplitude_psnr_db=m.psnr_db(float(np.mean(amplitude_error**2))),
        phase_psnr_db=m.psnr_db(float(np.mean(phase_error[mask] ** 2))),
        amplitude_ssim=m.masked_ssim(amplitude, truth_amplitude, mask),
        phase_ssim=m.masked_ssim(phase, truth_phase, mask),
        amplitude_correlation=m.correlation(amplitude[mask], truth_amplitude[mask]),
        phase_correlation=m.correlation(phase[mask], truth_phase[mask]),
        complex_nrmse=m.complex_nrmse(pair.object[mask], pair.truth[mask]),
        frc=FrcCurve(
            frequency_cycles_per_px=frequency,
            correlation=curve,
            one_bit=one_bit,
            half_bit=half_bit,
            pixels_per_ring=counts,
        ),
        frc_half_cycles_per_px=m.frc_crossing(frequency, curve, 0.5),
        frc_one_bit_cycles_per_px=m.frc_crossing(frequency, curve, one_bit),
        frc_half_bit_cycles_per_px=m.frc_crossing(frequency, curve, half_bit),
        object_pixel_m=object_pixel_m,
        n_pixels=int(mask.sum()),
        region_px=(int(rows[0]) + y, int(rows[-1]) + 1 + y, int(columns[0]) + x, int(columns[-1]) + 1 + x),
        frc_square_px=(square[0].start + y, square[0].stop + y, square[1].start + x, square[1].stop + x),
        shift_px=pair.shift_px,
        ramp_rad_per_px=pair.ramp_rad_per_px,
        amplitude_factor=pair.amplitude_factor,
        phase_rad=pair.phase_rad,
        registered=pair.registered,
    )


def half_period_px(frequency_cycles_per_px: float) -> float:
    """Return the half period of a frequency: the smallest line that is resolved there."""
    return 0.5 / frequency_cycles_per_px if frequency_cycles_per_px > 0 else float("inf")


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _to_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
