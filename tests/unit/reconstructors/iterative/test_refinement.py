"""Refinement on small scans whose truth is known: derivatives, fixed points, invariances, and what stops it."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import make_asymmetric_probe, normal
from tolerances import assert_close, relative_l2

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import ConfigError, StoreError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import write_scan
from torchptycho.physics.diffraction import expected_counts
from torchptycho.physics.patches import extract, extract_derivatives, extract_inside, locate_corner, place, place_inside
from torchptycho.reconstructors.canvas import Canvas
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.iterative.autodiff import compute_objective
from torchptycho.reconstructors.iterative.fit import (
    EpochFit,
    ReducedChiSquared,
    compute_wave_correction,
    propagate_to_detector,
)
from torchptycho.reconstructors.iterative.position_correction import PositionSteps
from torchptycho.reconstructors.iterative.probe_modes import compute_power, orthogonalize_modes, set_mode_count
from torchptycho.reconstructors.iterative.problem import open_problem
from torchptycho.reconstructors.iterative.regularization import apply_penalty_step, compute_penalty
from torchptycho.reconstructors.iterative.rpie import choose_batch_size
from torchptycho.reconstructors.iterative.state import RefinementState

NOT_FINITE = EpochFit(misfit=float("nan"), residual=float("nan"))
QUICK = RefineConfig(epochs=3, batch_size=16, probe_update=False, patience=None)


def scan_of(photons: float = 1e6, *, noise: bool = True, **options: Any) -> Scan:
    return simulate(
        SimulateConfig(
            n_px=32, object_px=72, n_frames=64, photons_per_frame=photons, noise=noise, simulation_seed=3, **options
        )
    )


@pytest.fixture(scope="module")
def scan() -> Scan:
    return scan_of()


@pytest.fixture(scope="module")
def noiseless() -> Scan:
    return scan_of(noise=False)


def truth_of(scan: Scan) -> Reconstruction:
    assert scan.truth is not None
    everywhere = np.ones(scan.truth.shape, np.float32)
    return Reconstruction(object=scan.truth, coverage=everywhere, valid=everywhere > 0, origin_px=(0, 0))


class TestPatchesInside:
    @pytest.mark.contract("physics.patches.inside")
    def test_are_those_of_extract_and_place(self) -> None:
        field, corners = normal((23, 19), 0), torch.rand(5, 2, dtype=torch.float64) * torch.tensor([15.0, 11.0])
        assert_close(extract_inside(field, corners, 8), extract(field, corners, 8), "double")
        assert_close(extract_inside(field.real, corners, 8), extract(field.real, corners, 8), "double")
        patches, placed = normal((5, 8, 8), 1), torch.zeros_like(field)
        place_inside(placed, patches, corners)
        assert_close(placed, place(patches, corners, (23, 19)), "double")

    @pytest.mark.contract("physics.patches.inside")
    def test_slopes_are_the_derivatives_by_the_place(self) -> None:
        field, corners = normal((23, 19), 0), torch.rand(5, 2, dtype=torch.float64) * 10 + 0.01
        step = 1e-6
        for slope, direction in zip(
            extract_derivatives(field, corners, 8), torch.eye(2, dtype=torch.float64), strict=True
        ):
            moved = extract_inside(field, corners + step * direction, 8) - extract_inside(field, corners, 8)
            assert relative_l2(moved / step, slope) < 1e-6


class TestDerivatives:
    @pytest.mark.contract("refine.gradient.exact")
    @pytest.mark.parametrize("likelihood", ["poisson", "amplitude"])
    @pytest.mark.parametrize("name", ["object", "probe", "positions_px", "background"])
    def test_objective_has_the_gradient_of_its_differences(self, scan: Scan, name: str, likelihood: str) -> None:
        with open_problem(scan, margin_px=2, dtype=torch.complex128) as problem:
            values = {
                "object": 1 + 0.1 * normal(problem.shape, 1),
                "probe": torch.from_numpy(scan.probe).to(torch.complex128),
                "positions_px": torch.from_numpy(scan.positions_px) + 0.3,
                "background": torch.full((32, 32), 0.5, dtype=torch.float64),
            }
            index = torch.arange(4)

            def at(value: torch.Tensor) -> torch.Tensor:
                return compute_objective(problem, **{**values, name: value}, index=index, likelihood=likelihood)

            given = values[name].requires_grad_()
            (slope,) = torch.autograd.grad(at(given), given)
            direction = torch.zeros_like(given)
            if name == "positions_px":
                direction[index] = normal((4, 2), 2, torch.float64)
            else:
                direction = normal(tuple(given.shape), 2, given.dtype)
            step = 1e-5 * float(given.detach().abs().mean()) if name != "positions_px" else 1e-6
            with torch.no_grad():
                difference = (at(given + step * direction) - at(given - step * direction)) / (2 * step)
            expected = (
                torch.view_as_real(slope.conj() * direction)[..., 0].sum()
                if slope.is_complex()
                else (slope * direction).sum()
            )
            assert float(difference) == pytest.approx(float(expected), rel=1e-5)

    @pytest.mark.contract("refine.gradient.projection")
    def test_correction_is_downhill_for_both_likelihoods(self) -> None:
        patches, probe = (
            (1 + 0.1 * normal((3, 16, 16), 0)).requires_grad_(),
            make_asymmetric_probe(16, modes=2, photons=1e8),
        )
        with torch.no_grad():
            counts = expected_counts(1 + 0.1 * normal((3, 16, 16), 1), torch.fft.ifftshift(probe, dim=(-2, -1)))
            counts = torch.fft.ifftshift(counts, dim=(-2, -1))
        wave, intensity = propagate_to_detector(patches, probe)
        squared = (intensity.clamp_min(1e-30).sqrt() - counts.sqrt()).square().sum()
        (slope,) = torch.autograd.grad(squared, patches)
        with torch.no_grad():
            change = compute_wave_correction(intensity, counts, None, "amplitude", ReducedChiSquared(counts))
            wish = (torch.fft.ifft2(wave * change[:, None], norm="ortho") * probe.conj()).sum(1)
        # d/dO sum (sqrt I - sqrt y)^2 = -2 P* F^-1 [(sqrt(y / I) - 1) F P O]
        assert_close(-2 * wish, slope, "double")

    @pytest.mark.contract("refine.gradient.projection")
    def test_poisson_step_is_the_projection_near_the_solution(self) -> None:
        intensity = torch.full((1, 8, 8), 1e8, dtype=torch.float64)
        counts = intensity * (1 + 1e-3 * normal((1, 8, 8), 0, torch.float64))
        steps = [
            compute_wave_correction(intensity, counts, None, kind, ReducedChiSquared(counts))
            for kind in ("poisson", "amplitude")
        ]
        assert relative_l2(steps[0], steps[1]) < 1e-3

    @pytest.mark.contract("refine.regularise.gradient")
    def test_smoothing_goes_down_the_penalties(self) -> None:
        field = normal((9, 11), 0).requires_grad_()
        (slope,) = torch.autograd.grad(compute_penalty(field, 0.05, 0.0005) * field.numel(), field)
        with torch.no_grad():
            assert_close(field - apply_penalty_step(field, 0.05, 0.0005), slope, "double")


class TestFixedPoint:
    @pytest.mark.contract("refine.fixed-point")
    @pytest.mark.parametrize("method", ["rpie", "lsqml", "gradient"])
    def test_truth_stays_where_it_is(self, noiseless: Scan, method: str) -> None:
        # Adam divides by the size of the gradient and so moves by rounding errors; a small step bounds this.
        config = dataclasses.replace(QUICK, method=method, probe_update=True, probe_start_epoch=0, learning_rate=1e-5)
        found = refine(noiseless, truth_of(noiseless), config=config)
        y, x = found.origin_px
        height, width = found.object.shape
        assert noiseless.truth is not None
        same = noiseless.truth[y : y + height, x : x + width]
        inside = found.coverage > 0.1
        assert relative_l2(torch.from_numpy(found.object[inside]), torch.from_numpy(same[inside])) < 1e-4
        assert found.history["misfit"][-1] < 1e-3

    @pytest.mark.contract("refine.lsqml.monotone")
    def test_lsqml_never_becomes_worse_on_noiseless_data(self, noiseless: Scan) -> None:
        config = dataclasses.replace(
            QUICK, method="lsqml", epochs=30, batch_size=64, momentum=0.0, likelihood="amplitude"
        )
        misfit = np.array(refine(noiseless, config=config).history["misfit"])
        assert (np.diff(misfit) <= 1e-9 * misfit[0]).all()
        assert misfit[-1] < 0.05 * misfit[0]


class TestImage:
    @pytest.mark.contract("refine.image")
    @pytest.mark.parametrize(
        ("method", "options"),
        [
            ("rpie", {}),
            ("lsqml", {}),
            ("gradient", {}),
            ("gradient", {"optimizer": "lbfgs", "epochs": 40}),
            ("rpie", {"likelihood": "amplitude"}),
        ],
    )
    def test_every_method_finds_the_object(self, scan: Scan, method: str, options: dict[str, Any]) -> None:
        config = RefineConfig(method=method, **{"epochs": 60, "batch_size": 8, "probe_update": False, **options})  # type: ignore[arg-type]
        found = refine(scan, config=config)
        assert scan.truth is not None
        metrics = evaluate(found, scan.truth, min_coverage=0.3)
        assert metrics.complex_nrmse < 0.1
        assert found.history["misfit"][-1] < 3

    @pytest.mark.contract("refine.canvas.rounding")
    @pytest.mark.parametrize("method", ["rpie", "gradient"])
    def test_position_that_is_whole_but_for_rounding_lies_on_it(self, scan: Scan, method: Any) -> None:
        # Just below a whole number far from 0, and that number once the canvas' corner is taken off.
        places = scan.positions_px - scan.positions_px.max(axis=0) - 1e-17
        places[np.argmax(places, axis=0), [0, 1]] = -1e-17
        image = refine(dataclasses.replace(scan, positions_px=places), config=dataclasses.replace(QUICK, method=method))
        assert np.isfinite(image.object).all()

    @pytest.mark.contract("refine.canvas")
    def test_lies_on_the_canvas_of_the_positions(self, scan: Scan) -> None:
        found = refine(scan, config=QUICK)
        canvas = Canvas.for_positions(torch.from_numpy(scan.positions_px), scan.n_px)
        assert found.origin_px == canvas.origin_px
        assert found.object.shape == tuple(canvas.weight.shape)

    @pytest.mark.contract("refine.gauge")
    def test_probe_keeps_its_power(self, scan: Scan) -> None:
        found = refine(scan, config=dataclasses.replace(QUICK, probe_update=True, probe_start_epoch=0))
        assert found.probe is not None
        before, after = (float(np.sum(np.abs(probe.astype(complex)) ** 2)) for probe in (scan.probe, found.probe))
        assert after == pytest.approx(before, rel=1e-5)

    @pytest.mark.contract("refine.brightness")
    def test_power_of_a_calibrated_probe_is_the_scale_of_the_object(self, scan: Scan) -> None:
        stronger = dataclasses.replace(scan, probe=scan.probe * np.float32(2))
        first, second = (refine(each, config=QUICK) for each in (scan, stronger))
        assert relative_l2(torch.from_numpy(2 * second.object), torch.from_numpy(first.object)) < 1e-4
        assert second.history["misfit"] == pytest.approx(first.history["misfit"], rel=1e-4)

    @pytest.mark.contract("refine.swing")
    def test_brightness_does_not_swing_when_object_and_probe_move(self, scan: Scan) -> None:
        misfit = refine(scan, config=dataclasses.replace(QUICK, epochs=10, probe_update=True)).history["misfit"]
        assert all(after < 1.1 * before for before, after in itertools.pairwise(misfit))
        assert misfit[-1] < 10

    @pytest.mark.contract("refine.batches")
    @pytest.mark.parametrize(
        ("n_frames", "given", "expected"),
        [(5, None, 5), (100, None, 8), (400, None, 16), (20_000, None, 64), (100, 32, 32)],
    )
    def test_batches_suit_the_number_of_frames(self, n_frames: int, given: int | None, expected: int) -> None:
        assert choose_batch_size(RefineConfig(batch_size=given), n_frames) == expected

    @pytest.mark.contract("refine.dose")
    def test_counts_and_power_times_the_same_change_nothing(self, noiseless: Scan) -> None:
        brighter = dataclasses.replace(
            noiseless, frames=ArrayFrames(noiseless.frames[:] * np.float32(4)), probe=noiseless.probe * np.float32(2)
        )
        config = dataclasses.replace(QUICK, likelihood="amplitude")
        first, second = (refine(each, config=config) for each in (noiseless, brighter))
        assert relative_l2(torch.from_numpy(second.object), torch.from_numpy(first.object)) < 1e-4

    @pytest.mark.contract("refine.mask")
    def test_what_lies_under_the_mask_has_no_say(self, scan: Scan) -> None:
        mask = np.ones((32, 32), bool)
        mask[14:18, 3:9] = False
        dead = scan.frames[:].copy()
        dead[:, ~mask] = 60_000
        pair = [dataclasses.replace(scan, frames=ArrayFrames(frames), mask=mask) for frames in (scan.frames[:], dead)]
        first, second = (refine(each, config=QUICK) for each in pair)
        np.testing.assert_array_equal(first.object, second.object)

    @pytest.mark.contract("refine.amplitude")
    def test_amplitudes_are_their_counts(self, scan: Scan) -> None:
        roots = np.sqrt(scan.frames[:].astype(np.float32))
        mean = float((roots.astype(float) ** 2).sum((1, 2)).mean())
        as_roots = dataclasses.replace(
            scan, frames=ArrayFrames(roots), domain="amplitude", metadata={"nphotons": mean}, probe_is_calibrated=True
        )
        first, second = (refine(each, config=QUICK) for each in (scan, as_roots))
        assert relative_l2(torch.from_numpy(second.object), torch.from_numpy(first.object)) < 1e-3


class TestBesideTheObject:
    @pytest.mark.contract("refine.modes")
    def test_orthogonal_modes_shine_the_same(self) -> None:
        probe = normal((3, 16, 16), 0)
        turned = orthogonalize_modes(probe)
        gram = torch.einsum("pij,qij->pq", turned.conj(), turned)
        assert float((gram - torch.diag(gram.diagonal())).abs().max()) < 1e-10 * float(gram.abs().max())
        assert bool((gram.diagonal().real.diff() <= 0).all())
        patches = normal((2, 16, 16), 1)
        assert_close(propagate_to_detector(patches, turned)[1], propagate_to_detector(patches, probe)[1], "double")

    @pytest.mark.contract("refine.modes")
    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_more_or_fewer_modes_keep_the_power(self, count: int) -> None:
        probe = make_asymmetric_probe(16, modes=2)
        changed = set_mode_count(probe, count)
        assert changed.shape == (count, 16, 16)
        assert float(compute_power(changed)) == pytest.approx(float(compute_power(probe)), rel=1e-12)

    @pytest.mark.contract("refine.modes.methods")
    @pytest.mark.parametrize(
        "options", [{}, {"method": "lsqml"}, {"method": "gradient"}, {"method": "gradient", "optimizer": "lbfgs"}]
    )
    def test_every_method_takes_several_modes(self, scan: Scan, options: dict[str, Any]) -> None:
        found = refine(scan, config=RefineConfig(epochs=4, n_modes=2, patience=None, **options))
        assert found.history["misfit"][-1] < found.history["misfit"][0]
        assert found.probe is not None
        assert len(found.probe) == 2

    @pytest.mark.contract("refine.place")
    def test_probe_and_image_keep_their_place(self) -> None:
        probe, field = make_asymmetric_probe(32), normal((60, 50), 0)
        state = RefinementState.begin(field, probe, torch.zeros(1, 2, dtype=torch.float64))
        state.object, state.probe = (torch.roll(one, (3, -2), (-2, -1)) for one in (field, 2 * probe))
        state.fix_gauge()
        assert_close(state.probe, probe, "double")
        assert_close(state.object, 2 * field, "double")

    @pytest.mark.contract("refine.positions.shift")
    def test_a_frame_is_pulled_to_where_it_belongs(self, noiseless: Scan) -> None:
        assert noiseless.truth is not None
        with open_problem(noiseless, margin_px=4, dtype=torch.complex128) as problem, torch.no_grad():
            field = torch.from_numpy(noiseless.truth).to(torch.complex128)
            probe = torch.from_numpy(noiseless.probe).to(torch.complex128)
            off = 0.2 * normal((64, 2), 0, torch.float64)
            off -= off.mean(0)
            corners = locate_corner(torch.from_numpy(noiseless.positions_px) + off, 32)
            wave, intensity = propagate_to_detector(extract(field, corners, 32), probe)
            index = torch.arange(64)
            change = compute_wave_correction(
                intensity, problem.load_counts(index), None, "amplitude", ReducedChiSquared(intensity)
            )
            shifts = PositionSteps(64, corners.device)
            patches = extract(field, corners, 32)
            change_of_exit_wave = torch.fft.ifft2(wave * change[:, None], norm="ortho")
            shifts.add(index, field[None], patches[None], [probe], corners, [change_of_exit_wave])
            found = shifts.solve_per_frame()
        # The detector sees half of what an exit wave is wrong by: the rest is in its phase.
        along = float((found * -off).sum() / off.square().sum())
        assert 0.2 < along < 1.0
        assert np.corrcoef(found.flatten(), -off.flatten())[0, 1] > 0.9

    @pytest.mark.contract("refine.positions.frames")
    def test_wrong_positions_are_corrected(self) -> None:
        given = scan_of(1e7)
        off = np.random.default_rng(0).normal(0, 1.0, given.positions_px.shape)
        wrong = dataclasses.replace(given, positions_px=np.clip(given.positions_px + off, 17, 54))
        config = RefineConfig(epochs=80, batch_size=16, probe_update=False, position_update="frames", patience=None)
        found = refine(wrong, config=config).positions_px
        assert found is not None
        before, after = (spread(places - given.positions_px) for places in (wrong.positions_px, found))
        assert after < 0.4 * before

    @pytest.mark.contract("refine.positions.affine")
    def test_an_affine_correction_is_affine_by_every_method(self, scan: Scan) -> None:
        for method in ("rpie", "gradient"):
            config = dataclasses.replace(QUICK, method=method, position_update="affine", position_start_epoch=0)
            found = refine(scan, config=config).positions_px
            assert found is not None
            design = np.c_[scan.positions_px, np.ones(len(found))]
            rest = found - design @ np.linalg.lstsq(design, found, rcond=None)[0]
            assert np.abs(found - scan.positions_px).max() > 1e-4
            assert np.abs(rest).max() < 1e-9

    @pytest.mark.contract("refine.positions.affine")
    def test_a_wrong_scale_of_the_scan_is_corrected(self) -> None:
        given = scan_of(1e7)
        middle = given.positions_px.mean(0)
        wrong = dataclasses.replace(given, positions_px=middle + 0.9 * (given.positions_px - middle))
        config = RefineConfig(epochs=80, batch_size=16, probe_update=False, position_update="affine", patience=None)
        found = refine(wrong, config=config).positions_px
        assert found is not None
        scale = np.linalg.lstsq(given.positions_px - middle, found - found.mean(0), rcond=None)[0]
        assert np.abs(scale - np.eye(2)).max() < 0.002

    @pytest.mark.contract("refine.positions.affine")
    @pytest.mark.parametrize("update", ["affine", "both", "frames"])
    def test_frames_at_one_place_are_left_there(self, scan: Scan, update: str) -> None:
        still = dataclasses.replace(scan, positions_px=np.full_like(scan.positions_px, 36.0))
        config = dataclasses.replace(QUICK, position_update=update, position_start_epoch=0)
        found = refine(still, config=config).positions_px
        assert found is not None
        assert np.isfinite(found).all()

    @pytest.mark.contract("refine.start.positions")
    def test_positions_of_the_start_are_taken_over(self, scan: Scan) -> None:
        start = dataclasses.replace(truth_of(scan), positions_px=scan.positions_px + np.array([2.5, -1.25]))
        found = refine(scan, start, config=QUICK).positions_px
        assert found is not None
        np.testing.assert_array_equal(found, start.positions_px)

    @pytest.mark.contract("refine.positions.lost")
    def test_a_lost_frame_finds_its_place(self) -> None:
        given = scan_of(1e7)
        off = np.zeros_like(given.positions_px)
        off[[1, 3]] = (6.0, -5.0), (-7.0, 4.0)
        wrong = dataclasses.replace(given, positions_px=np.clip(given.positions_px + off, 17, 54))
        config = RefineConfig(epochs=60, batch_size=16, probe_update=False, position_update="frames", patience=None)
        found = refine(wrong, config=config).positions_px
        assert found is not None
        away = found - given.positions_px
        assert np.abs(away - np.median(away, 0)).max() < 0.2

    @pytest.mark.contract("refine.positions.limit")
    def test_no_frame_moves_farther_than_it_may(self, scan: Scan) -> None:
        config = dataclasses.replace(
            QUICK,
            epochs=6,
            position_update="both",
            position_start_epoch=0,
            position_limit_px=0.25,
            position_step_px=5.0,
        )
        found = refine(scan, config=config)
        assert found.positions_px is not None
        moved = np.abs(found.positions_px - scan.positions_px)
        assert 0 < moved.max() <= 0.25 + 1e-9

    @pytest.mark.contract("refine.background")
    def test_a_constant_background_is_found(self) -> None:
        given = scan_of(1e6, noise=False)
        lit = dataclasses.replace(given, frames=ArrayFrames(given.frames[:] + np.float32(5.0)))
        config = RefineConfig(epochs=80, batch_size=16, probe_update=False, background=True, patience=None)
        found = refine(lit, truth_of(lit), config=config)
        assert found.background is not None
        assert float(np.median(found.background)) == pytest.approx(5.0, rel=0.1)


class TestCourse:
    @pytest.mark.contract("refine.resume")
    @pytest.mark.parametrize("method", ["rpie", "lsqml"])
    def test_resumed_is_as_if_never_stopped(self, scan: Scan, tmp_path: Path, method: str) -> None:
        config = dataclasses.replace(
            QUICK,
            method=method,
            epochs=6,
            polish=0.0,
            probe_update=True,
            probe_start_epoch=1,
            position_update="both",
            position_start_epoch=0,
        )
        whole = refine(scan, config=config)
        state = tmp_path / "state.npz"
        refine(scan, config=dataclasses.replace(config, epochs=2), state_file=state)
        rest = refine(scan, config=config, state_file=state, resume=True)
        np.testing.assert_array_equal(rest.object, whole.object)
        assert rest.history["misfit"] == whole.history["misfit"]

    @pytest.mark.contract("refine.resume")
    def test_a_state_of_something_else_is_refused(self, scan: Scan, tmp_path: Path) -> None:
        state = tmp_path / "state.npz"
        refine(scan, config=QUICK, state_file=state)
        other = dataclasses.replace(QUICK, alpha=0.5)
        with pytest.raises(StoreError, match=r"refine\.alpha differ"):
            refine(scan, config=other, state_file=state, resume=True)
        with pytest.raises(ConfigError, match="expected the state_file"):
            refine(scan, config=QUICK, resume=True)

    @pytest.mark.contract("refine.resume")
    def test_a_scan_that_was_copied_is_the_same(self, scan: Scan, tmp_path: Path) -> None:
        state, (first, second) = tmp_path / "state.npz", (tmp_path / "scan.npz", tmp_path / "copy.npz")
        write_scan(scan, first)
        refine(first, config=dataclasses.replace(QUICK, epochs=1), state_file=state)
        second.write_bytes(first.read_bytes())
        os.utime(second, ns=(0, 10**18))
        first.unlink()
        assert len(refine(second, config=QUICK, state_file=state, resume=True).history["misfit"]) == QUICK.epochs
        frames = scan.frames[:]
        frames[3, 4, 5] += 1
        write_scan(dataclasses.replace(scan, frames=ArrayFrames(frames)), second)
        with pytest.raises(StoreError, match="scan differ"):
            refine(second, config=QUICK, state_file=state, resume=True)

    @pytest.mark.contract("refine.resume")
    def test_first_start_begins_and_says_so(self, scan: Scan, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        state = tmp_path / "state.npz"
        image = refine(scan, config=QUICK, state_file=state, resume=True)
        assert "no state to resume from yet; refinement begins from the start" in caplog.text
        assert len(image.history["misfit"]) == QUICK.epochs
        assert state.is_file()

    @pytest.mark.contract("refine.interrupt")
    def test_interrupted_it_returns_what_it_has(self, scan: Scan) -> None:
        def stop(epoch: int, misfit: float) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

        found = refine(scan, config=dataclasses.replace(QUICK, epochs=50), on_epoch=stop)
        assert len(found.history["misfit"]) == 2
        assert found.provenance["complete"] is False

    @pytest.mark.contract("refine.interrupt")
    def test_what_is_no_longer_finite_is_not_kept_to_go_on_from(
        self, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = tmp_path / "state.npz"
        refine(scan, config=QUICK, state_file=state)
        monkeypatch.setattr("torchptycho.reconstructors.iterative.refinement.run_epoch", lambda *_, **__: NOT_FINITE)
        with pytest.raises(FloatingPointError, match="the misfit is nan after epoch 4"):
            refine(scan, config=dataclasses.replace(QUICK, epochs=5), state_file=state, resume=True)
        monkeypatch.undo()
        assert len(refine(scan, config=QUICK, state_file=state, resume=True).history["misfit"]) == 3

    @pytest.mark.contract("refine.images")
    def test_the_image_so_far_is_shown(self, scan: Scan) -> None:
        shown: list[Reconstruction] = []
        config = dataclasses.replace(QUICK, epochs=5)
        found = refine(scan, config=config, on_image=shown.append, image_every_epochs=2)
        assert [len(image.history["misfit"]) for image in shown] == [2, 4]
        assert not any(image.provenance["complete"] for image in shown)
        assert not np.array_equal(shown[0].object, shown[1].object)
        np.testing.assert_array_equal(found.object, refine(scan, config=config).object)

    @pytest.mark.contract("refine.patience")
    def test_it_ends_when_nothing_becomes_better(self, scan: Scan) -> None:
        config = RefineConfig(epochs=400, batch_size=16, probe_update=False, patience=4, min_improvement=0.02)
        assert len(refine(scan, config=config).history["misfit"]) < 200

    @pytest.mark.contract("refine.start")
    def test_a_good_start_is_better_from_the_first_epoch(self, scan: Scan) -> None:
        cold, warm = (refine(scan, start, config=QUICK).history["misfit"][0] for start in (None, truth_of(scan)))
        assert warm < 0.05 * cold

    @pytest.mark.contract("refine.start")
    def test_what_does_not_fit_is_refused(self, scan: Scan) -> None:
        elsewhere = dataclasses.replace(truth_of(scan), origin_px=(1000, 1000))
        with pytest.raises(ConfigError, match=r"hold nothing valid .* Is it an image of this scan"):
            refine(scan, elsewhere, config=QUICK)
        with pytest.raises(ConfigError, match=r"device 'toaster': not on this machine \(expected auto, cpu"):
            refine(scan, config=QUICK, device="toaster")
        with pytest.raises(ConfigError, match=r"probe: expected 32x32 px"):
            refine(scan, probe=np.ones((1, 16, 16), np.complex64), config=QUICK)


def spread(off: np.ndarray) -> float:
    """RMS distance, less the common shift that ptychography leaves free."""
    return float(np.sqrt(np.mean(np.square(off - off.mean(0)))))
