"""What does not need Ptychodus: settings, files of training data, canvases' rules, and switching on and off."""

from __future__ import annotations

import os
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchptycho.cli.app import main
from torchptycho.core.config import RunConfig, SimulateConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.data.simulation import simulate
from torchptycho.interop.ptychodus import installation
from torchptycho.interop.ptychodus.settings import OWN_SETTINGS, convert_settings, warn_without_effect
from torchptycho.interop.ptychodus.training_files import find_training_files, read_training_scan
from torchptycho.io import write_scan

# As Ptychodus 1.7.0 has them before anything is set; what has no effect is left out.
DEFAULTS: dict[str, Any] = {
    "Training.epochs": 50,
    "Training.learning_rate": 1e-3,
    "Training.gradient_accumulation_steps": 1,
    "Training.gradient_clip_val": 0.0,
    "Training.batch_size": 16,
    "Training.device": "cuda",
    "Training.learning_rate_scheduler": "Default",
    "Training.use_negative_log_likelihood_loss": True,
    "Model.probe_big": True,
    "Model.num_filters_scale": 2,
    "Model.intensity_scale_trainable": False,
    "Model.amplitude_activation_function": "silu",
    "Model.loss_function": "Poisson",
    "Inference.patch_weighting_method": "probe",
    "Inference.batch_size": 1000,
    "Data.grid_size_x": 2,
    "Data.grid_size_y": 2,
    "Data.num_channels": 4,
    "Data.x_lower_bound": 0.1,
    "Data.x_upper_bound": 0.9,
    "Data.y_lower_bound": 0.1,
    "Data.y_upper_bound": 0.9,
    "Data.neighbor_lookup_method": "Nearest",
    "Data.min_neighbor_distance": 0.0,
    "Data.max_neighbor_distance": 3.0,
    "Data.num_nearest_neighbors_for_lookup": 6,
    "Data.num_nearest_neighbors_for_quadrant_lookup": 30,
    **{f"Torchptycho.{name}": value for name, value in OWN_SETTINGS.items()},
}


def field(config: RunConfig, name: str) -> Any:
    section, _, own = name.partition(".")
    return getattr(getattr(config, section), own)


@pytest.mark.contract("ptychodus.settings")
def test_its_defaults_are_a_configuration() -> None:
    config = convert_settings(DEFAULTS, "PINN")
    assert config.model.generator == "pie_unet"
    assert config.train.num_workers == 0
    assert (config.train.epochs, config.train.batch_size, config.train.accelerator) == (50, 64, "auto")
    assert (config.group.gridsize, config.group.neighbor_count) == (2, 6)
    assert config.group.bounds == (0.1, 0.9, 0.1, 0.9)
    assert (config.loss.nll_weight, config.loss.mae_weight) == (1.0, 0.0)
    assert config.reconstruct.predict_batch_size == 256


