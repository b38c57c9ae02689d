"""The halves of a resolution estimate share no frame: a common frame would make their correlation too good."""

from __future__ import annotations

import numpy as np
import pytest

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.resolution import resolution, split_into_halves


@pytest.mark.parametrize("count", [8, 9, 57])
def test_halves_share_no_frame_and_hold_all(count: int) -> None:
    positions_px = np.random.default_rng(count).uniform(0, 60, (count, 2))
    first, second = split_into_halves(positions_px)
    assert abs(len(first) - len(second)) <= 1
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(count))


def test_each_half_is_refined_from_its_own_frames() -> None:
    scan = simulate(SimulateConfig(n_px=32, object_px=72, n_frames=40, probe_defocus_waves=1))
    found = resolution(scan, config=RefineConfig(epochs=1))
    first, second = (half.positions_px for half in found.halves)
    assert first is not None
    assert second is not None
    places = np.concatenate([first, second])
    assert len(np.unique(places, axis=0)) == scan.n_frames
    np.testing.assert_allclose(np.sort(places, axis=0), np.sort(scan.positions_px, axis=0))


@pytest.mark.contract("refine.regularise.halves")
def test_halves_are_refined_without_a_prior() -> None:
    scan = simulate(SimulateConfig(n_px=32, object_px=72, n_frames=40, photons_per_frame=1e4, probe_defocus_waves=1))
    config = RefineConfig(epochs=4, regularization="tv", regularization_strength=0.3)
    with_prior = resolution(scan, config=config)
    without = resolution(scan, config=RefineConfig(epochs=4, regularization="none"))
    np.testing.assert_array_equal(with_prior.halves[0].object, without.halves[0].object)
