"""The far-field experiment against formulas that share no code with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategies import make_asymmetric_probe, normal
from tolerances import assert_close

from torchptycho.physics.diffraction import expected_counts, far_field, illuminate, measurement
from torchptycho.physics.noise import poisson_deviance, poisson_nll


def dft_matrix(n_px: int) -> np.ndarray:
    """Row k - n//2 holds exp(-2 pi i k x / n) / sqrt(n)."""
    index = np.arange(n_px)
    return np.exp(-2j * np.pi * np.outer(index - n_px // 2, index) / n_px) / np.sqrt(n_px)


def numpy_counts(patch: np.ndarray, probe: np.ndarray) -> np.ndarray:
    """sum_m |sum_yx P_m O exp(-2 pi i (ky + lx) / N)|^2 / N^2, as a sum over pixels."""
    matrix = dft_matrix(patch.shape[-1])
    waves = np.einsum("ky,myx,lx->mkl", matrix, probe * patch, matrix)
    return np.asarray((np.abs(waves) ** 2).sum(0))


@pytest.mark.contract("physics.far-field.photons")
@pytest.mark.parametrize("n_px", [7, 16, 64])
def test_far_field_conserves_photons(n_px: int) -> None:
    wave = normal((3, n_px, n_px), n_px)
    assert_close(far_field(wave).abs().square().sum((-2, -1)), wave.abs().square().sum((-2, -1)), "double")


@pytest.mark.contract("physics.far-field.photons")
def test_detector_counts_the_photons_of_the_probe_through_a_transparent_object() -> None:
    counts = expected_counts(
        torch.ones(64, 64, dtype=torch.complex64), make_asymmetric_probe(64, 2, 1e6, torch.complex64)
    )
    assert_close(counts.sum(), torch.tensor(1e6), "single_fft")


@pytest.mark.contract("physics.far-field.center")
@pytest.mark.parametrize("n_px", [7, 8, 64])
def test_plane_wave_along_the_axis_arrives_at_the_central_pixel(n_px: int) -> None:
    far = far_field(torch.ones(n_px, n_px, dtype=torch.complex128))
    expected = torch.zeros_like(far)
    expected[n_px // 2, n_px // 2] = n_px
    assert_close(far, expected, "double")


@pytest.mark.contract("physics.far-field.center")
def test_tilted_wave_arrives_at_positive_frequencies_of_its_own_axis() -> None:
    y = torch.arange(16, dtype=torch.float64)[:, None]
    x = torch.arange(16, dtype=torch.float64)
    counts = far_field(torch.polar(torch.ones(16, 16, dtype=torch.float64), 2 * torch.pi * (3 * y - 2 * x) / 16)).abs()
    assert np.unravel_index(int(counts.argmax()), (16, 16)) == (8 + 3, 8 - 2)


@pytest.mark.contract("physics.far-field.formula")
@pytest.mark.parametrize("n_px", [7, 12])
def test_far_field_is_the_explicit_fourier_sum(n_px: int) -> None:
    wave = normal((n_px, n_px), 5)
    matrix = torch.from_numpy(dft_matrix(n_px))
    assert_close(far_field(wave), matrix @ wave @ matrix.T, "double")


@pytest.mark.contract("physics.counts.modes")
def test_incoherent_modes_add_intensities_not_amplitudes() -> None:
    patch, probe = normal((16, 16), 6), make_asymmetric_probe(16, 3)
    one_by_one = sum(expected_counts(patch, probe[m : m + 1]) for m in range(3))
    assert isinstance(one_by_one, torch.Tensor)
    assert_close(expected_counts(patch, probe), one_by_one, "double")
    coherent = expected_counts(patch, probe.sum(0, keepdim=True))
    assert float((coherent - one_by_one).norm() / one_by_one.norm()) > 0.1


@pytest.mark.contract("physics.counts.modes")
def test_rotating_the_modes_among_each_other_changes_no_count() -> None:
    patch, probe = normal((16, 16), 6), make_asymmetric_probe(16, 2)
    c, s = np.cos(0.4), np.sin(0.4)
    rotated = torch.stack([c * probe[0] + 1j * s * probe[1], 1j * s * probe[0] + c * probe[1]])
    assert_close(expected_counts(patch, rotated), expected_counts(patch, probe), "double")


@pytest.mark.contract("physics.counts.formula")
@pytest.mark.parametrize(("dtype", "close"), [(torch.complex128, "double"), (torch.complex64, "single_fft")])
def test_expected_counts_are_the_written_formula_for_probes_without_symmetry(dtype: torch.dtype, close: str) -> None:
    patches, probe = normal((4, 14, 14), 7), make_asymmetric_probe(14, 3)
    counts = expected_counts(patches.to(dtype), probe.to(dtype))
    expected = np.stack([numpy_counts(patch, probe.numpy()) for patch in patches.numpy()])
    assert_close(counts, torch.from_numpy(expected), close)


@pytest.mark.contract("physics.counts.formula")
def test_each_group_may_have_its_own_probe() -> None:
    patches, probes = normal((2, 3, 10, 10), 8), torch.stack([make_asymmetric_probe(10, 2), normal((2, 10, 10), 9)])
    counts = expected_counts(patches, probes[:, None])
    assert counts.shape == (2, 3, 10, 10)
    for group in range(2):
        assert_close(counts[group], expected_counts(patches[group], probes[group]), "double")


@pytest.mark.contract("physics.counts.formula")
def test_experiment_reads_as_measurement_of_the_far_field_of_the_exit_wave() -> None:
    patch, probe = normal((10, 10), 10), make_asymmetric_probe(10, 2)
    exit_wave = illuminate(patch, probe)
    assert torch.equal(exit_wave, patch * probe)
    assert torch.equal(measurement(far_field(exit_wave)), expected_counts(patch, probe))


@pytest.mark.contract("physics.counts.gradient")
def test_gradients_for_object_and_probe_agree_with_finite_differences() -> None:
    patch = normal((2, 6, 6), 11).requires_grad_()
    probe = make_asymmetric_probe(6, 2, photons=30).requires_grad_()
    assert torch.autograd.gradcheck(expected_counts, (patch, probe), eps=1e-6, atol=1e-6, rtol=1e-6)


@pytest.mark.contract("physics.counts.dark")
@pytest.mark.parametrize("loss", [poisson_nll, poisson_deviance])
@pytest.mark.parametrize("dark", ["object", "probe", "both"])
def test_gradient_is_finite_where_the_field_is_zero(loss: object, dark: str) -> None:
    patch, probe = normal((8, 8), 12, torch.complex64), make_asymmetric_probe(8, 2, dtype=torch.complex64)
    patch = (patch * (dark == "probe")).requires_grad_()
    probe = (probe * (dark == "object")).requires_grad_()
    assert callable(loss)
    loss(expected_counts(patch, probe), torch.full((8, 8), 3.0)).backward()
    for leaf in (patch, probe):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())
