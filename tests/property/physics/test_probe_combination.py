"""Adjoints, Gauss-Newton steps and standard forms of a probe that changes from frame to frame."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_asymmetric_probe, normal, seeds
from tolerances import assert_close, relative_l2, tolerance

from torchptycho.physics.variable_probe import (
    combine_probe,
    orthogonalize_variation,
    project_on_modes,
    smooth_weights,
    solve_frame_changes,
    spread_over_modes,
)


def inner(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.conj() * b).real.sum())


@pytest.mark.contract("physics.variable-probe.adjoint")
@given(seed=seeds, frames=st.integers(1, 5), modes=st.integers(1, 3), incoherent=st.integers(1, 3))
def test_combination_has_its_adjoints(seed: int, frames: int, modes: int, incoherent: int) -> None:
    seed %= 2**31
    basis, update = normal((modes, 6, 6), seed), normal((frames, 6, 6), seed + 1)
    weights = normal((frames, modes), seed + 2, torch.float64)
    scale = 0.5 + normal((frames,), seed + 3, torch.float64).abs()
    dark = torch.zeros(incoherent, 6, 6, dtype=torch.complex128)
    combined = combine_probe(dark, basis, weights, scale)
    limit = 1e-12 * float(combined.abs().square().sum().sqrt() * update.abs().square().sum().sqrt()) + 1e-300
    assert inner(combined[:, 0], update) == pytest.approx(
        inner(basis, spread_over_modes(update, weights, scale)), abs=limit
    )
    assert inner(combined[:, 0], update) == pytest.approx(
        float((weights * project_on_modes(update, basis, scale)).sum()), abs=limit
    )
    assert not combined[:, 1:].any()


@pytest.mark.contract("physics.variable-probe.model")
def test_probe_of_a_frame_is_the_sum_of_its_modes() -> None:
    probe, basis = make_asymmetric_probe(8, modes=2), normal((2, 8, 8), 0)
    weights, scale = torch.tensor([[0.5, -2.0], [0.0, 0.0]]).double(), torch.tensor([3.0, 1.0]).double()
    found = combine_probe(probe, basis, weights, scale)
    assert_close(found[0, 0], 3 * (probe[0] + 0.5 * basis[0] - 2 * basis[1]), "double")
    assert_close(found[0, 1], 3 * probe[1], "double")
    assert_close(found[1], probe, "double")
    assert_close(combine_probe(probe, basis[:0], weights[:, :0], scale)[0], 3 * probe, "double")


@pytest.mark.contract("physics.variable-probe.step")
def test_step_is_the_least_squares_of_the_roots() -> None:
    patches, probe, basis = normal((2, 8, 8), 0), make_asymmetric_probe(8, modes=2), 5 * normal((2, 8, 8), 1)
    weights, scale = 0.1 * normal((2, 2), 2, torch.float64), torch.tensor([1.2, 0.8]).double()
    counts = normal((2, 8, 8), 3, torch.float64).abs() * 200
    mask = torch.rand(8, 8) > 0.2

    def root(x: torch.Tensor) -> torch.Tensor:
        probes = combine_probe(probe, basis, weights + x[:, :2], scale * x[:, 2].exp())
        intensity = torch.fft.fft2(patches[:, None] * probes, norm="ortho").abs().square().sum(1)
        return ((intensity + 0.5).sqrt() * mask).flatten(1)

    at = torch.zeros(2, 3, dtype=torch.float64)
    wave = torch.fft.fft2(patches[:, None] * combine_probe(probe, basis, weights, scale), norm="ortho")
    columns = torch.fft.fft2((patches * scale[:, None, None])[:, None] * basis, norm="ortho")
    found = solve_frame_changes(wave, columns, wave.abs().square().sum(1), counts, mask, fits_scale=True)
    jacobian = torch.autograd.functional.jacobian(root, at)
    for frame in range(2):
        residual = ((counts[frame] + 0.5).sqrt() * mask).flatten() - root(at)[frame]
        expected = torch.linalg.lstsq(jacobian[frame, :, frame], residual[:, None]).solution[:, 0]
        step = torch.cat([found[0][frame], found[1][frame : frame + 1]])
        assert relative_l2(step, expected) < 1e-4
    weights_only = solve_frame_changes(wave, columns, wave.abs().square().sum(1), counts, None, fits_scale=False)
    assert not weights_only[1].any()


@pytest.mark.contract("physics.variable-probe.standard-form")
def test_standard_form_changes_no_probe() -> None:
    basis, weights = normal((3, 8, 8), 0), normal((20, 3), 1, torch.float64)
    basis[2] = basis[0] + 0.1 * basis[2]
    turn, found = orthogonalize_variation(basis, weights, 7.0)
    modes = torch.einsum("kl,lyx->kyx", turn.to(basis.dtype), basis)
    before, after = (torch.einsum("mk,kyx->myx", w.to(basis.dtype), b) for w, b in ((weights, basis), (found, modes)))
    assert relative_l2(after, before) < 1e-9
    gram = torch.einsum("kyx,lyx->kl", modes.conj(), modes).real
    assert relative_l2(gram, 7 * torch.eye(3).double()) < 1e-9
    spread = found.mT @ found
    assert float((spread - torch.diag(spread.diagonal())).abs().max()) < 1e-9 * float(spread.max())
    assert bool((spread.diagonal().diff() <= 0).all())


@pytest.mark.contract("physics.variable-probe.smooth")
def test_smoothing_is_a_projection_onto_slow_changes() -> None:
    weights = normal((50, 2), 0, torch.float64)
    once = smooth_weights(weights, 10.0)
    assert_close(smooth_weights(once, 10.0), once, "double")
    time = (torch.arange(50).double() + 0.5) / 50
    slow, fast = (torch.cos(torch.pi * k * time)[:, None].expand(-1, 2) for k in (5, 6))
    assert_close(smooth_weights(slow, 10.0), slow, "double")
    assert float(smooth_weights(fast, 10.0).abs().max()) < tolerance("double")
    assert_close(smooth_weights(weights, 1.0), weights, "double")
