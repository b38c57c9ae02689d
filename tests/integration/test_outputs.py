"""What commands do where their files exist or cannot be written, which they find before they read anything."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tiny_run import TINY_SIMULATION, Command

from torchptycho.cli.base import WritingCommand
from torchptycho.cli.command_table import COMMANDS
from torchptycho.core.config import RunConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.io import read_reconstruction, read_scan, write_scan
from torchptycho.live import replay
from torchptycho.models.bundles import save_bundle
from torchptycho.models.export.export import export_network
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.reconstructors.iterative import refine
from torchptycho.training.train import train

# Each command with an output FILE; the inputs are absent, which is not noticed before.
WRITERS = {
    "simulate": (["simulate", "FILE"], "x.npz"),
    "design": (["design", "--scan", "absent.npz", "--plot", "FILE"], "x.png"),
    "convert": (["convert", "absent.npz", "FILE"], "x.npz"),
    "convert to a product": (["convert", "absent.npz", "FILE"], "x.h5"),
    "inspect": (["inspect", "absent.npz", "--plot", "FILE"], "x.png"),
    "diagnose": (["diagnose", "absent.npz", "--out", "FOLDER"], "diagnosis.png"),
    "tune": (["tune", "absent.npz", "--out", "FOLDER"], "tuned.yaml"),
    "refine": (["refine", "absent.npz", "--out", "FILE"], "x.npz"),
    "refine with a page": (["refine", "absent.npz", "--out", "new.npz", "--report", "FILE"], "x.html"),
    "resolution": (["resolution", "absent.npz", "--plot", "FILE"], "x.png"),
    "reconstruct": (["reconstruct", "absent", "absent.npz", "--out", "FILE"], "x.npz"),
    "reconstruct with a page": (["reconstruct", "absent", "a.npz", "--out", "new.npz", "--report", "FILE"], "x.html"),
    "reconstruct several": (["reconstruct", "absent", "a.npz", "x.npz", "--out", "FOLDER"], "x.npz"),
    "export": (["export", "absent", "FILE"], "x.onnx"),
    "evaluate": (["evaluate", "absent.npz", "absent.npz", "--plot", "FILE"], "x.png"),
    "compare": (["compare", "absent.npz", "absent.npz", "--out", "FILE"], "x.png"),
    "replay": (["replay", "absent.npz", "--swmr", "FILE"], "x.cxi"),
}
FOLDERS = {
    "train": ["train", "absent.npz", "--out", "FOLDER"],
    "prepare": ["prepare", "absent.npz", "--out", "FOLDER"],
    "demo": ["demo", "--out", "FOLDER"],
}


def fill(arguments: list[str], file: Path) -> list[str]:
    return [{"FILE": str(file), "FOLDER": str(file.parent)}.get(one, one) for one in arguments]


@pytest.mark.contract("cli.overwrite")
def test_every_command_that_writes_files_follows_the_rule() -> None:
    tested = {name.split()[0] for name in WRITERS} | {"watch", "prepare", "demo", "train", "pretrain"}
    assert {name for name, kind in COMMANDS.items() if issubclass(kind, WritingCommand)} == tested
    outputs = {"out", "plot", "swmr", "report"}
    with_outputs = {
        name
        for name, kind in COMMANDS.items()
        if outputs & {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    }
    assert with_outputs == tested


@pytest.mark.contract("cli.overwrite")
@pytest.mark.parametrize("name", WRITERS)
def test_file_that_exists_is_left(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, file = WRITERS[name]
    place = tmp_path / "there" / file
    place.parent.mkdir()
    place.write_text("mine")
    answer = command(*fill(arguments, place))
    assert answer.code == 1
    assert f"found {place}, which exists." in answer.err
    assert "--overwrite" in answer.err
    assert len(answer.err.splitlines()) == 1
    # Only the absent inputs are in the way then.
    answer = command(*fill(arguments, place), "--overwrite", *(["--object-px", "20"] if name == "simulate" else []))
    assert answer.code == 1
    assert "exists" not in answer.err
    assert place.read_text() == "mine"
    assert [path.name for path in tmp_path.rglob("*")] == ["there", file]


@pytest.mark.contract("cli.overwrite")
@pytest.mark.parametrize("more", ["image.png", "image.state.npz"])
def test_files_next_to_the_image_are_left_too(command: Command, tmp_path: Path, more: str) -> None:
    (tmp_path / more).write_text("mine")
    answer = command("refine", "absent.npz", "--out", tmp_path / "image.npz")
    assert f"{more}, which exists. Continue with --resume" in answer.err
    assert command("convert", "absent.npz", tmp_path / "image.h5").err.count("which exists") == 0
    (tmp_path / "image-diffraction.h5").write_text("mine")
    assert "image-diffraction.h5, which exists" in command("convert", "absent.npz", tmp_path / "image.h5").err


@pytest.mark.contract("cli.writable")
@pytest.mark.parametrize("where", ["in a file", "long name", "a folder", "no permission"])
@pytest.mark.parametrize("name", [*WRITERS, *FOLDERS])
def test_place_that_cannot_be_written_to_is_found_first(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, file = WRITERS.get(name, (FOLDERS.get(name, []), "x"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / file).mkdir(parents=True)
    place = {
        "in a file": tmp_path / "file" / file,
        "long name": tmp_path / f"{240 * 'x'}{file}",
        "a folder": tmp_path / "folder" / file,
        "no permission": Path("/proc/self") / file,
    }[where]
    if where == "no permission" and not sys.platform.startswith("linux"):
        pytest.skip("/proc is Linux's")
    if name in FOLDERS and where in ("a folder", "long name"):
        pytest.skip("a folder is what it makes; its own name is only as long as it is")
    if name in ("reconstruct several", "diagnose", "tune") and where == "long name":
        pytest.skip("the name is not that of the option")
    answer = command(*fill(arguments, place), "--overwrite" if name != "train" else "--resume")
    assert answer.code == 1
    assert "absent" not in answer.err
    assert "expected a" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder", file}


@pytest.mark.contract("cli.overwrite")
def test_with_overwrite_files_are_replaced_and_an_input_never_is(command: Command, tmp_path: Path) -> None:
    scan, image = tmp_path / "scan.npz", tmp_path / "new" / "image.npz"
    size = ["--n-px", "32", "--object-px", "64", "--n-frames", "16"]
    assert command("simulate", scan, *size).code == 0
    assert command("simulate", scan, *size, "--n-frames", "17", "--overwrite").code == 0
    assert read_scan(scan).n_frames == 17
    before = scan.read_bytes()
    for arguments in (["convert", scan, scan], ["refine", scan, "--out", scan], ["reconstruct", scan, "--out", scan]):
        answer = command(*arguments, "--overwrite")
        assert answer.code == 1
        assert ("scan.npz, which is read" if arguments[0] == "convert" else "is a scan") in answer.err
    assert scan.read_bytes() == before
    for epochs, more in ((1, []), (2, ["--overwrite"]), (3, ["--resume"])):
        answer = command("refine", scan, "--out", image, "--device", "cpu", "--epochs", epochs, *more)
        assert (answer.code, answer.err) == (0, "")
        assert len(read_reconstruction(image).history["misfit"]) == epochs
    image.with_suffix(".state.npz").unlink()
    assert "which exists" in command("refine", scan, "--out", image, "--resume").err


@pytest.mark.contract("cli.overwrite")
def test_another_file_that_the_scan_is_read_from_is_not_replaced(command: Command, tmp_path: Path) -> None:
    scan = simulate(dataclasses.replace(TINY_SIMULATION, n_frames=12))
    np.save(tmp_path / "frames.npy", scan.frames[:])
    np.savetxt(tmp_path / "places.csv", scan.positions_px * 1e-9, delimiter=",", header="y,x", comments="")
    config = tmp_path / "config.yaml"
    config.write_text(
        "prepare:\n  guess_probe: true\n  mapping: {frames: frames.npy, positions_y: 'places.csv:y', "
        "positions_x: 'places.csv:x'}\n  energy_eV: 8000\n  distance_m: 1\n  detector_pixel_m: 75.0e-6\n"
    )
    np.savez(tmp_path / "other.npz", frames=scan.frames[:])
    before = (tmp_path / "other.npz").read_bytes()
    text = config.read_text().replace("frames: frames.npy", "frames: 'other.npz:frames'")
    config.write_text(text)
    answer = command("convert", tmp_path / "frames.npy", tmp_path / "other.npz", "--config", config, "--overwrite")
    assert answer.code == 1
    assert "other.npz, which is read" in answer.err
    assert (tmp_path / "other.npz").read_bytes() == before


@pytest.mark.contract("cli.overwrite")
def test_store_and_demo_are_replaced_only_on_request(command: Command, tiny_scan: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert command("prepare", tiny_scan, "--out", store, "--gridsize", "1").code == 0
    answer = command("prepare", tiny_scan, "--out", store, "--gridsize", "2")
    assert answer.code == 1
    assert "--overwrite" in answer.err
    assert command("prepare", tiny_scan, "--out", store, "--gridsize", "2", "--overwrite", "--dry-run").code == 0
    assert Store.open(store).gridsize == 1
    assert command("prepare", tiny_scan, "--out", store, "--gridsize", "2", "--overwrite").code == 0
    assert Store.open(store).gridsize == 2
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "demo.json").write_text("{}")
    assert "is there" not in command("prepare", tiny_scan, "--out", other, "--overwrite").err
    assert (other / "demo.json").is_file()
    answer = command("demo", "--out", other)
    assert "holds an earlier demo. Choose another folder, or replace it with --overwrite" in answer.err


@pytest.mark.contract("cli.writable")
def test_python_functions_find_it_first_too(tiny_scan: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    inside = tmp_path / "file" / "x"
    scan = simulate(dataclasses.replace(TINY_SIMULATION, n_frames=12))
    config = RunConfig()
    store = prepare([scan], config, tmp_path / "store")
    module = PtychoPINN.for_store(store, config)
    calls = (
        lambda: train(store, config, inside, progress=False),
        lambda: refine(scan, state_file=inside),
        lambda: export_network(module, inside.with_suffix(".onnx")),
        lambda: replay(scan, swmr=inside.with_suffix(".cxi")),
    )
    for call in calls:
        with pytest.raises(ConfigError, match="expected a"):
            call()
    for write in (lambda: write_scan(scan, inside.with_suffix(".npz")), lambda: save_bundle(module, inside)):
        with pytest.raises((ConfigError, ScanError), match=r"expected a"):
            write()


@pytest.mark.contract("cli.tiff")
def test_images_are_written_as_tiff_too(command: Command, tiny_scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "refined.npz"
    answer = command("refine", tiny_scan, "--out", out, "--epochs", "1", "--tiff", "uint16", "--json")
    assert answer.code == 0, answer.err
    files = [tmp_path / f"refined-{what}.tif" for what in ("amplitude", "phase")]
    assert json.loads(answer.out)["tiff"] == [str(file) for file in files]
    assert all(tifffile.imread(file).dtype == np.uint16 for file in files)
    assert f"{files[0].name}, which exists" in command("convert", out, tmp_path / "refined.tif").err
    answer = command("convert", out, tmp_path / "refined.tif", "--overwrite")
    assert answer.code == 0, answer.err
    image = read_reconstruction(out)
    amplitude = tifffile.imread(files[0])
    np.testing.assert_allclose(amplitude[image.valid], np.abs(image.object[image.valid]), rtol=1e-6)
    assert "Leave out the options for scans" in command("convert", out, tmp_path / "x.tif", "--flip-x").err
    image_file = tmp_path / "image.npz"
    answer = command("reconstruct", tiny_scan, "--out", image_file, "--tiff", "float32")
    assert answer.code == 0, answer.err
    assert "image-phase.tif" in answer.out
    assert (tmp_path / "image-phase.tif").is_file()
