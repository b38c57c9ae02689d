"""Figures of merit of an image against a truth, in NumPy; images are (H, W)."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import ndimage

_PEAK = 255.0
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SSIM_WINDOW_PX = 7
_LEAST_SSIM = 1e-4


class FrcCutoffs(NamedTuple):
    """A ring correlation, and where it falls below 0.5 and 1/7, in rings."""

    curve: np.ndarray
    frc50: float
    frc1over7: float


def mae(target: np.ndarray, pred: np.ndarray, normalize: bool = True) -> float:
    """Mean absolute error; with `normalize`, after `pred` is brought to the mean of `target`."""
    return float(np.mean(np.abs(target - _scaled(target, pred, normalize))))


def mse(target: np.ndarray, pred: np.ndarray, normalize: bool = True) -> float:
    """Mean square error; with `normalize`, after `pred` is brought to the mean of `target`."""
    return float(np.mean((target - _scaled(target, pred, normalize)) ** 2))


def psnr(target: np.ndarray, pred: np.ndarray, normalize: bool = True, shift: bool = False) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 255, whatever the range of the data.

    Arguments:
        normalize: multiply `pred` by mean(target) / mean(pred).
        shift: take the smallest value of both from both; before that multiplication, whose factor knows nothing of it.
    """
    scale = np.mean(target) / np.mean(pred) if normalize else 1.0
    if shift:
        lowest = min(np.min(target), np.min(pred))
        target, pred = target - lowest, pred - lowest
    root = math.sqrt(np.mean((target - scale * pred) ** 2, dtype=np.float64))
    # As OpenCV has it: 361 dB without an error.
    return 20 * math.log10(_PEAK / (root + np.finfo(np.float64).eps))


def ms_ssim(target: np.ndarray, pred: np.ndarray, sigma: float = 0.0) -> float:
    """Product over scales of SSIM^weight; the next scale is every second pixel, without a blur.

    The data range is the larger of the two images', at the first scale. Scales smaller than SSIM's window are left out,
    with their weight; SSIM below 1e-4 is taken as this.

    Arguments:
        sigma: blur both images first, in pixels.
    """
    if sigma:
        target, pred = (ndimage.gaussian_filter(image, sigma) for image in (target, pred))
    data_range = max(np.ptp(target), np.ptp(pred))
    product = 1.0
    for weight in _SCALE_WEIGHTS:
        if min(target.shape) < _SSIM_WINDOW_PX:
            break
        product *= max(_ssim(target, pred, data_range), _LEAST_SSIM) ** weight
        target, pred = target[::2, ::2], pred[::2, ::2]
    return float(product)


