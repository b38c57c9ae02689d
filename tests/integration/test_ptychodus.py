"""Reconstructors in Ptychodus: its core lists, trains and reconstructs; the image is compared with the truth."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import TINY, TINY_SIMULATION

pytest.importorskip("ptychodus.model.core", reason="ptychodus is not installed")

from ptychodus.api.geometry import PixelGeometry
from ptychodus.api.io import save_diffraction_data, save_product, save_ptychopinn_training_data
from ptychodus.api.object import Object, ObjectCenter
from ptychodus.api.product import Product
from ptychodus.api.reconstruct import (
    ReconstructInput,
    ReconstructorLibrary,
    TrainableReconstructor,
    prepare_reconstruct_input,
)
from ptychodus.api.settings import SettingsRegistry
from ptychodus_scan import (
    BORDER_PX,
    CENTER_M,
    PHOTONS,
    PIXEL_M,
    make_reconstruct_input,
    make_true_product,
    replace_object,
    simulate_counts,
)

from torchptycho.analysis.evaluation import Metrics, evaluate
from torchptycho.core.config import RefineConfig, RunConfig, from_dict, to_dict
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.reconstruction import Reconstruction, get_frame_probe
from torchptycho.data.simulation import simulate
from torchptycho.interop.ptychodus import installation, plugin, reconstructor_library, settings
from torchptycho.interop.ptychodus.jobs import ReconstructJob, RefineJob, TrainJob
from torchptycho.interop.ptychodus.product_conversion import make_scan_from_input, make_start_image, place_on_canvas
from torchptycho.interop.ptychodus.reconstructor_library import TorchptychoReconstructorLibrary
from torchptycho.interop.ptychodus.training_files import read_training_scan
from torchptycho.interop.ptychodus.worker import reconstruct_product, refine_product, train_network
from torchptycho.io import read_reconstruction
from torchptycho.physics.diffraction import expected_counts
from torchptycho.physics.patches import extract, locate_corner
from torchptycho.training.train import TrainResult

ROOT = Path(__file__).resolve().parents[2]
SCAN = simulate(TINY_SIMULATION)
assert SCAN.truth is not None
TRUE = make_true_product(SCAN.truth, SCAN.probe, SCAN.positions_px)
TRUTH = TRUE.object_.get_layer(0)
BLANK = replace_object(TRUE, np.ones_like(TRUTH))
CPU = {"train": {"accelerator": "cpu"}}


class Box(list[tuple[str, Any]]):
    """Messages of a child, without a process."""

    def put(self, item: tuple[str, Any]) -> None:
        self.append(item)

    def outputs(self, tag: str = "output") -> list[Any]:
        return [pickle.loads(content) for name, content in self if name == tag]


def refined(parameters: ReconstructInput, *, from_product: bool = True, every: int = 1000, **options: Any) -> Box:
    box = Box()
    config = RunConfig(refine=RefineConfig(**{"epochs": 40} | options), train=TINY.train)
    refine_product(
        RefineJob(
            config=to_dict(config),
            parameters=parameters,
            from_product=from_product,
            image_every_epochs=every,
            visible_gpus="",
        ),
        box,
    )
    return box


def compared(product: Product, margin_px: int = 24) -> Metrics:
    """The object against the truth, where every pixel was lit well."""
    array = product.object_.get_layer(0)
    assert array.shape == TRUTH.shape
    inner = np.zeros(array.shape, bool)
    inner[margin_px:-margin_px, margin_px:-margin_px] = True
    image = Reconstruction(
        object=array.astype(np.complex64), coverage=inner.astype(np.float32), valid=inner, origin_px=(0, 0)
    )
    return evaluate(image, TRUTH)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A Ptychodus of the same files, with a folder of plugins that a test may write to; a place for PYTHONPATH."""
    spec = find_spec("ptychodus")
    assert spec is not None
    assert spec.submodule_search_locations
    origin = Path(spec.submodule_search_locations[0])
    package = tmp_path / "path" / "ptychodus"
    (package / "plugins").mkdir(parents=True)
    for folder in (origin, origin / "plugins"):
        for item in folder.iterdir():
            if item.name not in ("plugins", "__pycache__", "torchptycho_reconstructors.py"):
                (package / folder.relative_to(origin) / item.name).symlink_to(item)
    return package.parent


