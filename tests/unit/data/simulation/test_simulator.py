"""The simulated experiment, part by part, against independent formulas and known statistics."""

from __future__ import annotations

import dataclasses
import importlib
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import fourier_shift
from scipy.spatial import cKDTree

from torchptycho.core.config import SimulateConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import make_object, make_positions, make_probe, objects, simulate
from torchptycho.data.simulation.probes import border_fraction
from torchptycho.physics.patches import extract

KINDS = ["dead_leaves", "lines", "gaussian_field", "siemens_star", "natural"]
PROBES = ["disk", "gaussian", "zone_plate"]
SMALL: dict[str, Any] = {"n_px": 32, "object_px": 80, "n_frames": 20}


def frames_of(scan: Scan) -> np.ndarray:
    return np.asarray(scan.frames[:])


def power(probe: np.ndarray) -> float:
    return float(np.sum(np.abs(probe.astype(np.complex128)) ** 2))


@pytest.mark.contract("simulation.probe.unstable")
def test_unstable_probe_changes_as_configured() -> None:
    given = {**SMALL, "n_frames": 400, "object_kind": "lines", "photons_per_frame": 1e6}
    scan = simulate(SimulateConfig(**given, power_fluctuation=0.1, probe_wander=0.3))
    drawn, weights = np.array(scan.metadata["probe_power"]), np.array(scan.metadata["probe_weights"])
    assert drawn.mean() == pytest.approx(1, abs=1e-9)
    assert drawn.std() == pytest.approx(0.1, rel=0.15)
    assert weights.shape == (400, 3)
    assert np.sqrt((weights**2).sum(1).mean()) == pytest.approx(0.3, rel=1e-6)
    assert np.abs(weights.mean(0)).max() < 1e-9
    assert np.abs(np.diff(weights, axis=0)).max() < 0.1 * np.ptp(weights)
    assert "probe_power" not in simulate(SimulateConfig(**SMALL)).metadata


@pytest.mark.contract("simulation.probe.unstable")
def test_probe_of_each_frame_is_what_is_recorded() -> None:
    given = {**SMALL, "noise": False}
    flat = np.ones((80, 80), complex)
    stable = frames_of(simulate(SimulateConfig(**given), object=flat))
    scan = simulate(SimulateConfig(**given, power_fluctuation=0.2), object=flat)
    found = frames_of(scan).sum((1, 2)) / stable.sum((1, 2))
    np.testing.assert_allclose(found, scan.metadata["probe_power"], rtol=1e-5)
    # A drift is a shift of the positions, which the far field of a uniform object does not show.
    drifting = simulate(SimulateConfig(**given, probe_drift_px=3.0))
    assert np.hypot(*np.diff(np.array(drifting.metadata["probe_shift_px"])[[0, -1]], axis=0)[0]) == pytest.approx(3)
    np.testing.assert_allclose(
        frames_of(simulate(SimulateConfig(**given, probe_drift_px=3.0), object=flat)), stable, rtol=1e-3, atol=1.0
    )
    assert not np.allclose(frames_of(drifting), frames_of(simulate(SimulateConfig(**given))), rtol=1e-2)


def diameter_holding(fraction: float, probe: np.ndarray) -> float:
    n_px = probe.shape[-1]
    y, x = np.indices((n_px, n_px)) - n_px // 2
    radius = np.hypot(y, x).ravel()
    order = radius.argsort()
    held = np.cumsum((np.abs(probe) ** 2).sum(0).ravel()[order])
    return 2 * float(np.interp(fraction * held[-1], held, radius[order]))