@pytest.mark.contract("ptychodus.settings")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Training.epochs": 7}, {"train.epochs": 7, "refine.epochs": 7}),
        ({"Training.learning_rate": 3e-4}, {"train.learning_rate": 3e-4}),
        ({"Training.gradient_accumulation_steps": 3}, {"train.accumulate": 3}),
        ({"Training.gradient_clip_val": 0.5}, {"train.gradient_clip": 0.5}),
        ({"Training.batch_size": 5}, {"train.batch_size": 20}),
        ({"Training.device": "cpu"}, {"train.accelerator": "cpu"}),
        ({"Training.learning_rate_scheduler": "Cosine"}, {"train.schedule": "cosine"}),
        (
            {"Training.use_negative_log_likelihood_loss": False},
            {"loss.nll_weight": 0.0, "loss.mae_weight": 1.0},
        ),
        ({"Model.loss_function": "MAE"}, {"loss.nll_weight": 0.0, "loss.mae_weight": 1.0}),
        ({"Model.probe_big": False}, {"model.probe_big": False}),
        ({"Model.num_filters_scale": 3}, {"model.n_filters_scale": 3}),
        ({"Model.intensity_scale_trainable": True}, {"experiment.scale_trainable": True}),
        ({"Model.amplitude_activation_function": "sigmoid"}, {"model.amplitude_activation": "sigmoid"}),
        ({"Inference.patch_weighting_method": "uniform"}, {"reconstruct.stitch_weight": "central"}),
        ({"Inference.batch_size": 12}, {"reconstruct.predict_batch_size": 12}),
        (
            {"Data.grid_size_x": 1, "Data.grid_size_y": 1, "Data.num_channels": 1},
            {"group.gridsize": 1, "train.batch_size": 16},
        ),
        ({"Data.x_lower_bound": 0.2, "Data.y_upper_bound": 0.7}, {"group.bounds": (0.1, 0.7, 0.2, 0.9)}),
        (
            {"Data.neighbor_lookup_method": "Min_dist", "Data.min_neighbor_distance": 1.0},
            {"group.min_distance_px": 1.0, "group.max_distance_px": 3.0, "group.quadrants": False},
        ),
        ({"Data.min_neighbor_distance": 1.0}, {"group.min_distance_px": 0.0, "group.max_distance_px": None}),
        ({"Data.neighbor_lookup_method": "4_quadrant"}, {"group.quadrants": True, "group.neighbor_count": 30}),
        ({"Data.num_nearest_neighbors_for_lookup": 0}, {"group.neighbor_count": None}),
        ({"Torchptycho.generator": "cnn"}, {"model.generator": "cnn"}),
        ({"Torchptycho.probe_trainable": True}, {"model.probe_trainable": True}),
        ({"Torchptycho.refine_method": "lsqml"}, {"refine.method": "lsqml"}),
        ({"Torchptycho.refine_probe_update": False}, {"refine.probe_update": False}),
        ({"Torchptycho.refine_position_update": "frames"}, {"refine.position_update": "frames"}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_settings_arrive(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    config = convert_settings(DEFAULTS | changes, "PINN")
    for name, value in expected.items():
        assert field(config, name) == value
    assert any(field(convert_settings(DEFAULTS, "PINN"), name) != value for name, value in expected.items()) or not any(
        expected.values()
    )


@pytest.mark.contract("ptychodus.settings")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Data.num_channels": 1}, "found 1 channels, 2 x 2. Set channels to 4, or the grid"),
        ({"Data.grid_size_x": 3}, "expected a square of frames"),
        ({"Training.learning_rate_scheduler": "Exponential"}, "expected Default or Cosine; found 'Exponential'"),
        ({"Training.device": "tpu"}, "Training.device: expected cuda"),
        ({"Data.neighbor_lookup_method": "Far"}, "expected Nearest or Min_dist or 4_quadrant; found 'Far'"),
        ({"Torchptycho.refine_method": "epie"}, "refine.method"),
        ({"Data.x_lower_bound": 0.95}, "start < stop"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert_settings(DEFAULTS | changes, "PINN")
    assert words in str(caught.value)


@pytest.mark.contract("ptychodus.settings")
def test_refinement_asks_for_no_groups() -> None:
    assert convert_settings(DEFAULTS | {"Data.num_channels": 1}, "Refine").refine.epochs == 50


@pytest.mark.contract("ptychodus.settings.vain")
def test_settings_changed_in_vain_are_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_without_effect({"Training.epochs": 3}, "PINN")
    assert not caplog.records
    warn_without_effect({"Model.cbam_encoder": False, "Training.n_devices": 4}, "PINN")
    assert "Model.cbam_encoder (of another network's layers)" in caplog.text
    assert "torchptycho train --devices N" in caplog.text


# --- training data ------------------------------------------------------------------------------------------------


@pytest.mark.contract("ptychodus.training-data")
@pytest.mark.parametrize(
    ("there", "train", "test"),
    [
        (["train_data.npz", "test_data.npz", "z.npz"], ["train_data.npz"], ["test_data.npz"]),
        (["train_data.npz", "product.h5"], ["train_data.npz"], []),
        (["b.npz", "a.npz", "product.h5"], ["a.npz", "b.npz"], []),
        (["product.h5", "diffraction.h5"], ["product.h5"], []),
    ],
)
def test_files_of_a_folder(there: list[str], train: list[str], test: list[str], tmp_path: Path) -> None:
    for name in there:
        (tmp_path / name).touch()
    files, held_out = find_training_files(tmp_path)
    assert ([file.name for file in files], [file.name for file in held_out]) == (train, test)
    assert find_training_files(tmp_path / there[0]) == ([tmp_path / there[0]], [])


@pytest.mark.contract("ptychodus.training-data")
def test_a_folder_without_training_data(tmp_path: Path) -> None:
    (tmp_path / "diffraction.h5").touch()
    with pytest.raises(ScanError, match=r"expected train_data.npz.*Export training data into this folder first"):
        find_training_files(tmp_path)


@pytest.mark.contract("ptychodus.training-data")
def test_scans_of_other_files_are_taken_as_they_are(tmp_path: Path) -> None:
    scan = simulate(SimulateConfig(n_px=32, object_px=64, n_frames=6))
    write_scan(scan, tmp_path / "own.npz")
    read = read_training_scan(tmp_path / "own.npz", subtract_mean_phase=False)
    np.testing.assert_array_equal(read.positions_px, scan.positions_px)
    with np.load(tmp_path / "own.npz") as file:
        renamed = {name: file[name] for name in ("xcoords", "ycoords", "probeGuess")}
        np.savez(tmp_path / "theirs.npz", diff3d=file["diffraction"].astype(np.float32), **renamed)
    theirs = read_training_scan(tmp_path / "theirs.npz", subtract_mean_phase=False)
    assert theirs.domain == "counts"
    np.testing.assert_allclose(theirs.positions_px, scan.positions_px + 0.5)


# --- on and off ---------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A Ptychodus that is nothing but a folder; what is installed can be changed."""
    (tmp_path / "ptychodus" / "plugins").mkdir(parents=True)
    there: dict[str, Any] = {"ptychodus": tmp_path / "ptychodus", "version": "1.7.0", "ptycho_torch": None}

    def find_spec(name: str) -> ModuleSpec | None:
        if there[name] is None:
            return None
        spec = ModuleSpec(name, None, origin=str(there[name] / "__init__.py"), is_package=True)
        spec.submodule_search_locations = [str(there[name])]
        return spec

    monkeypatch.setattr(installation, "find_spec", find_spec)
    monkeypatch.setattr(installation.importlib.metadata, "version", lambda name: there["version"])
    there["file"] = tmp_path / "ptychodus" / "plugins" / "torchptycho_reconstructors.py"
    return there


@pytest.mark.contract("ptychodus.enable")
def test_one_file_is_all_that_is_written_and_removed(
    elsewhere: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file: Path = elsewhere["file"]

    def answer(action: str) -> str:
        assert main(["ptychodus", action]) == 0
        return capsys.readouterr().out

    assert "torchptycho is not enabled in Ptychodus 1.7.0" in answer("status")
    for _ in range(2):
        assert f"torchptycho is enabled in Ptychodus 1.7.0 ({file})" in answer("enable").replace("\n", "")
    assert os.listdir(file.parent) == [file.name]
    assert "torchptycho is enabled" in answer("status")
    compile(file.read_text(), str(file), "exec")
    (file.parent / "__pycache__").mkdir()
    (file.parent / "__pycache__" / f"{file.stem}.cpython-311.pyc").touch()
    (file.parent / "__pycache__" / "other.cpython-311.pyc").touch()
    for _ in range(2):
        assert "torchptycho is not enabled" in answer("disable")
    assert [path.name for path in file.parent.rglob("*.py*")] == ["other.cpython-311.pyc"]


@pytest.mark.contract("ptychodus.enable.refused")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ptychodus": None}, "pip install 'torchptycho[ptychodus]'"),
        ({"version": "1.8.0"}, "expected version 1.7; found 1.8.0"),
        ({"ptycho_torch": Path("/elsewhere/ptycho_torch")}, "found /elsewhere/ptycho_torch/__init__.py"),
        ({"ptychodus": Path("/nowhere/at/all")}, "cannot be written (No such file or directory)"),
    ],
)
def test_what_stands_in_the_way_is_said(
    change: dict[str, Any], words: str, elsewhere: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere |= change
    assert main(["ptychodus", "enable"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert words in told
    assert not elsewhere["file"].exists()


@pytest.mark.contract("ptychodus.enable.refused")
def test_a_file_of_others_stays(elsewhere: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere["file"].write_text("theirs")
    for action in ("enable", "disable"):
        assert main(["ptychodus", action]) == 1
        assert "found another. Move it away." in capsys.readouterr().err
    assert elsewhere["file"].read_text() == "theirs"
    assert not installation.read_status().enabled
