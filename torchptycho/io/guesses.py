"""Estimates from the frames alone: bad frames and pixels, the centre of the direct beam, a first probe."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Complex64, Float64

from torchptycho.core.config.base import Domain
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import Frames
from torchptycho.io.bad_pixels import find_dead_pixels, find_hot_pixels
from torchptycho.io.detector_codes import reaches_saturation
from torchptycho.io.frames.frame_stacks import random_access_is_slow
from torchptycho.io.frames.npz_frames import count_frames_in
from torchptycho.io.frames.views import PickedFrames

__all__ = [
    "FrameSurvey",
    "compute_mean_pattern",
    "estimate_beam_center_px",
    "estimate_probe",
    "fill_masked",
    "survey_frames",
]

_CHUNK_BYTES = 16 * 2**20
_MAX_SAMPLED_FRAMES = 64
_BEAM_THRESHOLD = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSurvey:
    """What one pass over all frames found; frames are counted as in the stack.

    Arguments:
        bad_frames: frame -> what is wrong with it.
        hot, dead, at_limit: pixels that are isolated and bright, that never count, that reach the largest value.
    """

    bad_frames: dict[int, str]
    hot: Bool[np.ndarray, "h w"]
    dead: Bool[np.ndarray, "h w"]
    saturated: Bool[np.ndarray, "h w"]


def survey_frames(
    frames: Frames, bad: Bool[np.ndarray, "h w"], domain: Domain, photons: float | None, *, clip: bool = False
) -> FrameSurvey:
    """Look at every frame once, with memory for a few.

    Arguments:
        bad: pixels that are known to be bad and are not judged.
        photons: photons per frame that amplitudes stand for.
        clip: negative values are to be set to 0 and no fault.
    """
    summed = np.zeros(frames.shape[1:])
    saturated = np.zeros(frames.shape[1:], bool)
    faults: dict[int, str] = {}
    start, used = 0, 0
    for raw in frames.chunks(count_frames_in(_CHUNK_BYTES, frames)):
        chunk = np.where(bad, raw.dtype.type(0), raw) if bad.any() else raw
        wrong = np.zeros(len(chunk), bool)
        for what, at_fault in _find_faults(chunk, clip=clip):
            for index in np.flatnonzero(at_fault & ~wrong):
                faults[start + int(index)] = what
            wrong |= at_fault
        values = chunk[~wrong].astype(np.float64)
        summed += (values**2 if domain == "amplitude" else values).sum(axis=0)
        used += len(values)
        saturated |= reaches_saturation(chunk).any(axis=0)
        start += len(chunk)
    if domain == "amplitude" and used:
        summed *= (photons or 0.0) * used / max(float(summed.sum()), 1e-300)
    good = ~bad & ~saturated
    judged = np.where(saturated, 0.0, summed)
    return FrameSurvey(
        bad_frames=faults, hot=find_hot_pixels(judged, good), dead=find_dead_pixels(judged, good), saturated=saturated
    )


def _find_faults(chunk: np.ndarray, *, clip: bool) -> list[tuple[str, np.ndarray]]:
    with np.errstate(invalid="ignore"):
        found = [("NaN or infinity", ~np.isfinite(chunk).all(axis=(1, 2)))] if chunk.dtype.kind == "f" else []
        if not clip:
            found.append(("negative values", (chunk < 0).any(axis=(1, 2))))
        return [*found, ("no counts", ~(chunk > 0).any(axis=(1, 2)))]


def compute_mean_pattern(frames: Frames, domain: Domain) -> Float64[np.ndarray, "h w"]:
    """Compute the mean of up to 64 frames, evenly spread over the scan; non-finite and negative values count as 0."""
    rows = np.unique(np.linspace(0, frames.shape[0] - 1, _MAX_SAMPLED_FRAMES).astype(np.int64))
    picked = PickedFrames(frames, rows, streamed=random_access_is_slow(frames))
    summed = np.zeros(frames.shape[1:])
    for chunk in picked.chunks(min(len(rows), count_frames_in(_CHUNK_BYTES, frames))):
        values = np.nan_to_num(chunk.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
        summed += (values**2 if domain == "amplitude" else values).sum(axis=0)
    return summed / len(rows)


def estimate_beam_center_px(pattern: Float64[np.ndarray, "h w"], bad: Bool[np.ndarray, "h w"]) -> tuple[float, float]:
    """Estimate the centre of mass (y, x) of the direct beam in a mean pattern: of what exceeds 5 % of its
    median-filtered maximum."""
    from scipy.ndimage import median_filter

    smooth = median_filter(np.where(bad, 0.0, pattern), size=3, mode="nearest")
    weight = np.where(smooth > _BEAM_THRESHOLD * smooth.max(), smooth, 0.0)
    total = weight.sum()
    if not total > 0:
        return pattern.shape[0] / 2, pattern.shape[1] / 2
    rows, columns = np.indices(pattern.shape)
    return float((weight * rows).sum() / total), float((weight * columns).sum() / total)


def fill_masked(pattern: Float64[np.ndarray, "n n"], mask: Bool[np.ndarray, "n n"]) -> Float64[np.ndarray, "n n"]:
    """Replace what a mean pattern has under a mask, such as codes of the detector, by the nearest good pixels.

    Arguments:
        mask: True where the pixel can be trusted; somewhere at least.
    """
    if mask.all():
        return pattern
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    filled = pattern[tuple(nearest)]
    # Where two edges of a gap meet, their mean.
    return np.where(mask, pattern, gaussian_filter(filled, 1.0))


def estimate_probe(
    pattern: Float64[np.ndarray, "n n"], geometry: Geometry, defocus_m: float = 0.0
) -> Complex64[np.ndarray, "1 n n"]:
    """Estimate a probe: the mean pattern with a flat phase in the far field, propagated from its focus to the sample.

    Arguments:
        pattern: mean intensity, zero frequency at [N/2, N/2].
        geometry: with wavelength and object pixel, where defocus_m is not 0.
        defocus_m: from the focus to the sample.
    """
    n = len(pattern)
    wave = np.sqrt(pattern).astype(np.complex128)
    if defocus_m:
        assert geometry.wavelength_m is not None
        assert geometry.object_pixel_m is not None
        # Paraxial: exp(-i pi lambda z q^2), q in cycles per metre.
        q = (np.arange(n) - n // 2) / (n * geometry.object_pixel_m)
        wave = wave * np.exp(-1j * np.pi * geometry.wavelength_m * defocus_m * (q[:, None] ** 2 + q[None, :] ** 2))
    field = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(wave))) * n
    return field.astype(np.complex64)[None]
