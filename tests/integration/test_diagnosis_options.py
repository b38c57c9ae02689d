"""Options that `diagnose` names fit the file, and what it is asked for is checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from torchptycho.core.config import ReadConfig, SimulateConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan, write_scan
from torchptycho.reconstructors.diagnosis import diagnose, search
from torchptycho.reconstructors.diagnosis.scan_checks import check_scans, list_file_frames
from torchptycho.reconstructors.iterative import refine


def make_scan(n_frames: int = 24) -> Scan:
    made = simulate(SimulateConfig(n_px=32, object_px=56, n_frames=n_frames, photons_per_frame=1e4, simulation_seed=4))
    return dataclasses.replace(made, truth=None, metadata={})


@pytest.mark.contract("diagnose.options")
@pytest.mark.parametrize(
    "reading",
    [ReadConfig(), ReadConfig(frames="4:"), ReadConfig(frames="1::2"), ReadConfig(drop_frames=(3, 9), frames="1:")],
)
def test_frames_are_named_by_their_numbers_in_the_file(tmp_path: Path, reading: ReadConfig) -> None:
    made = make_scan()
    frames = made.frames[:].copy()
    frames[[7, 13]] //= 40
    write_scan(dataclasses.replace(made, frames=ArrayFrames(frames)), tmp_path / "dim.npz")
    found = diagnose(read_scan(tmp_path / "dim.npz", reading), rounds=0)
    dropped = sorted({7, 13, *reading.drop_frames})
    named = [one for one in found.findings if one.fault == "frames"]
    assert [one.option for one in named] == ["--drop-frames " + " ".join(map(str, dropped))]
    assert found.frames == found.n_frames - 2


@pytest.mark.contract("diagnose.options")
def test_frames_have_no_number_where_the_options_do_not_tell() -> None:
    made = make_scan()
    for reading in (ReadConfig(scan=1), ReadConfig(frames="-5:")):
        assert list_file_frames(dataclasses.replace(made, reading=reading)) is None


@pytest.mark.contract("diagnose.options")
def test_the_scan_that_is_judged_is_the_one_that_is_named() -> None:
    made = make_scan()
    both = dataclasses.replace(made, scan_id=np.repeat(np.array([3, 1]), made.n_frames // 2))
    checked = check_scans(both, lambda scan, rows: (scan, False))
    assert checked is not None
    assert checked.finding.option == "--scan 3"


@pytest.mark.contract("diagnose.held-out")
def test_an_interrupted_trial_ends_the_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(scan: Scan, **options: object) -> object:
        image = refine(scan, **options)  # type: ignore[arg-type]
        return dataclasses.replace(image, provenance=image.provenance | {"complete": False})

    monkeypatch.setattr(search, "refine", stop)
    with pytest.raises(KeyboardInterrupt):
        diagnose(make_scan(), rounds=0)


def test_what_cannot_be_diagnosed_is_refused() -> None:
    made = make_scan()
    with pytest.raises(ConfigError, match="neighbours: expected 2 frames or more; found 0"):
        diagnose(made, frames=0)
    with pytest.raises(ConfigError, match="seed: expected 0 or more"):
        diagnose(made, seed=-1)


def test_a_refinement_that_fails_is_reported_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(scan: Scan, **options: object) -> object:
        raise FloatingPointError("the misfit is nan")

    monkeypatch.setattr(search, "refine", fail)
    with pytest.raises(ScanError, match="a refinement that fails: the misfit is nan"):
        diagnose(make_scan(), rounds=0)


@pytest.mark.contract("diagnose.options")
def test_no_mask_is_offered_for_frames_in_another_layout_than_the_file() -> None:
    made = make_scan()
    frames = np.fft.ifftshift(made.frames[:].copy(), axes=(1, 2))
    frames[:, 2:19] = 0
    kept = dataclasses.replace(made, frames=ArrayFrames(np.fft.fftshift(frames, axes=(1, 2))))
    moved = dataclasses.replace(kept, reading=ReadConfig(fftshift=True))
    found = [one for one in diagnose(moved, rounds=0).findings if one.fault == "dead pixels"]
    assert found
    assert all(one.option in (None, "--find-bad-pixels") and not one.files for one in found)
