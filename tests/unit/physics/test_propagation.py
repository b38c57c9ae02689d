"""Propagation to the detector, in the far and in the near field."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from strategies import normal
from tolerances import assert_close
from torch import Tensor

from torchptycho.core.angular_spectrum import angular_spectrum_transfer, choose_padding_px
from torchptycho.core.geometry import Geometry
from torchptycho.physics.diffraction import far_field
from torchptycho.physics.propagation import FAR_FIELD, NearField, build_propagator, compute_detector_wave

N, PIXEL_M, WAVELENGTH_M = 128, 1e-7, 1.24e-10
NEAR = Geometry(energy_eV=1e4, distance_m=1e-3, detector_pixel_m=PIXEL_M, propagation="near")


def make_near_field(distance_m: float) -> NearField:
    transfer = angular_spectrum_transfer(N, PIXEL_M, distance_m, WAVELENGTH_M)
    return NearField(torch.from_numpy(transfer))


def make_gaussian(waist_px: float) -> Tensor:
    along = (torch.arange(N, dtype=torch.float64) - N // 2) / waist_px
    return torch.exp(-(along[:, None].square() + along[None].square())).to(torch.complex128)


@pytest.mark.contract("physics.near-field.adjoint")
@pytest.mark.parametrize("propagator", [FAR_FIELD, make_near_field(1e-3), make_near_field(-3e-3)])
def test_adjoint_undoes_propagation(propagator: NearField) -> None:
    first, second = normal((2, N, N), 0), normal((2, N, N), 1)
    assert_close(
        (propagator.forward(first) * second.conj()).sum(), (first * propagator.adjoint(second).conj()).sum(), "double"
    )
    assert_close(propagator.adjoint(propagator.forward(first)), first, "double")


@pytest.mark.contract("physics.near-field.photons")
def test_photons_are_conserved() -> None:
    wave = normal((N, N), 2)
    assert_close(make_near_field(2e-3).forward(wave).abs().square().sum(), wave.abs().square().sum(), "double")


@pytest.mark.contract("physics.near-field.formula")
def test_gaussian_beam_widens() -> None:
    waist_px, distance_m = 4.0, 5e-3
    wave = make_near_field(distance_m).forward(make_gaussian(waist_px))
    intensity = wave.abs().square()
    along = torch.arange(N, dtype=torch.float64) - N // 2
    # The intensity of a Gaussian beam of radius w has the variance w^2 / 4 along each axis.
    radius_px = 2 * math.sqrt(float((intensity.sum(1) * along.square()).sum() / intensity.sum()))
    rayleigh_m = math.pi * (waist_px * PIXEL_M) ** 2 / WAVELENGTH_M
    assert radius_px == pytest.approx(waist_px * math.hypot(1, distance_m / rayleigh_m), rel=1e-3)


@pytest.mark.contract("physics.near-field.formula")
def test_tilted_wave_moves_sideways() -> None:
    cycles, distance_m = 16, 4e-3
    tilt = torch.exp(2j * math.pi * cycles * torch.arange(N, dtype=torch.float64) / N)
    wave = make_near_field(distance_m).forward(make_gaussian(8) * tilt[:, None])
    rows = wave.abs().square().sum(1)
    centre_px = float((rows * (torch.arange(N, dtype=torch.float64) - N // 2)).sum() / rows.sum())
    sine = cycles / (N * PIXEL_M) * WAVELENGTH_M
    assert centre_px == pytest.approx(distance_m * sine / math.sqrt(1 - sine**2) / PIXEL_M, rel=1e-2)


@pytest.mark.contract("physics.near-field.sampling")
def test_frequencies_that_leave_the_field_carry_nothing() -> None:
    critical_m = N * PIXEL_M**2 / WAVELENGTH_M
    assert np.abs(angular_spectrum_transfer(N, PIXEL_M, 0.9 * critical_m, WAVELENGTH_M)).min() > 0.99
    beyond = np.abs(angular_spectrum_transfer(N, PIXEL_M, 4 * critical_m, WAVELENGTH_M)).round(6)
    assert set(np.unique(beyond).tolist()) == {0.0, 1.0}
    assert np.abs(beyond[0]).sum() == pytest.approx(N / 4, abs=2)
    assert angular_spectrum_transfer(N, 1e-11, 1e-9, WAVELENGTH_M)[N // 2, N // 2] == 0
    assert choose_padding_px(PIXEL_M, critical_m, WAVELENGTH_M) in (N // 2, N // 2 + 1)


@pytest.mark.contract("physics.near-field.cone")
def test_cone_beam_is_a_parallel_beam_of_smaller_pixels() -> None:
    cone = Geometry(energy_eV=1e4, distance_m=1.5, detector_pixel_m=5e-5, propagation="near", focus_distance_m=0.01)
    assert cone.magnification == pytest.approx(151)
    filled = cone.with_object_pixel(64)
    assert filled.object_pixel_m == pytest.approx(5e-5 / 151)
    assert cone.effective_distance_m == pytest.approx(1.5 / 151)
    parallel = Geometry(energy_eV=1e4, distance_m=1.5 / 151, detector_pixel_m=5e-5 / 151, propagation="near")
    assert parallel.fresnel_number == pytest.approx(cone.fresnel_number)
    wave = normal((64, 64), 3)
    assert_close(compute_detector_wave(wave, cone), compute_detector_wave(wave, parallel), "double")


@pytest.mark.contract("physics.near-field.photons")
def test_geometry_chooses_the_propagator() -> None:
    wave = normal((16, 16), 4)
    assert_close(compute_detector_wave(wave, Geometry()), far_field(wave), "double")
    assert isinstance(build_propagator(NEAR, 16), NearField)
    with pytest.raises(ValueError, match="expected wavelength, distance"):
        build_propagator(Geometry(propagation="near"), 16)
