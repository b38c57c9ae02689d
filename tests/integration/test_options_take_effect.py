"""Options of the command line reach the step that they are about, and none is dropped on the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import TINY_FLAGS, Command

from torchptycho.core.config import load_config
from torchptycho.data.store import Store
from torchptycho.io import read_reconstruction


def without(source: Path, target: Path, *keys: str, **more: np.ndarray) -> Path:
    """A copy of a scan file that lacks some of its arrays and has others."""
    with np.load(source) as arrays:
        np.savez(target, **{key: arrays[key] for key in arrays.files if key not in keys}, **more)
    return target


def test_probe_option_stands_in_for_a_missing_probe(command: Command, tiny_scan: Path, tmp_path: Path) -> None:
    bare = without(tiny_scan, tmp_path / "bare.npz", "probeGuess")
    assert command("prepare", bare, "--out", tmp_path / "store").code == 1
    answer = command("prepare", bare, "--out", tmp_path / "store", "--probe", tiny_scan)
    assert (answer.code, answer.err) == (0, "")
    assert command("inspect", bare, "--probe", tiny_scan).code == 0


def test_frames_option_drops_frames_everywhere(
    command: Command, tiny_scan: Path, tiny_run: Path, tmp_path: Path
) -> None:
    assert command("prepare", tiny_scan, "--out", tmp_path / "store", "--frames", ":40").code == 0
    assert Store.open(tmp_path / "store").n_frames == 40
    image = tmp_path / "image.npz"
    assert (
        command("reconstruct", tiny_run, tiny_scan, "--out", image, "--frames", "10:", "--accelerator", "cpu").code == 0
    )
    assert read_reconstruction(image).provenance["frames"] == 54


def test_domain_that_a_file_states_is_not_overridden(
    command: Command, tiny_scan: Path, tiny_run: Path, tmp_path: Path
) -> None:
    metadata = np.array('{"domain": "amplitude"}')
    other = without(tiny_scan, tmp_path / "other.npz", "_metadata", _metadata=metadata)
    answer = command("reconstruct", tiny_run, other, "--out", tmp_path / "image.npz", "--accelerator", "cpu")
    assert answer.code == 1
    assert "expected 32x32 frames of counts" in answer.err
    assert not (tmp_path / "image.npz").exists()


def test_training_without_the_likelihood_watches_its_own_loss(
    command: Command, tiny_scan: Path, tmp_path: Path
) -> None:
    flags = [*TINY_FLAGS, "--nll-weight", "0", "--mae-weight", "1"]
    answer = command("train", tiny_scan, "--out", tmp_path / "run", *flags)
    assert (answer.code, answer.err) == (0, "")
    assert "val/loss" in answer.out


def test_reconstruct_section_of_a_file_reaches_the_run_and_the_image(
    command: Command, tiny_scan: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("reconstruct: {stitch_weight: central}\n")
    run, image = tmp_path / "run", tmp_path / "image.npz"
    assert command("train", tiny_scan, "--out", run, "--config", tmp_path / "mine.yaml", *TINY_FLAGS).code == 0
    assert load_config(run / "config.yaml").reconstruct.stitch_weight == "central"
    assert command("reconstruct", run, tiny_scan, "--out", image, "--accelerator", "cpu").code == 0
    assert read_reconstruction(image).provenance["config"]["reconstruct"]["stitch_weight"] == "central"


@pytest.mark.parametrize("out", ["image.png", "scan.npz"])
def test_image_is_not_written_over_its_scan_or_its_picture(
    command: Command, tiny_scan: Path, tiny_run: Path, tmp_path: Path, out: str
) -> None:
    scan = tmp_path / "scan.npz"
    scan.write_bytes(tiny_scan.read_bytes())
    answer = command("reconstruct", tiny_run, scan, "--out", tmp_path / out)
    assert answer.code == 1
    assert "--out: expected a new file" in answer.err
    assert scan.read_bytes() == tiny_scan.read_bytes()


def test_longer_cosine_is_refused_on_resume(command: Command, tiny_scan: Path, tmp_path: Path) -> None:
    flags = ["train", tiny_scan, "--out", tmp_path / "run", *TINY_FLAGS, "--schedule", "cosine"]
    assert command(*flags).code == 0
    answer = command(*flags, "--resume", "--steps", "24")
    assert answer.code == 1
    assert "train.steps was 12, is 24" in answer.err


def test_evaluation_looks_only_where_the_reference_is_valid(command: Command, tiny_scan: Path, tmp_path: Path) -> None:
    with np.load(tiny_scan) as arrays:
        truth = arrays["objectGuess"]
    coverage = np.ones(truth.shape, np.float32)
    coverage[: truth.shape[0] // 2] = 0
    spoiled = np.where(coverage > 0, truth, 9j).astype(np.complex64)
    np.savez(tmp_path / "image.npz", object=truth)
    np.savez(tmp_path / "reference.npz", object=spoiled, coverage=coverage)
    answer = command("evaluate", tmp_path / "image.npz", tmp_path / "reference.npz", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["amplitude_mae"] < 1e-4