def run_python(*arguments: object, path: Path) -> subprocess.CompletedProcess[str]:
    here = os.pathsep.join(map(str, (path, ROOT, ROOT / "tests" / "integration")))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": here},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.contract("ptychodus.whole-way")
@pytest.mark.contract("ptychodus.listed")
@pytest.mark.contract("ptychodus.process")
def test_its_core_lists_exports_trains_saves_loads_and_reconstructs(installed: Path, tmp_path: Path) -> None:
    command = ("-c", "import sys; from torchptycho.cli.app import main; sys.exit(main(sys.argv[1:]))", "ptychodus")
    plugins = (
        "import sys; from ptychodus.api.plugins import PluginRegistry\n"
        "PluginRegistry.load_plugins(); print('torchptycho' in sys.modules)"
    )
    save_product(tmp_path / "product.h5", BLANK)
    save_diffraction_data(tmp_path / "diffraction.h5", simulate_counts(TRUE))
    (tmp_path / "settings.ini").write_text("[PtychoPINNTorchTraining]\nepochs = 2\ndevice = cpu\nbatch_size = 8\n")
    told = run_python(*command, "enable", path=installed)
    assert told.returncode == 0, told.stderr
    assert f"enabled in Ptychodus 1.7.0 ({installed}" in told.stdout
    session = run_python(ROOT / "tests/integration/ptychodus_session.py", tmp_path, path=installed)
    assert session.returncode == 0, session.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["listed"] == ["ptychopinn-torch_pinn", "ptychopinn-torch_supervised", "ptychopinn-torch_refine"]
    assert answer["plugins alone"] == []
    assert answer["modules"] == answer["modules after"] == []
    assert (answer["goal"], answer["loaded before"], answer["loaded after"]) == (2, False, True)
    # A scan of a few batches is not validated after every epoch.
    assert answer["losses"] == [[1, [], 1], [2, [1], 2]]
    assert answer["shapes"] == [[1, *TRUTH.shape]] * 2
    assert answer["same place"] == [True, True]
    with np.load(tmp_path / "reconstructed.npz") as file:
        metrics = compared(replace_object(BLANK, file["object"]))
    assert metrics.complex_nrmse < 0.12
    assert metrics.amplitude_ssim > 0.8
    assert np.abs(metrics.shift_px).max() < 0.1
    assert run_python(*command, "disable", path=installed).returncode == 0
    # The core lists what its plugins have it list.
    assert run_python("-c", plugins, path=installed).stdout.split() == ["False"]


@pytest.mark.contract("ptychodus.refine")
@pytest.mark.contract("ptychodus.canvas")
@pytest.mark.parametrize("from_product", [True, False])
def test_refine_finds_the_object_on_the_canvas_of_the_product(from_product: bool) -> None:
    rough = replace_object(TRUE, np.full(TRUTH.shape, 0.5 + 0.1j))
    box = refined(
        make_reconstruct_input(rough, simulate_counts(TRUE)), from_product=from_product, every=15, probe_update=False
    )
    outputs = box.outputs()
    assert [output.progress for output in outputs] == [15, 30, 40]
    product = outputs[-1].product
    assert [loss.epoch for loss in product.losses] == list(range(1, 41))
    assert (product.object_.get_center(), product.object_.get_pixel_geometry()) == (
        ObjectCenter(y_m=CENTER_M[0], x_m=CENTER_M[1]),
        PixelGeometry(PIXEL_M, PIXEL_M),
    )
    metrics = compared(product)
    assert metrics.complex_nrmse < 0.08
    # Half a pixel lies between the two conventions.
    assert np.abs(metrics.shift_px).max() < 0.1
    assert not product.object_.get_layer(0)[: BORDER_PX[0][0] - 1].any()
    np.testing.assert_array_equal(
        product.probe_positions.get_coordinates_x_m(), rough.probe_positions.get_coordinates_x_m()
    )
    # The probe has the light that was counted, and the object its scale.
    np.testing.assert_allclose(product.probes.get_array(), rough.probes.get_array(), rtol=1e-2, atol=1e-6)