class TestRandomness:
    @pytest.mark.contract("simulation.seed.determinism")
    @pytest.mark.parametrize("position_kind", ["raster", "fermat", "random"])
    def test_same_configuration_gives_the_same_bytes(self, position_kind: Any) -> None:
        config = SimulateConfig(**SMALL, position_kind=position_kind, simulation_seed=3)
        first, second = simulate(config), simulate(config)
        assert frames_of(first).tobytes() == frames_of(second).tobytes()
        assert first.positions_px.tobytes() == second.positions_px.tobytes()
        assert first.truth is not None
        assert second.truth is not None
        assert first.truth.tobytes() == second.truth.tobytes()
        assert first.probe.tobytes() == second.probe.tobytes()

    def test_another_seed_gives_another_object_other_positions_and_other_noise(self) -> None:
        first = simulate(SimulateConfig(**SMALL, simulation_seed=0))
        second = simulate(SimulateConfig(**SMALL, simulation_seed=1))
        again = simulate(
            SimulateConfig(**SMALL, simulation_seed=1), object=first.truth, positions_px=first.positions_px
        )
        assert not np.array_equal(first.truth, second.truth)
        assert not np.array_equal(first.positions_px, second.positions_px)
        assert not np.array_equal(frames_of(first), frames_of(again))

    @pytest.mark.contract("simulation.seed.streams")
    def test_number_of_frames_does_not_change_the_object(self) -> None:
        few, many = (simulate(SimulateConfig(**{**SMALL, "n_frames": count})) for count in (5, 40))
        np.testing.assert_array_equal(few.truth, many.truth)

    @pytest.mark.contract("simulation.seed.streams")
    def test_dose_and_noise_change_neither_object_nor_positions(self) -> None:
        scans = [
            simulate(SimulateConfig(**SMALL, photons_per_frame=1e3)),
            simulate(SimulateConfig(**SMALL, photons_per_frame=1e7)),
            simulate(SimulateConfig(**SMALL, noise=False)),
        ]
        for other in scans[1:]:
            np.testing.assert_array_equal(scans[0].truth, other.truth)
            np.testing.assert_array_equal(scans[0].positions_px, other.positions_px)

    @pytest.mark.contract("simulation.frames.batches")
    @pytest.mark.parametrize("noise", [True, False])
    def test_frames_do_not_depend_on_the_batch(self, noise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        # The brightest frame last, so that in batches uint16 must give way to uint32 on the way.
        config = SimulateConfig(**SMALL, noise=noise, photons_per_frame=8.5e6)
        positions = simulate(config).positions_px[::-1]
        whole = frames_of(simulate(config, positions_px=positions))
        assert whole[:3].max() < 65536 < whole.max()
        module = importlib.import_module("torchptycho.data.simulation.simulator")
        monkeypatch.setattr(module, "_BATCH_ELEMENTS", 3 * 32 * 32)
        np.testing.assert_array_equal(whole, frames_of(simulate(config, positions_px=positions)))


class TestObject:
    @pytest.mark.contract("simulation.object.range")
    @pytest.mark.parametrize("kind", KINDS)
    def test_transmission_and_phase_fill_the_range_asked_for(self, kind: Any) -> None:
        config = SimulateConfig(object_kind=kind, object_px=96, amplitude_min=0.3, phase_range_rad=2.4)
        field = make_object(config, np.random.default_rng(5))
        assert field.shape == (96, 96)
        assert field.dtype == np.complex64
        assert np.abs(field).min() == pytest.approx(0.3, abs=1e-6)
        assert np.abs(field).max() == pytest.approx(1, abs=1e-6)
        assert np.angle(field).min() == pytest.approx(-1.2, abs=1e-6)
        assert np.angle(field).max() == pytest.approx(1.2, abs=1e-6)

    @pytest.mark.contract("simulation.object.band")
    @pytest.mark.parametrize("kind", KINDS)
    def test_bilinear_reading_between_pixels_is_near_the_band_limited_value(self, kind: Any) -> None:
        field = make_object(SimulateConfig(object_kind=kind, object_px=128), np.random.default_rng(1))
        bilinear = extract(torch.from_numpy(field), torch.tensor([[32.5, 32.5]], dtype=torch.float64), 64)[0].numpy()
        exact = np.fft.ifft2(fourier_shift(np.fft.fft2(field), (-0.5, -0.5)))[32:96, 32:96]
        assert np.linalg.norm(bilinear - exact) / np.linalg.norm(exact) < 0.1

    @pytest.mark.parametrize("kind", KINDS)
    def test_transmission_differs_from_phase(self, kind: Any) -> None:
        field = make_object(SimulateConfig(object_kind=kind, object_px=96), np.random.default_rng(2))
        together = abs(np.corrcoef(np.abs(field).ravel(), np.angle(field).ravel())[0, 1])
        # The star is of one metal: its transmission is its phase, inverted.
        assert together > 0.999 if kind == "siemens_star" else together < 0.98

    @pytest.mark.contract("simulation.object.offline")
    @pytest.mark.parametrize("name", objects._PHOTOGRAPHS)
    def test_photograph_needs_no_network(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("a connection was opened")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        # Under pytest scikit-image skips the test when an image would have to be downloaded; here that is the failure.
        monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
        picture = objects._load_photograph(name, 48, np.random.default_rng(0))
        assert picture.shape == (48, 48)
        assert picture.std() > 0.02


class TestProbe:
    @pytest.mark.contract("simulation.probe.gauge")
    @pytest.mark.parametrize("kind", PROBES)
    @pytest.mark.parametrize("modes", [1, 3])
    def test_beam_carries_the_photons_of_a_frame(self, kind: Any, modes: int) -> None:
        for photons in (1e-2, 1e3, 1e9):
            probe = make_probe(SimulateConfig(probe_kind=kind, probe_modes=modes, photons_per_frame=photons))
            assert probe.shape == (modes, 64, 64)
            assert probe.dtype == np.complex64
            assert power(probe) == pytest.approx(photons, rel=1e-6)

    @pytest.mark.contract("simulation.probe.border")
    @pytest.mark.parametrize("kind", PROBES)
    @pytest.mark.parametrize("n_px", [32, 64, 128])
    def test_default_beam_keeps_off_the_border(self, kind: Any, n_px: int) -> None:
        probe = make_probe(SimulateConfig(n_px=n_px, probe_kind=kind))
        edge = round(0.1 * n_px)
        inner = power(probe[:, edge:-edge, edge:-edge])
        assert 1 - inner / power(probe) < 0.01
        assert border_fraction(probe) == pytest.approx(1 - inner / power(probe), abs=1e-9)

    @pytest.mark.contract("simulation.probe.diameter")
    @pytest.mark.parametrize(("kind", "diameter_px"), [("gaussian", 20.0), ("zone_plate", 20.0), ("zone_plate", 28.0)])
    def test_half_the_power_lies_within_the_diameter(self, kind: Any, diameter_px: float) -> None:
        probe = make_probe(SimulateConfig(probe_kind=kind, probe_diameter_px=diameter_px))
        assert diameter_holding(0.5, probe) == pytest.approx(diameter_px, rel=0.1)

    def test_disk_is_flat_inside_and_dark_outside_its_diameter(self) -> None:
        probe = np.abs(make_probe(SimulateConfig(probe_kind="disk", probe_diameter_px=24.0))[0])
        assert probe[32, 32 + 12] == pytest.approx(0.5 * probe[32, 32], rel=1e-5)
        np.testing.assert_allclose(probe[32, 24:41], probe[32, 32], rtol=1e-5)
        assert probe[32, 32 + 16] == 0

    @pytest.mark.contract("simulation.probe.structure")
    @pytest.mark.parametrize("n_px", [32, 64, 128])
    def test_zone_plate_beam_has_a_curved_phase(self, n_px: int) -> None:
        probe = make_probe(SimulateConfig(n_px=n_px))
        d90 = diameter_holding(0.9, probe)
        assert 0.4 * n_px < d90 < 0.6 * n_px
        row = probe[0, n_px // 2, n_px // 2 : n_px // 2 + round(d90 / 2)]
        phase = np.unwrap(np.angle(row))
        assert abs(phase[-1] - phase[0]) > 2 * np.pi

    @pytest.mark.contract("simulation.probe.pupil")
    def test_zone_plate_beam_is_dark_behind_its_central_stop(self) -> None:
        probe = make_probe(SimulateConfig(n_px=64))[0]
        intensity = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe)))) ** 2
        assert intensity[32, 32] < 0.01 * intensity.max()

    def test_zone_plate_beam_is_centred_on_the_pixel_of_the_position(self) -> None:
        probe = make_probe(SimulateConfig(n_px=32))[0]
        mirrored = np.roll(probe[::-1, ::-1], (1, 1), axis=(0, 1))
        np.testing.assert_allclose(probe, mirrored, rtol=0, atol=1e-5 * float(np.abs(probe).max()))

    @pytest.mark.contract("simulation.probe.modes")
    @pytest.mark.parametrize("kind", PROBES)
    def test_modes_are_orthogonal_with_halving_power(self, kind: Any) -> None:
        modes = make_probe(SimulateConfig(probe_kind=kind, probe_modes=5)).reshape(5, -1).astype(np.complex128)
        gram = modes @ modes.conj().T
        np.testing.assert_allclose(np.diagonal(gram)[1:] / np.diagonal(gram)[:-1], 0.5, rtol=1e-5)
        off_diagonal = gram - np.diag(np.diagonal(gram))
        assert np.abs(off_diagonal).max() < 1e-6 * np.abs(gram).max()

    def test_first_of_several_modes_is_the_single_mode(self) -> None:
        one, first = make_probe(SimulateConfig())[0], make_probe(SimulateConfig(probe_modes=3))[0]
        ratio = np.vdot(one, first) / np.vdot(one, one)
        assert ratio == pytest.approx(np.sqrt(4 / 7), rel=1e-4)
        assert np.linalg.norm(first - ratio * one) < 1e-5 * np.linalg.norm(first)

    @pytest.mark.contract("simulation.errors.named")
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"probe_diameter_px": 60.0}, ["probe_diameter_px", "48", "60", "64"]),
            ({"probe_defocus_waves": 7.0}, ["probe_defocus_waves", "7", "25.6", "0.5"]),
            ({"probe_defocus_waves": -1e7}, ["probe_defocus_waves", "1e+07"]),
            ({"probe_diameter_px": 0.5}, ["probe_diameter_px", "0.5"]),
        ],
    )
    def test_beam_that_the_frame_cannot_hold_is_refused(self, options: dict[str, Any], words: list[str]) -> None:
        with pytest.raises(ConfigError) as caught:
            make_probe(SimulateConfig(**options))
        assert all(word in str(caught.value) for word in words)


