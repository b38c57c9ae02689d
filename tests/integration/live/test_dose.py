"""A scan of another dose than that of training: it is said while frames come, and the network can be scaled to it."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from live_scans import OFFLINE, SIMULATION, InMemory, same, until, watched
from shadow_scans import shadows
from tiny_run import Command

from torchptycho.core.config import MappingConfig, ReadConfig, ReconstructConfig
from torchptycho.core.errors import ScanError
from torchptycho.data.simulation import simulate
from torchptycho.io import read_reconstruction
from torchptycho.live import watch
from torchptycho.live.scan_header import Chunk
from torchptycho.reconstructors.network_reconstruction import reconstruct

SCAN = simulate(dataclasses.replace(SIMULATION, n_frames=120, photons_per_frame=2e3))


@pytest.mark.contract("live.dose")
def test_other_dose_is_reported_while_frames_come(
    single: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, stop = tmp_path / "live", threading.Event()

    class Paused(InMemory):
        """Does not report its end, so that the watch waits for more frames."""

        def fetch(self, start: int, at_most: int) -> Chunk:
            return dataclasses.replace(super().fetch(start, at_most), end=False)

    source = Paused(SCAN)
    watching = threading.Thread(
        target=lambda: watch(
            source, single, out, accelerator="cpu", progress=False, stop=stop, refresh_s=0.1, frames=1000, idle_s=60
        )
    )
    watching.start()
    try:
        file = out / "status.json"
        until(lambda: file.exists() and "times as bright" in file.read_text())
        status = json.loads(file.read_text())
    finally:
        stop.set()
        watching.join()
    # The page shows this text.
    assert status["state"] in ("receiving", "finishing")
    # 2e3 photons instead of 1e5.
    assert re.search(r"0\.0[12]\d* times as bright", status["message"])
    assert "--input-scale scan" in status["message"]
    assert [record.levelno for record in caplog.records if "times as bright" in record.message][:1] == [logging.WARNING]


@pytest.mark.contract("live.dose")
def test_network_is_scaled_to_the_scan_on_request(
    single: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = watched(InMemory(SCAN), single, tmp_path / "live", input_scale="scan")
    assert found.status.message is None
    assert "times as bright" not in caplog.text
    scaled = reconstruct(single, SCAN, ReconstructConfig(input_scale="scan", agree_phases=False), **OFFLINE)
    assert same(read_reconstruction(tmp_path / "live" / "reconstruction.npz"), scaled)
    plain = watched(InMemory(SCAN), single, tmp_path / "plain")
    assert plain.status.message is not None
    assert "times as bright" in plain.status.message
    assert not np.array_equal(read_reconstruction(tmp_path / "plain" / "reconstruction.npz").object, scaled.object)


@pytest.mark.contract("live.dose")
def test_command_has_the_option_that_it_advises(command: Command) -> None:
    assert "--input-scale" in command("watch", "--help").out


@pytest.mark.contract("live.near-field")
def test_near_field_frames_are_refused_while_the_scan_goes_on(single: Path, tmp_path: Path) -> None:
    class Endless(InMemory):
        def fetch(self, start: int, at_most: int) -> Chunk:
            return dataclasses.replace(super().fetch(start, at_most), end=False)

    with pytest.raises(ScanError, match="near-field frames"):
        watched(Endless(shadows()), single, tmp_path / "live", frames=1000, idle_s=60)
    status = json.loads((tmp_path / "live" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "near-field" in status["message"]


@pytest.mark.contract("live.near-field")
def test_file_that_says_near_field_is_refused_at_its_first_frames(single: Path, tmp_path: Path) -> None:
    path = tmp_path / "growing.cxi"
    with h5py.File(path, "w") as file:
        file["frames"] = SCAN.frames[:][:8]
        file["y"], file["x"] = SCAN.positions_px[:8].T * 1e-8
    mapping = MappingConfig(frames="frames", positions_y="y", positions_x="x")
    lengths = {"energy_eV": 8e3, "distance_m": 1.0, "detector_pixel_m": 1e-6, "focus_distance_m": 0.1}
    reading = ReadConfig(mapping=mapping, propagation="near", **lengths)  # type: ignore[arg-type]
    with pytest.raises(ScanError, match="expected far-field diffraction, which networks are made for"):
        watched(path, single, tmp_path / "live", reading=reading, idle_s=60)
