"""Virtual images of an electron scan, and its rotation against the detector."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from torchptycho.analysis.stem import advise_rotation, compute_virtual_images, estimate_rotation
from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.io.scan_geometry import orient_positions, rotate_positions

ATOMS_PX = np.array([[40, 44], [40, 60], [56, 52], [58, 70], [72, 46], [74, 64]])
"""No rotation or reflection leaves them as they are."""


@pytest.fixture(scope="module")
def scan() -> Scan:
    y, x = np.mgrid[:112, :112]
    phase = sum(0.5 * np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * 2.5**2)) for a, b in ATOMS_PX)
    axis = 36 + 3.0 * np.arange(14)
    places = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    options = {"n_px": 64, "probe_kind": "electron", "photons_per_frame": 1e6, "noise": False}
    return dataclasses.replace(simulate(options, object=np.exp(1j * phase), positions_px=places), truth=None)


def turn(scan: Scan, angle_deg: float, swap: bool) -> Scan:
    """Give it positions that have to be exchanged (or not), and then turned by this angle, to be right."""
    back = rotate_positions(scan.positions_px, -angle_deg)
    return dataclasses.replace(scan, positions_px=np.ascontiguousarray(back[:, ::-1] if swap else back))


@pytest.mark.contract("electron.rotation")
@pytest.mark.parametrize(
    ("angle_deg", "swap"), [(0.0, False), (35.0, False), (-100.0, False), (180.0, False), (20.0, True)]
)
def test_the_rotation_is_found(scan: Scan, angle_deg: float, swap: bool) -> None:
    rotation = compute_virtual_images(turn(scan, angle_deg, swap)).rotation
    assert rotation.swap_xy == swap
    assert abs(math.remainder(rotation.rotation_deg - angle_deg, 360)) < 4
    assert rotation.curl_fraction < 0.2 < rotation.curl_fraction_other


@pytest.mark.contract("electron.rotation")
def test_the_advice_makes_the_positions_right(scan: Scan) -> None:
    turned = turn(scan, 20.0, True)
    before = ReadConfig(positions_rotation_deg=10.0)
    read = dataclasses.replace(turned, positions_px=orient_positions(turned.positions_px, before, []), reading=before)
    advice = advise_rotation(compute_virtual_images(read).rotation, before)
    assert "--swap-xy" in advice
    angle = float(advice.split("--positions-rotation-deg ")[1].split()[0].rstrip("."))
    assert angle == pytest.approx(20.0, abs=4)
    right = compute_virtual_images(scan).rotation
    assert "are those of the detector" in advise_rotation(right, ReadConfig())


@pytest.mark.contract("electron.rotation")
@pytest.mark.parametrize("kind", ["electron", "disk"])
def test_where_no_atoms_stand_out_the_reverse_is_not_decided(kind: str) -> None:
    options = {"n_px": 32, "object_px": 64, "n_frames": 144, "probe_kind": kind, "angle_per_pixel_mrad": 4}
    for seed in (0, 1):
        grains = simulate({**options, "simulation_seed": seed, "photons_per_frame": 1e5})
        rotation = compute_virtual_images(grains).rotation
        assert not rotation.reverse_is_known
        assert abs(rotation.rotation_deg) < 10
        assert "180 degrees more" in advise_rotation(rotation, ReadConfig())


def test_several_scans_are_refused(scan: Scan) -> None:
    two = dataclasses.replace(scan, scan_id=np.arange(scan.n_frames) % 2)
    with pytest.raises(ScanError, match="--scan"):
        compute_virtual_images(two)


@pytest.mark.contract("electron.rotation")
def test_noise_tells_no_rotation() -> None:
    field = np.random.default_rng(0).normal(size=(2, 40, 40))
    rotation = estimate_rotation(field, electrons=True)
    assert "does not tell the rotation" in advise_rotation(rotation, ReadConfig())


@pytest.mark.contract("electron.images")
def test_virtual_images_show_the_atoms(scan: Scan) -> None:
    images = compute_virtual_images(scan)
    assert images.disc is not None
    assert images.disc.radius_px == pytest.approx(10, rel=0.03)
    assert images.step_px == pytest.approx(3.0)
    y, x = ((ATOMS_PX - 36) / 3).round().astype(int).T
    background = np.median(images.integrated)
    assert images.integrated[y, x].min() > background + 0.4 * (images.integrated.max() - background)
    assert np.median(images.dark_field[y, x]) > 2 * np.median(images.dark_field)
    assert np.allclose(images.bright_field + images.dark_field, 1, atol=0.05)


@pytest.mark.contract("electron.images")
def test_a_line_is_no_image(scan: Scan) -> None:
    places = np.stack([np.full(scan.n_frames, 50.0), np.linspace(36, 75, scan.n_frames)], axis=1)
    line = dataclasses.replace(scan, positions_px=places)
    with pytest.raises(ScanError, match="over an area"):
        compute_virtual_images(line)