class TestPositions:
    @pytest.mark.contract("simulation.positions.overlap")
    @pytest.mark.parametrize("kind", ["raster", "fermat"])
    def test_default_scan_overlaps_and_leaves_no_hole(self, kind: Any) -> None:
        config = SimulateConfig(position_kind=kind)
        positions = make_positions(config, np.random.default_rng(0), (256, 256))
        tree = cKDTree(positions)
        half_beam_px = 0.5 * 0.4 * config.n_px
        neighbour_px = tree.query(positions, k=2)[0][:, 1]
        assert neighbour_px.max() < half_beam_px
        field = np.stack(np.meshgrid(*[np.arange(32, 224, 3.0)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
        assert tree.query(field)[0].max() < half_beam_px

    def test_raster_steps_are_equal_both_ways_on_a_wide_object(self) -> None:
        config = SimulateConfig(n_px=16, n_frames=200, position_kind="raster", position_jitter_px=0)
        positions = make_positions(config, np.random.default_rng(0), (100, 300))
        steps = [np.diff(np.unique(positions[:, axis])).mean() for axis in (0, 1)]
        assert steps[0] == pytest.approx(steps[1], rel=0.2)

    def test_fermat_spiral_starts_in_the_middle(self) -> None:
        positions = make_positions(SimulateConfig(), np.random.default_rng(0), (256, 200))
        np.testing.assert_allclose(positions[0], [127.5, 99.5], rtol=0, atol=1e-9)
        steps = np.linalg.norm(positions - positions[0], axis=1)
        assert np.all(np.diff(steps) > 0)

    @pytest.mark.contract("simulation.errors.named")
    def test_object_smaller_than_the_frame_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"64 x 64 px is too small for frames of 64 px.* 65 px"):
            simulate(SimulateConfig(object_px=64))


class TestFrames:
    @pytest.mark.contract("simulation.frames.forward")
    def test_frame_is_the_diffraction_of_the_patch_under_the_beam(self) -> None:
        config = SimulateConfig(n_px=32, object_px=70, noise=False, probe_modes=2)
        scan = simulate(config, positions_px=[[16, 16], [30, 41], [54, 20]])
        assert scan.truth is not None
        assert scan.frames.dtype == np.float32
        for index, (y, x) in enumerate([(16, 16), (30, 41), (54, 20)]):
            patch = scan.truth[y - 16 : y + 16, x - 16 : x + 16].astype(np.complex128)
            waves = np.fft.fftshift(np.fft.fft2(scan.probe * patch), axes=(-2, -1)) / 32
            expected = (np.abs(waves) ** 2).sum(0)
            error = np.linalg.norm(scan.frames[index] - expected) / np.linalg.norm(expected)
            assert error < 1e-5

    @pytest.mark.contract("simulation.frames.poisson")
    def test_counts_scatter_as_poisson_around_the_expected_counts(self) -> None:
        config = SimulateConfig(n_px=32, object_px=64, photons_per_frame=2e4)
        positions = np.full((2000, 2), 32.0)
        counts = frames_of(simulate(config, positions_px=positions)).astype(np.float64)
        mean = frames_of(simulate(dataclasses.replace(config, noise=False), positions_px=positions[:1]))[0]
        lit = mean > 5
        assert lit.sum() > 100
        # Standard errors of 2000 draws: sqrt(mean / 2000) and sqrt((2 + 1 / mean) / 2000) relative; 6 of them.
        deviation = (counts.mean(0) - mean)[lit] / np.sqrt(mean[lit] / 2000)
        assert np.abs(deviation).max() < 6
        assert abs(np.mean(deviation**2) - 1) < 0.35
        ratio = counts.var(0)[lit] / mean[lit]
        assert np.abs(ratio - 1).max() < 6 * np.sqrt(2.2 / 2000)
        assert ratio.mean() == pytest.approx(1, abs=0.02)

    @pytest.mark.contract("simulation.frames.dtype")
    @pytest.mark.parametrize(("photons", "dtype"), [(1e5, np.uint16), (1e9, np.uint32)])
    def test_counts_take_the_smallest_dtype_that_holds_them(self, photons: float, dtype: type) -> None:
        scan = simulate(SimulateConfig(**SMALL, photons_per_frame=photons))
        assert scan.frames.dtype == dtype
        assert (int(frames_of(scan).max()) > 65535) == (dtype is np.uint32)

    @pytest.mark.contract("simulation.frames.dose")
    def test_transparent_object_lets_all_photons_through(self) -> None:
        config = SimulateConfig(**{**SMALL, "n_frames": 100}, photons_per_frame=1e4, probe_modes=2)
        scan = simulate(config, object=np.ones((80, 80)))
        # The mean of 100 frames of 1e4 photons has a standard error of 10.
        assert scan.metadata["photons_drawn_mean"] == pytest.approx(1e4, abs=60)
        assert frames_of(scan).sum() == scan.metadata["photons_drawn_total"]

    @pytest.mark.contract("simulation.scan.metadata")
    def test_scan_says_how_it_was_made(self) -> None:
        config = SimulateConfig(**SMALL, photons_per_frame=5e4, simulation_seed=7)
        scan = simulate(config, object=np.full((50, 60), 0.5))
        assert scan.source == "simulate(given object, seed 7)"
        assert json.loads(json.dumps(scan.metadata)) == scan.metadata
        assert SimulateConfig(**scan.metadata["simulation"]) == config
        assert scan.metadata["given"] == ["object"]
        assert scan.photons_per_frame == 5e4
        assert scan.metadata["photons_drawn_mean"] == pytest.approx(5e4 / 4, rel=0.02)
        assert scan.probe_is_calibrated is scan.metadata["probe_is_calibrated"] is True
        assert scan.domain == scan.metadata["domain"] == "counts"
        assert scan.mask.all()
        assert scan.mask.shape == (32, 32)
        assert not scan.scan_id.any()

    def test_default_source_names_object_and_seed(self) -> None:
        assert simulate(SimulateConfig(**SMALL)).source == "simulate(dead_leaves, seed 0)"

    @pytest.mark.contract("simulation.errors.named")
    @pytest.mark.parametrize("photons", [1e14, 1e60])
    def test_dose_beyond_the_counter_is_refused(self, photons: float) -> None:
        with pytest.raises(ConfigError, match="4294967295"):
            simulate(SimulateConfig(**SMALL, photons_per_frame=photons))


class TestGiven:
    @pytest.mark.contract("simulation.given.used")
    @pytest.mark.contract("simulation.probe.gauge")
    @pytest.mark.parametrize("shape", [(32, 32), (2, 32, 32)])
    def test_given_parts_are_those_of_the_scan(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        field = (rng.random((40, 50)) * np.exp(1j * rng.random((40, 50)))).astype(np.complex64)
        probe = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        positions = np.array([[16.0, 16.0], [24.0, 34.0], [20.25, 17.5]])
        config = SimulateConfig(n_px=32, photons_per_frame=1e4)
        scan = simulate(config, object=field, probe=probe, positions_px=positions)
        np.testing.assert_array_equal(scan.truth, field)
        np.testing.assert_array_equal(scan.positions_px, positions)
        assert scan.n_frames == 3
        assert scan.probe.shape == (shape[0] if len(shape) == 3 else 1, 32, 32)
        assert power(scan.probe) == pytest.approx(1e4, rel=1e-6)
        ratio = scan.probe / probe.reshape(scan.probe.shape)
        np.testing.assert_allclose(ratio, ratio.flat[0].real, rtol=1e-5)

    @pytest.mark.contract("simulation.given.outside")
    @pytest.mark.parametrize(
        ("bad", "needed"),
        [((50.5, 40.0), "67 x 80"), ((15.5, 40.0), "64 x 80"), ((40.0, 64.25), "64 x 81"), ((np.nan, 40.0), "finite")],
    )
    def test_position_outside_the_object_is_refused(self, bad: tuple[float, float], needed: str) -> None:
        positions = [[20.0, 20.0], [48.0, 64.0], list(bad), [2.0, 2.0]][:3]
        with pytest.raises(ConfigError, match=r"positions_px\[2\]") as caught:
            simulate(SimulateConfig(n_px=32), object=np.ones((64, 80)), positions_px=positions)
        assert needed in str(caught.value)
        assert "64 x 80 px" in str(caught.value)

    def test_object_of_the_size_that_the_error_names_is_large_enough(self) -> None:
        config = SimulateConfig(n_px=32, n_frames=1)
        with pytest.raises(ConfigError, match="67 x 80"):
            simulate(config, object=np.ones((64, 80)), positions_px=[[50.5, 64.0]])
        assert simulate(config, object=np.ones((67, 80)), positions_px=[[50.5, 64.0]]).n_frames == 1

    @pytest.mark.contract("simulation.errors.named")
    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ({"object": np.ones((2, 3, 80, 80))}, ["object", "[H, W]", "(2, 3, 80, 80)"]),
            ({"object": np.full((80, 80), np.nan)}, ["object", "finite", "6400"]),
            ({"object": np.ones((20, 80))}, ["20 x 80", "32"]),
            ({"probe": np.ones((64, 64))}, ["probe", "32 x 32", "64, 64"]),
            ({"probe": np.ones(32)}, ["probe", "[P, N, N]", "(32,)"]),
            ({"probe": np.zeros((32, 32))}, ["probe", "zeros"]),
            ({"probe": np.array([["a"]])}, ["probe", "numbers"]),
            ({"positions_px": np.ones((5, 3))}, ["positions_px", "[M, 2]", "(5, 3)"]),
            ({"positions_px": np.ones((0, 2))}, ["positions_px", "(0, 2)"]),
        ],
    )
    def test_given_part_that_does_not_fit_is_refused(self, parts: dict[str, Any], words: list[str]) -> None:
        with pytest.raises(ConfigError) as caught:
            simulate(SimulateConfig(**SMALL), **parts)
        assert all(word in str(caught.value) for word in words)

    @pytest.mark.contract("simulation.errors.named")
    def test_negative_seed_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"simulation_seed.*-1"):
            simulate(SimulateConfig(**SMALL, simulation_seed=-1))

    @pytest.mark.contract("simulation.given.probe-file")
    @pytest.mark.contract("simulation.probe.gauge")
    def test_beam_of_a_probe_file_is_scaled_to_the_dose(self, tmp_path: Path) -> None:
        probe = 7 * make_probe(SimulateConfig(n_px=32, probe_kind="disk", probe_modes=2))
        np.savez(tmp_path / "beam.npz", probe=probe)
        config = SimulateConfig(**SMALL, photons_per_frame=1e4, probe_file=str(tmp_path / "beam.npz"))
        scan = simulate(config)
        assert power(scan.probe) == pytest.approx(1e4, rel=1e-6)
        np.testing.assert_allclose(scan.probe, probe * np.sqrt(1e4 / power(probe)), rtol=1e-5, atol=0)
        assert scan.metadata["given"] == []
        other = simulate(config, probe=np.ones((32, 32)))
        assert np.ptp(np.abs(other.probe)) == 0, "a probe that is given goes before the file"

    @pytest.mark.contract("simulation.given.probe-file")
    def test_probe_file_of_another_size_is_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "beam.npz", probe=make_probe(SimulateConfig(n_px=64)))
        with pytest.raises(ScanError, match=r"beam\.npz: 'probe': expected a probe of \(32, 32\).*found \(1, 64, 64\)"):
            simulate(SimulateConfig(**SMALL, probe_file=str(tmp_path / "beam.npz")))

    def test_beam_at_the_border_is_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        simulate(SimulateConfig(**SMALL))
        assert "outer tenth" not in caplog.text
        simulate(SimulateConfig(**SMALL), probe=np.ones((32, 32)))
        assert "outer tenth" in caplog.text


