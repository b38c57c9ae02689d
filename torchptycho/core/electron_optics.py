"""Probes of an electron microscope: a round aperture and the aberrations of the lenses, by their Krivanek names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Complex128, Float64

from torchptycho.core.errors import ConfigError

__all__ = ["ABERRATIONS", "compute_aberration_phase", "make_electron_probe", "parse_aberrations"]

# Order n and multiplicity m of each C_nm up to the fifth order: m <= n + 1, and n + m is odd.
_ORDERS = tuple((n, m) for n in range(1, 6) for m in range(n + 2) if (n + m) % 2)
ABERRATIONS = tuple(f"C{n}{m}{part}" for n, m in _ORDERS for part in (("",) if m == 0 else ("a", "b")))
"""Names of the coefficients: C10 is defocus, C12a and C12b twofold astigmatism, C30 spherical aberration, and so on."""
_ASSIGNMENT = re.compile(r"^(C[1-5][0-6][ab]?)=([-+0-9.eE]+)$")


def parse_aberrations(texts: Iterable[str]) -> dict[str, float]:
    """Parse coefficients such as `C30=1.2e-3`, in metres.

    Raises:
        ConfigError: not of this form, an unknown name, or one that is given twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        match = _ASSIGNMENT.match(text.strip())
        name = match.group(1) if match else ""
        try:
            value = float(match.group(2)) if match else float("nan")
        except ValueError:
            value = float("nan")
        if name not in ABERRATIONS or not np.isfinite(value):
            raise ConfigError(
                f"aberrations: expected NAME=METRES with a name of {ABERRATIONS[0]}, {ABERRATIONS[1]} ... "
                f"{ABERRATIONS[-1]}, such as C30=1.2e-3; found '{text}'."
            )
        if name in found:
            raise ConfigError(f"aberrations: expected {name} once; found it twice. Leave one of them out.")
        found[name] = value
    return found


def compute_aberration_phase(
    angle_y_rad: Float64[np.ndarray, "*shape"],
    angle_x_rad: Float64[np.ndarray, "*shape"],
    wavelength_m: float,
    aberrations: Mapping[str, float],
) -> Float64[np.ndarray, "*shape"]:
    """Compute the phase chi by which aberrations delay the waves at these angles; the probe has exp(-i chi).

    chi = 2 pi / lambda sum_nm theta^(n + 1) / (n + 1) (C_nma cos(m phi) + C_nmb sin(m phi)), phi from x towards y.
    A positive C10 is overfocus: the focus lies before the sample. Reference: Krivanek, Dellby, Lupini,
    Ultramicroscopy 78, 1 (1999).

    Arguments:
        angle_y_rad, angle_x_rad: from the optical axis.
        wavelength_m: lambda.
        aberrations: coefficients in metres by their names in `ABERRATIONS`; the others are 0.
    """
    theta, phi = np.hypot(angle_y_rad, angle_x_rad), np.arctan2(angle_y_rad, angle_x_rad)
    path = np.zeros(theta.shape)
    for n, m in _ORDERS:
        first, second = (aberrations.get(f"C{n}{m}{part}", 0.0) for part in (("", "") if m == 0 else ("a", "b")))
        if m == 0:
            second = 0.0
        if first or second:
            path += theta ** (n + 1) / (n + 1) * (first * np.cos(m * phi) + second * np.sin(m * phi))
    chi: Float64[np.ndarray, "*shape"] = 2 * np.pi / wavelength_m * path
    return chi


def make_electron_probe(
    n_px: int,
    angle_per_pixel_rad: float,
    wavelength_m: float,
    convergence_rad: float,
    aberrations: Mapping[str, float],
) -> Complex128[np.ndarray, "n n"]:
    """Make the probe behind a round aperture.

    On the detector a pixel at the edge of the aperture has the part of the intensity that lies inside, so that the area
    of the bright-field disc does not jump with its radius.

    Arguments:
        n_px: edge of the frames.
        angle_per_pixel_rad: between neighbouring pixels of the detector.
        convergence_rad: semi-angle of the aperture.
        aberrations: see `compute_aberration_phase`.

    Returns:
        centred on [n//2, n//2]; the sum of its squares is 1.
    """
    axis = (np.arange(n_px) - n_px // 2) * angle_per_pixel_rad
    angle_y, angle_x = np.meshgrid(axis, axis, indexing="ij")
    inside = np.clip((convergence_rad - np.hypot(angle_y, angle_x)) / angle_per_pixel_rad + 0.5, 0, 1)
    wave = np.sqrt(inside) * np.exp(-1j * compute_aberration_phase(angle_y, angle_x, wavelength_m, aberrations))
    probe = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(wave), norm="ortho"))
    scaled: Complex128[np.ndarray, "n n"] = probe / np.linalg.norm(probe)
    return scaled
