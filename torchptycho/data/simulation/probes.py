"""Probes: disk, Gaussian, defocused zone plate and electron aperture, in one or several incoherent modes.

Every simulated probe but that of an electron microscope passes a soft round aperture (1 within 0.3 N of the centre, 0
beyond 0.45 N), as behind an order-sorting aperture would: what reaches the border of the frame would wrap around in the
Fourier transform.
The centre of the probe is pixel [N/2, N/2], the pixel that sits on the scan position.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Complex64
from scipy.interpolate import CubicSpline
from scipy.special import eval_hermite, j0

from torchptycho.core.config import SimulateConfig
from torchptycho.core.electron_optics import make_electron_probe, parse_aberrations
from torchptycho.core.errors import ConfigError
from torchptycho.core.geometry import energy_to_wavelength_m

__all__ = ["border_fraction", "disk", "gaussian", "make_probe", "scale_to_photons", "zone_plate"]

_APERTURE_START, _APERTURE_STOP = 0.3, 0.45
_MAX_DIAMETER = _APERTURE_START + _APERTURE_STOP

# Zone plate: radius of the central stop and width of the soft rim, relative to the radius of the pupil.
_CENTRAL_STOP, _SOFT_RIM = 0.3, 0.4
_NYQUIST = 0.5


def make_probe(config: SimulateConfig) -> Complex64[np.ndarray, "p n n"]:
    """Make the probe configured by `config`, in sqrt(photons): sum |P|^2 over modes and pixels is `photons_per_frame`.

    Mode m > 0 is the first mode times a product of Hermite polynomials in y and x (unit: half the diameter; orders by
    rising sum), made orthogonal to those before it; it carries half the power of mode m - 1.

    Arguments:
        config: `n_px`, the `probe_*` options (but `probe_file`) and `photons_per_frame` are used.

    Raises:
        ConfigError: the probe does not fit into the frame, or is too fine for its pixels.
    """
    n_px = config.n_px
    if config.probe_kind == "electron":
        return _make_electron_modes(config)
    diameter_px = config.probe_diameter_px or 0.4 * n_px
    if diameter_px > _MAX_DIAMETER * n_px:
        raise ConfigError(
            f"probe_diameter_px: expected at most {_MAX_DIAMETER} N = {_MAX_DIAMETER * n_px:g} px, so that the probe "
            f"fits into a frame of {n_px} px; found {diameter_px:g}."
        )
    y, x = _centered_grid(n_px)
    radius_px = np.hypot(y, x)
    if config.probe_kind == "zone_plate":
        first = zone_plate(radius_px, diameter_px, config.probe_defocus_waves)
    else:
        shape: Callable[[np.ndarray, float], np.ndarray] = disk if config.probe_kind == "disk" else gaussian
        first = shape(radius_px, diameter_px).astype(np.complex128)
    first = first * _raised_cosine((radius_px / n_px - _APERTURE_START) / (_APERTURE_STOP - _APERTURE_START))
    modes = _make_modes(first, 2 * y / diameter_px, 2 * x / diameter_px, config.probe_modes)
    return scale_to_photons(modes, config.photons_per_frame)


def _make_electron_modes(config: SimulateConfig) -> Complex64[np.ndarray, "p n n"]:
    """Make the probe of a round aperture, and modes of the size that its light has."""
    n_px = config.n_px
    if config.convergence_mrad >= config.angle_per_pixel_mrad * n_px / 2:
        raise ConfigError(
            f"convergence_mrad: expected less than half of the detector's {config.angle_per_pixel_mrad * n_px:g} mrad; "
            f"found {config.convergence_mrad:g}. Raise n_px or angle_per_pixel_mrad."
        )
    aberrations = parse_aberrations(config.aberrations)
    if config.probe_defocus_m and "C10" in aberrations:
        raise ConfigError("aberrations: expected C10 or probe_defocus_m; found both, which are the same number.")
    first = make_electron_probe(
        n_px,
        config.angle_per_pixel_mrad * 1e-3,
        energy_to_wavelength_m(config.energy_eV, "electron"),
        config.convergence_mrad * 1e-3,
        {"C10": config.probe_defocus_m} | aberrations,
    )
    y, x = _centered_grid(n_px)
    # Root mean square width along an axis, twice.
    width_px = 2 * float(np.sqrt((np.abs(first) ** 2 * (y**2 + x**2)).sum() / 2))
    modes = _make_modes(first, y / width_px, x / width_px, config.probe_modes)
    return scale_to_photons(modes, config.photons_per_frame)


def disk(radius_px: np.ndarray, diameter_px: float) -> np.ndarray:
    """Make a flat disc, 1/2 at its radius, with a raised-cosine edge a fifth of the diameter wide, at least 2 px."""
    edge_px = max(0.2 * diameter_px, 2.0)
    return _raised_cosine((radius_px - diameter_px / 2) / edge_px + 0.5)


def gaussian(radius_px: np.ndarray, diameter_px: float) -> np.ndarray:
    """Compute a Gaussian probe at its waist; the intensity falls to a half at half the diameter."""
    return np.asarray(np.exp(-2 * np.log(2) * (radius_px / diameter_px) ** 2))


def zone_plate(radius_px: np.ndarray, diameter_px: float, defocus_waves: float) -> np.ndarray:
    """Compute the field of a defocused annular lens: rings with a curved phase.

    P(r) = integral of T(u) exp(2 pi i w u^2) J0(2 pi q r u) u du over the pupil 0 <= u <= 1, with w waves of defocus
    at the rim; T is 0 behind the central stop (u < 0.3), 1 beyond, with soft edges. The pupil's radius q (cycles
    per pixel) is chosen so that the diameter holds half of the power, which for a Gaussian is its full width at half
    maximum.
    Reference: Goodman, Introduction to Fourier Optics, sec. 5.2 (lens) and eq. 2-31 (Fourier-Bessel transform).

    Raises:
        ConfigError: the pupil reaches beyond the Nyquist frequency of the pixels.
    """
    # The power of a defocused probe fills its geometric shadow, 2 pi q r = 4 pi w u; this lower bound keeps the
    # integral in its valid range.
    cutoff = 2 * abs(defocus_waves) / diameter_px
    if cutoff <= _NYQUIST:
        rho = np.linspace(0, 8 * np.pi * abs(defocus_waves) + 80, 801)
        power = np.cumsum(np.abs(_pupil_transform(rho, defocus_waves)) ** 2 * rho)
        half_power_rho = float(np.interp(0.5 * power[-1], power, rho))
        cutoff = half_power_rho / (np.pi * diameter_px)
    if cutoff > _NYQUIST:
        raise ConfigError(
            f"probe_defocus_waves: {defocus_waves:g} waves in a probe of {diameter_px:g} px need frequencies of "
            f"{cutoff:.2g} per pixel, where {_NYQUIST} is the limit. Lower probe_defocus_waves or raise "
            "probe_diameter_px."
        )
    sample_px = np.linspace(0, float(radius_px.max()) + 1, int(4 * radius_px.max()) + 8)
    field = CubicSpline(sample_px, _pupil_transform(2 * np.pi * cutoff * sample_px, defocus_waves))
    return np.asarray(field(radius_px))


def scale_to_photons(probe: np.ndarray, photons_per_frame: float) -> Complex64[np.ndarray, "p n n"]:
    """Scale a probe so that the sum of |P|^2 over modes and pixels is the number of photons per frame."""
    wide = np.asarray(probe, dtype=np.complex128)
    wide = wide / np.abs(wide).max()
    return np.asarray(wide * np.sqrt(photons_per_frame / np.sum(np.abs(wide) ** 2)), dtype=np.complex64)


def border_fraction(probe: np.ndarray, width: float = 0.1) -> float:
    """Compute the fraction of a probe's power in the outermost rows and columns, `width` times N on each side."""
    power = np.sum(np.abs(probe.astype(np.complex128)) ** 2, axis=0)
    edge = max(1, round(width * power.shape[0]))
    return 1 - float(power[edge:-edge, edge:-edge].sum() / power.sum())


