"""Near-field scans as files have them: magnification, padding, a first probe, and what refuses them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Complex64

from torchptycho.core.config import ReadConfig, RefineConfig, SimulateConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan, write_scan
from torchptycho.io.near_field_reading import pad_probe
from torchptycho.models.default_network import build_default_network
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.network_reconstruction import reconstruct

NEAR = SimulateConfig(
    n_px=64, object_px=140, n_frames=60, propagation="near", fresnel_number=0.05, photons_per_frame=1e6,
)  # fmt: skip


@pytest.fixture(scope="module")
def near_scan() -> Scan:
    along = np.hypot(*np.meshgrid(np.arange(64) - 32, np.arange(64) - 32))
    return simulate(NEAR, probe=make_diffuser(64) / (1 + np.exp((along - 20) / 1.5)))


def make_diffuser(n_px: int) -> Complex64[np.ndarray, "n n"]:
    """Make a speckled illumination that fills the frame."""
    rng = np.random.default_rng(5)
    spectrum = np.fft.fft2(rng.normal(size=(n_px, n_px)) + 1j * rng.normal(size=(n_px, n_px)))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(n_px), np.fft.fftfreq(n_px)))
    return (1 + 0.3 * np.fft.ifft2(spectrum * (frequency < 0.1))).astype(np.complex64)


@pytest.mark.contract("files.near-field.round-trip")
def test_near_field_scan_is_written_and_read_again(near_scan: Scan, tmp_path: Path) -> None:
    write_scan(near_scan, tmp_path / "near.npz")
    back = read_scan(tmp_path / "near.npz")
    assert back.geometry == near_scan.geometry
    np.testing.assert_array_equal(back.positions_px, near_scan.positions_px)
    cone = dataclasses.replace(near_scan.geometry, focus_distance_m=0.3, object_pixel_m=None)
    write_scan(dataclasses.replace(near_scan, geometry=cone.with_object_pixel(64)), tmp_path / "cone.npz")
    assert read_scan(tmp_path / "cone.npz").geometry.focus_distance_m == 0.3


@pytest.mark.contract("files.near-field.round-trip")
@pytest.mark.parametrize("focus_m", [None, 0.3])
def test_near_field_product_is_read_as_one(near_scan: Scan, tmp_path: Path, focus_m: float | None) -> None:
    geometry = dataclasses.replace(near_scan.geometry, focus_distance_m=focus_m, object_pixel_m=None)
    written = dataclasses.replace(near_scan, geometry=geometry.with_object_pixel(64))
    write_scan(written, tmp_path / "near.h5")
    back = read_scan(tmp_path / "near.h5").geometry
    assert back.propagation == "near"
    assert back.object_pixel_m == pytest.approx(written.geometry.object_pixel_m)
    assert back.magnification == pytest.approx(written.geometry.magnification)


@pytest.mark.contract("files.near-field.read")
@pytest.mark.parametrize("magnification", [1.0, 40.0])
def test_magnification_follows_from_the_images(near_scan: Scan, tmp_path: Path, magnification: float) -> None:
    # The same images behind a cone beam: distance and pixel are magnified, positions in metres are not.
    plain = near_scan.geometry
    assert plain.object_pixel_m is not None
    assert plain.distance_m is not None
    geometry = Geometry(
        energy_eV=plain.energy_eV,
        distance_m=plain.distance_m * magnification,
        detector_pixel_m=plain.object_pixel_m * magnification,
    )
    # Positions in pixels of a far-field formula, as a program that knows no near field writes them.
    far_pixel_m = geometry.with_object_pixel(64).object_pixel_m
    assert far_pixel_m is not None
    scan = dataclasses.replace(
        near_scan,
        geometry=dataclasses.replace(geometry, object_pixel_m=far_pixel_m),
        positions_px=near_scan.positions_px * plain.object_pixel_m / far_pixel_m,
        truth=None,
    )
    write_scan(scan, tmp_path / "scan.npz")
    near = read_scan(tmp_path / "scan.npz", ReadConfig(propagation="near"))
    assert near.geometry.magnification == pytest.approx(magnification, rel=0.02)
    assert near.geometry.object_pixel_m == pytest.approx(plain.object_pixel_m, rel=0.02)
    assert not any("other state" in note for note in near.notes)
    given = read_scan(
        tmp_path / "scan.npz",
        ReadConfig(
            propagation="near",
            focus_distance_m="parallel"
            if magnification == 1
            else plain.distance_m * magnification / (magnification - 1),
        ),
    )
    np.testing.assert_allclose(given.positions_px, near_scan.positions_px, rtol=1e-6)


@pytest.mark.contract("files.near-field.read")
@pytest.mark.parametrize(("options", "named"), [({"flip_x": True}, "flip_x"), ({"swap_xy": True}, "swap_xy")])
def test_images_tell_which_sign_of_the_positions_is_wrong(
    near_scan: Scan, tmp_path: Path, options: dict[str, bool], named: str
) -> None:
    geometry = dataclasses.replace(near_scan.geometry, propagation="far")
    write_scan(dataclasses.replace(near_scan, geometry=geometry, truth=None), tmp_path / "scan.npz")
    near = read_scan(tmp_path / "scan.npz", ReadConfig(propagation="near", **options))
    assert next(note for note in near.notes if "other state" in note).endswith(f"of {named}")


@pytest.mark.contract("files.near-field.padding")
def test_frames_that_are_lit_to_their_border_are_padded(tmp_path: Path) -> None:
    scan = simulate(dataclasses.replace(NEAR, n_frames=30), probe=make_diffuser(64))
    write_scan(scan, tmp_path / "scan.npz")
    # As a detector records it: the wave does not wrap around at the border of the middle.
    with np.load(tmp_path / "scan.npz") as arrays:
        content = dict(arrays)
    content["diffraction"] = content["diffraction"][:, 8:-8, 8:-8]
    content["probeGuess"] = content["probeGuess"][:, 8:-8, 8:-8]
    np.savez(tmp_path / "middle.npz", **{name: value for name, value in content.items() if name != "objectGuess"})
    near = read_scan(tmp_path / "middle.npz")
    assert near.n_px == 48 + 2 * 10
    assert near.mask.sum() == 48 * 48
    assert near.probe.shape == (1, 68, 68)
    assert any("padded by 10" in note for note in near.notes)
    np.testing.assert_allclose(near.positions_px, scan.positions_px)
    guessed = read_scan(tmp_path / "middle.npz", ReadConfig(crop_px=48))
    assert guessed.n_px == 48


@pytest.mark.contract("refine.near-field")
@pytest.mark.parametrize("method", ["rpie", "lsqml", "gradient"])
def test_refinement_of_near_field_frames(near_scan: Scan, method: str) -> None:
    config = RefineConfig(epochs=20, method=method, probe_update=False)
    image = refine(near_scan, config=config, device="cpu")
    assert near_scan.truth is not None
    y, x = image.origin_px
    truth = near_scan.truth[max(y, 0) : y + image.object.shape[0], max(x, 0) : x + image.object.shape[1]]
    there = image.object[max(-y, 0) :, max(-x, 0) :][: truth.shape[0], : truth.shape[1]]
    well = image.coverage[max(-y, 0) :, max(-x, 0) :][: truth.shape[0], : truth.shape[1]] > 0.3
    factor = np.vdot(there[well], truth[well]) / np.vdot(there[well], there[well])
    error = np.linalg.norm(factor * there[well] - truth[well]) / np.linalg.norm(truth[well])
    assert error < 0.3
    assert image.history["misfit"][-1] < 1.2


@pytest.mark.contract("refine.near-field")
def test_refinement_from_a_guessed_probe(near_scan: Scan, tmp_path: Path) -> None:
    write_scan(near_scan, tmp_path / "near.npz")
    with np.load(tmp_path / "near.npz") as arrays:
        content = {name: value for name, value in arrays.items() if name not in ("probeGuess", "objectGuess")}
    np.savez(tmp_path / "no-probe.npz", **content)
    scan = read_scan(tmp_path / "no-probe.npz", ReadConfig(guess_probe=True))
    overlap = np.vdot(scan.probe[0], near_scan.probe[0]) / np.linalg.norm(scan.probe) / np.linalg.norm(near_scan.probe)
    assert abs(overlap) > 0.8
    misfit = refine(scan, config=RefineConfig(epochs=30), device="cpu").history["misfit"]
    assert misfit[-1] < 0.2 * misfit[0]


@pytest.mark.contract("refine.near-field")
def test_networks_refuse_near_field_frames(near_scan: Scan) -> None:
    with pytest.raises(ScanError, match=r"near-field frames\. Use `refine`"):
        reconstruct(build_default_network(near_scan), near_scan, progress=False)


@pytest.mark.contract("files.near-field.read")
def test_lengths_that_are_missing_are_named(near_scan: Scan, tmp_path: Path) -> None:
    write_scan(dataclasses.replace(near_scan, geometry=Geometry()), tmp_path / "scan.npz")
    with pytest.raises(ScanError, match="--energy-eV --distance-m --detector-pixel-m"):
        read_scan(tmp_path / "scan.npz", ReadConfig(propagation="near"))


@pytest.mark.contract("files.near-field.padding")
def test_padding_keeps_the_middle_of_a_probe() -> None:
    probe = np.zeros((1, 6, 6), np.complex64)
    probe[0, 3, 3] = 1
    assert pad_probe(probe, 10)[0, 5, 5] == 1
    assert pad_probe(pad_probe(probe, 11), 6)[0, 3, 3] == 1