@pytest.mark.contract("ptychodus.opr")
def test_variable_probe_comes_back_and_is_started_from(tmp_path: Path) -> None:
    parameters = make_reconstruct_input(TRUE, simulate_counts(TRUE))
    product = refined(parameters, epochs=12, opr_modes=2, frame_scale=True).outputs()[-1].product
    weights, array = product.probes.get_opr_weights(), product.probes.get_array()
    assert weights.shape == (SCAN.n_frames, 3)
    assert array.shape == (3, 1, *SCAN.probe.shape[1:])
    assert float(weights[:, 0].mean()) == pytest.approx(1, abs=1e-4)
    save_product(tmp_path / "product.h5", product)
    start, read = make_start_image(product), read_reconstruction(tmp_path / "product.h5")
    assert start is not None
    for image in (start, read):
        for frame in (0, SCAN.n_frames - 1):
            np.testing.assert_allclose(
                get_frame_probe(image, frame), product.probes[frame].get_array(), rtol=1e-4, atol=1e-3
            )
    scaled = make_start_image(product, 100 * PHOTONS)
    assert scaled is not None
    assert scaled.probe is not None
    assert float(np.sum(np.abs(scaled.probe) ** 2)) == pytest.approx(100 * PHOTONS, rel=1e-4)
    # From the product, the first epoch fits about as well as the last one did; without its weights it does not.
    again = dataclasses.replace(parameters, product=product)
    first = refined(again, epochs=1, opr_modes=2, frame_scale=True, opr_start_epoch=0).outputs()[-1].product
    assert first.losses[0].value < 2 * product.losses[-1].value


@pytest.mark.contract("ptychodus.slices")
def test_slices_come_back_as_layers(tmp_path: Path) -> None:
    parameters = make_reconstruct_input(TRUE, simulate_counts(TRUE))
    product = refined(parameters, epochs=2, n_slices=2, slice_spacing_m=1e-6).outputs()[-1].product
    assert product.object_.num_layers == 2
    assert list(product.object_.layer_spacing_m) == [1e-6]
    save_product(tmp_path / "product.h5", product)
    read = read_reconstruction(tmp_path / "product.h5")
    assert read.slice_spacing_m == 1e-6
    np.testing.assert_array_equal(read.object, product.object_.get_array().astype(np.complex64))


