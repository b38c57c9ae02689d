"""The power of a probe that is not refined."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from torchptycho.core.config import SimulateConfig
from torchptycho.data.simulation import simulate
from torchptycho.physics.scaling import compute_probe_factor, measure_scaling

SCAN = dataclasses.replace(
    simulate(
        SimulateConfig(
            n_px=32, object_px=80, n_frames=8, photons_per_frame=1e5, probe_kind="gaussian", probe_diameter_px=9
        )
    ),
    probe_is_calibrated=False,
)
POWER = float((np.abs(SCAN.probe) ** 2).sum())


@pytest.mark.contract("refine.probe.fixed")
@pytest.mark.parametrize(("transmitted", "known"), [(1.0, True), (0.5, True), (0.1, True), (2.0, False), (1e-3, False)])
def test_a_fixed_probe_keeps_a_power_that_can_be_the_incident_photons(transmitted: float, known: bool) -> None:
    scaling = measure_scaling(POWER * transmitted, SCAN.n_px, "counts")
    fitted = compute_probe_factor(SCAN, scaling)
    assert fitted**2 == pytest.approx(transmitted)
    assert compute_probe_factor(SCAN, scaling, probe_is_fixed=True) == (1.0 if known else fitted)
    stated = dataclasses.replace(SCAN, probe_is_calibrated=True)
    assert compute_probe_factor(stated, scaling, probe_is_fixed=True) == 1.0
