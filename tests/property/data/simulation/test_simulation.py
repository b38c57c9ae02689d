"""What must hold for any simulated experiment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchptycho.core.config import SimulateConfig
from torchptycho.data.simulation import make_object, make_positions, simulate

seeds = st.integers(min_value=0, max_value=2**32 - 1)
position_kinds = st.sampled_from(["raster", "fermat", "random"])
object_kinds = st.sampled_from(["dead_leaves", "lines", "gaussian_field", "siemens_star"])


@pytest.mark.contract("simulation.positions.inside")
@pytest.mark.contract("simulation.positions.count")
@settings(max_examples=25)
@given(
    seed=seeds,
    kind=position_kinds,
    n_frames=st.integers(1, 300),
    half_n=st.integers(4, 32),
    extra=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    jitter_px=st.floats(0, 20),
)
def test_drawn_patches_lie_within_the_object(
    seed: int, kind: Any, n_frames: int, half_n: int, extra: tuple[int, int], jitter_px: float
) -> None:
    config = SimulateConfig(n_px=2 * half_n, n_frames=n_frames, position_kind=kind, position_jitter_px=jitter_px)
    shape = (2 * half_n + extra[0], 2 * half_n + extra[1])
    positions = make_positions(config, np.random.default_rng(seed), shape)
    first = np.floor(positions - half_n)
    assert first.min() >= 0
    assert np.all(first + 2 * half_n <= np.array(shape) - 1)
    assert len(positions) >= n_frames if kind == "raster" else len(positions) == n_frames
    # A raster has no more than one row or column too many.
    assert len(positions) <= n_frames + 300


@pytest.mark.contract("simulation.object.range")
@given(
    seed=seeds,
    kind=object_kinds,
    size_px=st.integers(16, 80),
    amplitude_min=st.floats(0, 1),
    phase_range_rad=st.floats(0, 6),
)
def test_object_never_amplifies(
    seed: int, kind: Any, size_px: int, amplitude_min: float, phase_range_rad: float
) -> None:
    config = SimulateConfig(
        object_kind=kind, object_px=size_px, amplitude_min=amplitude_min, phase_range_rad=phase_range_rad
    )
    field = make_object(config, np.random.default_rng(seed))
    assert np.abs(field).max() <= 1 + 1e-6
    assert np.abs(field).min() >= amplitude_min - 1e-6
    if amplitude_min > 0.01:
        assert np.abs(np.angle(field)).max() <= phase_range_rad / 2 + 1e-5


@pytest.mark.contract("simulation.probe.gauge")
@settings(max_examples=10)
@given(seed=seeds, kind=position_kinds, photons=st.floats(1, 1e6), modes=st.integers(1, 3))
def test_no_frame_expects_more_photons_than_the_beam_brings(seed: int, kind: Any, photons: float, modes: int) -> None:
    config = SimulateConfig(
        n_px=32,
        object_px=72,
        n_frames=12,
        position_kind=kind,
        photons_per_frame=photons,
        probe_modes=modes,
        noise=False,
        simulation_seed=seed,
    )
    scan = simulate(config)
    per_frame = scan.frames[:].sum(axis=(1, 2), dtype=np.float64)
    assert np.sum(np.abs(scan.probe.astype(np.complex128)) ** 2) == pytest.approx(photons, rel=1e-6)
    assert per_frame.max() <= photons * (1 + 1e-5)
    assert per_frame.min() >= photons * config.amplitude_min**2 * (1 - 1e-5)


@pytest.mark.contract("simulation.seed.determinism")
@settings(max_examples=8)
@given(seed=seeds, kind=object_kinds, position_kind=position_kinds)
def test_any_seed_repeats_itself(seed: int, kind: Any, position_kind: Any) -> None:
    config = SimulateConfig(
        n_px=32, object_px=64, n_frames=6, object_kind=kind, position_kind=position_kind, simulation_seed=seed
    )
    assert simulate(config).frames[:].tobytes() == simulate(config).frames[:].tobytes()