@pytest.mark.contract("ptychodus.canvas.cut")
@pytest.mark.contract("ptychodus.canvas")
@pytest.mark.parametrize("origin", [(0, 0), (3, 5), (-4, 2), (6, -7), (-2, -3), (40, 0), (0, -40)])
def test_image_lies_on_the_canvas(origin: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(5)
    values = (rng.normal(size=(12, 16)) + 1j * rng.normal(size=(12, 16))).astype(np.complex64)
    valid = rng.random((12, 16)) < 0.8
    image = Reconstruction(object=values, coverage=valid.astype(np.float32), valid=valid, origin_px=origin)
    canvas = place_on_canvas(image, (15, 20))
    expected, lost = np.zeros((15, 20), np.complex64), 0
    for row, column in np.argwhere(valid):
        y, x = row + origin[0], column + origin[1]
        if 0 <= y < 15 and 0 <= x < 20:
            expected[y, x] = values[row, column]
        else:
            lost += 1
    np.testing.assert_array_equal(canvas, expected)
    assert (f"{lost} px of the image lie outside" in caplog.text) == (lost > 0)


@pytest.mark.contract("ptychodus.refine")
def test_refined_probe_and_positions_come_back_in_metres() -> None:
    off_m = np.random.default_rng(3).normal(0, 1.0 * PIXEL_M, (SCAN.n_frames, 2))
    places = [
        dataclasses.replace(place, x_m=place.x_m + dx, y_m=place.y_m + dy)
        for place, (dy, dx) in zip(TRUE.probe_positions, off_m, strict=True)
    ]
    given = dataclasses.replace(TRUE, probe_positions=type(TRUE.probe_positions)(places))
    box = refined(make_reconstruct_input(given, simulate_counts(TRUE)), epochs=40, position_update="frames")
    product = box.outputs()[-1].product
    assert product.probes.get_array().shape == TRUE.probes.get_array().shape
    assert not np.array_equal(product.probes.get_array(), TRUE.probes.get_array())

    def error_px(found: Any) -> float:
        far = (
            np.stack(
                [
                    found.get_coordinates_x_m() - TRUE.probe_positions.get_coordinates_x_m(),
                    found.get_coordinates_y_m() - TRUE.probe_positions.get_coordinates_y_m(),
                ]
            )
            / PIXEL_M
        )
        return float(np.std(far - far.mean(axis=1, keepdims=True)))

    assert error_px(product.probe_positions) < 0.75 * error_px(given.probe_positions)
    np.testing.assert_array_equal(product.probe_positions.get_indexes(), TRUE.probe_positions.get_indexes())


@pytest.mark.contract("ptychodus.probe-modes")
@pytest.mark.parametrize("modes", [1, 2])
def test_probes_with_and_without_an_axis_of_modes_are_taken(modes: int, tmp_path: Path) -> None:
    assert SCAN.truth is not None
    stack = np.concatenate([SCAN.probe, 0.3 * np.roll(SCAN.probe, 2, axis=1)])[:modes]
    given = [make_true_product(SCAN.truth, stack, SCAN.positions_px)]
    if modes == 1:
        given.append(make_true_product(SCAN.truth, stack[0], SCAN.positions_px))
    data = simulate_counts(given[0])
    images = []
    for number, product in enumerate(given):
        parameters = make_reconstruct_input(product, data)
        assert make_scan_from_input(parameters).probe.shape == (modes, 32, 32)
        save_ptychopinn_training_data(tmp_path / f"{number}.npz", parameters)
        assert read_training_scan(tmp_path / f"{number}.npz", subtract_mean_phase=False).probe.shape == (modes, 32, 32)
        images.append(refined(parameters, epochs=3, probe_update=False).outputs()[-1].product.object_.get_array())
    np.testing.assert_array_equal(images[0], images[-1])
    # What another program wrote may lack the axis.
    with np.load(tmp_path / "0.npz") as file:
        np.savez(tmp_path / "flat.npz", **{**file, "probeGuess": file["probeGuess"][0]})
    assert read_training_scan(tmp_path / "flat.npz", subtract_mean_phase=False).probe.shape == (1, 32, 32)


@pytest.mark.contract("ptychodus.bad-pixels")
def test_bad_pixels_have_no_say(tiny_result: TrainResult, tmp_path: Path) -> None:
    bad = np.zeros((32, 32), bool)
    bad[14:16, 17], bad[3] = True, True
    inputs = [make_reconstruct_input(TRUE, simulate_counts(TRUE, bad=bad, poison=poison)) for poison in (0, 65535)]
    assert not np.array_equal(inputs[0].diffraction_patterns, inputs[1].diffraction_patterns)
    refinements, predictions, exported = [], [], []
    for number, parameters in enumerate(inputs):
        refinements.append(refined(parameters, epochs=5).outputs()[-1].product.object_.get_array())
        box = Box()
        reconstruct_product(
            ReconstructJob(
                mode="PINN",
                config=to_dict(from_dict(RunConfig, CPU)),
                checkpoint=tiny_result.checkpoint,
                parameters=parameters,
                goal=7,
                visible_gpus="",
            ),
            box,
        )
        (output,) = box.outputs()
        assert output.progress == 7
        predictions.append(output.product.object_.get_array())
        save_ptychopinn_training_data(tmp_path / f"{number}.npz", parameters)
        scan = read_training_scan(tmp_path / f"{number}.npz", subtract_mean_phase=False)
        np.testing.assert_array_equal(scan.mask, ~bad)
        exported.append(scan.frames[:])
    for pair in (refinements, predictions, exported):
        np.testing.assert_array_equal(pair[0], pair[1])
    assert refinements[0].any()
    # And without the mask they would: values that are no detector code are not found.
    counts = simulate_counts(TRUE, bad=bad, poison=60000)
    unmasked = dataclasses.replace(make_reconstruct_input(TRUE, counts), bad_pixels=np.zeros((32, 32), bool))
    assert not np.array_equal(refined(unmasked, epochs=5).outputs()[-1].product.object_.get_array(), refinements[1])


@pytest.mark.contract("ptychodus.training-data")
def test_exported_training_data_are_counts_with_the_label_under_them(tmp_path: Path) -> None:
    turned = replace_object(TRUE, TRUTH * np.exp(0.7j))
    data = simulate_counts(TRUE)
    parameters = prepare_reconstruct_input(data, turned)
    # Float patterns are counts too.
    parameters = dataclasses.replace(parameters, diffraction_patterns=data.get_patterns().astype(np.float32))
    save_ptychopinn_training_data(tmp_path / "train_data.npz", parameters)
    scan = read_training_scan(tmp_path / "train_data.npz", subtract_mean_phase=False)
    assert scan.domain == "counts"
    assert scan.truth is not None
    np.testing.assert_array_equal(scan.truth, turned.object_.get_layer(0).astype(np.complex64))
    object, probe, counts = torch.from_numpy(scan.truth), torch.from_numpy(scan.probe), torch.from_numpy(scan.frames[:])

    def misfit(offset_px: float) -> float:
        corner_px = locate_corner(torch.from_numpy(scan.positions_px).float() + offset_px, 32)
        expected = expected_counts(extract(object, corner_px, 32), probe)
        expected = expected * counts.mean() / expected.mean()
        return float((expected - counts).square().mean())

    # The label lies under the frames that it belongs to, and not half a pixel beside.
    assert misfit(0.0) < 0.5 * min(misfit(-0.5), misfit(0.5))
    upright = read_training_scan(tmp_path / "train_data.npz", subtract_mean_phase=True).truth
    assert upright is not None
    assert abs(np.angle(upright.sum())) < 1e-3


@pytest.mark.contract("ptychodus.supervised")
def test_supervised_training_looks_at_the_label_alone(tmp_path: Path) -> None:
    save_ptychopinn_training_data(tmp_path / "train_data.npz", make_reconstruct_input(TRUE, simulate_counts(TRUE)))
    registry = SettingsRegistry()
    own = TorchptychoReconstructorLibrary(registry)
    registry["PtychoPINNTorchTraining"].parameters()["epochs"].set_value(1)
    registry["Torchptycho"].parameters()["generator"].set_value("resunet")
    values = own._read_values() | {"Training.device": "cpu"}
    config = settings.convert_settings(values, "Supervised")
    box = Box()
    train_network(
        TrainJob(
            mode="Supervised",
            config=to_dict(config),
            input_path=tmp_path,
            output_path=tmp_path / "out",
            subtract_mean_phase=True,
            visible_gpus="",
        ),
        box,
    )
    (told,) = box.outputs("train_output")
    assert told.progress == len(told.training_loss) == 1
    checkpoint = Path(dict(box)["model_saved"])
    assert checkpoint == tmp_path / "out/torchptycho-supervised-1/checkpoints/best.ckpt"
    saved = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["config"]
    assert (saved["loss"]["nll_weight"], saved["loss"]["realspace_weight"]) == (0.0, 1.0)


@pytest.mark.contract("ptychodus.refused")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: dataclasses.replace(p, metadata=dataclasses.replace(p.metadata, far_field=False)), "near-field"),
        (
            lambda p: dataclasses.replace(
                p, object_=Object(np.ones((2, 89, 95), complex), PixelGeometry(1e-8, 1e-8), ObjectCenter(0, 0), [1e-6])
            ),
            "one layer; found 2 layers",
        ),
        (
            lambda p: dataclasses.replace(
                p, object_=Object(np.ones((89, 95), complex), PixelGeometry(1e-8, 2e-8), ObjectCenter(0, 0))
            ),
            "square pixels",
        ),
    ],
    ids=["near field", "layers", "oblong"],
)
def test_what_is_not_modelled_is_refused(change: Callable[[Product], Product], words: str) -> None:
    with pytest.raises(ScanError, match=words):
        make_scan_from_input(make_reconstruct_input(change(TRUE), simulate_counts(TRUE)))


