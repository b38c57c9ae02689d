"""Positions far apart: a wrong position or a wrong unit is named before any memory is taken for the image."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from torchptycho.analysis.inspection import inspect_scan
from torchptycho.core.config import ReadConfig, RefineConfig, SimulateConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan, write_scan
from torchptycho.io.field import find_islands
from torchptycho.reconstructors.canvas import Canvas
from torchptycho.reconstructors.iterative import refine

SCAN = simulate(SimulateConfig(n_px=32, object_px=80, n_frames=30, photons_per_frame=1e4, probe_diameter_px=10))
FAR = 17


def move(value: float) -> Scan:
    places = SCAN.positions_px.copy()
    places[FAR] = value
    return dataclasses.replace(SCAN, positions_px=places, truth=None)


@pytest.mark.contract("files.read.field")
def test_position_far_away_is_named_on_reading_and_in_python(tmp_path: Path) -> None:
    scan = move(99999.0)
    write_scan(scan, tmp_path / "far.npz")
    message = rf"found \(99999, 99999\) for frame {FAR}, counted from 0\. Leave out with --drop-frames {FAR}"
    with pytest.raises(ScanError, match=message):
        read_scan(tmp_path / "far.npz")
    with pytest.raises(ScanError, match=message):
        refine(scan, config=RefineConfig(epochs=1), device="cpu")
    with pytest.raises(ScanError, match=message):
        Canvas.for_positions(torch.from_numpy(scan.positions_px), 32)
    with pytest.raises(ScanError, match="NaN or infinity"):
        refine(move(np.nan), config=RefineConfig(epochs=1), device="cpu")


@pytest.mark.contract("files.read.field")
def test_field_that_no_frame_fills_is_a_matter_of_its_unit() -> None:
    wide = dataclasses.replace(SCAN, positions_px=SCAN.positions_px * 1e6, geometry=Geometry(object_pixel_m=1e-14))
    with pytest.raises(ScanError, match=r"a field that 30 frames of 32 px can fill.*--positions-unit"):
        refine(wide, config=RefineConfig(epochs=1), device="cpu")


@pytest.mark.contract("files.read.field")
def test_parts_that_lie_apart_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scan = move(300.0)
    write_scan(scan, tmp_path / "apart.npz")
    found = read_scan(tmp_path / "apart.npz")
    assert f"1 frame(s) overlap none of the others: {FAR}, in 1 part(s) apart" in caplog.text
    assert any("overlap none of the others" in problem for problem in inspect_scan(found).problems)
    assert find_islands(SCAN) is None


@pytest.mark.contract("files.read.field")
def test_position_far_away_in_metres_is_named_and_not_its_unit(tmp_path: Path) -> None:
    scan = move(-1000.0)
    np.savez(
        tmp_path / "far.npz",
        diffraction=scan.frames[:],
        ycoords=np.where(np.arange(30) == FAR, 4.0, scan.positions_px[:, 0] * 1e-8),
        xcoords=np.where(np.arange(30) == FAR, 4.0, scan.positions_px[:, 1] * 1e-8),
        probeGuess=scan.probe,
    )
    lengths = ReadConfig(positions_unit="m", energy_eV=8000, distance_m=1.0, detector_pixel_m=5e-4)
    with pytest.raises(ScanError, match=rf"found \(4, 4\) for frame {FAR}"):
        read_scan(tmp_path / "far.npz", lengths)
    assert read_scan(tmp_path / "far.npz", dataclasses.replace(lengths, drop_frames=(FAR,))).n_frames == 29
