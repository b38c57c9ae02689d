"""`diagnose` names what is wrong with a scan, and nothing where nothing is."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
from pathlib import Path

import numpy as np
import pytest
from tiny_run import Command

import torchptycho as tp
from torchptycho.core.config import SimulateConfig
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import write_scan
from torchptycho.reconstructors.diagnosis import diagnose, remedies, search
from torchptycho.reconstructors.diagnosis.likelihood import compare, judge
from torchptycho.reconstructors.diagnosis.neighbourhood import divide_counts, load_counts, select_rows
from torchptycho.reconstructors.iterative import refine

FRAMES = 20


@pytest.fixture(scope="module")
def scan() -> Scan:
    made = simulate(
        SimulateConfig(
            n_px=32, object_px=72, n_frames=60, photons_per_frame=1e5, probe_defocus_waves=1.0, simulation_seed=4
        )
    )
    return dataclasses.replace(made, truth=None, metadata={})


def add_background(scan: Scan) -> Scan:
    frames = scan.frames[:].astype(np.uint32)
    return dataclasses.replace(
        scan, frames=ArrayFrames(frames + np.random.default_rng(1).poisson(0.2 * frames.mean(), frames.shape))
    )


@pytest.mark.contract("diagnose.first")
def test_reversed_axis_is_found_and_its_option_corrects_it(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    # The other remedies only take time here.
    some = [one for one in remedies.list_coarse_remedies() if one.family == "orientation"]
    monkeypatch.setattr(search, "list_coarse_remedies", lambda near=False: [] if near else some)
    wrong = dataclasses.replace(scan, positions_px=np.ascontiguousarray(scan.positions_px * (-1.0, 1.0)))
    found = diagnose(wrong, frames=FRAMES, rounds=1)
    first = found.findings[0]
    assert first.fault == "orientation"
    # The other one of the two is the same with both axes reversed: the twin.
    assert first.option in ("--flip-y", "--flip-x")
    assert first.gain is not None
    assert first.error is not None
    assert first.gain > 5 * first.error > 0
    assert found.corrected_misfit is not None
    assert found.misfit is not None
    assert found.corrected_misfit < 1.1 < found.misfit


@pytest.mark.contract("diagnose.first")
def test_faults_that_forbid_a_judgement_come_first(scan: Scan) -> None:
    wrong = dataclasses.replace(scan, domain="amplitude", probe_is_calibrated=False)
    found = diagnose(wrong, frames=FRAMES, rounds=0)
    assert found.findings[0].fault == "domain"
    assert found.findings[0].option == "--domain counts"
    assert found.findings[0].is_fatal
    other = dataclasses.replace(scan, scan_id=np.arange(scan.n_frames) // 30)
    found = diagnose(other, frames=FRAMES, rounds=0)
    assert found.findings[0].option == "--scan 0"


@pytest.mark.contract("diagnose.held-out")
def test_gain_is_of_photons_that_no_trial_saw(scan: Scan) -> None:
    part, assumed = load_counts(scan, select_rows(scan, 16))
    assert not assumed
    parts = divide_counts(part, seed=1)
    np.testing.assert_array_equal(parts.kept.frames[:] + parts.held.frames[:], part.frames[:])
    image = refine(parts.kept, config={"epochs": 3, "regularization": "none"}, judge=False)
    judged = judge(image, parts.held, parts.model_factor)
    assert judged.counts == parts.held.frames[:].sum()
    same = compare(judged, judged)
    assert same.per_count == same.error == 0.0
    assert not same.is_significant(0.0, 0.0)
    # A mask changes which photons judge, not which are held out.
    mask = part.mask.copy()
    mask[:4] = False
    masked = divide_counts(dataclasses.replace(part, mask=mask), seed=1)
    np.testing.assert_array_equal(masked.held.frames[:], parts.held.frames[:])
    assert judge(image, parts.held, parts.model_factor, mask).counts == parts.held.frames[:][:, mask].sum()


def test_amplitudes_become_the_counts_that_they_are_roots_of(scan: Scan) -> None:
    roots = dataclasses.replace(
        scan, frames=ArrayFrames(np.sqrt(scan.frames[:].astype(np.float32))), domain="amplitude", metadata={}
    )
    rows = select_rows(scan, 16)
    part, assumed = load_counts(roots, rows)
    assert not assumed
    np.testing.assert_array_equal(part.frames[:], scan.frames[rows])


@pytest.mark.contract("diagnose.first")
@pytest.mark.contract("diagnose.files")
def test_command_writes_picture_report_and_what_options_refer_to(
    command: Command, tmp_path: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The remedies of geometry only take time here.
    monkeypatch.setattr(search, "list_coarse_remedies", lambda near=False: [])
    frames = add_background(scan).frames[:]
    frames[:, 17:21] = 0
    path, out = tmp_path / "scan.npz", tmp_path / "found"
    write_scan(dataclasses.replace(scan, frames=ArrayFrames(frames)), path)
    answer = command("diagnose", path, "--out", out, "--neighbours", FRAMES, "--seed", "1", "--json")
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    found = {one["fault"] for one in report["findings"][:2]}
    # With so few frames a model of more numbers may come after them.
    assert found == {"background", "dead pixels"}
    assert sorted(file.name for file in out.iterdir()) == ["diagnosis.json", "diagnosis.png", "mask.npz"]
    assert json.loads((out / "diagnosis.json").read_text())["findings"] == report["findings"]
    # The options are those of `refine`.
    words = shlex.split(report["options"])
    assert logging.getLogger("torchptycho.reconstructors.iterative").level == logging.NOTSET
    assert "--background" in words
    corrected = command("refine", path, "--out", tmp_path / "image.npz", "--dry-run", *words)
    assert corrected.code == 0, corrected.err
    read = tp.read_scan(path, tp.ReadConfig(mask=f"{out / 'mask.npz'}:mask", mask_sense="good"))
    assert not read.mask[18, 16]


@pytest.mark.contract("diagnose.healthy")
@pytest.mark.contract("diagnose.files")
def test_nothing_is_found_in_a_scan_without_a_fault_and_nothing_written(
    command: Command, tmp_path: Path, scan: Scan
) -> None:
    path = tmp_path / "scan.npz"
    write_scan(scan, path)
    answer = command("diagnose", path, "--neighbours", FRAMES)
    assert answer.code == 0, answer.err
    assert "nothing is wrong" in answer.out
    assert f"{FRAMES} of 60 frames" in answer.out
    assert [file.name for file in tmp_path.iterdir()] == ["scan.npz"]
