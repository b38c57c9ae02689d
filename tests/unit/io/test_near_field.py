"""Near-field data are told from far-field diffraction by how the frames move."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from shadow_scans import M, shadows

from torchptycho.analysis.inspection import inspect_scan
from torchptycho.core.config import ReadConfig, RunConfig, SimulateConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import ArrayFrames
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan
from torchptycho.io.near_field import detect_near_field, refuse_near_field
from torchptycho.reconstructors.iterative import refine


@pytest.mark.contract("files.near-field.seen")
def test_shadow_images_are_near_field_and_refused(tmp_path: Path) -> None:
    scan = shadows()
    found = detect_near_field(scan)
    assert found is not None
    assert found.shift_per_px == pytest.approx(0.25, rel=0.1)
    summary = inspect_scan(scan)
    assert not summary.usable
    assert any("near-field data, which no far-field model explains" in problem for problem in summary.problems)
    with pytest.raises(ScanError, match="near-field frames: neighbouring frames show the same picture"):
        prepare([scan], RunConfig(), tmp_path / "store")
    with pytest.raises(ScanError, match="near-field"):
        refine(scan)
    assert not list(tmp_path.iterdir())


@pytest.mark.contract("files.near-field.stated")
def test_frames_that_were_stated_to_be_far_field_are_taken_for_it() -> None:
    scan = shadows()
    with pytest.raises(ScanError, match=r"--propagation near\..*--propagation far"):
        refuse_near_field(scan)
    refuse_near_field(dataclasses.replace(scan, reading=ReadConfig(propagation="far")))


@pytest.mark.contract("files.near-field.seen")
@pytest.mark.parametrize("waves", [0.0, 2.0, 4.0])
def test_far_field_of_a_defocused_beam_is_not_taken_for_it(waves: float) -> None:
    options = SimulateConfig(n_px=64, object_px=160, n_frames=M, photons_per_frame=1e6, probe_defocus_waves=waves)
    assert detect_near_field(simulate(options)) is None


@pytest.mark.contract("files.near-field.seen")
def test_hot_pixels_do_not_make_far_field_near() -> None:
    scan = simulate(SimulateConfig(n_px=64, object_px=192, n_frames=600, photons_per_frame=1e6, simulation_seed=3))
    frames = scan.frames[:].copy()
    frames[:, np.random.default_rng(0).random((64, 64)) < 0.01] = frames.max()
    assert detect_near_field(dataclasses.replace(scan, frames=ArrayFrames(frames))) is None


@pytest.mark.contract("files.near-field.seen")
def test_a_beam_that_fits_into_a_frame_is_not_refused() -> None:
    assert detect_near_field(shadows(magnification=1.3, field_px=30)) is None


@pytest.mark.contract("files.near-field.measured")
def test_measured_scans(measured_data: Path) -> None:
    shadow = detect_near_field(read_scan(measured_data / "petra-p25-near-field.cxi", ReadConfig(guess_probe=True)))
    assert shadow is not None
    assert shadow.probe_px > 300
    assert detect_near_field(read_scan(measured_data / "siemens-star-128.npz")) is None
