"""Starts whose scan has been read otherwise since."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.errors import ConfigError
from torchptycho.core.geometry import Geometry
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_reconstruction, write_reconstruction
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.iterative.start_matching import match_start

QUICK = RefineConfig(epochs=15, batch_size=16, patience=None)


def read_with_energy(scan: Scan, factor: float) -> Scan:
    """The same frames and positions in metres, with an energy `factor` times as high."""
    assert scan.geometry.object_pixel_m is not None
    geometry = Geometry(object_pixel_m=scan.geometry.object_pixel_m / factor)
    return dataclasses.replace(scan, geometry=geometry, positions_px=scan.positions_px * factor)


def make_whole(scan: Scan, scale: float = 1.0) -> Reconstruction:
    """The truth in pixels `scale` times as small, by what other programs keep of it."""
    assert scan.truth is not None
    assert scan.geometry.object_pixel_m is not None
    rows, columns = (np.floor(np.arange(int(n * scale)) / scale).astype(int) for n in scan.truth.shape)
    values = scan.truth[np.ix_(rows, columns)]
    return Reconstruction(
        object=values,
        coverage=np.ones(values.shape, np.float32),
        valid=np.ones(values.shape, bool),
        origin_px=(0, 0),
        object_pixel_m=scan.geometry.object_pixel_m / scale,
    )


@pytest.fixture(scope="module")
def scan() -> Scan:
    made = simulate(SimulateConfig(n_px=32, object_px=72, n_frames=64, photons_per_frame=1e6, simulation_seed=3))
    return dataclasses.replace(made, geometry=Geometry(object_pixel_m=2e-8), truth_patches=None)


@pytest.fixture(scope="module")
def wrong(scan: Scan) -> Reconstruction:
    """Refined with an energy that was an eighth too low."""
    return refine(read_with_energy(scan, 7 / 8), config=QUICK)


@pytest.mark.contract("refine.start.geometry")
def test_a_corrected_energy_is_kept(scan: Scan, wrong: Reconstruction) -> None:
    found = refine(scan, wrong, config=QUICK)
    assert found.positions_px is not None
    assert found.object_pixel_m == 2e-8
    np.testing.assert_allclose(found.positions_px, scan.positions_px)
    cold = refine(scan, config=QUICK).history["misfit"]
    assert found.history["misfit"][-1] < 1.3 * cold[-1]


@pytest.mark.contract("refine.start.geometry")
def test_positions_found_by_the_start_are_scaled(scan: Scan, wrong: Reconstruction) -> None:
    assert wrong.positions_px is not None
    found = np.random.default_rng(0).normal(0, 1, scan.positions_px.shape)
    start = match_start(dataclasses.replace(wrong, positions_px=wrong.positions_px + found), scan)
    assert start.positions_px is not None
    np.testing.assert_allclose(start.positions_px, scan.positions_px + found * 8 / 7)
    assert start.given_positions_px is not None
    np.testing.assert_allclose(start.given_positions_px, scan.positions_px)
    assert match_start(dataclasses.replace(wrong, positions_px=None), scan).positions_px is None


@pytest.mark.contract("refine.start.geometry")
def test_a_scale_that_was_found_already_is_not_corrected_twice(scan: Scan, wrong: Reconstruction) -> None:
    near = scan.positions_px + np.random.default_rng(0).normal(0, 0.2, scan.positions_px.shape)
    start = match_start(dataclasses.replace(wrong, positions_px=near), scan)
    assert start.positions_px is near


@pytest.mark.contract("refine.start.geometry")
def test_positions_in_pixels_do_not_follow_the_energy(scan: Scan) -> None:
    start = refine(scan, config=QUICK)
    later = dataclasses.replace(scan, geometry=Geometry(object_pixel_m=3e-8))
    assert match_start(start, later).object is start.object


@pytest.mark.contract("refine.start.geometry")
@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_an_object_of_another_program_is_resampled_by_its_pixel(scan: Scan, scale: float) -> None:
    start = match_start(make_whole(scan, scale), scan)
    assert scan.truth is not None
    assert start.object_pixel_m == 2e-8
    assert evaluate(start, scan.truth).complex_nrmse < 0.15


@pytest.mark.contract("refine.start.geometry")
def test_a_start_of_some_frames_is_scaled_as_well(scan: Scan, wrong: Reconstruction) -> None:
    assert wrong.given_positions_px is not None
    part = dataclasses.replace(wrong, given_positions_px=wrong.given_positions_px[::2], positions_px=None)
    assert match_start(part, scan).object.shape == match_start(wrong, scan).object.shape
    turned = dataclasses.replace(scan, positions_px=scan.positions_px[:, ::-1].copy())
    with pytest.raises(ConfigError, match="positions of 32 frames that are not among"):
        match_start(part, turned)


@pytest.mark.contract("refine.start.probe")
def test_probe_of_the_same_frames_stays(scan: Scan, wrong: Reconstruction) -> None:
    np.testing.assert_array_equal(match_start(wrong, scan).probe, wrong.probe)


@pytest.mark.contract("refine.start.probe")
def test_probe_of_another_pixel_is_resampled(scan: Scan) -> None:
    """A probe on twice as many pixels of half the size is that of twice as large a detector."""
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(scan.probe, axes=(1, 2))), axes=(1, 2))
    fine = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(np.pad(spectrum, ((0, 0), (16, 16), (16, 16))))), axes=(1, 2))
    start = dataclasses.replace(make_whole(scan, 2.0), probe=(fine * 2).astype(np.complex64))
    probe = match_start(start, scan).probe
    assert probe is not None
    assert probe.shape == scan.probe.shape
    assert np.linalg.norm(probe - scan.probe) < 0.02 * np.linalg.norm(scan.probe)


@pytest.mark.contract("refine.start.refused")
@pytest.mark.parametrize(
    ("turn", "what"),
    [
        (lambda p: p[:, ::-1], "with x and y exchanged\\."),
        (lambda p: p * (-1, 1), "with y reversed\\."),
        (lambda p: p * (1, -1), "with x reversed\\."),
        (lambda p: -p, "with x and y reversed\\."),
    ],
)
def test_another_orientation_is_refused_by_name(scan: Scan, wrong: Reconstruction, turn, what: str) -> None:  # type: ignore[no-untyped-def]
    turned = dataclasses.replace(scan, positions_px=np.ascontiguousarray(turn(scan.positions_px)) + 100.0)
    with pytest.raises(ConfigError, match=f"another orientation: the scan's positions are the start's {what}"):
        match_start(wrong, turned)


@pytest.mark.contract("refine.start.refused")
def test_other_positions_are_refused(scan: Scan, wrong: Reconstruction) -> None:
    elsewhere = dataclasses.replace(
        scan, positions_px=scan.positions_px + np.random.default_rng(0).normal(0, 1, scan.positions_px.shape)
    )
    with pytest.raises(ConfigError, match=r"made with other positions: .* differ from the scan's by up to"):
        match_start(wrong, elsewhere)
    old = dataclasses.replace(wrong, given_positions_px=None, positions_px=wrong.positions_px[::-1].copy())  # type: ignore[index]
    with pytest.raises(ConfigError, match="its positions are not those of the scan"):
        match_start(old, scan)


@pytest.mark.contract("refine.start.refused")
def test_pixels_of_another_unit_are_refused(scan: Scan) -> None:
    start = dataclasses.replace(make_whole(scan), object_pixel_m=2e-5)
    with pytest.raises(ConfigError, match=r"1000 times as large as the scan's \(object pixel 2e-05 m"):
        match_start(start, scan)


@pytest.mark.contract("files.reconstruction.given-positions")
def test_given_positions_are_in_the_file(scan: Scan, wrong: Reconstruction, tmp_path: Path) -> None:
    write_reconstruction(wrong, tmp_path / "wrong.npz")
    again = read_reconstruction(tmp_path / "wrong.npz")
    assert wrong.given_positions_px is not None
    assert again.given_positions_px is not None
    np.testing.assert_array_equal(again.given_positions_px, wrong.given_positions_px)
    write_reconstruction(make_whole(scan), tmp_path / "plain.npz")
    assert read_reconstruction(tmp_path / "plain.npz").given_positions_px is None
