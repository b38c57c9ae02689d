"""Units: from the file to counts and to the network's input, a dimension test for each path."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import probes, seeds
from tolerances import assert_close
from torch import Tensor

from torchptycho.core.scan import DEFAULT_PHOTONS_PER_FRAME
from torchptycho.physics.diffraction import expected_counts, far_field
from torchptycho.physics.scaling import Scaling, compute_gauge_factor, measure_scaling, sum_frames, to_intensity

N = 16
units = st.floats(1e-6, 1e6)


def frames(seed: int, mean: float = 40.0) -> Tensor:
    """[5, N, N] counts in float64, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    shape = torch.linspace(0, 2 * mean, 5 * N * N, dtype=torch.float64).reshape(5, N, N)
    return torch.poisson(shape, generator=generator)


def mean_intensity(values: Tensor, domain: Any) -> float:
    squared = values.double() if domain == "counts" else values.double().square()
    return float(squared.sum((-2, -1)).mean())


def scaling_of(values: Tensor, domain: Any, nphotons: float | None = None) -> Scaling:
    return measure_scaling(mean_intensity(values, domain), N, domain, nphotons)


def network_input(values: Tensor, scaling: Scaling) -> Tensor:
    squared = values.double() if scaling.domain == "counts" else values.double().square()
    return scaling.input_scale * squared.sqrt()


@pytest.mark.contract("physics.units.input")
@given(seed=seeds, domain=st.sampled_from(["counts", "amplitude"]), unit=units)
def test_mean_frame_of_the_network_input_has_a_quarter_of_n_squared(seed: int, domain: Any, unit: float) -> None:
    values = unit * frames(seed)
    squares = network_input(values, scaling_of(values, domain)).square()
    assert float(squares.sum((-2, -1)).mean()) == pytest.approx((N / 2) ** 2, rel=1e-12)


@pytest.mark.contract("physics.units.counts")
@given(seed=seeds)
def test_intensity_scale_times_input_is_the_root_of_measured_counts(seed: int) -> None:
    counts = frames(seed)
    scaling = scaling_of(counts, "counts")
    assert_close(scaling.intensity_scale * network_input(counts, scaling), counts.sqrt(), "double")
    assert scaling.counts_per_intensity == 1.0
    assert scaling.photons_per_frame == pytest.approx(float(counts.sum()) / 5, rel=1e-12)


@pytest.mark.contract("physics.units.amplitude")
@given(seed=seeds, unit=units, nphotons=st.floats(1, 1e12))
def test_amplitudes_of_any_unit_stand_for_the_stated_photons(seed: int, unit: float, nphotons: float) -> None:
    amplitude = unit * frames(seed).sqrt()
    scaling = scaling_of(amplitude, "amplitude", nphotons)
    counts = scaling.counts_per_intensity * amplitude.square()
    assert float(counts.sum((-2, -1)).mean()) == pytest.approx(nphotons, rel=1e-12)
    assert_close(scaling.intensity_scale * network_input(amplitude, scaling), counts.sqrt(), "double")


@pytest.mark.contract("physics.units.amplitude")
@given(seed=seeds, unit=units)
def test_network_input_does_not_depend_on_the_unit_or_the_domain(seed: int, unit: float) -> None:
    counts = frames(seed)
    reference = network_input(counts, scaling_of(counts, "counts"))
    for values, domain in ((unit * counts, "counts"), (unit * counts.sqrt(), "amplitude")):
        assert_close(network_input(values, scaling_of(values, domain)), reference, "double")


@pytest.mark.contract("physics.units.counts")
def test_measured_counts_say_their_photons_themselves() -> None:
    counts = frames(1)
    assert scaling_of(counts, "counts", nphotons=1e9) == scaling_of(counts, "counts")


@pytest.mark.contract("physics.units.amplitude")
def test_amplitudes_without_a_dose_stand_for_a_billion_photons() -> None:
    assert DEFAULT_PHOTONS_PER_FRAME == 1e9
    assert scaling_of(frames(1), "amplitude").photons_per_frame == 1e9


@pytest.mark.contract("physics.units.refused")
@pytest.mark.parametrize("mean", [0.0, -1.0, math.nan, math.inf])
def test_scan_without_light_has_no_scale(mean: float) -> None:
    with pytest.raises(ValueError, match=f"mean_intensity: expected a positive number; found {mean}"):
        measure_scaling(mean, N, "counts")