THICK: dict[str, Any] = {**SMALL, "n_slices": 3, "noise": False}


@pytest.mark.contract("simulation.object.slices")
def test_thick_object_has_distinct_slices() -> None:
    scan = simulate(SimulateConfig(**THICK, amplitude_min=0.4, phase_range_rad=0.8))
    slices = scan.truth_slices
    assert slices is not None
    assert scan.truth is not None
    assert slices.shape == (3, 80, 80)
    for k, each in enumerate(slices):
        assert np.abs(each).min() == pytest.approx(0.4 ** (1 / 3), rel=1e-5)
        assert np.ptp(np.angle(each)) == pytest.approx(0.8, rel=1e-5)
        other = np.angle(slices[(k + 1) % 3])
        assert abs(np.corrcoef(np.angle(each).ravel(), other.ravel())[0, 1]) < 0.3
    np.testing.assert_allclose(scan.truth, slices.prod(0), rtol=1e-6)
    wavelength_m, pixel_m = scan.geometry.wavelength_m, scan.geometry.object_pixel_m
    assert wavelength_m is not None
    assert pixel_m is not None
    assert scan.metadata["slice_spacing_m"] == pytest.approx(5.2 * pixel_m**2 / wavelength_m)
    thin = simulate(SimulateConfig(**SMALL))
    assert thin.truth_slices is None
    assert "slice_spacing_m" not in thin.metadata


