"""Files that hold several scans: none is taken for one image, and each can be chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_run import Command

from torchptycho.core.config import ReadConfig, SimulateConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan
from torchptycho.reconstructors.iterative import refine

N, M = 32, 24


def make_scan(seed: int) -> Scan:
    return simulate(
        SimulateConfig(
            n_px=N, object_px=64, n_frames=M, photons_per_frame=1e5, simulation_seed=seed, probe_diameter_px=10
        )
    )


SCANS = [make_scan(0), make_scan(1)]
LENGTHS = ["--energy-eV", "8000", "--distance-m", "1.0", "--detector-pixel-m", "5e-5"]


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Two scans in one NPZ, with the numbers 3 and 7."""
    path = tmp_path / "pair.npz"
    np.savez(
        path,
        diffraction=np.concatenate([scan.frames[:] for scan in SCANS]),
        ycoords=np.concatenate([scan.positions_px[:, 0] for scan in SCANS]),
        xcoords=np.concatenate([scan.positions_px[:, 1] for scan in SCANS]),
        scan_index=np.repeat([3, 7], M),
        probeGuess=SCANS[0].probe,
    )
    return path


@pytest.mark.contract("files.several-scans")
def test_commands_that_make_one_image_list_the_scans_of_a_file(command: Command, pair: Path, tmp_path: Path) -> None:
    asked = [
        ("refine", pair, "--out", tmp_path / "r.npz"),
        ("resolution", pair),
        ("convert", pair, tmp_path / "p.h5", *LENGTHS),
        ("replay", pair),
    ]
    for arguments in asked:
        answer = command(*arguments)
        assert answer.code == 1, arguments
        assert f"found 2 scans: 3 ({M} frames), 7 ({M} frames). Take one with --scan N." in answer.err
    with pytest.raises(ScanError, match="found 2 scans"):
        refine(read_scan(pair))
    assert f"2 scans in the file: 3 ({M} frames), 7 ({M} frames)" in command("inspect", pair).out


@pytest.mark.contract("files.several-scans")
def test_network_makes_no_image_of_two_scans(command: Command, pair: Path, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "image.npz"
    answer = command("reconstruct", tiny_run, pair, "--out", out, "--accelerator", "cpu")
    assert answer.code == 1
    assert "found 2 scans" in answer.err
    answer = command("reconstruct", tiny_run, pair, "--scan", "7", "--out", out, "--accelerator", "cpu")
    assert answer.code == 0, answer.err
    assert f"from {M} frames" in answer.out


@pytest.mark.contract("files.several-scans")
def test_chosen_scan_is_the_scan_alone(command: Command, pair: Path, tmp_path: Path) -> None:
    answer = command("refine", pair, "--scan", "7", "--epochs", "2", "--device", "cpu", "--out", tmp_path / "r.npz")
    assert answer.code == 0, answer.err
    # Frames are counted as the file counts them, whichever scan is chosen.
    found = read_scan(pair, ReadConfig(scan=7, drop_frames=(1, M + 5)))
    kept = np.delete(np.arange(M), 5)
    np.testing.assert_array_equal(found.frames[:], SCANS[1].frames[:][kept])
    np.testing.assert_array_equal(found.positions_px, SCANS[1].positions_px[kept])
    assert found.left_out == {M + 5: "asked for by drop_frames"}
    with pytest.raises(ScanError, match=r"expected frames of scan 5; found scans 3 \(24 frames\), 7"):
        read_scan(pair, ReadConfig(scan=5))


@pytest.mark.contract("files.several-scans")
def test_scan_numbers_survive_conversion(command: Command, pair: Path, tmp_path: Path) -> None:
    answer = command("convert", pair, tmp_path / "again.npz")
    assert answer.code == 0, answer.err
    np.testing.assert_array_equal(read_scan(tmp_path / "again.npz").scan_id, np.repeat([3, 7], M))