@pytest.mark.contract("ptychodus.classes")
def test_they_are_of_its_own_classes() -> None:
    own = TorchptychoReconstructorLibrary(SettingsRegistry())
    assert isinstance(own, ReconstructorLibrary)
    network, supervised, refinement = own
    assert own.name == "PtychoPINN-Torch"
    assert [reconstructor.name for reconstructor in own] == ["PINN", "Supervised", "Refine"]
    for reconstructor in (network, supervised):
        assert isinstance(reconstructor, TrainableReconstructor)
        assert reconstructor.get_model_file_extension() == ".ckpt"
        assert "*.ckpt" in reconstructor.get_model_file_filter()
        assert "*.npz" in reconstructor.get_training_data_file_filter()
        assert (reconstructor.get_progress_goal(), reconstructor.is_model_loaded()) == (50, False)
        with pytest.raises(ConfigError, match="expected a trained network; found none"):
            next(reconstructor.reconstruct(make_reconstruct_input(TRUE, simulate_counts(TRUE))))
    assert refinement.get_progress_goal() == 50
    assert refinement.is_trainable is False  # type: ignore[attr-defined]
    own.get_logger().getChild("interop").setLevel("INFO")
    assert own.get_logger().name == "torchptycho"


@pytest.mark.contract("ptychodus.settings")
def test_every_setting_stands_in_the_table_once() -> None:
    names = set(TorchptychoReconstructorLibrary(SettingsRegistry())._read_values())
    tables = [settings.SINGLE_FIELDS, settings.CHOICES, settings.COMBINED, settings.WITHOUT_EFFECT]
    told = [name for table in tables for name in table]
    assert len(told) == len(set(told))
    assert set(told) == names
    assert len(names) > 90


