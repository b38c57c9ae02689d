"""The halves of a resolution estimate share no frame: a common frame would make their correlation too good."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import EvaluationError, ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import near_field
from torchptycho.io.frames.selection import pick_frames
from torchptycho.models.prior import load_prior, save_prior
from torchptycho.reconstructors.iterative import refine
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


def test_the_halves_are_compared_with_each_other_and_refined_as_configured() -> None:
    scan = simulate(SimulateConfig(n_px=32, object_px=72, n_frames=40, photons_per_frame=1e5, probe_defocus_waves=1))
    scan = dataclasses.replace(scan, geometry=Geometry(object_pixel_m=2e-8))
    config = RefineConfig(epochs=3, refine_seed=7, regularization="none")
    found = resolution(scan, config=config, device="cpu")
    for half, rows in zip(found.halves, split_into_halves(scan.positions_px), strict=True):
        alone = refine(pick_frames(scan, rows), config=config, device="cpu")
        np.testing.assert_array_equal(half.object, alone.object)
    first, second = found.halves
    known = np.where(second.valid, second.object, np.nan).astype(np.complex64)
    assert found.metrics.to_dict() == evaluate(first, known, truth_origin_px=second.origin_px).to_dict()
    frequency = found.metrics.frc_half_bit_cycles_per_px
    assert 0 < frequency <= 0.5
    assert found.half_period_px == 0.5 / frequency
    assert found.half_period_m == pytest.approx(0.5 / frequency * 2e-8)


@pytest.mark.parametrize("frames", [15, 16])
def test_too_few_frames_have_no_halves(frames: int) -> None:
    scan = simulate(SimulateConfig(n_px=32, object_px=72, n_frames=40, probe_defocus_waves=1))
    part = pick_frames(scan, np.arange(frames))
    if frames == 15:
        with pytest.raises(EvaluationError, match="expected 16 frames or more; found 15"):
            resolution(part, config=RefineConfig(epochs=1))
    else:
        assert len(resolution(part, config={"epochs": 1}).halves) == 2


@pytest.mark.contract("refine.regularise.halves")
def test_halves_are_refined_without_a_prior(tmp_path: Path) -> None:
    scan = simulate(SimulateConfig(n_px=32, object_px=72, n_frames=40, photons_per_frame=1e4, probe_defocus_waves=1))
    config = RefineConfig(epochs=4, regularization="tv", regularization_strength=0.3)
    with_prior = resolution(scan, config=config)
    without = resolution(scan, config=RefineConfig(epochs=4, regularization="none"))
    np.testing.assert_array_equal(with_prior.halves[0].object, without.halves[0].object)
    weights = str(save_prior(load_prior().network, tmp_path / "mine.safetensors", {}))
    with_weights = resolution(scan, config=RefineConfig(epochs=4, regularization="learned", prior_weights=weights))
    np.testing.assert_array_equal(with_weights.halves[0].object, without.halves[0].object)


@pytest.mark.contract("files.near-field.stated")
def test_halves_are_what_all_frames_are(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = simulate(SimulateConfig(n_px=32, object_px=72, n_frames=40, photons_per_frame=1e4, probe_defocus_waves=1))
    asked: list[int] = []

    def detect(part: Scan) -> object:
        asked.append(part.n_frames)
        return None if part.n_frames == scan.n_frames else "fewer frames look like images"

    monkeypatch.setattr(near_field, "detect_near_field", detect)
    assert resolution(scan, config=RefineConfig(epochs=1)).metrics.n_pixels > 0
    assert asked == [scan.n_frames]
    with pytest.raises(ScanError, match="fewer frames look like images"):
        refine(pick_frames(scan, np.arange(20)), config=RefineConfig(epochs=1))
