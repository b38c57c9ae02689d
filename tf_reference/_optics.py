"""The experiment: beam, object, far field and photon noise, in amplitudes and one mode."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from scipy import ndimage

from tf_reference._channels import flat_to_channel
from tf_reference._padding import pad as pad_images


def pad_and_diffract(images: tf.Tensor, h: int, w: int, pad: bool = True) -> tuple[tf.Tensor, tf.Tensor]:
    """The far field's amplitude, sqrt(|fftshift(FFT2(x))|^2 / (h w)), zero frequency at [h // 2, w // 2].

    Arguments:
        images: (B, h, w, 1) complex.
        pad: surround the images by h // 4 pixels of 0 first; h w stays that of the images.

    Returns:
        The (padded) images, and the amplitude, real and of their shape.
    """
    if pad:
        images = pad_images(images, h // 4)
    spectrum = tf.signal.fftshift(tf.signal.fft2d(images[..., 0]), axes=(-2, -1))
    # Of the modulus, so that the gradient is 0 where nothing arrives.
    intensity = tf.abs(spectrum) ** 2 / (h * w)
    return images, tf.sqrt(intensity)[..., None]


def diffract_obj(images: tf.Tensor) -> tf.Tensor:
    """Far-field amplitude (B, N, N, 1) of exit waves (B, N, N, 1), without noise."""
    return pad_and_diffract(images, images.shape[1], images.shape[2], pad=False)[1]


def observe_amplitude(amplitude: tf.Tensor, seed: int) -> tf.Tensor:
    """sqrt(y), y drawn from a Poisson distribution of mean amplitude^2."""
    drawn = tf.random.stateless_poisson(tf.shape(amplitude), (seed, 0), amplitude**2, dtype=amplitude.dtype)
    return tf.sqrt(drawn)


def illuminate_and_diffract(
    Y_I: tf.Tensor,
    Y_phi: tf.Tensor,
    probe: tf.Tensor,
    nphotons: float,
    gridsize: int,
    intensity_scale: float | None = None,
    seed: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Simulated frames of objects Y_I exp(i Y_phi) behind a probe.

    s = sqrt(nphotons / mean over frames of sum (Y_I |probe|)^2) makes roots of counts of amplitudes; X is divided by it
    again.

    Arguments:
        Y_I, Y_phi: (B*C, N, N, 1) amplitude and phase.
        probe: (N, N) complex.
        intensity_scale: s, where it is known already.
        seed: of the photon noise; None for expected frames.

    Returns:
        X, Y_I |probe| and Y_phi as (B, N, N, C), and s.
    """
    beam = probe[None, :, :, None]
    lit = Y_I * tf.abs(beam)
    if intensity_scale is None:
        scale = tf.sqrt(nphotons / tf.reduce_mean(tf.reduce_sum(lit**2, axis=(1, 2, 3))))
    else:
        scale = tf.constant(intensity_scale, Y_I.dtype)
    frames = diffract_obj(tf.complex(Y_I * tf.cos(Y_phi), Y_I * tf.sin(Y_phi)) * beam)
    if seed is not None:
        frames = observe_amplitude(scale * frames, seed) / scale
    X, lit, phases = (flat_to_channel(flat, gridsize) for flat in (frames, lit, Y_phi))
    return X, lit, phases, scale


