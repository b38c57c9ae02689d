"""The calls of the original's scripts from end to end, and bundles wherever checkpoints go."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import TINY, TINY_SIMULATION, Command

import torchptycho
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.interop import original_layouts
from torchptycho.interop.workflow import (
    PtychoDataContainer,
    RawData,
    as_scan,
    create_ptycho_data_container,
    load_inference_bundle,
    reassemble_cdi_image,
    run_cdi_example,
    run_config,
    train_cdi_model,
)
from torchptycho.io import read_reconstruction, read_scan, write_scan
from torchptycho.models.bundles import load_bundle, save_bundle
from torchptycho.models.checkpoints import load_checkpoint
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.training.train import TrainResult, train

CONFIG: dict[str, Any] = {
    "N": 32, "gridsize": 1, "n_filters_scale": 1, "nepochs": 2, "batch_size": 16, "n_groups": 512, "nphotons": 1e5,
    "neighbor_count": 5, "accelerator": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_result: TrainResult) -> PtychoPINN:
    return load_checkpoint(tiny_result.checkpoint)


@pytest.fixture(scope="module")
def scan(tiny_scan: Path) -> Scan:
    return read_scan(tiny_scan)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, Any], Path]:
    """What `run_cdi_example` returns on two scans, and its folder."""
    out = tmp_path_factory.mktemp("example") / "training_outputs"
    train_data = RawData.from_scan(simulate(TINY_SIMULATION))
    test_data = RawData.from_scan(simulate(dataclasses.replace(TINY_SIMULATION, simulation_seed=1, n_frames=30)))
    config = CONFIG | {"output_dir": out}
    return *run_cdi_example(train_data, test_data, config, do_stitching=True, progress=False), out


@pytest.mark.contract("workflow.run")
def test_an_example_runs_from_two_scans_to_an_image(example: tuple[Any, Any, dict[str, Any], Path]) -> None:
    amplitude, phase, results, _ = example
    assert amplitude.shape == phase.shape
    assert (amplitude.ndim, amplitude.dtype, phase.dtype) == (2, np.float32, np.float32)
    assert results["obj_tensor_full"].shape == (30, 1, 32, 32)
    assert results["obj_tensor_full"].dtype == np.complex64
    assert results["global_offsets"].shape == results["coords_nominal"].shape == (30, 1, 2, 1)
    assert results["backend"] == "pytorch"
    assert {name: len(values) for name, values in results["history"].items()} == {"train_loss": 2, "val_loss": 1}
    assert np.isfinite(results["history"]["train_loss"]).all()
    assert set(results["models"]) == {"autoencoder", "diffraction_to_obj"}
    assert isinstance(results["models"]["diffraction_to_obj"], PtychoPINN)
    np.testing.assert_array_equal(amplitude, np.abs(results["reconstruction"].object))
    np.testing.assert_array_equal(results["recon_amp"], amplitude)
    # Groups say where their frames are: mean - (mean - position).
    where = original_layouts.positions_from_coords(results["global_offsets"] - results["coords_nominal"])
    test = simulate(dataclasses.replace(TINY_SIMULATION, simulation_seed=1, n_frames=30))
    np.testing.assert_allclose(where, test.positions_px[results["nn_indices"]], atol=1e-4)


@pytest.mark.contract("workflow.run.files")
def test_a_run_leaves_its_bundle_and_never_overwrites(example: tuple[Any, Any, dict[str, Any], Path]) -> None:
    _, _, results, out = example
    assert sorted(entry.name for entry in out.iterdir()) == ["run", "wts.h5.zip"]
    assert results["bundle"] == out / "wts.h5.zip"
    module, names = load_inference_bundle(out)
    assert names["N"] == 32
    assert names["gridsize"] == 1
    for name, tensor in results["models"]["autoencoder"].state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor)
    again = train_cdi_model(simulate(TINY_SIMULATION), None, CONFIG | {"nepochs": 1}, out=out, progress=False)
    assert sorted(entry.name for entry in out.iterdir()) == ["run", "run_2", "wts.h5.zip"]
    assert again["obj_tensor_full"] is again["global_offsets"] is again["coords_nominal"] is None


@pytest.mark.contract("workflow.run.files")
def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scan = simulate(TINY_SIMULATION)
    amplitude, phase, results = run_cdi_example(scan, scan, CONFIG | {"nepochs": 1}, progress=False)
    assert (amplitude, phase, results["bundle"]) == (None, None, None)
    assert results["obj_tensor_full"].shape == (64, 1, 32, 32)
    assert "recon_amp" not in results
    assert not list(tmp_path.iterdir())


@pytest.mark.contract("workflow.run")
def test_another_frame_size_than_configured_is_refused(scan: Scan, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="expected frames of N = 64 px, as configured; found N = 32"):
        train_cdi_model(scan, None, CONFIG | {"N": 64}, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.contract("workflow.type-error")
@pytest.mark.parametrize("other", ["scan.npz", None, np.zeros((3, 4, 4)), {"diff3d": 1}])
def test_nothing_else_is_taken_for_data(scan: Scan, trained: PtychoPINN, other: Any) -> None:
    with pytest.raises(TypeError, match="expected a Scan, a RawData or a PtychoDataContainer"):
        as_scan(other)
    calls = [
        lambda: run_cdi_example(other, None, CONFIG),
        lambda: train_cdi_model(other, None, CONFIG),
        lambda: reassemble_cdi_image(other, None, model=trained),
        lambda: create_ptycho_data_container(other, CONFIG),
    ]
    if other is not None:
        calls.append(lambda: run_cdi_example(scan, other, CONFIG))
    for call in calls:
        with pytest.raises(TypeError):
            call()


@pytest.mark.contract("workflow.data")
def test_a_scan_its_raw_data_and_its_container_give_the_same_image(scan: Scan, trained: PtychoPINN) -> None:
    raw = RawData.from_scan(scan)
    container = create_ptycho_data_container(raw, CONFIG)
    assert create_ptycho_data_container(container, CONFIG) is container
    assert container.as_scan().domain == scan.domain
    counts = (container.norm_Y_I * container.X).square().numpy()
    np.testing.assert_allclose(counts, scan.frames[:][container.nn_indices], rtol=1e-4, atol=1e-4)
    images = [reassemble_cdi_image(data, None, model=trained)[2] for data in (scan, raw, container)]
    for other in images[1:]:
        for name in ("recon_amp", "recon_phase", "obj_tensor_full", "nn_indices"):
            np.testing.assert_array_equal(other[name], images[0][name])


@pytest.mark.contract("workflow.data")
def test_a_container_of_some_frames_stands_for_these(scan: Scan, trained: PtychoPINN) -> None:
    some = create_ptycho_data_container(scan, CONFIG | {"n_groups": 12, "subsample_seed": 4, "gridsize": 2})
    used = np.unique(some.nn_indices)
    assert 12 < len(used) < 48
    few = create_ptycho_data_container(scan, CONFIG | {"n_subsample": 20, "gridsize": 2})
    assert len(few) == 20
    assert len(few.frames_used) <= 20
    _, _, results = reassemble_cdi_image(some, None, model=trained)
    np.testing.assert_array_equal(np.sort(results["nn_indices"].ravel()), used)
    where = original_layouts.positions_from_coords(results["global_offsets"] - results["coords_nominal"])
    np.testing.assert_allclose(where, scan.positions_px[results["nn_indices"]], atol=1e-4)


@pytest.mark.contract("workflow.data")
def test_a_container_from_arrays_is_a_scan_of_amplitudes(scan: Scan) -> None:
    raw = RawData.from_scan(scan)
    made = PtychoDataContainer.from_raw_data(raw, gridsize=2, K=5, nsamples=20, nphotons=1e5)
    arrays = {name: original_layouts.channels_last(getattr(made, name).numpy()) for name in ("X", "Y_I", "Y_phi")}
    rest = {
        name: getattr(made, name).numpy()
        for name in ("coords_nominal", "coords_true", "nn_indices", "global_offsets", "local_offsets", "norm_Y_I")
    }
    found = PtychoDataContainer(**arrays, **rest, YY_full=made.YY_full, probeGuess=made.probe.numpy()).as_scan()
    rows = made.frames_used
    assert found.domain == "amplitude"
    assert found.photons_per_frame == pytest.approx(1e5, rel=1e-6)
    np.testing.assert_allclose(found.positions_px, scan.positions_px[rows], atol=1e-9)
    whole = raw.diff3d[rows]
    factor = found.frames[:].sum() / whole.sum()
    np.testing.assert_allclose(found.frames[:], whole * factor, rtol=1e-5)


@pytest.mark.contract("workflow.raw-data.file")
def test_files_and_arrays_give_the_same_raw_data(tiny_scan: Path, scan: Scan) -> None:
    one, other = RawData.from_files(tiny_scan, str(tiny_scan))
    assert len(one) == len(other) == 64
    np.testing.assert_array_equal(one.diff3d, np.sqrt(scan.frames[:], dtype=np.float32))
    np.testing.assert_array_equal(one.xcoords, scan.positions_px[:, 1])
    np.testing.assert_array_equal(one.ycoords_start, scan.positions_px[:, 0])
    assert one.probeGuess.shape == (32, 32)
    built = RawData.from_coords_without_pc(
        one.xcoords, one.ycoords, one.diff3d, one.probeGuess, one.scan_index, one.objectGuess
    )
    for name in ("xcoords", "ycoords", "xcoords_start", "diff3d", "probeGuess", "scan_index", "objectGuess"):
        np.testing.assert_array_equal(getattr(built, name), getattr(other, name))
    assert built.scan.domain == "amplitude"
    counts = RawData.from_coords_without_pc(one.xcoords, one.ycoords, scan.frames[:], one.probeGuess, None)
    assert counts.scan.domain == "counts"
    np.testing.assert_array_equal(counts.diff3d, one.diff3d)


@pytest.mark.contract("workflow.reassemble.image")
def test_without_a_window_the_image_is_that_of_reconstruct(scan: Scan, trained: PtychoPINN) -> None:
    expected = reconstruct(trained, scan, accelerator="cpu", progress=False)
    amplitude, _, results = reassemble_cdi_image(scan, None, M=None, model=trained)
    np.testing.assert_array_equal(results["reconstruction"].object, expected.object)
    mirrored = reassemble_cdi_image(scan, None, flip_y=True, flip_x=True, M=None, model=trained)[2]
    # The canvas begins at a whole pixel, and may be one larger.
    assert np.abs(np.subtract(mirrored["reconstruction"].object.shape, amplitude.shape)).max() <= 1
    assert mirrored["global_offsets"].max() < 0


@pytest.mark.contract("workflow.configuration.back")
def test_what_a_bundle_tells_is_a_configuration_again(trained: PtychoPINN, tmp_path: Path) -> None:
    save_bundle(trained, tmp_path)
    names = load_inference_bundle(tmp_path)[1]
    again = run_config(names)
    assert dataclasses.replace(again.train, steps=TINY.train.steps, accelerator="cpu") == TINY.train
    assert (again.group, again.model, again.loss) == (TINY.group, TINY.model, TINY.loss)
    assert names["intensity_scale"] == pytest.approx(names["nphotons"] ** 0.5 / 16)
    json.dumps(names)


@pytest.mark.contract("bundle.checkpoint")
def test_a_bundle_goes_where_a_checkpoint_goes(
    tiny_scan: Path, tiny_result: TrainResult, tmp_path: Path, command: Command
) -> None:
    bundle = save_bundle(load_checkpoint(tiny_result.checkpoint), tmp_path / "kept")
    images = []
    for source in (tiny_result.checkpoint, bundle, bundle.parent):
        out = tmp_path / f"{len(images)}.npz"
        answer = command("reconstruct", source, tiny_scan, "--out", out, "--accelerator", "cpu")
        assert answer.code == 0, answer.err
        images.append(read_reconstruction(out))
    for image in images[1:]:
        np.testing.assert_array_equal(image.object, images[0].object)
        assert image.provenance["checkpoint"] == str(bundle)
    started = train(tiny_scan, TINY, tmp_path / "on", start=bundle, progress=False)
    assert load_checkpoint(started.checkpoint).hparams["started_from"] == str(bundle)
    assert load_bundle(bundle).hparams["started_from"] is None


@pytest.mark.contract("workflow.documentation")
def test_the_snippets_of_the_migration_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
    python, shell = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "sh"))
    assert (len(python), len(shell)) == (2, 1)
    monkeypatch.chdir(tmp_path)
    for name in ("train.npz", "test.npz", "scan.npz"):
        write_scan(simulate(dataclasses.replace(TINY_SIMULATION, n_frames=20)), name)
    for snippet in python:
        assert "20" in snippet
        exec(compile(snippet.replace("20", "1"), "docs/migration.md", "exec"), {})
    for line in shell[0].splitlines():
        answer = command(*shlex.split(line)[1:], "--accelerator", "cpu")
        assert answer.code == 0, answer.err
    made = re.search(r"`(torchptycho\.save_bundle\(.*?\))`", page)
    assert made is not None
    assert eval(made[1], {"torchptycho": torchptycho}).is_file()


@pytest.mark.contract("bundle.checkpoint")
def test_the_public_name_is_there() -> None:
    assert torchptycho.save_bundle is save_bundle