@pytest.mark.contract("physics.units.integer")
@given(value=st.integers(0, 65535))
def test_sixteen_bit_frames_do_not_overflow(value: int) -> None:
    raw = torch.full((1, 2, 2), value, dtype=torch.uint16)
    for domain, expected in (("counts", value), ("amplitude", value**2)):
        found = to_intensity(raw, domain)  # type: ignore[arg-type]
        assert found.dtype == torch.float32
        assert_close(found.double(), torch.full((1, 2, 2), float(expected), dtype=torch.float64), "stored_single")


@pytest.mark.contract("physics.units.integer")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64, torch.float32, torch.float64])
def test_largest_values_of_every_detector_dtype_keep_their_intensity(dtype: torch.dtype) -> None:
    largest = min(torch.iinfo(dtype).max, 2**24) if not dtype.is_floating_point else 2**24
    raw = torch.tensor([0, 1, largest]).to(dtype)
    assert_close(to_intensity(raw, "counts"), torch.tensor([0.0, 1.0, largest], dtype=torch.float64), "stored_single")
    assert_close(to_intensity(raw, "amplitude"), torch.tensor([0, 1, largest**2]).double(), "stored_single")


@pytest.mark.contract("physics.units.gauge")
@given(probe=probes(N), photons=st.floats(1, 1e12))
def test_gauged_probe_brings_the_photons_of_a_frame_through_a_transparent_object(probe: Tensor, photons: float) -> None:
    gauged = compute_gauge_factor(probe, photons) * probe
    counts = expected_counts(torch.ones(N, N, dtype=torch.complex128), gauged)
    assert float(counts.sum()) == pytest.approx(photons, rel=1e-12)


@pytest.mark.contract("physics.units.gauge")
@given(probe=probes(N), photons=st.floats(1, 1e12))
def test_gauged_probe_brings_the_photons_of_the_good_pixels_past_a_beam_stop(probe: Tensor, photons: float) -> None:
    mask = torch.ones(N, N, dtype=torch.bool)
    mask[N // 2 - 2 : N // 2 + 2, N // 2 - 2 :] = False
    gauged = compute_gauge_factor(probe, photons, mask) * probe
    counts = expected_counts(torch.ones(N, N, dtype=torch.complex128), gauged)
    assert float(counts[mask].sum()) == pytest.approx(photons, rel=1e-12)
    assert compute_gauge_factor(probe, photons, torch.ones_like(mask)) == compute_gauge_factor(probe, photons)


@pytest.mark.contract("physics.units.gauge")
def test_a_beam_that_the_stop_hides_has_no_gauge() -> None:
    mask = torch.ones(N, N, dtype=torch.bool)
    mask[N // 2, N // 2] = False
    flat = torch.ones(1, N, N, dtype=torch.complex64)
    assert float(far_field(flat)[0, mask].abs().max()) < 1e-5
    with pytest.raises(ValueError, match="good pixels"):
        compute_gauge_factor(flat, 1e6, mask)


@pytest.mark.contract("physics.units.gauge")
@given(probe=probes(N), unit=units)
def test_gauge_factor_undoes_any_unit_of_the_probe(probe: Tensor, unit: float) -> None:
    assert compute_gauge_factor(unit * probe, 1e6) * unit == pytest.approx(compute_gauge_factor(probe, 1e6), rel=1e-12)


def test_scaling_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        scaling_of(frames(1), "counts").input_scale = 1.0  # type: ignore[misc]


@pytest.mark.contract("physics.units.counts")
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("domain", ["counts", "amplitude"])
def test_sums_of_frames_do_not_overflow_and_lose_no_count(dtype: str, domain: Any) -> None:
    kind = np.dtype(dtype)
    largest = 2**24 if kind.kind == "f" else min(int(np.iinfo(kind).max), 2**52)
    frames = np.zeros((3, 4, 4), kind)
    frames[0], frames[1, 2, 3], frames[2] = largest, 1, 3
    frames[2, 0, 0] = largest - 1
    squared = 2 if domain == "amplitude" else 1
    exact = [sum(int(value) ** squared for value in frame.ravel()) for frame in frames]
    found = sum_frames(frames, domain)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.array(exact, float), rtol=1e-15)


def test_integer_sums_are_exact_up_to_the_largest_that_fit() -> None:
    # 2^16 - 1 in 257 x 257 pixels is above 2^32.
    for edge in (256, 257):
        frames = np.full((1, edge, edge), 65535, np.uint16)
        assert sum_frames(frames, "counts").tolist() == [65535 * edge**2]