def probe_illumination(
    images: tf.Tensor, probe: tf.Tensor, mask: bool = False, sigma: float = 0.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """The layer ProbeIllumination: exit waves, blurred by `sigma` pixels within 3 x 3 where `sigma` is not 0.

    Arguments:
        images: (B, N, N, K) complex.
        probe: (N, N, 1) complex.
        mask: cut probe and exit waves (these after the blur) to the disc of `get_probe_mask_real`.

    Returns:
        (B, N, N, K), and the probe as (1, 1, N, N, 1), the second axis being the original's slip.
    """
    waves = images * probe
    if sigma != 0:
        waves = complex_gaussian_filter2d(waves, 3, sigma)
    if mask:
        disc = tf.constant(get_probe_mask_real(probe.shape[0]).astype(np.float64), probe.dtype)
        waves, probe = waves * disc, probe * disc
    return waves, probe[None, None]


def gaussian_filter2d(images: tf.Tensor, filter_size: int, sigma: float) -> tf.Tensor:
    """Blur real images (B, H, W, K) by a Gaussian cut to an odd number of pixels, mirrored at (not on) the border."""
    half = filter_size // 2
    weights = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    _, height, width, _ = images.shape
    wide = tf.pad(images, ((0, 0), (half, half), (half, half), (0, 0)), mode="REFLECT")
    rows = sum(float(weight) * wide[:, i : i + height] for i, weight in enumerate(weights))
    return sum(float(weight) * rows[:, :, j : j + width] for j, weight in enumerate(weights))


def complex_gaussian_filter2d(images: tf.Tensor, filter_size: int, sigma: float) -> tf.Tensor:
    """`gaussian_filter2d` of real and imaginary part."""
    parts = (gaussian_filter2d(part, filter_size, sigma) for part in (tf.math.real(images), tf.math.imag(images)))
    return tf.complex(*parts)


def get_squared_distance(N: int) -> np.ndarray:
    """(N, N) distances from ((N - 1) / 2, (N - 1) / 2), which are not squared, whatever the name says."""
    steps = np.arange(N) - (N - 1) / 2
    return np.asarray(np.hypot(steps[:, None], steps[None, :]))


def get_probe_mask_real(N: int) -> np.ndarray:
    """(N, N, 1) disc of radius N // 4, its rim outside."""
    return (get_squared_distance(N) < N // 4)[..., None]


def get_default_probe(N: int) -> np.ndarray:
    """(N, N) real beam: a Gaussian above half of its maximum, as a disc whose edge is blurred by 1 px, plus 1e-9."""
    profile = lowpass_g(0.7, N)
    disc = np.outer(profile, profile) > 0.5
    return np.asarray(ndimage.gaussian_filter(disc.astype(np.float64), 1) + 1e-9)


def lowpass_g(size: float, N: int) -> np.ndarray:
    """(N,) Gaussian about (N - 1) / 2 of standard deviation N / (pi^2 size), its largest sample 1."""
    steps = (np.arange(N) - (N - 1) / 2) * math.pi**2 * size / N
    values = np.exp(-(steps**2) / 2)
    return np.asarray(values / values.max())


def set_probe(probe: np.ndarray, probe_scale: float) -> np.ndarray:
    """Probe (N, N) over `probe_scale` times the mean over all pixels of its modulus in the disc, (N, N, 1) complex64.

    The disc is that of `get_probe_mask_real`; the probe keeps what it has outside. `set_probe_guess` does the same.
    """
    probe = probe.reshape(*probe.shape[:2], 1)
    norm = probe_scale * np.mean(np.abs(probe) * get_probe_mask_real(len(probe)), dtype=np.float64)
    return np.asarray(probe / norm, dtype=np.complex64)


def mk_lines_img(N: int = 64, nlines: int = 10, *, rng: np.random.RandomState) -> np.ndarray:
    """(N, N) straight lines between random pixels, over two blurred copies of themselves as a background."""
    from skimage.draw import line

    image = np.zeros((N, N))
    for _ in range(nlines):
        ends = (rng.rand(4) * N).astype(int)  # row, column, row, column
        image[line(*ends)] = 1  # type: ignore[no-untyped-call]
    return np.asarray(
        sum(weight * ndimage.gaussian_filter(image, sigma) for weight, sigma in ((1, 1), (2, 5), (5, 10)))
    )


def dummy_phi(Y_I: tf.Tensor) -> tf.Tensor:
    """Phases made of an amplitude (B, H, W, 1): pi tanh((Y_I - max / 2) / (3 mean)), max and mean over the batch."""
    return math.pi * tf.tanh((Y_I - tf.reduce_max(Y_I) / 2) / (3 * tf.reduce_mean(Y_I)))