@pytest.mark.contract("ptychodus.no-shadow")
def test_another_ptycho_torch_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ptycho_torch").mkdir()
    (tmp_path / "ptycho_torch" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert [other.name for other in TorchptychoReconstructorLibrary(SettingsRegistry())] == [
        "Unsupervised",
        "Supervised",
    ]
    assert "its reconstructors are listed, those of torchptycho are not" in caplog.text
    file = installation.read_status().file
    before = file.exists()
    with pytest.raises(ConfigError, match="Uninstall it, or continue to use it"):
        installation.enable()
    assert file.exists() == before


@pytest.mark.contract("ptychodus.listed")
def test_plugin_changes_nothing_but_the_core(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import ptychodus.model.core as core
    from ptychodus.api.plugins import PluginRegistry

    name = "PtychoPINNTorchReconstructorLibrary"
    monkeypatch.setattr(core, name, getattr(core, name))
    plugin.register_plugins(PluginRegistry())
    assert getattr(core, name) is reconstructor_library.TorchptychoReconstructorLibrary
    monkeypatch.delattr(core, name)
    plugin.register_plugins(PluginRegistry())
    assert "torchptycho is not listed: expected Ptychodus 1.7" in caplog.text
    monkeypatch.delitem(sys.modules, "ptychodus.model.core")
    plugin.register_plugins(PluginRegistry())
