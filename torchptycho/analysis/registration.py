"""Registration of a reconstruction with a ground truth, by the ambiguities of ptychography only.

These are a complex factor (global phase, amplitude scale), a phase plane (the diffraction centre) and a translation
(the absolute position of the scan). Translation and plane both come from scikit-image's sub-pixel registration: a
phase plane is a translation in Fourier space, so that phase wraps do not matter.
Reference: Guizar-Sicairos, Thurman, Fienup, Opt. Lett. 33, 156 (2008).
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import scipy.fft
import scipy.ndimage
from jaxtyping import Bool, Complex, Float

__all__ = [
    "MAX_RAMP_RAD_PER_PX",
    "MAX_SHIFT_PX",
    "Alignment",
    "align",
    "estimate_display_ramp",
    "flatten_phase",
    "fourier_shift",
    "remove_phase_ramp",
]

_log = logging.getLogger(__name__)

MAX_SHIFT_PX = 5.0
"""Translations beyond this are refused: a periodic object would match anywhere."""
MAX_RAMP_RAD_PER_PX = np.pi / 8
"""Phase planes steeper than this are refused; over 300 px it is 19 full turns."""

_ITERATIONS = 8
_UPSAMPLING = 100  # of a pixel, or of a turn over the field: the step to which the library's search goes down
_FINE_UPSAMPLING = 500  # for the plane at last: 3 mrad are left at the edges of the field
_NEGLIGIBLE_SHIFT_PX = 0.05  # brings in next to nothing of a neighbour
_MAX_DISPLAY_PERIODS = 4
_PAD_PX = 32


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """A reconstruction in the gauge of the truth.

    Arguments:
        object: [H, W] shifted, its plane and constant phase removed, times `amplitude_factor`.
        mask: [H, W] pixels that may be compared: the given ones, less a rim as wide as the shift.
        shift_px: (y, x) by which the reconstruction was moved.
        ramp_rad_per_px: (y, x) slope of the phase plane that was removed.
        amplitude_factor: least-squares factor between the moduli. The complex least-squares factor is smaller where
            the phases disagree, and would charge a wrong phase to the amplitude a second time.
        phase_rad: constant phase that was added, that of the complex least-squares factor.
        registered: False when the best translation or plane lay beyond its bound; that one is then 0.
    """

    object: Complex[np.ndarray, "h w"]
    mask: Bool[np.ndarray, "h w"]
    shift_px: tuple[float, float]
    ramp_rad_per_px: tuple[float, float]
    amplitude_factor: float
    phase_rad: float
    registered: bool


def align(
    reconstruction: Complex[np.ndarray, "h w"],
    truth: Complex[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
    *,
    known: Bool[np.ndarray, "h w"] | None = None,
    max_shift_px: float = MAX_SHIFT_PX,
) -> Alignment:
    """Remove translation, phase plane and complex factor from a reconstruction.

    Plane and translation are determined alternately until they converge: each is biased while the other is wrong, and
    the edge of the mask biases the translation towards zero until the images are aligned.

    Arguments:
        reconstruction, truth: [H, W] on one grid.
        mask: [H, W] pixels to compare; at least one.
        known: [H, W] pixels whose values may be used in the translation; None takes `mask`. Elsewhere the image is
            continued from the nearest of them.
        max_shift_px: largest translation along each axis; 0 disables registration. A larger one is refused with a
            warning and taken as 0.
    """
    truth = np.asarray(truth, dtype=np.complex128)
    known = mask if known is None else known | mask
    # Unknown pixels are filled from the nearest known ones, because a step at their edge would ring in a Fourier shift.
    # The phase plane is removed at the source position of each value.
    y, x = scipy.ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    original = np.asarray(reconstruction, dtype=np.complex128)[y, x]

    def moved(ramp: np.ndarray, shift: np.ndarray) -> np.ndarray:
        flat = original * np.exp(-1j * (ramp[0] * (y - len(y) // 2) + ramp[1] * (x - x.shape[1] // 2)))
        return fourier_shift(flat, (shift[0], shift[1])) if shift.any() else flat

    ramp, shift, shift_fits = np.zeros(2), np.zeros(2), True
    for _ in range(_ITERATIONS if max_shift_px else 0):
        inside = _erode_mask(mask, shift)
        ramp, _ = _zero_beyond_bound(
            ramp + _estimate_ramp_rad_per_px(moved(ramp, shift), truth, inside), MAX_RAMP_RAD_PER_PX
        )
        step = _estimate_shift_px(moved(ramp, shift), truth, inside)
        shift, shift_fits = _zero_beyond_bound(shift + step, max_shift_px)
        if not shift_fits or np.abs(step).max() < 1.5 / _UPSAMPLING:
            break
    inside = _erode_mask(mask, shift)
    step = _estimate_ramp_rad_per_px(moved(ramp, shift), truth, inside, _FINE_UPSAMPLING)
    ramp, ramp_fits = _zero_beyond_bound(ramp + step, MAX_RAMP_RAD_PER_PX)
    refused = "The %s that fits best is beyond %.2f %s; none is removed. Check the origin of the truth."
    if not shift_fits:
        _log.warning(refused, "translation", max_shift_px, "px (max_shift_px)")
    if not ramp_fits:
        _log.warning(refused, "phase plane", MAX_RAMP_RAD_PER_PX, "rad per px")
    image = moved(ramp, shift)
    moduli = np.abs(image[inside])
    power = float(np.sum(moduli**2))
    amplitude_factor = float(np.sum(moduli * np.abs(truth[inside])) / power) if power > 0 else 1.0
    phase_rad = float(np.angle(np.vdot(image[inside], truth[inside])))
    return Alignment(
        object=image * (amplitude_factor * np.exp(1j * phase_rad)),
        mask=inside,
        shift_px=(float(shift[0]), float(shift[1])),
        ramp_rad_per_px=(float(ramp[0]), float(ramp[1])),
        amplitude_factor=amplitude_factor,
        phase_rad=phase_rad,
        registered=shift_fits and ramp_fits,
    )


def flatten_phase(object: Complex[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> Complex[np.ndarray, "h w"]:
    """Remove constant phase and phase plane without a ground truth, for display, so that the object is most uniform.

    A plane of more than four turns over the field is kept, because it may be the period of a periodic object.
    """
    if not np.any(object[mask]):
        return object
    return remove_phase_ramp(object, mask, estimate_display_ramp(object, mask))


def estimate_display_ramp(object: Complex[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "2"]:
    """Estimate the slope (y, x) in rad per pixel of the phase plane that `flatten_phase` removes."""
    if not np.any(object[mask]):
        return np.zeros(2)
    slope = _estimate_ramp_rad_per_px(object, np.ones_like(object), mask)
    return _zero_beyond_bound(slope, 2 * np.pi * _MAX_DISPLAY_PERIODS / np.array(object.shape))[0]


def remove_phase_ramp(
    object: Complex[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], slope_rad_per_px: Float[np.ndarray, "2"]
) -> Complex[np.ndarray, "h w"]:
    """Remove a phase plane and then the constant phase, in the precision of the object."""
    y, x = (
        np.exp(-1j * slope * np.arange(n)).astype(object.dtype)
        for slope, n in zip(slope_rad_per_px, object.shape, strict=True)
    )
    flat = object * y[:, None] * x
    return np.asarray(flat * complex(np.exp(-1j * np.angle(flat[mask].sum()))))


def fourier_shift(image: Complex[np.ndarray, "h w"], shift_px: tuple[float, float]) -> Complex[np.ndarray, "h w"]:
    """Move an image by a fraction of a pixel: out(r) = image(r - shift).

    The image is continued by a linear decay to its mean, so that it does not wrap around.
    """
    pad = _PAD_PX + int(np.ceil(np.abs(shift_px).max()))
    padded = np.pad(image, pad, mode="linear_ramp", end_values=image.mean())
    spectrum = scipy.ndimage.fourier_shift(scipy.fft.fft2(padded), shift_px)
    return np.asarray(scipy.fft.ifft2(spectrum)[pad:-pad, pad:-pad])


def _erode_mask(mask: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return pixels whose value still comes from the mask after a shift."""
    rim = [int(np.ceil(abs(s))) + 1 if abs(s) > _NEGLIGIBLE_SHIFT_PX else 0 for s in shift]
    smaller: np.ndarray = scipy.ndimage.binary_erosion(mask, np.ones((2 * rim[0] + 1, 2 * rim[1] + 1), dtype=bool))
    return smaller if smaller.any() else mask


