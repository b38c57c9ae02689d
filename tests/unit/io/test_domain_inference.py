"""Counts or amplitudes: frames of floats are judged by their values."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from torchptycho.core.config import ReadConfig, SimulateConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import ArrayFrames
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan
from torchptycho.io.domain_inference import infer_domain

N = 64
SCAN = simulate(
    SimulateConfig(
        n_px=N, object_px=128, n_frames=16, photons_per_frame=2e5, probe_kind="gaussian", probe_diameter_px=14
    )
)
COUNTS = SCAN.frames[:].astype(np.float64)
FLAT = 1 + 0.05 * np.random.default_rng(0).normal(size=(N, N))

FRAMES = {
    "counts": (COUNTS, "counts", True),
    "scaled counts": (COUNTS * 0.73, "counts", True),
    "normalised counts": (COUNTS / COUNTS.max(), "counts", True),
    "roots": (np.sqrt(COUNTS), "amplitude", True),
    "normalised roots": (np.sqrt(COUNTS) / np.sqrt(COUNTS.max()), "amplitude", True),
    "roots of corrected counts": (np.sqrt(COUNTS / FLAT), "amplitude", True),
    "corrected counts": (COUNTS / FLAT, "counts", False),
    "counts with bad pixels": (np.where(np.arange(N) < 2, np.nan, COUNTS), "counts", True),
    "a constant": (np.full((4, N, N), 0.3), "amplitude", False),
    "noise": (np.random.default_rng(1).uniform(0.5, 1, (4, N, N)), "amplitude", None),
}


@pytest.mark.contract("files.read.domain-float")
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", FRAMES)
def test_values_tell_counts_from_amplitudes(name: str, dtype: str) -> None:
    frames, domain, certain = FRAMES[name]
    inferred = infer_domain(ArrayFrames(frames.astype(dtype)))
    assert inferred.domain == domain, inferred.why
    assert certain in (None, inferred.is_certain)


@pytest.mark.contract("files.read.normalised")
@pytest.mark.contract("files.read.domain-warning")
def test_a_doubt_names_the_option(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def opened(frames: np.ndarray, **options: str) -> str:
        y, x = SCAN.positions_px[: len(frames)].T
        np.savez(tmp_path / "s.npz", diffraction=frames.astype("f4"), ycoords=y, xcoords=x, probeGuess=SCAN.probe)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            return read_scan(tmp_path / "s.npz", ReadConfig(**options)).domain

    assert opened(COUNTS) == "counts"
    assert not caplog.records
    assert opened(np.sqrt(COUNTS)) == "amplitude"
    assert not caplog.records
    assert opened(COUNTS / FLAT) == "counts"
    assert "--domain amplitude" in caplog.text
    few = np.full((16, N, N), 0.3)
    assert opened(few) == "amplitude"
    assert "--domain counts" in caplog.text
    assert opened(few, domain="counts") == "counts"
    assert "--domain" not in caplog.text
    assert opened(COUNTS / COUNTS.max()) == "counts"
    assert f"multiplied by {COUNTS.max():.0f}" in caplog.text
    assert opened(COUNTS * 0.73) == "counts"
    assert not caplog.records


@pytest.mark.contract("files.read.normalised")
def test_refused_file_is_one_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    y, x = SCAN.positions_px.T
    for number, frames in enumerate((COUNTS / FLAT, COUNTS / COUNTS.max())):
        path = tmp_path / f"{number}.npz"
        few = frames.astype("f4")
        np.savez(path, diffraction=few, ycoords=y[: len(few)] * np.nan, xcoords=x[: len(few)], probeGuess=SCAN.probe)
        with caplog.at_level(logging.WARNING), pytest.raises(ScanError):
            read_scan(path)
        assert not caplog.records


@pytest.mark.contract("files.read.isolated")
def test_positions_in_nanometres_without_lengths_are_refused(tmp_path: Path) -> None:
    y, x = SCAN.positions_px.T * 65
    np.savez(tmp_path / "nm.npz", diffraction=SCAN.frames[:], ycoords=y, xcoords=x, probeGuess=SCAN.probe)
    with pytest.raises(ScanError, match=r"steps of .* px, more than the 64 px of a frame.*--positions-unit"):
        read_scan(tmp_path / "nm.npz")
    assert read_scan(tmp_path / "nm.npz", ReadConfig(positions_unit="px")).n_frames == SCAN.n_frames