@pytest.mark.contract("simulation.object.spacing")
@pytest.mark.parametrize(
    ("n_slices", "spacing_m", "words"),
    [(1, 1e-6, "expected none for a thin object; found 1e-06"), (2, 2.6e-5, "expected at most 2.58e-05.*32 px")],
)
def test_distance_that_no_frame_shows_is_refused(n_slices: int, spacing_m: float, words: str) -> None:
    with pytest.raises(ConfigError, match=f"slice_spacing_m: {words}"):
        simulate(SimulateConfig(**{**THICK, "n_slices": n_slices}, slice_spacing_m=spacing_m))


@pytest.mark.contract("simulation.frames.slices")
def test_waves_pass_one_slice_after_another() -> None:
    spacing_m = 4e-6
    places = np.array([[30.0, 41.0], [40, 40]])
    scan = simulate(SimulateConfig(**THICK, slice_spacing_m=spacing_m), positions_px=places)
    assert scan.truth_slices is not None
    assert scan.geometry.wavelength_m is not None
    assert scan.geometry.object_pixel_m is not None
    frequency = np.fft.fftfreq(32, scan.geometry.object_pixel_m)
    squared = (frequency[:, None] ** 2 + frequency**2) * scan.geometry.wavelength_m**2
    carried = np.exp(2j * np.pi * spacing_m / scan.geometry.wavelength_m * (np.sqrt(1 - squared) - 1))
    wave = scan.probe[0].astype(np.complex128)
    for k, each in enumerate(scan.truth_slices):
        wave = np.fft.ifft2(np.fft.fft2(wave) * carried) if k else wave
        wave = wave * each[14:46, 25:57]
    expected = np.abs(np.fft.fftshift(np.fft.fft2(wave, norm="ortho"))) ** 2
    np.testing.assert_allclose(frames_of(scan)[0], expected, rtol=2e-4, atol=1e-4 * expected.max())
    # Nearer than any detector could tell, they are their product.
    close = simulate(SimulateConfig(**THICK, slice_spacing_m=1e-15), positions_px=places)
    projected = simulate(SimulateConfig(**{**THICK, "n_slices": 1}), object=close.truth, positions_px=places)
    np.testing.assert_allclose(frames_of(close), frames_of(projected), rtol=1e-3, atol=1e-5 * frames_of(close).max())
