"""Aperture and aberrations of an electron microscope."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tolerances import assert_close

from torchptycho.core.electron_optics import (
    ABERRATIONS,
    compute_aberration_phase,
    make_electron_probe,
    parse_aberrations,
)
from torchptycho.core.errors import ConfigError
from torchptycho.core.geometry import energy_to_wavelength_m

WAVELENGTH_M = energy_to_wavelength_m(300e3, "electron")
ANGLES_RAD = np.array([[3e-3, 0.0, -4e-3, 7e-3], [0.0, 5e-3, 2e-3, -1e-3]])


@pytest.mark.contract("electron.aberrations")
@pytest.mark.parametrize("name", ABERRATIONS)
def test_the_phase_is_the_polynomial_of_its_coefficient(name: str) -> None:
    """By complex numbers: theta^m e^(i m phi) = w^m, so that no angle is computed."""
    n, m = int(name[1]), int(name[2])
    w = ANGLES_RAD[1] + 1j * ANGLES_RAD[0]
    power = w**m * np.abs(w) ** (n + 1 - m)
    part = power.imag if name.endswith("b") else power.real
    expected = 2 * math.pi / WAVELENGTH_M * 1e-6 * part / (n + 1)
    found = compute_aberration_phase(ANGLES_RAD[0], ANGLES_RAD[1], WAVELENGTH_M, {name: 1e-6})
    assert_close(torch.from_numpy(found), torch.from_numpy(expected), "double")


@pytest.mark.contract("electron.aberrations")
def test_positive_defocus_is_a_focus_before_the_sample() -> None:
    """Propagating the probe back by C10 gives the focused one: chi is the phase of free space."""
    n_px, angle_rad, defocus_m = 64, 1e-3, 25e-9
    focused, behind = (
        make_electron_probe(n_px, angle_rad, WAVELENGTH_M, 0.02, {"C10": c10}) for c10 in (0.0, defocus_m)
    )
    q = np.fft.fftfreq(n_px, WAVELENGTH_M / (n_px * angle_rad))
    back = np.exp(1j * np.pi * WAVELENGTH_M * defocus_m * (q[:, None] ** 2 + q**2))
    returned = np.fft.fftshift(np.fft.ifft2(np.fft.fft2(np.fft.ifftshift(behind)) * back))
    assert_close(torch.from_numpy(returned), torch.from_numpy(focused), "double")
    assert np.sum(np.abs(behind) ** 2) == pytest.approx(1.0)


@pytest.mark.contract("electron.aberrations")
@pytest.mark.parametrize(
    "texts", [["C99=1"], ["C30"], ["C30=abc"], ["C30=1e-3", "C30=2e-3"], ["C10=nan"], ["C22=1e-9"]]
)
def test_other_coefficients_are_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="aberrations: expected"):
        parse_aberrations(texts)


def test_coefficients_are_parsed() -> None:
    assert parse_aberrations(["C30=1.2e-3", " C12b=-2e-9"]) == {"C30": 1.2e-3, "C12b": -2e-9}
