"""Figures of merit of an image against a truth on the same grid and in the same gauge; pure functions on arrays.

`evaluation.evaluate` brings a reconstruction there and calls these.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Complex, Float, Float64, Int64

__all__ = [
    "complex_nrmse",
    "correlation",
    "fourier_ring_correlation",
    "frc_crossing",
    "largest_square",
    "masked_ssim",
    "psnr_db",
    "snr_threshold",
    "wrap_rad",
]

SSIM_WINDOW_PX = 7
"""Edge of the uniform window in which SSIM compares the two images."""

_LOWEST_RINGS = 3


def wrap_rad(angle_rad: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Wrap an angle to (-pi, pi]."""
    wrapped: np.ndarray = np.pi - np.mod(np.pi - angle_rad, 2 * np.pi)
    return wrapped


def psnr_db(mean_square_error: float) -> float:
    """Compute the peak signal-to-noise ratio for a peak of 1: -10 log10(MSE); infinite for no error."""
    return float("inf") if mean_square_error == 0 else float(-10 * np.log10(mean_square_error))


def correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Compute Pearson's correlation coefficient; 0 if one of the two is constant."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    da, db = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(da) * np.linalg.norm(db))
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(da @ db / norm) if norm > 1e-12 * scale else 0.0


def complex_nrmse(image: Complex[np.ndarray, " n"], truth: Complex[np.ndarray, " n"]) -> float:
    """Compute the relative RMS error at the best complex factor: min_c |truth - c image| / |truth|.

    Equal to sqrt(1 - |<image, truth>|^2 / (|image|^2 |truth|^2)), and so between 0 and 1.
    Reference: Fienup, Appl. Opt. 36, 8352 (1997).
    """
    image, truth = np.asarray(image, dtype=np.complex128), np.asarray(truth, dtype=np.complex128)
    norm = float(np.linalg.norm(truth))
    power = float(np.vdot(image, image).real)
    if norm == 0 or power == 0:
        return 0.0 if norm == power else 1.0
    # Computed from the residual: one minus the overlap would lose half the digits of a small error.
    return float(np.linalg.norm(truth - np.vdot(image, truth) / power * image) / norm)


def masked_ssim(
    image: Float[np.ndarray, "h w"],
    truth: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
) -> float:
    """Compute the structural similarity, averaged over the pixels whose whole 7x7 window lies in the mask.

    The data range is max - min of the truth over the mask (1 for a flat truth).
    Reference: Wang, Bovik, Sheikh, Simoncelli, IEEE Trans. Image Process. 13, 600 (2004), with a uniform window.

    Raises:
        ValueError: the mask holds no 7x7 window.
    """
    from scipy.ndimage import binary_erosion
    from skimage.metrics import structural_similarity

    whole = binary_erosion(mask, np.ones((SSIM_WINDOW_PX, SSIM_WINDOW_PX), dtype=bool))
    if not whole.any():
        raise ValueError(f"masked_ssim: expected a mask that holds a {SSIM_WINDOW_PX}x{SSIM_WINDOW_PX} px window.")
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    data_range = float(np.ptp(truth[mask])) or 1.0
    # Pixels outside the mask are in no complete window; they are set to zero so that NaN there cannot spread.
    inside = [np.where(mask, array, 0).astype(np.float64)[box] for array in (image, truth)]
    _, full = structural_similarity(*inside, win_size=SSIM_WINDOW_PX, data_range=data_range, full=True)  # type: ignore[no-untyped-call]
    return float(full[whole[box]].mean())