def _zero_beyond_bound(value: np.ndarray, bound: float | np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the value and True within the bound, zero and False beyond."""
    fits = bool(np.all(np.abs(value) <= bound))
    return (value if fits else np.zeros_like(value)), fits


def _estimate_shift_px(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Shift that brings the contrast of `image` onto that of `truth`."""
    contrasts = [np.where(mask, array - array[mask].mean(), 0) for array in (truth, image)]
    if any(np.abs(c).max() <= 1e-6 * np.abs(a[mask]).max() for c, a in zip(contrasts, (truth, image), strict=True)):
        return np.zeros(2)  # a flat image lies anywhere
    return _cross_correlate_px(*contrasts)


def _estimate_ramp_rad_per_px(
    image: np.ndarray, truth: np.ndarray, mask: np.ndarray, parts: int = _UPSAMPLING
) -> np.ndarray:
    """Estimate the slope of the phase plane by which `image` differs from `truth`: a translation of the spectrum."""
    # Pixels are counted from the centre, as frequencies are.
    fields = (scipy.fft.ifftshift(np.where(mask, array, 0)) for array in (truth, image))
    return np.asarray(2 * np.pi * _cross_correlate_px(*fields, space="fourier", parts=parts) / np.array(image.shape))


def _cross_correlate_px(
    truth: np.ndarray, image: np.ndarray, *, space: str = "real", parts: int = _UPSAMPLING
) -> np.ndarray:
    from skimage.registration import phase_cross_correlation

    return np.asarray(phase_cross_correlation(truth, image, space=space, normalization=None, upsample_factor=parts)[0])  # type: ignore[no-untyped-call]
