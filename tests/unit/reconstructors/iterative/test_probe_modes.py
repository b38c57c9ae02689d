"""Modes to begin with: what they hold, and what is only a copy or noise."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch
from strategies import make_asymmetric_probe
from tolerances import assert_close

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.iterative.probe_modes import (
    compute_power,
    find_empty_modes,
    orthogonalize_modes,
    set_mode_count,
)


def make_copies(probe: torch.Tensor, noise: float) -> torch.Tensor:
    """Three copies of one mode, each with noise of this part of its RMS."""
    generator = torch.Generator().manual_seed(0)
    copies = probe[:1].expand(3, -1, -1)
    drawn = torch.view_as_complex(torch.randn(*copies.shape, 2, generator=generator, dtype=torch.float64))
    return copies + noise * probe[:1].abs().square().mean().sqrt() * drawn.to(probe.dtype)


@pytest.fixture(scope="module")
def scan() -> Scan:
    """Of two modes."""
    return simulate(
        SimulateConfig(n_px=32, object_px=64, n_frames=64, photons_per_frame=1e6, simulation_seed=3, probe_modes=2)
    )


@pytest.mark.contract("refine.modes.copies")
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3, 0.1])
def test_copies_begin_as_one_mode_and_new_ones(noise: float) -> None:
    probe = make_asymmetric_probe(32)
    copies = make_copies(probe, noise)
    assert find_empty_modes(orthogonalize_modes(copies)).tolist() == [False, True, True]
    found = set_mode_count(copies, 3)
    assert_close(compute_power(found), compute_power(copies), "double")
    powers = found.abs().square().sum((1, 2)) / compute_power(found)
    assert powers[1:].min() > 1e-3
    clean = set_mode_count(probe, 3)
    clean = clean * (compute_power(found) / compute_power(clean)).sqrt()
    assert float((found[0].abs() - clean[0].abs()).norm() / clean[0].norm()) < 0.02 + noise


@pytest.mark.contract("refine.modes.copies")
def test_weak_modes_that_are_no_noise_are_kept() -> None:
    probe = make_asymmetric_probe(32, modes=3)
    weak = probe * torch.tensor([1.0, 0.01, 0.003])[:, None, None]
    modes = orthogonalize_modes(weak)
    assert not find_empty_modes(modes).any()
    scaled = set_mode_count(weak, 3)
    assert_close(scaled, modes, "double")


@pytest.mark.contract("refine.modes.copies")
def test_fit_from_copies_is_that_from_new_modes(scan: Scan, caplog: pytest.LogCaptureFixture) -> None:
    config = RefineConfig(epochs=40, batch_size=8, patience=None)
    one = dataclasses.replace(scan, probe=scan.probe[:1], probe_is_calibrated=False)
    copies = make_copies(torch.from_numpy(scan.probe), 1e-3).numpy().astype(np.complex64)
    with caplog.at_level(logging.WARNING):
        from_copies = refine(dataclasses.replace(one, probe=copies), config=config).history["misfit"][-1]
    assert "2 of the 3 modes of the probe are copies" in caplog.text
    from_one = refine(one, config=config).history["misfit"][-1]
    from_new = refine(one, config=dataclasses.replace(config, n_modes=3)).history["misfit"][-1]
    assert from_copies < 0.7 * from_one
    assert from_copies == pytest.approx(from_new, rel=0.05)
