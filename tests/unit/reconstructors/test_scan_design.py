"""Predictions of planned scans."""

from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np
import pytest
import torch

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import ConfigError
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.scan_design import ScanDesign, measure_seconds, plan_design, plan_from_scan
from torchptycho.reconstructors.scan_prediction import ScanPrediction, compute_efficiency, predict_scan

_CONFIG = SimulateConfig(n_px=32, object_px=64, n_frames=60, photons_per_frame=1e6, simulation_seed=4)


@functools.cache
def predict() -> ScanPrediction:
    return predict_scan(plan_design(_CONFIG))


def make_electron_probe(*, speckled: bool) -> np.ndarray:
    """The focus of a round aperture, or of the same one behind a diffuser."""
    from scipy.ndimage import gaussian_filter

    along = np.arange(32) - 16
    aperture = np.clip(8.5 - np.hypot(along[:, None], along), 0, 1)
    phase = gaussian_filter(np.random.default_rng(0).normal(size=(32, 32)), 1.2)
    wave = aperture * np.exp(2.5j * phase / phase.std() * speckled)
    return np.asarray(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(wave))), dtype=np.complex64)


@pytest.mark.contract("design.simulated")
def test_design_is_the_scan_that_simulate_makes_of_the_same_options() -> None:
    design, scan = plan_design(_CONFIG), simulate(_CONFIG)
    assert scan.truth is not None
    assert np.array_equal(design.object, scan.truth)
    assert np.array_equal(design.positions_px, scan.positions_px)
    assert np.array_equal(design.probe, scan.probe)
    again = plan_from_scan(scan, dataclasses.replace(_CONFIG, photons_per_frame=4e6))
    assert np.allclose(again.probe, 2 * scan.probe, rtol=1e-5)
    moved = again.positions_px - scan.positions_px
    assert np.ptp(moved, axis=0).max() < 1e-9


@pytest.mark.contract("design.error")
def test_predicted_error_is_that_of_a_refinement() -> None:
    scan = simulate(_CONFIG)
    image = refine(scan, config=RefineConfig(epochs=40, regularization="none"), device="cpu")
    achieved = evaluate(image, scan)
    found = predict()
    assert abs(found.complex_nrmse / achieved.complex_nrmse - 1) < 0.25
    assert abs(found.half_period_px / achieved.resolution_half_px - 1) < 0.25


@pytest.mark.contract("design.error")
def test_four_times_the_photons_halve_the_error() -> None:
    design = plan_design(_CONFIG)
    more = predict_scan(dataclasses.replace(design, probe=2 * design.probe))
    assert 1.7 < predict().complex_nrmse / more.complex_nrmse < 2.6


@pytest.mark.contract("design.speckle")
def test_speckled_probe_attains_half_the_quantum_limit_and_a_focused_one_does_not_where_waves_are_long() -> None:
    found = {}
    for speckled in (True, False):
        design = plan_design(_CONFIG, probe=make_electron_probe(speckled=speckled))
        corners_px = torch.from_numpy(design.positions_px - 16)
        object = torch.from_numpy(np.pad(design.object, 1, mode="edge"))
        found[speckled] = compute_efficiency(object, torch.from_numpy(design.probe), corners_px, (0.05, 0.1, 0.2, 0.4))
    speckled, focused = found[True], found[False]
    assert all(0.42 < part < 0.58 for part in speckled[1:])
    assert speckled[0] > 0.35
    assert focused[0] < 0.4 * speckled[0]
    assert focused[1] < 0.7 * speckled[1]
    assert 0.42 < focused[3] < 0.58


@pytest.mark.contract("design.advice")
def test_advice_names_what_reaches_a_resolution_and_keeps_a_dose() -> None:
    few = plan_design(dataclasses.replace(_CONFIG, photons_per_frame=2e3))
    advice = predict_scan(few, resolution_px=1.05, photons_per_px=1.0).advice
    factors = [re.search(r"needs about ([0-9.e+]+) times the photons", line) for line in advice]
    assert any(found is not None and float(found[1]) > 1 for found in factors), advice
    assert any("photons pass a pixel; for 1," in line for line in advice), advice
    assert any("below one pixel" in line for line in predict_scan(few, resolution_px=0.5).advice)
    sparse = plan_design(dataclasses.replace(_CONFIG, n_frames=12))
    assert any(line.startswith("Neighbouring frames overlap by") for line in predict_scan(sparse).advice)


@pytest.mark.contract("design.refused")
def test_near_field_probes_of_another_size_and_frames_that_lie_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected far; found near"):
        plan_design(dataclasses.replace(_CONFIG, propagation="near"))
    with pytest.raises(ConfigError, match="expected 32 px, as n_px says; found 16 px"):
        plan_design(_CONFIG, probe=np.ones((16, 16), np.complex64))
    focused = plan_design(_CONFIG, probe=make_electron_probe(speckled=False))
    with pytest.raises(ConfigError, match="expected frames that cover a field together"):
        predict_scan(focused)


@pytest.mark.contract("design.cost")
def test_data_volume_and_time_grow_with_the_scan() -> None:
    design, found = plan_design(_CONFIG), predict()
    assert found.frames_bytes == 60 * 32 * 32 * 2
    assert found.canvas_bytes > 64 * 60 * 60
    assert isinstance(design, ScanDesign)
    seconds = measure_seconds(design, epochs=10)
    assert 0 < seconds < 600


@pytest.mark.contract("design.refused")
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"n_slices": 2}, "n_slices"),
        ({"probe_drift_px": 1.0}, "probe_drift_px"),
        ({"power_fluctuation": 0.1}, "power_fluctuation"),
        ({"probe_wander": 0.1}, "probe_wander"),
        ({"noise": False}, "noise"),
    ],
)
def test_options_that_a_prediction_would_ignore_are_refused(options: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=f"^{what}: expected"):
        plan_design(dataclasses.replace(_CONFIG, **options))  # type: ignore[arg-type]


@pytest.mark.contract("design.refused")
def test_near_field_scans_and_numbers_that_are_not_above_0_are_refused() -> None:
    near = simulate(dataclasses.replace(_CONFIG, n_frames=8, propagation="near"))
    with pytest.raises(ConfigError, match="expected a far-field scan"):
        plan_from_scan(near)
    with pytest.raises(ConfigError, match="object_pixel_m: expected a number above 0"):
        plan_design(_CONFIG, object_pixel_m=-1e-8)
    for name in ("resolution_px", "photons_per_px"):
        with pytest.raises(ConfigError, match=f"{name}: expected a number above 0"):
            predict_scan(plan_design(_CONFIG), **{name: 0.0})  # type: ignore[arg-type]


@pytest.mark.contract("design.simulated")
def test_design_with_an_electron_probe_has_the_pixel_of_the_simulated_scan() -> None:
    config = dataclasses.replace(_CONFIG, probe_kind="electron", n_frames=8)
    assert plan_design(config).object_pixel_m == pytest.approx(simulate(config).geometry.object_pixel_m)