def FSC(target: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """|sum F1 conj(F2)| / sqrt(sum |F1|^2 sum |F2|^2) over rings of rounded radius about pixel n // 2.

    Rings run from the zero frequency to the corners. No window. Oblong images are cut to their central square.
    """
    edge = min(target.shape)
    spectra = [np.fft.fftshift(np.fft.fft2(center_crop(image, edge, edge))) for image in (target, pred)]
    steps = np.arange(edge) - edge // 2
    ring = np.rint(np.hypot(steps[:, None], steps[None, :])).astype(np.int64).ravel()

    def over_rings(values: np.ndarray) -> np.ndarray:
        return np.bincount(ring, weights=values.ravel())

    cross = spectra[0] * spectra[1].conj()
    powers = [over_rings(np.abs(spectrum) ** 2) for spectrum in spectra]
    with np.errstate(invalid="ignore"):  # NaN in rings without power
        return np.asarray(np.hypot(over_rings(cross.real), over_rings(cross.imag)) / np.sqrt(powers[0] * powers[1]))


def frc_cutoffs(target: np.ndarray, pred: np.ndarray, frc_sigma: float = 0.0) -> FrcCutoffs:
    """`FSC`, blurred by `frc_sigma` rings, and the rings, between them by straight lines, where it first falls below
    0.5 and 1/7; the number of rings where it never does."""
    curve = FSC(target, pred)
    if frc_sigma:
        curve = ndimage.gaussian_filter1d(curve, frc_sigma)
    return FrcCutoffs(curve, _crossing(curve, 0.5), _crossing(curve, 1 / 7))


def fit_and_remove_plane(phase: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Phase less the plane (with its constant) that fits best, in least squares, to it or to `phase - reference`.

    Phases are taken as plain numbers: their jumps by 2 pi are part of what is fitted.
    """
    rows, columns = np.indices(phase.shape)
    terms = np.stack([rows.ravel(), columns.ravel(), np.ones(phase.size)], axis=1)
    values = phase if reference is None else phase - reference
    slopes = np.linalg.lstsq(terms, values.ravel(), rcond=None)[0]
    return np.asarray(phase - (terms @ slopes).reshape(phase.shape))


def trim(image: np.ndarray, offset: int) -> np.ndarray:
    """Without offset // 2 pixels on each side."""
    edge = offset // 2
    return image[edge : image.shape[0] - edge, edge : image.shape[1] - edge]


def eval_reconstruction(
    image: np.ndarray,
    truth: np.ndarray,
    *,
    offset: int,
    phase_align_method: Literal["plane", "mean"] = "plane",
    ms_ssim_sigma: float = 1.0,
    frc_sigma: float = 0.0,
) -> dict[str, tuple[Any, Any]]:
    """Figures for amplitude and phase of a complex reconstruction, trimmed by `offset`.

    Amplitudes are brought to one mean. From each phase its own plane, or its mean, is taken; for the structural
    similarities phases are then mapped from [-pi, pi] to [0, 1].

    Returns:
        Pairs (amplitude, phase) of numbers by the names mae, mse, psnr, ssim, ms_ssim, frc50 and frc1over7, and of
        curves by the name frc.
    """
    image, truth = trim(image, offset), trim(truth, offset)
    amplitude, true_amplitude = np.abs(image), np.abs(truth)
    amplitude = _scaled(true_amplitude, amplitude, True)
    if phase_align_method == "plane":
        phase, true_phase = (fit_and_remove_plane(np.angle(array)) for array in (image, truth))
    else:
        phase, true_phase = (np.angle(array) - np.mean(np.angle(array)) for array in (image, truth))
    turned, true_turned = ((values + np.pi) / (2 * np.pi) for values in (phase, true_phase))
    rings = frc_cutoffs(true_amplitude, amplitude, frc_sigma), frc_cutoffs(true_phase, phase, frc_sigma)
    plain = (true_amplitude, amplitude, False), (true_phase, phase, False)
    return {
        "mae": (mae(*plain[0]), mae(*plain[1])),
        "mse": (mse(*plain[0]), mse(*plain[1])),
        "psnr": (psnr(*plain[0]), psnr(*plain[1])),
        "ssim": (
            _ssim(true_amplitude, amplitude, np.ptp(true_amplitude)),
            _ssim(true_turned, turned, 1.0),
        ),
        "ms_ssim": (ms_ssim(true_amplitude, amplitude, ms_ssim_sigma), ms_ssim(true_turned, turned)),
        "frc50": (rings[0].frc50, rings[1].frc50),
        "frc1over7": (rings[0].frc1over7, rings[1].frc1over7),
        "frc": (rings[0].curve, rings[1].curve),
    }


def lowpass2d(image: np.ndarray, n: int = 2) -> np.ndarray:
    """The (2 n + 1) x (2 n + 1) lowest frequencies of a real image."""
    spectrum = np.fft.fft2(image)
    order = [np.abs(np.fft.fftfreq(edge) * edge).round() <= n for edge in image.shape]
    return np.asarray(np.fft.ifft2(spectrum * np.outer(*order)).real)


def highpass2d(image: np.ndarray, n: int = 2) -> np.ndarray:
    """What `lowpass2d` takes away."""
    return np.asarray(image - lowpass2d(image, n))


def center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image; of an odd remainder the larger half is cut at the end."""
    y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[y : y + height, x : x + width]


def _scaled(target: np.ndarray, pred: np.ndarray, normalize: bool) -> np.ndarray:
    return np.asarray(pred * (np.mean(target) / np.mean(pred))) if normalize else pred


def _ssim(target: np.ndarray, pred: np.ndarray, data_range: float) -> float:
    from skimage.metrics import structural_similarity

    return float(structural_similarity(target, pred, data_range=data_range))  # type: ignore[no-untyped-call]


def _crossing(curve: np.ndarray, threshold: float) -> float:
    below = np.flatnonzero(curve < threshold)
    if below.size == 0:
        return float(len(curve))
    after = int(below[0])
    if after == 0:
        return 0.0
    before = after - 1
    return float(before + (curve[before] - threshold) / (curve[before] - curve[after]))
