"""Exported networks: as good as the network, enough by themselves, and refused where they are damaged or foreign."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from small_generators import Angles, Estimate
from tiny_run import TINY, TINY_SIMULATION, Command
from tolerances import relative_l2
from torch import _inductor

from torchptycho.core.config import ExperimentConfig, GroupConfig, ModelConfig, ReconstructConfig, RunConfig, to_dict
from torchptycho.core.errors import ConfigError, ExportError, ScanError, TorchptychoError
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.core.versions import collect_versions
from torchptycho.data.inference_dataset import InferenceBatch
from torchptycho.data.simulation import simulate
from torchptycho.io import write_scan
from torchptycho.models.export.export import MAX_RELATIVE_ERROR, export_network
from torchptycho.models.export.matrix_patches import MatrixPatches
from torchptycho.models.export.metadata import METADATA_KEY
from torchptycho.models.export.runtimes import ExportedNetwork, load_exported
from torchptycho.models.loading import open_network
from torchptycho.models.network import PtychoNetwork
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.training.train import train

QUIET: dict[str, Any] = {"accelerator": "cpu", "progress": False}
ESTIMATE = f"{Estimate.__module__}:{Estimate.__name__}"


def network_of(
    generator: str, n_px: int, gridsize: int, scans: int = 1, modes: int = 1, domain: Any = "counts", **experiment: Any
) -> PtychoNetwork:
    """A network with the statistics of a simulated scan and weights that matter."""
    config = RunConfig(
        model=ModelConfig(generator=generator, n_filters_scale=1, start_projections=0, finish_projections=1),
        group=GroupConfig(gridsize=gridsize),
        experiment=ExperimentConfig(**experiment),
    )
    reach_px = 3.3 if gridsize > 1 else 0.0
    network = PtychoNetwork(to_dict(config), n_px, scans, modes, domain, reach_px).eval()
    scan = simulate(dataclasses.replace(TINY_SIMULATION, n_px=n_px, object_px=n_px + 48, n_frames=4))
    probe = torch.from_numpy(scan.probe).to(torch.complex64).reshape(-1, n_px, n_px)[0]
    photons = float(np.asarray(scan.frames[:]).sum(axis=(1, 2)).mean())
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for number in range(scans):
            for mode in range(modes):
                shifted = torch.roll(probe, (number + mode, -mode), (0, 1)) * modes**-0.5
                network.probe_parts[number, mode] = torch.view_as_real(shifted)
            network.input_scale[number] = (1 + number) * n_px / 2 / photons**0.5
        network.photons_per_frame.fill_(photons)
        network.masks[:, 3, 5:9] = False
        for name, weight in network.generator.named_parameters():
            if name.endswith("weight") and weight.dim() > 1:
                weight += 0.02 * torch.randn(weight.shape, generator=random)
    return network


def batch_of(network: PtychoNetwork, groups: int, seed: int = 0) -> InferenceBatch:
    random = torch.Generator().manual_seed(seed)
    members = network.gridsize**2
    rate = torch.fft.fftshift(torch.fft.fft2(network.probe[0].detach(), norm="ortho").abs().square().sum(0))
    rate = rate.expand(groups, members, -1, -1) + 1
    reach_px = 3.3 if members > 1 else 0.0
    return InferenceBatch(
        frames=torch.poisson(rate, random),
        offset_px=reach_px * (2 * torch.rand(groups, members, 2, generator=random) - 1),
        scan=torch.zeros(groups, dtype=torch.int64),
        members=torch.zeros(groups, members, dtype=torch.int64),
        is_first=torch.ones(groups, members, dtype=torch.bool),
    )


@pytest.fixture(scope="session")
def scan() -> Scan:
    return simulate(TINY_SIMULATION)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, scan: Scan) -> Path:
    """A checkpoint for groups of 2x2 frames."""
    config = dataclasses.replace(
        TINY,
        group=dataclasses.replace(TINY.group, gridsize=2),
        model=ModelConfig(generator=ESTIMATE),
        train=dataclasses.replace(TINY.train, steps=1, on_flat="warn"),
    )
    return train(scan, config, tmp_path_factory.mktemp("export") / "run", progress=False).last


@pytest.fixture(scope="session")
def exported(trained: Path) -> Path:
    path = trained.parent / "network.onnx"
    export_network(open_network(trained), path)
    return path


@pytest.mark.contract("export.agrees")
@pytest.mark.contract("export.batch")
@pytest.mark.parametrize(
    ("generator", "n_px", "gridsize", "other"),
    [
        ("pie_unet", 32, 2, {"modes": 2, "domain": "amplitude", "background_counts": 0.1}),
        ("resunet", 32, 2, {}),
        ("cnn", 64, 1, {}),
        (ESTIMATE, 32, 2, {"modes": 2}),
    ],
)
def test_onnx_gives_the_patches_of_the_network(
    tmp_path: Path, generator: str, n_px: int, gridsize: int, other: dict[str, Any]
) -> None:
    network = network_of(generator, n_px, gridsize, **other)
    told = export_network(network, tmp_path / "network.onnx")
    assert 0 < told.error < MAX_RELATIVE_ERROR
    again = load_exported(tmp_path / "network.onnx")
    network.expect_offsets(told.max_offset_px)
    for groups in (1, 2, 7):
        batch = batch_of(network, groups, seed=groups)
        with torch.no_grad():
            assert relative_l2(again(batch), network(batch)) < 1e-4


@pytest.mark.contract("export.batch")
def test_scale_and_mask_of_training_may_be_left_out(exported: Path) -> None:
    network = load_exported(exported)
    batch = batch_of(network, 2)
    session = onnxruntime.InferenceSession(exported)
    (found,) = session.run(None, {"frames": batch.frames.numpy(), "offset_px": batch.offset_px.numpy()})
    assert found.shape == (2, 4, 32, 32, 2)
    assert np.array_equal(found, torch.view_as_real(network(batch)).numpy())
    # The graph has the operators that it was exported with.
    with pytest.raises(ValueError, match="patch_operators: expected none with an exported network"):
        network(batch, MatrixPatches())


@pytest.mark.contract("export.refuses_disagreement")
def test_a_file_that_would_not_agree_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchptycho.models.export import export

    class Off(export.OnnxEngine):
        def __call__(self, *arguments: torch.Tensor) -> torch.Tensor:
            return super().__call__(*arguments) * 1.001

    monkeypatch.setattr(export, "OnnxEngine", Off)
    with pytest.raises(ExportError, match=r"within 0\.0001 of the network's .*off by 0\.001, with 3 groups"):
        export_network(network_of(ESTIMATE, 32, 1), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.contract("export.all_digits")
def test_a_file_is_compared_in_single_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchptycho.models.export import export

    rounded: list[bool] = []

    class Watched(export.OnnxEngine):
        def __call__(self, *arguments: torch.Tensor) -> torch.Tensor:
            rounded.append(torch.backends.cudnn.allow_tf32)
            return super().__call__(*arguments)

    monkeypatch.setattr(export, "OnnxEngine", Watched)
    before = torch.backends.cudnn.allow_tf32
    export_network(network_of(ESTIMATE, 32, 1), tmp_path / "network.onnx")
    assert rounded
    assert not any(rounded)
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.contract("export.alone")
def test_an_image_from_the_file_alone_is_that_of_the_checkpoint(trained: Path, exported: Path, scan: Scan) -> None:
    config = ReconstructConfig(absolute_scale=True)
    expected, found = (reconstruct(path, scan, config, **QUIET) for path in (trained, exported))
    assert relative_l2(torch.from_numpy(found.object), torch.from_numpy(expected.object)) < 1e-4
    assert np.array_equal(found.valid, expected.valid)
    assert found.provenance["engine"] == "onnx"
    assert found.provenance["checkpoint_sha256"] == expected.provenance["checkpoint_sha256"]


@pytest.mark.contract("export.scale_and_mask")
def test_scale_and_mask_of_the_scan_reach_the_file(trained: Path, exported: Path, scan: Scan) -> None:
    mask = scan.mask.copy()
    mask[10:20, 12:14] = False
    other = dataclasses.replace(scan, frames=ArrayFrames(np.asarray(scan.frames[:]) * 3), mask=mask)
    config = ReconstructConfig(input_scale="scan", agree_phases=False)
    expected, found = (reconstruct(path, other, config, **QUIET).object for path in (trained, exported))
    plain = reconstruct(exported, other, ReconstructConfig(agree_phases=False), **QUIET).object
    assert relative_l2(torch.from_numpy(found), torch.from_numpy(expected)) < 1e-4
    assert relative_l2(torch.from_numpy(plain), torch.from_numpy(expected)) > 1e-2


@pytest.mark.contract("export.description")
def test_the_file_says_what_it_is(trained: Path, exported: Path) -> None:
    (entry,) = onnx.load(exported).metadata_props
    assert entry.key == METADATA_KEY
    told = json.loads(entry.value)
    network = open_network(trained)
    wanted = {
        "engine": "onnx",
        "generator": ESTIMATE,
        "n_px": 32,
        "gridsize": 2,
        "domain": "counts",
        "training_scan": 0,
        "canvas_px": network.canvas_px,
        "checkpoint_sha256": network.checkpoint_sha256,
        "photons_per_frame": float(network.photons_per_frame[0]),
    }
    assert {name: told[name] for name in wanted} == wanted
    assert told["versions"] == collect_versions()
    assert "transmission" in told["units"]
    again = load_exported(exported)
    assert torch.equal(again.probe, network.probe)
    assert torch.equal(again.compute_stitch_weight("probe"), network.compute_stitch_weight("probe"))


@pytest.mark.contract("export.training_scan")
def test_one_of_several_training_scans_is_exported(tmp_path: Path, scan: Scan) -> None:
    network = network_of(ESTIMATE, 32, 1, scans=2)
    told = export_network(network, tmp_path / "network.onnx", training_scan=1)
    assert told.training_scan == 1
    expected = reconstruct(network, scan, ReconstructConfig(training_scan=1), **QUIET)
    found = reconstruct(tmp_path / "network.onnx", scan, **QUIET)
    assert relative_l2(torch.from_numpy(found.object), torch.from_numpy(expected.object)) < 1e-4
    with pytest.raises(ConfigError, match=r"training_scan: expected 1, for which .*found 0"):
        reconstruct(tmp_path / "network.onnx", scan, ReconstructConfig(training_scan=0), **QUIET)
    with pytest.raises(ConfigError, match="training_scan: expected 0 to 1; found 2"):
        export_network(network, tmp_path / "other.onnx", training_scan=2)


@pytest.mark.contract("export.no_training")
def test_an_exported_file_needs_neither_training_nor_exporters(exported: Path, tmp_path: Path, scan: Scan) -> None:
    write_scan(scan, tmp_path / "scan.npz")
    arguments = [
        "reconstruct",
        str(exported),
        str(tmp_path / "scan.npz"),
        "--engine",
        "onnx",
        "--out",
        str(tmp_path / "image.npz"),
        "--accelerator",
        "cpu",
    ]
    unwanted = [
        "lightning",
        "tensordict",
        "torch.onnx",
        "onnx",
        "onnxscript",
        "torchptycho.models.lightning_module",
        "small_generators",
    ]
    code = (
        f"import sys; from torchptycho.cli.app import main; code = main({arguments!r}); "
        f"print('imported', code, [name for name in {unwanted!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("imported 0 []"), done.stdout + done.stderr
    assert (tmp_path / "image.png").is_file()


@pytest.mark.contract("export.engine")
def test_a_checkpoint_is_exported_for_the_engine(trained: Path, scan: Scan, tmp_path: Path, command: Command) -> None:
    write_scan(scan, tmp_path / "scan.npz")
    answer = command("reconstruct", trained, tmp_path / "scan.npz", "--engine", "onnx", "--out", tmp_path / "a.npz")
    assert answer.code == 0, answer.err
    expected = reconstruct(trained, scan, **QUIET)
    with np.load(tmp_path / "a.npz") as found:
        name = "object" if "object" in found else "reconstruction"
        assert relative_l2(torch.from_numpy(found[name]), torch.from_numpy(expected.object)) < 1e-4


@pytest.mark.contract("export.refuses_early")
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--devices", 2], "devices: expected 1 with an exported network; found 2. Leave it out, or compute with"),
        (["--predict-precision", "bf16-mixed"], "predict_precision: expected 32-true with an exported network"),
        (["--predict-compile", True], "predict_compile: expected False with an exported network"),
        (["--training-scan", 3], "training_scan: expected 0 to 0; found 3"),
        (["--accelerator", "banana"], "accelerator 'banana'"),
        (["of another size"], "expected 32x32 frames of counts"),
        (["nowhere"], "found nothing of that name"),
    ],
)
def test_what_an_exported_network_refuses_is_refused_before_it_is_exported(
    trained: Path,
    scan: Scan,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    wrong: list[Any],
    told: str,
) -> None:
    monkeypatch.setattr(
        "torchptycho.models.export.export.export_network", lambda *_, **__: pytest.fail("it was exported")
    )
    path, options = tmp_path / "scan.npz", wrong
    if len(wrong) == 1:
        if wrong == ["of another size"]:
            write_scan(simulate(dataclasses.replace(TINY_SIMULATION, n_px=64, object_px=112)), path)
        options = []
    else:
        write_scan(scan, path)
    answer = command("reconstruct", trained, path, "--engine", "onnx", "--out", tmp_path / "a.npz", *options)
    assert (answer.code, told in answer.err) == (1, True), answer.err
    if path.exists() and not options:
        with pytest.raises(ScanError, match=told):
            reconstruct(trained, path, engine="onnx", **QUIET)


@pytest.mark.contract("export.refuses_early")
@pytest.mark.parametrize("name", ["predict_compile", "predict_precision", "devices"])
def test_options_are_refused_before_exporting_in_python_too(
    trained: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(
        "torchptycho.models.export.export.export_network", lambda *_, **__: pytest.fail("it was exported")
    )
    value = {"predict_compile": True, "predict_precision": "bf16-mixed"}.get(name)
    config = None if value is None else ReconstructConfig(**{name: value})
    with pytest.raises(ConfigError, match=f"{name}: expected"):
        reconstruct(trained, scan, config, engine="onnx", devices=1 if value else 2, **QUIET)


@pytest.mark.contract("export.engine")
def test_several_scans_are_exported_for_once_and_a_failure_is_told_once(
    trained: Path, scan: Scan, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def counted(network: Any, path: Path, **more: Any) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise ExportError("export: cannot be")
        export_network(network, path, **more)

    monkeypatch.setattr("torchptycho.models.export.export.export_network", counted)
    scans = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path in scans:
        write_scan(scan, path)
    arguments = ("reconstruct", trained, tmp_path / "none.npz", *scans, "--engine", "onnx", "--out", tmp_path / "out")
    answer = command(*arguments)
    assert (answer.code, len(calls)) == (1, 1)
    assert "found 1 that cannot" in answer.err
    answer = command(*arguments, "--overwrite")
    assert (answer.code, len(calls), answer.err.count("export: cannot be")) == (1, 2, 1), answer.err


@pytest.mark.contract("export.command")
def test_the_command_writes_and_tells(trained: Path, tmp_path: Path, command: Command) -> None:
    answer = command("export", trained, tmp_path / "network.onnx", "--max-offset-px", 14, "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert told["max_offset_px"] == 14
    assert told["canvas_px"] == 32 + 2 * 15
    assert "tensors" not in told
    assert (tmp_path / "network.onnx").is_file()
    (tmp_path / "folder.onnx").mkdir()
    for wrong, told in (
        ([tmp_path / "network.txt"], "ends in .onnx or .pt2"),
        ([trained], "which is read"),
        ([tmp_path / "folder.onnx"], "found the folder"),
        ([tmp_path / "other.onnx", "--max-offset-px", "nan"], "max_offset_px: expected 0 to 4096; found nan"),
    ):
        answer = command("export", trained, *wrong)
        assert (answer.code, told in answer.err) == (1, True), answer.err


@pytest.mark.contract("export.damage")
@pytest.mark.parametrize("how", ["fails", "of another shape"])
def test_a_graph_that_is_not_ours_is_told_when_it_runs(exported: Path, scan: Scan, tmp_path: Path, how: str) -> None:
    model = onnx.load(exported)
    (output,) = model.graph.output
    if how == "fails":
        output.name = "somewhere"
        for node in model.graph.node:
            node.output[:] = ["somewhere" if name == "patches" else name for name in node.output]
    else:
        for node in model.graph.node:
            node.output[:] = ["all" if name == "patches" else name for name in node.output]
        model.graph.node.append(onnx.helper.make_node("Unsqueeze", ["all", "axis"], ["patches"]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), "axis"))
        del output.type.tensor_type.shape.dim[:]
    path = tmp_path / "network.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"network\.onnx: expected (the graph|patches float32)"):
        reconstruct(path, scan, **QUIET)


@pytest.mark.contract("predict.machine")
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_devices_that_are_not_there_are_refused_for_exported_networks_too(exported: Path, scan: Scan) -> None:
    for accelerator in ("gpu", "banana"):
        with pytest.raises(ConfigError, match=f"accelerator '{accelerator}'"):
            reconstruct(exported, scan, accelerator=accelerator, progress=False)


@pytest.mark.contract("export.refuses")
def test_what_does_not_fit_is_refused_by_name(exported: Path, scan: Scan, tmp_path: Path) -> None:
    other = simulate(dataclasses.replace(TINY_SIMULATION, n_px=64, object_px=112))
    with pytest.raises(ScanError, match="expected 32x32 frames"):
        reconstruct(exported, other, **QUIET)
    sparse = dataclasses.replace(scan, positions_px=scan.positions_px * 4)
    with pytest.raises(ConfigError, match=r"of their group's centre, .* --max-offset-px"):
        reconstruct(exported, sparse, **QUIET)
    for name, value in (("predict_compile", True), ("predict_precision", "bf16-mixed")):
        with pytest.raises(ConfigError, match=f"{name}: expected"):
            reconstruct(exported, scan, ReconstructConfig(**{name: value}), **QUIET)
    with pytest.raises(ConfigError, match="devices: expected 1"):
        reconstruct(exported, scan, accelerator="cpu", devices=2)
    with pytest.raises(ConfigError, match="engine: expected onnx"):
        reconstruct(load_exported(exported), scan, engine="torch", **QUIET)
    with pytest.raises(ExportError, match=r"operators of complex numbers .* has aten.angle"):
        export_network(network_of(f"{Angles.__module__}:Angles", 32, 1), tmp_path / "angles.onnx")
    assert not list(tmp_path.iterdir())


def spoilt(exported: Path, path: Path, how: str) -> None:
    content = exported.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
        return
    if how == "empty":
        path.write_bytes(b"")
        return
    model = onnx.load(exported)
    told = json.loads(model.metadata_props[0].value)
    if how == "of another program":
        del model.metadata_props[:]
    elif how == "of another version":
        told["format_version"] = 99
    elif how == "with another probe":
        told["n_px"] = 16
    elif how == "with no numbers":
        told["canvas_px"] = "many"
    elif how == "of another canvas":
        told["canvas_px"] += 2
    elif how in ("without light", "with another tensor"):
        tensors = safetensors.torch.load(base64.b64decode(told["tensors"]))
        if how == "without light":
            tensors["photons_per_frame"] *= torch.nan
        else:
            tensors["more"] = torch.ones(1)
        told["tensors"] = base64.b64encode(safetensors.torch.save(tensors)).decode()
    elif how == "for another engine":
        told["engine"] = "aot"
    else:
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        secret = path.parent / "secret.bin"
        secret.write_bytes(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", str(secret) if how == "absolute" else secret.name
    if model.metadata_props:
        model.metadata_props[0].value = json.dumps(told)
    path.write_bytes(model.SerializeToString())


@pytest.mark.contract("export.damage")
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("truncated", "ONNX Runtime does not take it"),
        ("empty", "ONNX Runtime does not take it"),
        ("of another program", "it has no description"),
        ("of another version", "its format is 99, expected 1"),
        ("with another probe", "probe is not one that it can have"),
        ("with no numbers", "its description cannot be read"),
        ("of another canvas", "max_offset_px is not one that it can have"),
        ("without light", "input_scale, photons_per_frame is not one that it can have"),
        ("with another tensor", "other tensors than its configuration asks for"),
        ("for another engine", "found one for aot"),
        ("absolute", "ONNX Runtime does not take it"),
        ("beside", "ONNX Runtime does not take it"),
    ],
)
def test_damaged_and_foreign_files_are_refused_in_one_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, told: str
) -> None:
    path = tmp_path / "network.onnx"
    spoilt(exported, path, how)
    # Where a file in memory would look for what it refers to.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=told) as caught:
        open_network(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.contract("export.missing")
def test_missing_packages_are_named(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name))
    with pytest.raises(ExportError, match=r"onnx, onnxscript, onnxruntime: not installed.*'torchptycho\[onnx\]'"):
        export_network(network_of(ESTIMATE, 32, 1), tmp_path / "network.onnx")
    with pytest.raises(ExportError, match=r"onnxruntime: not installed. Run: pip install 'onnxruntime'"):
        load_exported(exported)


@pytest.mark.contract("export.machine_code")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_machine_code_gives_the_patches_of_the_network_and_is_loaded_when_named(
    trained: Path, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "network.pt2"
    network = open_network(trained)
    assert export_network(network, path).error < MAX_RELATIVE_ERROR
    expected = reconstruct(network, scan, **QUIET)
    again = open_network(path, "aot", accelerator="cpu")
    assert isinstance(again, ExportedNetwork)
    found = reconstruct(again, scan, **QUIET)
    assert relative_l2(torch.from_numpy(found.object), torch.from_numpy(expected.object)) < 1e-4

    monkeypatch.setattr(_inductor, "aoti_load_package", lambda path: pytest.fail("it was loaded"))
    foreign = tmp_path / "foreign.pt2"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(foreign, "w") as copy:
        for name in archive.namelist():
            if not name.endswith("torchptycho.json"):
                copy.writestr(name, archive.read(name))
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(path.read_bytes()[:1000])
    for file, engine in ((path, None), (path, "torch"), (path, "onnx"), (foreign, "aot"), (broken, "aot")):
        with pytest.raises(TorchptychoError) as caught:
            open_network(file, engine, accelerator="cpu")  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
