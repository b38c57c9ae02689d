"""An electron scan from its file to an image, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import Command

from torchptycho.data.simulation import simulate
from torchptycho.io.reconstruction_files import read_reconstruction


@pytest.mark.contract("electron.images")
@pytest.mark.contract("electron.disc")
def test_a_raster_of_electrons_becomes_an_image(command: Command, tmp_path: Path) -> None:
    y, x = np.mgrid[:96, :96]
    atoms = np.array([[36, 38], [36, 54], [50, 46], [60, 36], [60, 56]])
    phase = sum(0.6 * np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * 2.5**2)) for a, b in atoms)
    axis = 30 + 4.0 * np.arange(10)
    places = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    scan = simulate(
        {"n_px": 48, "probe_kind": "electron", "probe_defocus_m": 6e-9, "photons_per_frame": 3e4},
        object=np.exp(1j * phase),
        positions_px=places,
    )
    assert scan.geometry.object_pixel_m is not None
    step_m = 4 * scan.geometry.object_pixel_m
    np.save(tmp_path / "frames.npy", scan.frames[:].reshape(10, 10, 48, 48))
    (tmp_path / "scan.yaml").write_text("prepare:\n  mapping:\n    frames: frames.npy\n", encoding="utf-8")
    reading = (
        "--config", tmp_path / "scan.yaml", "--particle", "electron", "--energy-eV", 80e3, "--convergence-mrad", 20,
        "--guess-probe", "--probe-defocus-m", 6e-9, "--raster-step-m", step_m, step_m,
    )  # fmt: skip
    out = command("inspect", tmp_path / "frames.npy", *reading, "--virtual-images", tmp_path / "images.png", "--json")
    assert out.code == 0, out.err
    report = json.loads(out.out)
    assert (tmp_path / "images.png").stat().st_size > 20_000
    assert report["virtual_images"]["swap_xy"] is False
    assert abs(report["virtual_images"]["rotation_deg"]) < 10
    assert report["virtual_images"]["disc"]["radius_px"] == pytest.approx(10, rel=0.03)
    refined = tmp_path / "refined.npz"
    result = command("refine", tmp_path / "frames.npy", *reading, "--out", refined, "--epochs", 15)
    assert result.code == 0, result.err
    image = read_reconstruction(refined)
    found = np.angle(image.object * np.exp(-1j * np.angle(image.object[image.valid].sum())))
    corner = np.array(image.origin_px)
    # The raster begins at (0, 0); the simulated one at (30, 30).
    rows, columns = (atoms - 30 - corner).T
    background = np.median(found[image.valid])
    at_atoms = found[rows, columns]
    assert image.object_pixel_m == pytest.approx(scan.geometry.object_pixel_m, rel=0.02)
    assert at_atoms.min() > background + 0.3
