"""What the functions of the package take in the place of their objects, and how they refuse what they do not take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from tiny_run import TINY, TINY_SIMULATION

import torchptycho as tp
from torchptycho.core.config import to_dict
from torchptycho.core.errors import ConfigError, ScanError, TorchptychoError

SCAN = tp.simulate(dataclasses.replace(TINY_SIMULATION, n_frames=40))
ONE = {"epochs": 1}
CPU: dict[str, Any] = {"accelerator": "cpu", "progress": False}


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """`make test` checks types, and refuses other types before the package does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tp.Reconstruction:
    """A folder with scan.npz and image.npz, which is the current one; the image."""
    monkeypatch.chdir(tmp_path)
    tp.write_scan(SCAN, "scan.npz")
    image = tp.refine(SCAN, config=ONE, device="cpu")
    tp.write_reconstruction(image, "image.npz")
    return image


@pytest.mark.contract("python.paths")
def test_files_stand_for_scans_and_images(files: tp.Reconstruction) -> None:
    for scan, image in ((SCAN, files), ("scan.npz", "image.npz"), (Path("scan.npz"), Path("image.npz"))):
        refined = tp.refine(scan, image, config=ONE, device="cpu")
        assert len(refined.history["misfit"]) == 1
        assert tp.inspect_scan(scan).n_frames == 40
        assert tp.evaluate(image, scan).n_pixels == tp.evaluate(files, SCAN.truth).n_pixels
        assert tp.compare(image, image, scan if isinstance(scan, str | Path) else None).metrics
        assert tp.plot_reconstruction(image, "image.png").is_file()
        assert tp.write_report(image, scan, "page.html").is_file()
        assert len(tp.group(scan, {"gridsize": 1}).members) == 40
        tp.write_scan(scan, "again.npz")
        assert tp.read_scan("again.npz").n_frames == 40
        tp.write_reconstruction(image, "again.npz")
        np.testing.assert_array_equal(tp.read_reconstruction("again.npz").object, files.object)
        assert tp.write_tiff(image, "image.tif")[0].is_file()
        assert len(tp.rank_orientations(scan)) == 8 if scan is SCAN else True
    halves = [tp.resolution(scan, config=ONE, device="cpu").half_period_px for scan in (SCAN, "scan.npz")]
    assert halves[0] == pytest.approx(halves[1])


@pytest.mark.contract("python.paths")
def test_files_stand_for_networks_and_stores(tiny_run: Path, tmp_path: Path) -> None:
    assert tp.save_bundle(tiny_run, tmp_path / "bundle.zip").is_file()
    assert tp.PtychoDataModule(tiny_run / "store").batches_per_epoch() == 1
    assert len(tp.GroupDataset(tiny_run / "store", "predict")) == 64


@pytest.mark.contract("python.configuration")
@pytest.mark.usefixtures("unchecked_types")
def test_dicts_and_none_stand_for_configurations(files: tp.Reconstruction, tiny_run: Path, tmp_path: Path) -> None:
    config = tp.RefineConfig(epochs=2, alpha=0.1)
    wanted = tp.refine(SCAN, config=config, device="cpu").object
    for given in ({"epochs": 2, "alpha": 0.1}, tp.RunConfig(refine=config)):
        np.testing.assert_array_equal(tp.refine(SCAN, config=given, device="cpu").object, wanted)
    assert tp.simulate({"n_px": 32, "object_px": 64, "n_frames": 9}).n_frames == 9
    assert tp.read_scan("scan.npz", {"frames": ":5"}).n_frames == 5
    assert tp.read_scan("scan.npz", tp.RunConfig()).n_frames == 40
    assert len(tp.group(SCAN.positions_px, {"gridsize": 1}).members[0]) == 1
    assert tp.prepare("scan.npz", {"group": {"gridsize": 1}}, tmp_path / "store").gridsize == 1
    values = to_dict(TINY) | {"train": to_dict(TINY)["train"] | {"steps": 1}}
    assert tp.train("scan.npz", values, tmp_path / "run", progress=False).last.is_file()
    image = tp.reconstruct(tiny_run, "scan.npz", {"input_scale": "scan"}, **CPU)
    assert image.provenance["config"]["reconstruct"]["input_scale"] == "scan"


@pytest.mark.contract("python.probes")
@pytest.mark.usefixtures("unchecked_types")
def test_probe_of_two_axes_is_one_mode(files: tp.Reconstruction) -> None:
    mode = SCAN.probe[0]
    wanted = tp.refine(SCAN, probe=mode[None], config=ONE, device="cpu").object
    for probe in (mode, mode.astype(np.complex128), torch.from_numpy(mode), "scan.npz"):
        np.testing.assert_array_equal(tp.refine(SCAN, probe=probe, config=ONE, device="cpu").object, wanted)
    scan = dataclasses.replace(SCAN, probe=mode, frames=SCAN.frames[:])
    assert scan.probe.shape == (1, 32, 32)
    np.testing.assert_array_equal(
        tp.refine(scan, config=ONE, device="cpu").object, tp.refine(SCAN, config=ONE, device="cpu").object
    )


