"""Reconstruction and ground truth on their common grid, in the same gauge."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
from jaxtyping import Bool, Complex

from torchptycho.analysis.registration import MAX_SHIFT_PX, align
from torchptycho.core.coverage import find_outside_zeros
from torchptycho.core.errors import EvaluationError
from torchptycho.core.reconstruction import Reconstruction, project_slices

__all__ = ["AlignedPair", "align_to_truth"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AlignedPair:
    """Reconstruction and ground truth on their common grid and in the same gauge.

    Arguments:
        object, truth: [h, w].
        mask: [h, w] pixels that are compared.
        origin_px: (y, x) object pixel of [0, 0].
        shift_px, ramp_rad_per_px, amplitude_factor, phase_rad, registered: see `registration.Alignment`.
    """

    object: Complex[np.ndarray, "h w"]
    truth: Complex[np.ndarray, "h w"]
    mask: Bool[np.ndarray, "h w"]
    origin_px: tuple[int, int]
    shift_px: tuple[float, float]
    ramp_rad_per_px: tuple[float, float]
    amplitude_factor: float
    phase_rad: float
    registered: bool


def align_to_truth(
    reconstruction: Reconstruction,
    truth: Complex[np.ndarray, "..."],
    *,
    truth_origin_px: tuple[int, int] = (0, 0),
    min_coverage: float = 0.1,
    region_px: tuple[int, int, int, int] | None = None,
    max_shift_px: float = MAX_SHIFT_PX,
) -> AlignedPair:
    """Cut reconstruction and truth to their common grid and bring the former into the gauge of the latter.

    Arguments: see `evaluate`.

    Raises:
        EvaluationError: they do not overlap, or no pixel can be compared.
    """
    reconstruction, truth = project_slices(reconstruction), np.asarray(truth)
    if truth.ndim != 2:
        raise EvaluationError(f"truth: expected an image [H, W]; found shape {truth.shape}. Give one object slice.")
    (y0, y1), (x0, x1) = (
        (max(a, b), min(a + n, b + k))
        for a, n, b, k in zip(
            reconstruction.origin_px, reconstruction.object.shape, truth_origin_px, truth.shape, strict=True
        )
    )
    if y0 >= y1 or x0 >= x1:
        raise EvaluationError(
            "reconstruction and truth do not overlap: "
            f"{_describe_extent(reconstruction.origin_px, reconstruction.object)} against "
            f"{_describe_extent(truth_origin_px, truth)}. Check truth_origin_px and the origin of the positions."
        )

    def cut(image: np.ndarray, origin: tuple[int, int]) -> np.ndarray:
        return image[y0 - origin[0] : y1 - origin[0], x0 - origin[1] : x1 - origin[1]]

    image, known, coverage = (
        cut(array, reconstruction.origin_px)
        for array in (reconstruction.object, reconstruction.valid, reconstruction.coverage)
    )
    target = cut(truth, truth_origin_px).astype(np.complex128)
    known = known & np.isfinite(image)
    if not reconstruction.has_coverage:
        # What a frame has reached is never exactly 0.
        known = known & (image != 0)
    mask = known & (coverage > min_coverage) & np.isfinite(target)
    outside = mask & cut(find_outside_zeros(truth), truth_origin_px)
    if outside.any():
        _log.warning("truth: %d covered pixels are 0 out to its edge and are not judged.", int(outside.sum()))
        mask &= ~outside
    if region_px is not None:
        inside = np.zeros_like(mask)
        rows, columns = (
            slice(max(region_px[i] - start, 0), max(region_px[i + 1] - start, 0)) for i, start in ((0, y0), (2, x0))
        )
        inside[rows, columns] = True
        mask &= inside
    if not mask.any() or not np.any(image[mask]):
        raise EvaluationError(
            f"no pixel to compare: {int(known.sum())} valid pixels over the truth, {int(mask.sum())} of them with "
            f"coverage > {min_coverage}{'' if region_px is None else f' in region {region_px}'}, the brightest "
            f"|object| {np.abs(image[mask]).max(initial=0):.3g}. Lower min_coverage or check the run."
        )
    alignment = align(
        np.where(known, image, 0),
        np.where(np.isfinite(target), target, 0),
        mask,
        known=known,
        max_shift_px=max_shift_px,
    )
    return AlignedPair(
        object=alignment.object,
        truth=target,
        mask=alignment.mask,
        origin_px=(y0, x0),
        shift_px=alignment.shift_px,
        ramp_rad_per_px=alignment.ramp_rad_per_px,
        amplitude_factor=alignment.amplitude_factor,
        phase_rad=alignment.phase_rad,
        registered=alignment.registered,
    )


def _describe_extent(origin: tuple[int, int], image: np.ndarray) -> str:
    (y, x), (h, w) = origin, image.shape
    return f"rows {y}:{y + h}, columns {x}:{x + w}"