def _pupil_transform(rho: np.ndarray, defocus_waves: float) -> np.ndarray:
    """Compute the Fourier-Bessel transform of the pupil at rho = 2 pi q r."""
    # The phase of the integrand changes by less than half a radian between samples.
    u = np.linspace(0, 1, 513 + int(2 * float(rho.max())) + int(80 * abs(defocus_waves)))
    pupil = _raised_cosine((u - 1) / _SOFT_RIM + 1) * (1 - _raised_cosine((u - _CENTRAL_STOP) / _SOFT_RIM + 0.5))
    integrand = pupil * u * np.exp(2j * np.pi * defocus_waves * u**2)
    bessel = j0(rho[:, None] * u)
    return np.asarray((bessel @ integrand.real + 1j * (bessel @ integrand.imag)) * (u[1] - u[0]))


def _make_modes(first: np.ndarray, y: np.ndarray, x: np.ndarray, count: int) -> np.ndarray:
    if count == 1:
        return first[None]
    orders = sorted(((j, k) for j in range(count) for k in range(count) if j + k < count), key=lambda o: (sum(o), o))
    shapes = [first * eval_hermite(j, y) * eval_hermite(k, x) for j, k in orders[:count]]
    basis, triangle = np.linalg.qr(np.stack([shape.ravel() / np.linalg.norm(shape) for shape in shapes], axis=1))
    # QR does not determine the sign of each column: keep that of the original shape.
    diagonal = np.diagonal(triangle)
    basis = basis * (diagonal / np.abs(diagonal)) * np.sqrt(0.5 ** np.arange(count))
    return np.asarray(basis.T.reshape(count, *first.shape))


def _centered_grid(n_px: int) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(n_px) - n_px // 2
    return axis[:, None] * np.ones(n_px), axis * np.ones((n_px, 1))


def _raised_cosine(position: np.ndarray) -> np.ndarray:
    """Fall from 1 at position 0 to 0 at position 1, as a raised cosine."""
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * np.clip(position, 0, 1)))
