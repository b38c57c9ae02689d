"""Reconstruction as a stream: memory, processes, passes, what is named when it is not in the image, many scans."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import TINY_SIMULATION, Command
from tolerances import relative_l2

from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import GroupConfig, ReconstructConfig, RunConfig
from torchptycho.core.devices import find_devices
from torchptycho.core.errors import ConfigError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.data.inference_dataset import InferenceBatch, InferenceDataset
from torchptycho.data.simulation import simulate
from torchptycho.io import read_reconstruction, write_scan
from torchptycho.models.checkpoints import load_checkpoint, load_network, names_network
from torchptycho.models.default_network import build_default_network, choose_gridsize
from torchptycho.reconstructors.inference import iterate_predictions
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.training.train import TrainResult, train

QUIET: dict[str, Any] = {"accelerator": "cpu", "progress": False}


@pytest.fixture(scope="session")
def paired(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A network for groups of 2x2 frames."""
    from tiny_run import TINY

    config = dataclasses.replace(
        TINY,
        group=dataclasses.replace(TINY.group, gridsize=2),
        train=dataclasses.replace(TINY.train, steps=1),
        model=dataclasses.replace(TINY.model, start_projections=2, finish_projections=2),
    )
    return train(simulate(TINY_SIMULATION), config, tmp_path_factory.mktemp("paired") / "run", progress=False)


def same(one: Reconstruction, other: Reconstruction) -> bool:
    assert one.spread is not None
    assert other.spread is not None
    return np.array_equal(one.object, other.object) and np.array_equal(one.spread, other.spread)


@pytest.mark.contract("predict.plain")
def test_network_without_its_training_gives_the_same_image(tiny_result: TrainResult, tiny_scan: Path) -> None:
    network, module = load_network(tiny_result.checkpoint), load_checkpoint(tiny_result.checkpoint)
    assert same(reconstruct(network, tiny_scan, **QUIET), reconstruct(module, tiny_scan, **QUIET))


@pytest.mark.contract("predict.plain")
def test_prediction_imports_neither_lightning_nor_tensordict() -> None:
    code = "import torchptycho as tp, sys; tp.reconstruct; tp.load_network; import torchptycho.visualization.plot"
    tail = "; print([n for n in ('lightning', 'tensordict', 'torchmetrics', 'skimage') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.contract("predict.processes")
@pytest.mark.parametrize("agree", [True, False])
def test_two_processes_give_the_image_of_one(paired: TrainResult, tmp_path: Path, agree: bool) -> None:
    scan = simulate(TINY_SIMULATION)
    config = ReconstructConfig(agree_phases=agree, predict_batch_size=12, absolute_scale=agree)
    network = load_network(paired.last)
    one = reconstruct(network, scan, config, scratch=tmp_path, **QUIET)
    two = reconstruct(network, scan, config, devices=2, scratch=tmp_path, **QUIET)
    # Each batch is that of one process, and the sums are exact; the threads of a batch are half as many.
    assert relative_l2(torch.from_numpy(two.object), torch.from_numpy(one.object)) < 1e-6
    assert np.array_equal(two.coverage, one.coverage)
    if agree:
        scales = [image.provenance["absolute_scale"]["object_factor"] for image in (one, two)]
        assert scales[1] == pytest.approx(scales[0], rel=1e-6)
    assert not list(tmp_path.iterdir())


