"""Refinement of a probe that changes from frame to frame."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.reconstruction import Reconstruction, get_frame_probe
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_reconstruction, write_reconstruction
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.iterative.problem import open_problem
from torchptycho.reconstructors.iterative.state import RefinementState
from torchptycho.reconstructors.iterative.variable_probe import begin_variation, fix_variation_gauge

QUICK = RefineConfig(epochs=5, opr_modes=2, opr_start_epoch=2, frame_scale=True, patience=None)
UNSTABLE: dict[str, Any] = {"power_fluctuation": 0.1, "probe_wander": 0.25}


def scan_of(**options: Any) -> Scan:
    given = {"n_px": 32, "object_px": 80, "n_frames": 100, "photons_per_frame": 1e6, "simulation_seed": 3}
    return simulate(SimulateConfig(**{**given, **options}))


@pytest.fixture(scope="module")
def unstable() -> Scan:
    return scan_of(**UNSTABLE)


def measure_error(image: Reconstruction, scan: Scan) -> float:
    assert scan.truth is not None
    return evaluate(image, scan.truth, min_coverage=0.3).complex_nrmse


@pytest.fixture(scope="module")
def least_error() -> float:
    """Error of the same scan with a stable probe."""
    stable = scan_of()
    return measure_error(refine(stable, config=RefineConfig(epochs=30, patience=None)), stable)


class TestImage:
    @pytest.mark.contract("refine.opr")
    def test_without_it_the_error_is_large(self, unstable: Scan, least_error: float) -> None:
        image = refine(unstable, config=RefineConfig(epochs=20, patience=None), judge=False)
        assert measure_error(image, unstable) > 4 * least_error

    @pytest.mark.contract("refine.opr")
    @pytest.mark.parametrize(("method", "epochs"), [("rpie", 40), ("lsqml", 40), ("gradient", 50)])
    def test_error_is_near_that_of_a_stable_probe(
        self, unstable: Scan, least_error: float, method: Any, epochs: int
    ) -> None:
        config = RefineConfig(method=method, epochs=epochs, opr_modes=3, frame_scale=True, patience=None)
        image = refine(unstable, config=config)
        assert measure_error(image, unstable) < 1.4 * least_error
        assert image.history["misfit"][-1] < 1.2
        power = np.array(unstable.metadata["probe_power"])
        assert image.frame_scale is not None
        assert np.corrcoef(image.frame_scale**2, power)[0, 1] > 0.95

    @pytest.mark.contract("refine.frame-scale")
    @pytest.mark.parametrize("method", ["rpie", "gradient"])
    def test_power_of_each_frame_is_found_and_has_no_trend(self, method: Any) -> None:
        scan = scan_of(power_fluctuation=0.1)
        image = refine(scan, config=RefineConfig(method=method, epochs=40, frame_scale=True, patience=None))
        assert image.frame_scale is not None
        assert image.opr_modes is None
        assert np.corrcoef(image.frame_scale**2, np.array(scan.metadata["probe_power"]))[0, 1] > 0.97
        assert float(image.frame_scale.mean()) == pytest.approx(1, abs=1e-5)
        away = scan.positions_px - scan.positions_px.mean(0)
        assert np.abs(np.linalg.lstsq(away, np.log(image.frame_scale), rcond=None)[0]).max() < 1e-5

    @pytest.mark.contract("refine.opr.combined")
    @pytest.mark.parametrize("method", ["rpie", "lsqml", "gradient"])
    @pytest.mark.parametrize(
        "options",
        [
            {"n_modes": 2, "background": True},
            {"position_update": "both", "position_start_epoch": 1, "likelihood": "amplitude"},
            {"regularization": "tv", "regularization_strength": 0.1},
        ],
    )
    def test_other_options_act_with_it(self, unstable: Scan, method: Any, options: dict[str, Any]) -> None:
        mask = np.ones((32, 32), bool)
        mask[14:18, 3:9] = False
        scan = dataclasses.replace(unstable, mask=mask)
        image = refine(scan, config=dataclasses.replace(QUICK, method=method, **options), judge=False)
        assert image.history["misfit"][-1] < image.history["misfit"][0]
        assert np.isfinite(image.object).all()

    @pytest.mark.contract("refine.opr.combined")
    def test_near_field_and_held_out_counts(self) -> None:
        scan = scan_of(propagation="near", probe_wander=0.2, photons_per_frame=1e4)
        config = dataclasses.replace(QUICK, epochs=60, regularization="tv")
        image = refine(scan, config=config, judge=False)
        assert image.history["misfit"][-1] < image.history["misfit"][0]
        assert image.provenance["regularization"]["strengths"]

    @pytest.mark.contract("refine.opr.smooth")
    def test_smoothed_weights_hold_no_fast_changes(self, unstable: Scan) -> None:
        image = refine(unstable, config=dataclasses.replace(QUICK, opr_smoothing=20.0))
        assert image.opr_weights is not None
        time = (np.arange(100) + 0.5) / 100
        fast = np.cos(np.pi * time[:, None] * np.arange(8, 60))
        # The scale of the probe takes up its part of a weight, frame by frame.
        assert np.abs(fast.T @ image.opr_weights).max() < 0.05 * np.abs(image.opr_weights).max() * 100


class TestForm:
    @pytest.mark.contract("refine.opr.form")
    def test_modes_and_weights_are_orthogonal(self, unstable: Scan) -> None:
        image = refine(unstable, config=QUICK)
        assert image.opr_modes is not None
        assert image.opr_weights is not None
        assert image.probe is not None
        modes = image.opr_modes.reshape(2, -1).astype(complex)
        gram = (modes.conj() @ modes.T).real
        power = float((np.abs(image.probe[0]) ** 2).sum())
        np.testing.assert_allclose(gram, power * np.eye(2), atol=1e-3 * power)
        spread = image.opr_weights.T @ image.opr_weights
        assert abs(spread[0, 1]) < 1e-3 * spread[0, 0]
        assert spread[1, 1] <= spread[0, 0]
        assert np.abs(image.opr_weights.mean(0)).max() < 0.01

    @pytest.mark.contract("refine.opr.form")
    def test_standard_form_changes_no_exit_wave(self, unstable: Scan) -> None:
        config = dataclasses.replace(QUICK, opr_modes=2)
        with open_problem(unstable, dtype=torch.complex128) as problem:
            field = torch.ones(problem.shape, dtype=torch.complex128)
            probe = torch.from_numpy(unstable.probe).to(torch.complex128)
            state = RefinementState.begin(field, probe, torch.from_numpy(unstable.positions_px))
            begin_variation(state, 2, 0)
            state.opr_modes = torch.stack([probe[0] * 1j, probe[0].roll(2, 0)])
            # Little of the probe itself in a mode, so that the frames' phases do not matter.
            away = state.positions_px - state.positions_px.mean(0)
            state.frame_scale = (1 + 0.01 * away[:, 0] + 0.1 * state.opr_weights[:, 0]).double()
            state.opr_weights = state.opr_weights.double()
            index = torch.arange(20)

            def get_power() -> torch.Tensor:
                from torchptycho.physics.patches import extract_inside

                corners = problem.compute_corners_px(state.positions_px[index])
                waves = extract_inside(state.object, corners, 32)[:, None] * state.build_probe(index)
                return waves.abs().square().sum((1, 2, 3))

            before = get_power()
            fix_variation_gauge(problem, state, config, update_probe=True)
            # Bilinear reading does not commute with a ramp, but for its square.
            np.testing.assert_allclose(get_power(), before, rtol=5e-3)
            away_log = away.T @ state.frame_scale.log()
            assert float(away_log.abs().max()) < 1e-9 * float(away.abs().sum())

    @pytest.mark.contract("refine.opr.refused")
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"opr_modes": 2, "probe_update": False}, "probe that is not refined"),
            ({"opr_smoothing": 5.0}, "without modes of variation"),
            ({"opr_modes": 32}, "fewer than the 20 frames"),
        ],
    )
    def test_contradictions_are_refused(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            refine(scan_of(n_frames=20), config=RefineConfig(epochs=1, **options))


class TestFiles:
    @pytest.mark.contract("refine.opr.resume")
    @pytest.mark.parametrize("method", ["rpie", "lsqml"])
    def test_resumed_is_as_if_never_stopped(self, unstable: Scan, tmp_path: Path, method: Any) -> None:
        config = dataclasses.replace(QUICK, method=method, epochs=6, polish=0.0)
        whole = refine(unstable, config=config)
        state = tmp_path / "state.npz"
        refine(unstable, config=dataclasses.replace(config, epochs=3), state_file=state)
        rest = refine(unstable, config=config, state_file=state, resume=True)
        np.testing.assert_allclose(rest.object, whole.object, atol=1e-5)
        np.testing.assert_allclose(rest.opr_weights, whole.opr_weights, atol=1e-5)

    @pytest.mark.contract("refine.opr.files")
    def test_variation_is_written_read_and_started_from(self, unstable: Scan, tmp_path: Path) -> None:
        image = refine(unstable, config=dataclasses.replace(QUICK, epochs=20))
        write_reconstruction(image, tmp_path / "image.npz")
        found = read_reconstruction(tmp_path / "image.npz")
        for name in ("opr_modes", "opr_weights", "frame_scale"):
            np.testing.assert_array_equal(getattr(found, name), getattr(image, name))
        config = dataclasses.replace(QUICK, epochs=1, opr_start_epoch=0)
        again = refine(unstable, found, config=config)
        # Before polishing, small batches leave more noise.
        assert again.history["misfit"][0] < 3 * image.history["misfit"][-1]
        bare = dataclasses.replace(found, opr_modes=None, opr_weights=None, frame_scale=None)
        assert refine(unstable, bare, config=config).history["misfit"][0] > 2 * again.history["misfit"][0]

    @pytest.mark.contract("refine.opr.files")
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"opr_weights": np.ones((100, 3), np.float32)}, "opr_modes, opr_weights"),
            ({"frame_scale": np.zeros(100, np.float32)}, "frame_scale"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, unstable: Scan, tmp_path: Path, change: dict[str, Any], words: str
    ) -> None:
        image = refine(unstable, config=dataclasses.replace(QUICK, epochs=2))
        write_reconstruction(image, tmp_path / "whole.npz")
        with np.load(tmp_path / "whole.npz") as file:
            np.savez(tmp_path / "image.npz", **{**file, **change})
        with pytest.raises(ScanError, match=words):
            read_reconstruction(tmp_path / "image.npz")

    @pytest.mark.contract("refine.opr.stable")
    def test_stable_probe_has_none(self, unstable: Scan, tmp_path: Path) -> None:
        image = refine(unstable, config=RefineConfig(epochs=1), judge=False)
        assert image.opr_modes is None
        assert image.opr_weights is None
        assert image.frame_scale is None
        write_reconstruction(image, tmp_path / "image.npz")
        with np.load(tmp_path / "image.npz") as file:
            assert not {"opr_modes", "opr_weights", "frame_scale"} & set(file)
        assert image.probe is not None
        np.testing.assert_array_equal(get_frame_probe(image, 3), image.probe)