def fourier_ring_correlation(
    a: Complex[np.ndarray, "h w"] | Float[np.ndarray, "h w"],
    b: Complex[np.ndarray, "h w"] | Float[np.ndarray, "h w"],
    *,
    taper: float = 0.25,
) -> tuple[Float64[np.ndarray, " r"], Float64[np.ndarray, " r"], Int64[np.ndarray, " r"]]:
    """Compute the Fourier ring correlation of two complex images, from the lowest ring to Nyquist.

    FRC = Re(sum A conj(B)) / sqrt(sum |A|^2 sum |B|^2), so that a wrong phase counts against it. Ring k of k = 1 .. n/2
    holds the frequencies within half a ring of k / n cycles per pixel, n the shorter edge; the zero frequency is in no
    ring. The mean is removed and the edges are tapered by a Tukey window, because the jump between opposite edges is
    the same in both images and would correlate at every frequency. A ring without power has correlation 0.
    Reference: Saxton, Baumeister, J. Microsc. 127, 127 (1982); van Heel, Schatz, J. Struct. Biol. 151, 250 (2005).

    Arguments:
        a, b: [H, W] images of the same field, in the same gauge.
        taper: fraction of each edge length over which the window falls, both sides together; 0 is no window.

    Returns:
        frequency in cycles per pixel, correlation, and number of Fourier pixels, for each ring.
    """
    if a.shape != b.shape or a.ndim != 2 or min(a.shape) < 4:
        raise ValueError(f"fourier_ring_correlation: expected two images of one shape; found {a.shape}, {b.shape}.")
    from scipy.signal.windows import tukey

    # The window is sampled between the pixels, so that no pixel has weight zero.
    window = np.outer(*(tukey(n + 2, taper)[1:-1] if taper else np.ones(n) for n in a.shape))
    spectra = []
    for image in (a, b):
        image = np.asarray(image, dtype=np.complex128)
        spectra.append(np.fft.fft2(window * (image - np.sum(window * image) / window.sum())))
    n = min(a.shape)
    fy, fx = np.fft.fftfreq(a.shape[0])[:, None], np.fft.fftfreq(a.shape[1])[None, :]
    ring = np.rint(np.hypot(fy, fx) * n).astype(np.int64).ravel()
    last = n // 2

    def over_rings(values: np.ndarray | None) -> np.ndarray:
        weights = None if values is None else values.ravel()
        return np.bincount(ring, weights=weights, minlength=last + 1)[1 : last + 1]

    cross = over_rings((spectra[0] * spectra[1].conj()).real)
    powers = [over_rings(np.abs(spectrum) ** 2) for spectrum in spectra]
    # After subtraction of the mean, an image without contrast consists of rounding errors, which are no signal.
    floors = [1e-24 * window.size * np.sum(np.abs(window * np.asarray(image)) ** 2) for image in (a, b)]
    signal = (powers[0] > floors[0]) & (powers[1] > floors[1])
    curve = np.where(signal, cross / np.sqrt(np.where(signal, powers[0] * powers[1], 1)), 0.0)
    return np.arange(1, last + 1) / n, curve, over_rings(None)


def snr_threshold(pixels_per_ring: Int64[np.ndarray, " r"], bits: float = 1.0) -> Float64[np.ndarray, " r"]:
    """Compute the correlation at which a Fourier pixel carries a number of bits, as a function of the pixels in the
    ring.

    With snr = (2^bits - 1) / 2 for each of the two images and n pixels,
    T = (snr + (2 sqrt(snr) + 1) / sqrt(n)) / (snr + 1 + 2 sqrt(snr) / sqrt(n)).
    Reference: van Heel, Schatz, J. Struct. Biol. 151, 250 (2005). It supposes two independent noisy images;
    a noiseless truth on one side raises the curve, so the resolution read off is that of two such images, or better.
    """
    snr = (2.0**bits - 1) / 2
    root = 1 / np.sqrt(np.asarray(pixels_per_ring, dtype=np.float64))
    threshold: np.ndarray = (snr + (2 * np.sqrt(snr) + 1) * root) / (snr + 1 + 2 * np.sqrt(snr) * root)
    return threshold


def frc_crossing(
    frequency_cycles_per_px: Float64[np.ndarray, " r"],
    curve: Float64[np.ndarray, " r"],
    threshold: float | Float64[np.ndarray, " r"],
) -> float:
    """Find the frequency at which a Fourier ring correlation first falls below a threshold, linear between rings.

    The last ring's frequency if it never does, and 0 if the lowest three rings are all below.
    (A single one may be low, because diffraction determines the lowest spatial frequencies of the phase least.)
    """
    excess = np.asarray(curve, dtype=np.float64) - threshold
    above = np.flatnonzero(excess[:_LOWEST_RINGS] >= 0)
    if not above.size:
        return 0.0
    start = int(above[0])
    below = np.flatnonzero(excess[start:] < 0)
    if not below.size:
        return float(frequency_cycles_per_px[-1])
    j = start + int(below[0])
    part = excess[j - 1] / (excess[j - 1] - excess[j])
    f0, f1 = frequency_cycles_per_px[j - 1 : j + 1]
    return float(f0 + part * (f1 - f0))


def largest_square(mask: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    """Find the largest square of odd edge that lies wholly in the mask; of several, the one nearest its centroid."""
    from scipy.ndimage import distance_transform_cdt

    distance = distance_transform_cdt(np.pad(mask, 1), metric="chessboard")[1:-1, 1:-1]
    radius = int(distance.max())
    rows, columns = np.nonzero(distance == radius)
    centroid = [float(c.mean()) for c in np.nonzero(mask)]
    best = int(np.argmin((rows - centroid[0]) ** 2 + (columns - centroid[1]) ** 2))
    y, x = int(rows[best]), int(columns[best])
    return slice(y - radius + 1, y + radius), slice(x - radius + 1, x + radius)