MODE = SCAN.probe[0]
WRONG: dict[str, Callable[[], object]] = {
    "simulate": lambda: tp.simulate("x"),  # type: ignore[arg-type]
    "simulate, key": lambda: tp.simulate({"nn_px": 32}),
    "scan, number": lambda: tp.refine(3),  # type: ignore[arg-type]
    "scan, none": lambda: tp.refine(None),  # type: ignore[arg-type]
    "scan, array": lambda: tp.refine(SCAN.frames[:]),  # type: ignore[arg-type]
    "start, array": lambda: tp.refine(SCAN, MODE),  # type: ignore[arg-type]
    "configuration, number": lambda: tp.refine(SCAN, config=7),  # type: ignore[arg-type]
    "configuration, section": lambda: tp.train(SCAN, tp.TrainConfig(), "run"),  # type: ignore[arg-type]
    "configuration, value": lambda: tp.refine(SCAN, config={"epochs": "many"}),
    "probe, NaN": lambda: tp.refine(SCAN, probe=MODE * np.nan),
    "probe, zeros": lambda: tp.refine(SCAN, probe=0 * MODE),
    "probe, one NaN": lambda: tp.refine(SCAN, probe=np.where(np.arange(32) == 3, np.nan, MODE).astype("c8")),
    "probe, size": lambda: tp.refine(SCAN, probe=MODE[:16, :16]),
    "probe, list": lambda: tp.refine(SCAN, probe=MODE.tolist()),
    "probe, objects": lambda: tp.refine(SCAN, probe=np.array([None])),
    "probe, axes": lambda: tp.refine(SCAN, probe=MODE[0]),
    "device": lambda: tp.refine(SCAN, device=None),  # type: ignore[arg-type]
    "scan's probe, NaN": lambda: dataclasses.replace(SCAN, probe=MODE * np.nan),
    "scan's probe, zeros": lambda: tp.refine(dataclasses.replace(SCAN, probe=0 * MODE)),
    "scan's probe, trained": lambda: tp.train(dataclasses.replace(SCAN, probe=0 * MODE), None, "run"),
    "resolution": lambda: tp.resolution(None),  # type: ignore[arg-type]
    "inspect": lambda: tp.inspect_scan(1.5),  # type: ignore[arg-type]
    "orientations": lambda: tp.rank_orientations([1]),  # type: ignore[arg-type]
    "evaluate": lambda: tp.evaluate(1, SCAN),  # type: ignore[arg-type]
    "evaluate without truth": lambda: tp.evaluate(1, dataclasses.replace(SCAN, truth=None)),  # type: ignore[arg-type]
    "compare": lambda: tp.compare(1, 2),  # type: ignore[arg-type]
    "read_scan": lambda: tp.read_scan(3),  # type: ignore[arg-type]
    "read_scan, a scan": lambda: tp.read_scan(SCAN),  # type: ignore[arg-type]
    "read_scan, NUL": lambda: tp.read_scan("a\0b"),
    "read_reconstruction": lambda: tp.read_reconstruction(None),  # type: ignore[arg-type]
    "read_probe": lambda: tp.read_probe(3, 32),  # type: ignore[arg-type]
    "write_scan": lambda: tp.write_scan("x", "y.npz"),  # type: ignore[arg-type]
    "write_reconstruction": lambda: tp.write_reconstruction("x", "y.npz"),  # type: ignore[arg-type]
    "load_config": lambda: tp.load_config(3),  # type: ignore[arg-type]
    "load_network": lambda: tp.load_network(3),  # type: ignore[arg-type]
    "reconstruct": lambda: tp.reconstruct(3, SCAN, **CPU),  # type: ignore[arg-type]
    "prepare": lambda: tp.prepare(3, None, "store"),  # type: ignore[arg-type]
    "train": lambda: tp.train(None, None, "run"),  # type: ignore[arg-type]
    "group": lambda: tp.group(3),  # type: ignore[arg-type]
    "group, one axis": lambda: tp.group(SCAN.positions_px[:, 0]),
    "group, no file": lambda: tp.group("absent.npz"),
    "plot_comparison": lambda: tp.plot_comparison("image.npz", "a.png"),  # type: ignore[arg-type]
    "plot_reconstruction": lambda: tp.plot_reconstruction(3, "a.png"),  # type: ignore[arg-type]
    "write_report": lambda: tp.write_report(3, SCAN, "a.html"),  # type: ignore[arg-type]
    "write_tiff": lambda: tp.write_tiff(3, "a.tif"),  # type: ignore[arg-type]
    "append_scans": lambda: tp.append_scans(3, SCAN),  # type: ignore[arg-type]
    "drop_scans": lambda: tp.drop_scans(3, 0),  # type: ignore[arg-type]
    "export_network": lambda: tp.export_network(3, "a.onnx"),  # type: ignore[arg-type]
    "open_network": lambda: tp.open_network(3),  # type: ignore[arg-type]
    "save_bundle": lambda: tp.save_bundle(3, "a.zip"),  # type: ignore[arg-type]
    "load_checkpoint": lambda: tp.load_checkpoint(3),  # type: ignore[arg-type]
    "store": lambda: tp.Store.open(3),  # type: ignore[arg-type]
    "data set": lambda: tp.GroupDataset(3, "train"),  # type: ignore[arg-type]
    "data module": lambda: tp.PtychoDataModule(3),  # type: ignore[arg-type]
}


@pytest.mark.contract("python.refused")
@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_types_are_refused_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TorchptychoError) as caught:
        WRONG[name]()
    assert isinstance(caught.value, ConfigError | ScanError)
    assert "\n" not in str(caught.value)
    assert re_expected(str(caught.value))
    assert not list(tmp_path.iterdir())


def re_expected(text: str) -> bool:
    return any(word in text for word in ("expected", "unknown key", "should be"))