@pytest.mark.contract("predict.once")
@pytest.mark.parametrize("passes", [1, 3])
def test_every_frame_is_predicted_as_often_as_asked_for(tmp_path: Path, passes: int) -> None:
    scan = simulate(dataclasses.replace(TINY_SIMULATION, n_frames=63))
    stream = InferenceDataset.from_scan(scan, tmp_path, gridsize=2, nphotons=None, training_scan=0, passes=passes)
    numbers = stream.members[stream.is_first]
    assert torch.equal(numbers.sort().values, torch.arange(63 * passes))
    batch = stream.read_batch(0, len(stream))
    assert np.array_equal(batch.frames.numpy(), scan.frames[batch.members.numpy() % 63])
    where = stream.positions_px[batch.members]
    assert torch.allclose(where - where.mean(1, keepdim=True), batch.offset_px.double(), atol=1e-5)
    # Other neighbours in each pass.
    together = {
        number: {frozenset((row % 63).tolist()) for row in stream.members if int(row[0]) // 63 == number}
        for number in range(passes)
    }
    assert all(len(together[0] & together[number]) < len(together[0]) // 2 for number in range(1, passes))


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.mark.contract("predict.threads")
@pytest.mark.parametrize("agree", [True, False])
def test_threads_that_take_batches_of_their_own_give_the_image_of_one(
    paired: TrainResult, threads: int, agree: bool
) -> None:
    scan = simulate(TINY_SIMULATION)
    network, config = load_network(paired.last), ReconstructConfig(predict_batch_size=4, agree_phases=agree)
    alone: set[int] = set()

    def told(batch: InferenceBatch, patches: torch.Tensor) -> None:
        seen.append(int(batch.members[0, 0]))
        alone.add(torch.get_num_threads())

    seen: list[int] = []
    shared = reconstruct(network, scan, config, on_batch=told, **QUIET)
    assert (alone, torch.get_num_threads()) == ({1}, threads)
    torch.set_num_threads(1)
    together, seen = seen, []
    assert same(shared, reconstruct(network, scan, config, on_batch=told, **QUIET))
    assert together == seen
    assert len(seen) > 2 * threads


@pytest.mark.contract("predict.threads")
def test_threads_come_back_where_batches_are_left_undone(paired: TrainResult, threads: int, tmp_path: Path) -> None:
    network = load_network(paired.last)
    stream = InferenceDataset.from_scan(simulate(TINY_SIMULATION), tmp_path, gridsize=2, nphotons=None, training_scan=0)
    cuts = [(start, start + 1) for start in range(8)]
    in_turn = iterate_predictions(network, stream, ReconstructConfig(), cuts, torch.device("cpu"))
    next(in_turn)
    assert torch.get_num_threads() == 1
    in_turn.close()
    assert torch.get_num_threads() == threads


@pytest.mark.contract("predict.threads")
def test_a_failure_in_a_thread_is_the_failure(paired: TrainResult, threads: int) -> None:
    network, calls = load_checkpoint(paired.last), 0
    forward = network.forward

    def failing(batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MemoryError
        return forward(batch)

    network.forward = failing  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        reconstruct(network, simulate(TINY_SIMULATION), ReconstructConfig(predict_batch_size=4), **QUIET)
    assert torch.get_num_threads() == threads
    # What waited was not begun.
    assert calls < 3 + 2 * threads


@pytest.mark.contract("predict.once")
def test_several_passes_average_and_need_neighbours(paired: TrainResult, tiny_result: TrainResult) -> None:
    scan = simulate(TINY_SIMULATION)
    network = load_network(paired.last)
    once = reconstruct(network, scan, ReconstructConfig(), **QUIET)
    often = reconstruct(network, scan, ReconstructConfig(predict_passes=3), **QUIET)
    assert not np.array_equal(often.object, once.object)
    np.testing.assert_allclose(often.coverage, once.coverage, atol=1e-5)
    with pytest.raises(ConfigError, match="predict_passes: expected 1 with gridsize 1"):
        reconstruct(tiny_result.checkpoint, scan, ReconstructConfig(predict_passes=2), **QUIET)


@pytest.mark.contract("predict.named")
def test_frames_whose_patches_are_not_finite_are_named_and_the_others_are_placed(
    tiny_result: TrainResult, caplog: pytest.LogCaptureFixture
) -> None:
    scan = simulate(TINY_SIMULATION)
    module = load_checkpoint(tiny_result.checkpoint)
    forward = module.forward

    def spoilt(batch: Any) -> torch.Tensor:
        patches: torch.Tensor = forward(batch)
        patches[(batch.members == 5) | (batch.members == 40)] = torch.nan
        return patches

    module.forward = spoilt  # type: ignore[method-assign]
    for agree in (True, False):
        image = reconstruct(module, scan, ReconstructConfig(agree_phases=agree), **QUIET)
        assert list(image.provenance["left_out"]) == ["5", "40"]
        assert np.isfinite(image.object).all()
        assert image.coverage.max() == 1
    assert "2 frames are not in the image" in caplog.text


@pytest.mark.contract("predict.precision")
def test_half_precision_changes_little(paired: TrainResult) -> None:
    scan = simulate(TINY_SIMULATION)
    network = load_network(paired.last)
    full = torch.from_numpy(reconstruct(network, scan, ReconstructConfig(), **QUIET).object)
    half = reconstruct(network, scan, ReconstructConfig(predict_precision="bf16-mixed"), **QUIET)
    assert 0 < relative_l2(torch.from_numpy(half.object), full) < 0.02


@pytest.mark.contract("predict.compile")
def test_without_a_compiler_the_network_runs_as_it_is(
    paired: TrainResult, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def compile_(self: torch.nn.Module) -> None:
        def fail(*_: Any) -> None:
            calls.append(1)
            raise RuntimeError("no compiler is found")

        self._compiled_call_impl = fail

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    scan = simulate(TINY_SIMULATION)
    network = load_network(paired.last)
    compiled = reconstruct(network, scan, ReconstructConfig(predict_compile=True), **QUIET)
    assert calls == [1]
    assert "which fails here: no compiler is found" in caplog.text
    assert same(compiled, reconstruct(network, scan, ReconstructConfig(), **QUIET))


@pytest.mark.contract("predict.machine")
@pytest.mark.parametrize(
    ("accelerator", "count", "message"),
    [
        ("abacus", 1, "accelerator 'abacus': not on this machine (expected auto, cpu, gpu"),
        ("gpu", 99, "accelerator 'gpu', devices 99: not on this machine (it has "),
        ("cpu", 0, "devices: expected at least 1; found 0."),
    ],
)
def test_devices_that_are_not_there_are_refused(accelerator: str, count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        find_devices(accelerator, count)


@pytest.mark.contract("files.reconstruction.spread")
def test_spread_is_in_the_image_file(tiny_result: TrainResult, tmp_path: Path, command: Command) -> None:
    """And several scans give an image each, in one command; a bad one among them does not keep the others back."""
    scans = []
    for seed in (1, 2):
        scans.append(tmp_path / f"scan-{seed}.npz")
        write_scan(simulate(dataclasses.replace(TINY_SIMULATION, simulation_seed=seed)), scans[-1])
    broken = tmp_path / "broken.npz"
    broken.write_bytes(scans[0].read_bytes()[:1000])
    answer = command(
        "reconstruct",
        tiny_result.checkpoint,
        scans[0],
        broken,
        scans[1],
        "--out",
        tmp_path / "images",
        "--accelerator",
        "cpu",
    )
    assert answer.code == 1
    assert "broken.npz" in answer.err
    for scan in scans:
        read = read_reconstruction(tmp_path / "images" / scan.name)
        alone = reconstruct(tiny_result.checkpoint, scan, **QUIET)
        assert same(read, alone)
        assert read.provenance["checkpoint_sha256"] == alone.provenance["checkpoint_sha256"]
        assert (tmp_path / "images" / scan.name).with_suffix(".png").is_file()
    assert not (tmp_path / "images" / "broken.npz").exists()


@pytest.mark.contract("cli.reconstruct.several")
def test_names_of_several_images_must_differ_and_need_a_folder(tiny_run: Path, command: Command) -> None:
    answer = command("reconstruct", tiny_run, "a/scan.npz", "b/scan.npz")
    assert answer.code == 1
    assert "different names" in answer.err
    answer = command("reconstruct", tiny_run, "a.npz", "b.npz", "--out", "image.npz")
    assert answer.code == 1
    assert "expected a folder" in answer.err


MEASURE = """
import json, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from torchptycho.analysis.evaluation import evaluate
from torchptycho.core.config import GroupConfig, ReconstructConfig, RunConfig
from torchptycho.models.checkpoints import load_network
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.core.scan import ArrayFrames
from torchptycho.data.simulation import simulate
from torchptycho.core.config import SimulateConfig
import dataclasses
checkpoint, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
scan = simulate(SimulateConfig(n_px=32, object_px=80, n_frames=64, photons_per_frame=1e5))
many = np.lib.format.open_memmap(folder / "frames.npy", "w+", scan.frames.dtype, (count, 32, 32))
for start in range(0, count, 64):
    many[start : start + 64] = scan.frames[:][: count - start]
places = np.stack(np.divmod(np.arange(count), 40), 1) * 4.0 + np.random.default_rng(0).uniform(0, 1, (count, 2))
scan = dataclasses.replace(scan, frames=ArrayFrames(np.load(folder / "frames.npy", mmap_mode="r")), positions_px=places,
                           scan_id=np.zeros(count, np.int64), truth=None)
def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
network = load_network(checkpoint)
network.generator.start_projections = network.generator.finish_projections = 1
peak = [0]
forward = network.forward
def watched(batch):
    patches = forward(batch)
    peak[0] = max(peak[0], anonymous())
    return patches
network.forward = watched
import torchptycho.reconstructors.stitcher as mosaic
place = mosaic.PatchStitcher._place
def placed(self, *given):
    place(self, *given)
    peak[0] = max(peak[0], anonymous())
mosaic.PatchStitcher._place = placed
few = dataclasses.replace(scan, frames=ArrayFrames(scan.frames.array[:64]), positions_px=places[:64],
                          scan_id=scan.scan_id[:64])
reconstruct(network, few, ReconstructConfig(), accelerator="cpu", progress=False, scratch=folder)
peak[0] = 0
reconstruct(network, scan, ReconstructConfig(), accelerator="cpu", progress=False, scratch=folder)
print(json.dumps(peak[0]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux's /proc")
@pytest.mark.contract("predict.memory")
def test_memory_does_not_grow_with_the_number_of_frames(paired: TrainResult, tmp_path: Path) -> None:
    peaks = []
    for count in (1000, 4000):
        (tmp_path / str(count)).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(paired.last), str(tmp_path / str(count)), str(count)],
            capture_output=True,
            text=True,
            check=True,
            # What is freed goes back at once: the peak is of what is held, and not of how the heap was cut up.
            env=os.environ
            | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
        )
        peaks.append(json.loads(done.stdout.splitlines()[-1]))
    # A patch is 8 KB. What grows is the image, half a kilobyte a frame here, and tables of groups and neighbours.
    assert (peaks[1] - peaks[0]) / 3000 < 4096


@pytest.mark.contract("predict.dose")
def test_refinement_after_another_dose_has_the_probe_of_that_dose(paired: TrainResult) -> None:
    dim = simulate(dataclasses.replace(TINY_SIMULATION, photons_per_frame=TINY_SIMULATION.photons_per_frame / 10))
    config = ReconstructConfig(input_scale="scan")
    network = load_network(paired.last)
    image = reconstruct(network, dim, config, refine_epochs=4, **QUIET)
    assert image.provenance["probe_factor"] == pytest.approx(0.1**0.5, rel=0.05)
    assert image.probe is not None
    light = float(network.probe.abs().square().sum())
    assert float((np.abs(image.probe) ** 2).sum()) == pytest.approx(light / 10, rel=0.05)


@pytest.mark.contract("predict.absolute")
def test_a_patch_that_is_not_finite_has_no_say_in_the_absolute_scale(paired: TrainResult) -> None:
    network = load_network(paired.last)
    forward = network.forward

    def spoilt(batch: Any) -> torch.Tensor:
        patches = forward(batch).clone()
        patches[(batch.members == 7) & batch.is_first] = torch.nan
        return patches

    network.forward = spoilt  # type: ignore[method-assign]
    image = reconstruct(network, simulate(TINY_SIMULATION), ReconstructConfig(absolute_scale=True), **QUIET)
    assert list(image.provenance["left_out"]) == ["7"]
    assert 0.5 < image.provenance["absolute_scale"]["object_factor"] < 2


@pytest.mark.contract("cli.reconstruct.several")
def test_an_image_does_not_take_the_place_of_a_scan(command: Command, paired: TrainResult, tmp_path: Path) -> None:
    measured = tmp_path / "images" / "a.npz"
    measured.parent.mkdir()
    for path in (tmp_path / "a.npz", tmp_path / "b.npz", measured):
        write_scan(simulate(TINY_SIMULATION), path)
    before = measured.read_bytes()
    answer = command("reconstruct", paired.last, tmp_path / "a.npz", tmp_path / "b.npz", "--out", measured.parent)
    assert answer.code == 1
    assert "is a scan" in answer.err
    assert measured.read_bytes() == before


@pytest.mark.contract("cli.compare")
def test_a_picture_does_not_take_the_place_of_an_image(command: Command, paired: TrainResult, tmp_path: Path) -> None:
    scan, image = tmp_path / "scan.npz", tmp_path / "image.npz"
    write_scan(simulate(TINY_SIMULATION), scan)
    assert command("reconstruct", paired.last, scan, "--out", image).code == 0
    before = image.read_bytes()
    for asked in (
        ("compare", image, scan, "--out", image),
        ("evaluate", image, scan, "--plot", image),
        ("inspect", scan, "--plot", image),
        ("resolution", scan, "--plot", image),
    ):
        answer = command(*asked)
        assert (answer.code, ".png" in answer.err) == (1, True)
    assert image.read_bytes() == before


@pytest.mark.contract("cli.reconstruct.untrained")
def test_scan_is_reconstructed_without_a_checkpoint(command: Command, tmp_path: Path, tiny_scan: Path) -> None:
    out = tmp_path / "image.npz"
    done = command("reconstruct", tiny_scan, "--out", out, "--report", "--accelerator", "cpu")
    assert done.code == 0, done.err
    image = read_reconstruction(out)
    assert same(image, reconstruct(None, tiny_scan, **QUIET))
    assert image.provenance["checkpoint"] is None
    assert out.with_suffix(".html").is_file()
    both = command("reconstruct", tiny_scan, tiny_scan, "--out", tmp_path / "both", "--accelerator", "cpu")
    assert "expected scans with different names" in both.err


@pytest.mark.contract("cli.reconstruct.untrained")
def test_image_without_training_resembles_the_object() -> None:
    scan = simulate(dataclasses.replace(TINY_SIMULATION, photons_per_frame=1e6))
    assert scan.truth is not None
    assert evaluate(reconstruct(None, scan, **QUIET), scan.truth).phase_correlation > 0.8


@pytest.mark.contract("cli.reconstruct.untrained.groups")
def test_groups_are_as_large_as_the_scan_allows() -> None:
    assert [choose_gridsize(n) for n in (1, 17, 18, 31, 32, 10_000)] == [2, 2, 3, 3, 4, 4]
    scan = simulate(dataclasses.replace(TINY_SIMULATION, object_kind="siemens_star"))
    assert scan.truth is not None
    small = build_default_network(scan, RunConfig(group=GroupConfig(gridsize=2)))
    errors = [evaluate(reconstruct(network, scan, **QUIET), scan.truth).complex_nrmse for network in (None, small)]
    assert errors[0] < 0.92 * errors[1]


@pytest.mark.contract("cli.reconstruct.untrained")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "onnx"], "--engine: expected torch without a checkpoint"),
        (["--training-scan", "1"], "--training-scan: expected a checkpoint"),
        (["--crop-px", "20"], "found N = 20"),
    ],
)
def test_options_of_a_trained_network_are_refused_without_one(
    command: Command, tmp_path: Path, tiny_scan: Path, arguments: list[str], message: str
) -> None:
    done = command("reconstruct", tiny_scan, "--out", tmp_path / "image.npz", *arguments)
    assert done.code == 1
    assert message in done.err
    assert not (tmp_path / "image.npz").exists()


@pytest.mark.contract("cli.reading")
def test_reading_options_replace_those_of_training(
    command: Command, tmp_path: Path, tiny_run: Path, tiny_scan: Path
) -> None:
    plain, flipped = tmp_path / "plain.npz", tmp_path / "flipped.npz"
    assert command("reconstruct", tiny_run, tiny_scan, "--out", plain, "--accelerator", "cpu").code == 0
    assert command("reconstruct", tiny_run, tiny_scan, "--out", flipped, "--flip-x", "--accelerator", "cpu").code == 0
    assert not same(read_reconstruction(plain), read_reconstruction(flipped))
    done = command("reconstruct", tiny_run, tiny_scan, "--out", tmp_path / "probe.npz", "--probe", tiny_scan)
    assert done.code == 1
    assert "a trained network has the probe of its training scan" in done.err


@pytest.mark.contract("cli.reconstruct.untrained")
def test_files_that_are_networks_are_told_from_scans(tmp_path: Path, tiny_run: Path, tiny_scan: Path) -> None:
    assert names_network(tiny_run)
    assert names_network(tiny_run / "checkpoints" / "last.ckpt")
    assert names_network(tmp_path / "network.onnx")
    assert not names_network(tiny_scan)
    assert not names_network(tmp_path)
