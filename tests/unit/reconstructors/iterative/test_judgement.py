"""Fits that cannot be right, and high misfits that are no fault."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.reconstructors.iterative import refine, summarize_fit
from torchptycho.reconstructors.iterative.fit import EpochFit
from torchptycho.reconstructors.iterative.judgement import (
    HOPELESS_UNEXPLAINED,
    compute_unexplained,
    judge_fit,
    judge_illumination,
)
from torchptycho.reconstructors.iterative.problem import measure_variation, open_problem

CONFIG = RefineConfig(epochs=24, batch_size=8, patience=None)


def make_scan(photons: float, **options: Any) -> Scan:
    made = SimulateConfig(
        n_px=32,
        object_px=64,
        n_frames=64,
        photons_per_frame=photons,
        simulation_seed=3,
        probe_kind="gaussian",
        **options,
    )
    return simulate(made)


def exchange_axes(scan: Scan) -> Scan:
    return dataclasses.replace(scan, positions_px=np.ascontiguousarray(scan.positions_px[:, ::-1]))


def shift_positions(scan: Scan, rms_px: float) -> Scan:
    off = np.random.default_rng(0).normal(0, rms_px, scan.positions_px.shape)
    return dataclasses.replace(scan, positions_px=scan.positions_px + off)


def get_unexplained(image: Reconstruction) -> float:
    return image.history["unexplained"][-1]


@pytest.mark.contract("refine.unexplained")
def test_the_same_error_leaves_as_much_at_any_dose() -> None:
    few, many = (refine(exchange_axes(make_scan(photons)), config=CONFIG) for photons in (1e6, 1e8))
    assert many.history["misfit"][-1] > 20 * few.history["misfit"][-1]
    assert get_unexplained(many) == pytest.approx(get_unexplained(few), rel=0.2)


@pytest.mark.contract("refine.unexplained")
def test_one_pattern_for_all_frames_explains_nothing() -> None:
    scan = make_scan(1e7)
    with open_problem(scan) as problem:
        variation = problem.variation
    frames = np.asarray(scan.frames[:], np.float64)
    expected = ((np.sqrt(frames) - np.sqrt(frames.mean(0))) ** 2).sum() / frames.sum()
    assert variation == pytest.approx(expected, rel=1e-3)
    noise = 0.25 * frames[0].size / 1e7
    fit = EpochFit(misfit=variation / noise, residual=variation)
    assert compute_unexplained(fit, variation) == pytest.approx(1)
    assert compute_unexplained(EpochFit(misfit=0.9, residual=variation), variation) == 0


@pytest.mark.contract("refine.unexplained")
def test_amplitudes_vary_as_their_counts_do() -> None:
    scan = make_scan(1e7)
    amplitudes = ArrayFrames(np.sqrt(np.asarray(scan.frames[:], np.float32)))
    with (
        open_problem(scan) as counts,
        open_problem(dataclasses.replace(scan, frames=amplitudes, domain="amplitude")) as same,
    ):
        assert same.variation == pytest.approx(counts.variation, rel=1e-4)


@pytest.mark.contract("refine.hopeless")
@pytest.mark.parametrize("photons", [1e5, 1e8])
def test_exchanged_axes_are_reported(photons: float, caplog: pytest.LogCaptureFixture) -> None:
    scan = exchange_axes(make_scan(photons))
    with caplog.at_level(logging.WARNING):
        image = refine(scan, config=CONFIG)
    warning, *_ = image.provenance["warnings"]
    assert warning in caplog.text
    for word in ("orientation", "units", "mask", "domain", "background", f"after {CONFIG.epochs} epochs"):
        assert word in warning
    assert "\n" not in warning


@pytest.mark.contract("refine.hopeless")
def test_a_high_misfit_at_a_high_dose_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    image = refine(shift_positions(make_scan(5e7), 0.5), config=CONFIG)
    assert image.history["misfit"][-1] > 100
    assert image.provenance["warnings"] == []
    assert not caplog.records


@pytest.mark.contract("refine.hopeless")
@pytest.mark.parametrize("photons", [1e3, 1e9])
def test_a_right_scan_is_not_reported(photons: float) -> None:
    assert refine(make_scan(photons), config=CONFIG).provenance["warnings"] == []


@pytest.mark.contract("refine.hopeless")
def test_a_beginning_is_not_judged_and_a_fit_that_improves_is_given_time() -> None:
    unexplained = list(np.linspace(1.0, 2 * HOPELESS_UNEXPLAINED, 12))
    history = {"misfit": [9.0] * 12, "unexplained": unexplained}
    said = judge_fit(history, "scan")
    assert said is not None
    assert said.endswith("more epochs before that.")
    assert judge_fit({name: values[:5] for name, values in history.items()}, "scan") is None
    settled = {"misfit": [9.0] * 12, "unexplained": [2 * HOPELESS_UNEXPLAINED] * 12}
    said = judge_fit(settled, "scan")
    assert said is not None
    assert "more epochs" not in said
    assert "--position-update" not in said


@pytest.mark.contract("refine.hopeless")
def test_what_small_position_errors_leave_as_well_is_told_from_them() -> None:
    history = {"misfit": [9.0] * 12, "unexplained": [1.1 * HOPELESS_UNEXPLAINED] * 12}
    said = judge_fit(history, "scan")
    assert said is not None
    assert "--position-update frames" in said
    corrected = judge_fit(history, "scan", corrects_positions=True)
    assert corrected is not None
    assert "--position-update" not in corrected


@pytest.mark.contract("refine.residual")
@pytest.mark.parametrize("method", ["rpie", "gradient"])
@pytest.mark.parametrize("likelihood", ["poisson", "amplitude"])
def test_residual_is_that_of_the_image(method: Any, likelihood: Any) -> None:
    """At the truth, which stays where it is, only photon noise is left: 1/4 in each lit pixel, over the counts."""
    scan = make_scan(1e8)
    mask = np.ones((32, 32), bool)
    mask[:, :5] = False
    spoilt = np.asarray(scan.frames[:], np.float64)
    spoilt[:, :, :5] = 1e6
    scan = dataclasses.replace(scan, frames=ArrayFrames(spoilt), mask=mask)
    assert scan.truth is not None
    whole = np.ones(scan.truth.shape, np.float32)
    truth = Reconstruction(object=scan.truth, coverage=whole, valid=whole > 0, origin_px=(0, 0))
    config = RefineConfig(
        epochs=1, method=method, likelihood=likelihood, probe_update=False, learning_rate=1e-6, step=1e-6, momentum=0
    )
    image = refine(scan, truth, config=config)
    counts = spoilt[:, mask]
    lit = (counts.mean(0) > 5).sum()
    assert image.history["residual"][-1] == pytest.approx(0.25 * lit * len(counts) / counts.sum(), rel=0.3)
    assert summarize_fit(image.history)["residual"] == image.history["residual"][-1]


def test_variation_of_equal_frames_is_nothing() -> None:
    pattern = np.arange(16.0).reshape(4, 4)
    assert measure_variation(3 * pattern, 3 * np.sqrt(pattern), 3) < 1e-12


@pytest.mark.contract("refine.runaway")
def test_a_probe_that_shrank_and_a_canvas_in_parts_are_reported() -> None:
    history = {"unexplained": [0.1] * 12}
    whole = np.ones((16, 16), np.float32)
    parts = np.zeros((16, 16), np.float32)
    parts[1:5, 1:5] = parts[8:12, 8:12] = 1
    assert judge_illumination(history, 1.0, whole, "scan") is None
    shrunk, apart = judge_illumination(history, 0.1, whole, "scan"), judge_illumination(history, 1.0, parts, "scan")
    assert shrunk is not None
    assert "shrunk to 10% of the area" in shrunk
    assert apart is not None
    assert "falls into 2 parts" in apart
    assert judge_illumination({"unexplained": [0.0] * 12}, 0.1, parts, "scan") is None


@pytest.mark.contract("refine.runaway")
def test_a_runaway_is_recorded(caplog: pytest.LogCaptureFixture) -> None:
    scan = make_scan(1e7)
    middle = scan.positions_px.mean(0)
    apart = dataclasses.replace(scan, positions_px=middle + 20 * (scan.positions_px - middle))
    with caplog.at_level(logging.WARNING):
        image = refine(apart, config=dataclasses.replace(CONFIG, epochs=12))
    assert any("falls into" in warning for warning in image.provenance["warnings"])
    assert "falls into" in caplog.text


@pytest.mark.contract("refine.hopeless")
def test_figures_are_those_of_the_last_epoch() -> None:
    history = {
        "unexplained": [0.9 - 0.01 * epoch for epoch in range(16)],
        "misfit": [30.0 - epoch for epoch in range(16)],
    }
    said = judge_fit(history, "scan")
    assert said is not None
    assert said.startswith("scan: the fit leaves 75% of the variation")
    assert "(misfit 15 after 16 epochs)" in said
