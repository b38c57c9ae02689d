"""Bringing a reconstruction onto a truth: what ptychography leaves free, and only that.

Free are a complex factor (global phase, amplitude scale), a phase plane (the diffraction centre) and a translation
(the absolute position of the scan). All three are found as peaks of |DFT|, refined by Newton's method to far below a
pixel: the plane as the peak of the spectrum of reconstruction * conj(truth), which is the exact complex least-squares
plane and knows no phase wraps; the translation as the peak of their cross-correlation.
Reference: Guizar-Sicairos, Thurman, Fienup, Opt. Lett. 33, 156 (2008), here with a bounded search.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import scipy.fft
import scipy.ndimage
from jaxtyping import Bool, Complex

__all__ = ["MAX_RAMP_RAD_PER_PX", "MAX_SHIFT_PX", "Alignment", "align", "flatten", "fourier_shift", "largest_square"]

_log = logging.getLogger(__name__)

MAX_SHIFT_PX = 5.0
"""Translations beyond this are not looked for: a periodic object would match anywhere."""
MAX_RAMP_RAD_PER_PX = np.pi / 8
"""Phase planes steeper than this are not looked for; over 300 px it is 19 full turns."""

_ITERATIONS = 10
_SHIFT_DONE_PX = 1e-3
_PAD_PX = 32
_CONTRAST = 1e-6


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
        registered: False when no translation within the bound was found and `shift_px` is therefore 0.
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

    Plane and translation are found in turn until both stand still: each is biased while the other is wrong, and the
    rim of the mask biases the translation towards zero until the two images lie on each other.

    Arguments:
        reconstruction, truth: [H, W] on one grid.
        mask: [H, W] pixels to compare; at least one.
        known: [H, W] pixels whose value may be used when the image is moved; None takes `mask`. Elsewhere the image is
            continued from the nearest of them.
        max_shift_px: largest translation, each way; 0 switches registration off. A larger one is refused with a
            warning and taken as 0.
    """
    original = np.asarray(reconstruction, dtype=np.complex128)
    truth = np.asarray(truth, dtype=np.complex128)
    known = mask if known is None else known | mask
    nearest = scipy.ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    original = original[nearest[0], nearest[1]]  # no step at the rim, which a Fourier shift would ring from
    rows, columns = (np.arange(n) - n // 2 for n in original.shape)

    def moved(ramp: np.ndarray, shift: np.ndarray) -> np.ndarray:
        flat = original * np.exp(-1j * ramp[0] * nearest_rows - 1j * ramp[1] * nearest_columns)
        return fourier_shift(flat, (shift[0], shift[1])) if np.abs(shift).max() >= _SHIFT_DONE_PX else flat

    # The plane is removed where the value was measured, not where it was copied to.
    nearest_rows, nearest_columns = rows[nearest[0]], columns[nearest[1]]

    def settle(search: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
        ramp, shift = np.zeros(2), np.zeros(2)
        for _ in range(_ITERATIONS):
            inside = _inside(mask, shift)
            image = moved(ramp, shift)
            ramp_step = _peak_rad_per_px(np.where(inside, image * truth.conj(), 0), (MAX_RAMP_RAD_PER_PX,) * 2)
            ramp += ramp_step
            image = moved(ramp, shift)
            if search == 0:
                return ramp, shift, image, inside, True
            shift_step = _translation_px(image, truth, inside, search + 1)
            if np.abs(shift + shift_step).max() > search:
                return ramp, shift, image, inside, False
            shift += shift_step
            if np.abs(shift_step).max() < _SHIFT_DONE_PX:
                break
        return ramp, shift, moved(ramp, shift), _inside(mask, shift), True

    ramp, shift, image, inside, registered = settle(max_shift_px)
    if not registered:
        _log.warning(
            "No translation within %.1f px brings the reconstruction onto the truth; they are compared unshifted. "
            "Check the origin of the truth, or raise max_shift_px.",
            max_shift_px,
        )
        ramp, shift, image, inside, _ = settle(0.0)
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
        registered=registered,
    )


def flatten(object: Complex[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> Complex[np.ndarray, "h w"]:
    """Remove constant phase and phase plane without a truth, for display: the object at its most constant.

    At most four turns over the field are removed, so that a periodic object does not lose its own period.
    """
    inside = np.where(mask, object, 0).astype(np.complex128)
    rows, columns = (np.arange(n) - n // 2 for n in inside.shape)
    k = _peak_rad_per_px(inside, (8 * np.pi / inside.shape[0], 8 * np.pi / inside.shape[1]))
    flat = object * np.exp(-1j * k[0] * rows)[:, None] * np.exp(-1j * k[1] * columns)[None, :]
    return np.asarray(flat * np.exp(-1j * np.angle(flat[mask].sum())))


def fourier_shift(image: Complex[np.ndarray, "h w"], shift_px: tuple[float, float]) -> Complex[np.ndarray, "h w"]:
    """Move an image by a fraction of a pixel: out(r) = image(r - shift).

    The image is continued by a linear descent to its mean, so that what leaves one side does not come in at the other.
    """
    pad = _PAD_PX + int(np.ceil(np.abs(shift_px).max()))
    padded = _pad_to_mean(np.asarray(image, dtype=np.complex128), pad)
    qy = scipy.fft.fftfreq(padded.shape[0])[:, None]
    qx = scipy.fft.fftfreq(padded.shape[1])[None, :]
    phase = np.exp(-2j * np.pi * (qy * shift_px[0] + qx * shift_px[1]))
    return scipy.fft.ifft2(scipy.fft.fft2(padded) * phase)[pad:-pad, pad:-pad]


def largest_square(mask: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    """The largest square of odd edge that lies wholly in the mask; of several, the one nearest its centroid."""
    distance = scipy.ndimage.distance_transform_cdt(np.pad(mask, 1), metric="chessboard")[1:-1, 1:-1]
    radius = int(distance.max())
    rows, columns = np.nonzero(distance == radius)
    centroid = [float(c.mean()) for c in np.nonzero(mask)]
    best = int(np.argmin((rows - centroid[0]) ** 2 + (columns - centroid[1]) ** 2))
    y, x = int(rows[best]), int(columns[best])
    return slice(y - radius + 1, y + radius), slice(x - radius + 1, x + radius)


def _pad_to_mean(image: np.ndarray, pad: int) -> np.ndarray:
    out = np.pad(image, pad, mode="edge")
    for axis, n in enumerate(image.shape):
        distance = np.maximum(0, np.abs(np.arange(n + 2 * pad) - pad - (n - 1) / 2) - (n - 1) / 2)
        weight = np.expand_dims(1 - distance / pad, 1 - axis)
        out = out * weight + image.mean() * (1 - weight)
    return out


def _inside(mask: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Pixels whose value still comes from the mask after a shift."""
    rim = [0 if abs(s) < _SHIFT_DONE_PX else int(np.ceil(abs(s))) + 1 for s in shift]
    if not any(rim):
        return mask
    window = np.ones((2 * rim[0] + 1, 2 * rim[1] + 1), dtype=bool)
    smaller: np.ndarray = scipy.ndimage.binary_erosion(mask, window)
    return smaller if smaller.any() else mask


def _translation_px(image: np.ndarray, truth: np.ndarray, mask: np.ndarray, bound_px: float) -> np.ndarray:
    """Shift that brings `image` onto `truth`, from the peak of the modulus of their cross-correlation."""
    spectra = []
    for array in (image, truth):
        contrast = np.where(mask, array - array[mask].mean(), 0)
        if np.abs(contrast).max() <= _CONTRAST * np.abs(array[mask]).max():
            return np.zeros(2)  # a flat image lies anywhere
        spectra.append(scipy.fft.fft2(contrast))
    cross = scipy.fft.fftshift(spectra[0] * spectra[1].conj())
    scale = 2 * np.pi / np.array(cross.shape)
    return _peak_rad_per_px(cross, (bound_px * scale[0], bound_px * scale[1])) / scale


def _peak_rad_per_px(a: np.ndarray, bound: tuple[float, float]) -> np.ndarray:
    """(ky, kx) that maximises |sum a exp(-i k.r)| for |k| <= bound, with r counted from the centre pixel.

    Whole-bin search by FFT, then quarter bins, then Newton steps on the squared modulus.
    """
    coarse = np.abs(scipy.fft.fft2(a))
    grids = [2 * np.pi * scipy.fft.fftfreq(n) for n in a.shape]
    for axis, grid in enumerate(grids):
        coarse[(slice(None),) * axis + (np.abs(grid) > bound[axis],)] = 0
    if coarse.max() <= 1e-12 * np.abs(a).sum() or coarse.max() == 0:
        return np.zeros(2)
    iy, ix = np.unravel_index(int(np.argmax(coarse)), coarse.shape)
    bins = 2 * np.pi / np.array(a.shape)
    k = np.array([grids[0][iy], grids[1][ix]])
    r = [np.arange(n) - n // 2 for n in a.shape]
    fine = np.arange(-3, 4) / 4
    waves = [np.exp(-1j * np.outer(k[i] + fine * bins[i], r[i])) for i in range(2)]
    j, i = np.unravel_index(int(np.argmax(np.abs(waves[0] @ a @ waves[1].T))), (fine.size, fine.size))
    k += np.array([fine[j], fine[i]]) * bins
    for _ in range(20):
        gradient, hessian = _gradient_and_hessian(a, k, r)
        if np.linalg.eigvalsh(hessian).max() >= 0:  # not (yet) at a maximum: a flat or empty spectrum
            break
        step = -np.linalg.solve(hessian, gradient)
        k += np.clip(step, -bins / 4, bins / 4)
        if np.all(np.abs(step) < 1e-9 * bins):
            break
    return k


def _gradient_and_hessian(a: np.ndarray, k: np.ndarray, r: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivatives of |S(k)|^2, S = sum a exp(-i k.r), from the moments of a exp(-i k.r)."""
    powers = [np.stack([np.ones(len(x)), x, x**2]) * np.exp(-1j * k[i] * x) for i, x in enumerate(r)]
    moment = powers[0] @ a @ powers[1].T
    s, first = moment[0, 0], -1j * np.array([moment[1, 0], moment[0, 1]])
    second = -np.array([[moment[2, 0], moment[1, 1]], [moment[1, 1], moment[0, 2]]])
    gradient = 2 * np.real(np.conj(s) * first)
    hessian = 2 * np.real(np.outer(first, first.conj()) + np.conj(s) * second)
    return gradient, hessian
