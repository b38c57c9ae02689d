"""Waves in a thick object: free space between slices, adjoints and first-order changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, seeds
from tolerances import assert_close, relative_l2, tolerance

from torchptycho.core.angular_spectrum import compute_depth_of_focus_m
from torchptycho.physics.multislice import (
    backpropagate_change,
    build_gap,
    pass_through_slices,
    propagate_object_change,
)
from torchptycho.physics.propagation import Propagator

N_PX, PIXEL_M, WAVELENGTH_M = 8, 1e-8, 1e-10


def make_gap(depth: float) -> Propagator:
    """Free space of this many p^2 / lambda, in float64."""
    return build_gap(N_PX, PIXEL_M, WAVELENGTH_M, depth * PIXEL_M**2 / WAVELENGTH_M, dtype=torch.complex128)


def inner(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.conj() * b).real.sum())


@pytest.mark.contract("physics.slices.adjoint")
@given(seed=seeds, slices=st.integers(1, 4), modes=st.integers(1, 2), of_each=st.booleans(), depth=st.floats(0.0, 7.0))
def test_backpropagation_is_the_adjoint(seed: int, slices: int, modes: int, of_each: bool, depth: float) -> None:
    seed, gap, frames = seed % 2**31, make_gap(depth), 2
    patches, changes = (normal((slices, frames, N_PX, N_PX), seed + k) for k in (0, 1))
    probe, probe_change = (normal((*[frames] * of_each, modes, N_PX, N_PX), seed + k) for k in (2, 3))
    exit_change = normal((frames, modes, N_PX, N_PX), seed + 4)
    waves = pass_through_slices(patches, probe, gap)
    behind = backpropagate_change(patches, exit_change, gap)
    effect = propagate_object_change(changes, patches, waves.incident, gap)
    size = float(effect.norm() * exit_change.norm())
    found = sum(
        inner(change, (wave.conj() * back).sum(-3))
        for change, wave, back in zip(changes, waves.incident, behind, strict=True)
    )
    assert found == pytest.approx(inner(effect, exit_change), abs=1e-12 * size)
    by_probe = pass_through_slices(patches, probe_change, gap).exit
    size = float(by_probe.norm() * exit_change.norm())
    back = (
        (patches[0].conj().unsqueeze(-3) * behind[0]).sum(0) if not of_each else patches[0].conj()[:, None] * behind[0]
    )
    assert inner(probe_change, back) == pytest.approx(inner(by_probe, exit_change), abs=1e-12 * size)


@pytest.mark.contract("physics.slices.adjoint")
def test_effect_of_slices_is_the_derivative_of_the_exit_wave() -> None:
    gap = make_gap(4.0)
    patches, changes, probe = normal((3, 2, N_PX, N_PX), 0), normal((3, 2, N_PX, N_PX), 1), normal((1, N_PX, N_PX), 2)
    waves, step = pass_through_slices(patches, probe, gap), 1e-6
    moved = [pass_through_slices(patches + sign * step * changes, probe, gap).exit for sign in (1, -1)]
    found = propagate_object_change(changes, patches, waves.incident, gap)
    assert relative_l2((moved[0] - moved[1]) / (2 * step), found) < 1e-8


@pytest.mark.contract("physics.slices.unitary")
def test_free_space_is_unitary_and_additive() -> None:
    wave = normal((2, N_PX, N_PX), 3)
    for depth in (0.5, 3.0):
        gap = make_gap(depth)
        assert_close(gap.adjoint(gap.forward(wave)), wave, "double")
        assert_close(gap.forward(wave).norm(), wave.norm(), "double")
        assert_close(gap.adjoint(wave), make_gap(-depth).forward(wave), "double")
    assert_close(make_gap(1.0).forward(make_gap(2.5).forward(wave)), make_gap(3.5).forward(wave), "double")
    assert relative_l2(make_gap(3.0).forward(wave), wave) > 0.1


@pytest.mark.contract("physics.slices.thin")
def test_slices_without_distance_are_their_product() -> None:
    patches, probe = normal((3, 2, N_PX, N_PX), 5), normal((2, N_PX, N_PX), 6)
    thin = patches.prod(0)[:, None] * probe
    assert_close(pass_through_slices(patches, probe, make_gap(0.0)).exit, thin, "double")
    near = relative_l2(pass_through_slices(patches, probe, make_gap(1e-6)).exit, thin)
    assert tolerance("double") < near < 1e-4
    one = pass_through_slices(patches[:1], probe, None)
    assert torch.equal(one.exit, patches[0][:, None] * probe)
    assert one.incident[0] is probe


@pytest.mark.contract("physics.slices.depth-of-focus")
def test_depth_of_focus() -> None:
    assert compute_depth_of_focus_m(1e-8, 1e-10) == pytest.approx(5.2e-6)
    # Half a wavelength of path at the angle of the finest period, from the axis to the rim: light from there is out of
    # phase after about this distance.
    sine = 1e-10 / (2 * 1e-8)
    assert np.pi * compute_depth_of_focus_m(1e-8, 1e-10) * sine**2 / 1e-10 == pytest.approx(np.pi * 1.3)
