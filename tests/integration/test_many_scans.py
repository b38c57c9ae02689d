"""Many scans, one store, on the command line: files, folders and patterns; added, dropped, held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import TINY_FLAGS, Command

from torchptycho.core.config import SimulateConfig
from torchptycho.data.simulation import simulate
from torchptycho.data.store import Store
from torchptycho.io import write_scan


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of small scans that differ in field, dose, probe and number of frames."""
    folder = tmp_path_factory.mktemp("days")
    for day in (1, 2):
        (folder / f"day{day}").mkdir()
        for number in range(2):
            options = SimulateConfig(
                n_px=32,
                object_px=72 + 8 * number,
                n_frames=16 + 4 * day + number,
                photons_per_frame=10.0 ** (3 + day),
                probe_modes=day,
                probe_kind=("zone_plate", "gaussian")[number],
                simulation_seed=10 * day + number,
            )
            write_scan(simulate(options), folder / f"day{day}" / f"scan{number}.npz")
    (folder / "day1" / "log.txt").write_text("cryo failed at noon")
    return folder


def sources(store: Path) -> list[str]:
    return ["/".join(Path(entry.source).parts[-2:]) for entry in Store.open(store).scans]


@pytest.mark.contract("cli.stores")
def test_store_is_made_of_a_folder_and_changed_scan_by_scan(command: Command, days: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    flags = ["--out", store, "--gridsize", "1", "--val-by", "scans"]
    answer = command("prepare", days / "day1", "--val-scans", days / "day1" / "scan1.npz", *flags)
    assert answer.code == 0, answer.err
    assert f"{store}: 41 frames of 2 scans, 20 groups for training, 21 held out" in answer.out
    assert sources(store) == ["day1/scan0.npz", "day1/scan1.npz"]
    answer = command("append", store, f"{days}/day2/*.npz")
    assert (answer.code, answer.err) == (0, "")
    assert f"{store}: 90 frames of 4 scans, 69 groups for training, 21 held out" in answer.out
    answer = command("append", store, days / "day2" / "scan0.npz")
    assert answer.code == 1
    assert "day2/scan0.npz already" in answer.err
    answer = command("inspect", store, "--json")
    assert (answer.code, answer.err) == (0, "")
    told = json.loads(answer.out)["scans"]
    assert [scan["frames"] for scan in told] == [20, 21, 24, 25]
    assert [scan["trained_on"] for scan in told] == [20, 0, 24, 25]
    assert [scan["held_out"] for scan in told] == [0, 21, 0, 0]
    assert [scan["probe_modes"] for scan in told] == [1, 1, 2, 2]
    assert told[2]["photons_per_frame"] > 5 * told[0]["photons_per_frame"]
    assert "day2/scan1.npz: 25 frames, 25 trained on, 0 held out" in command("inspect", store).out
    assert command("inspect", store, "--orientation").code == 1
    answer = command("drop", store, "0", days / "day2" / "scan1.npz")
    assert (answer.code, answer.err) == (0, "")
    assert sources(store) == ["day1/scan1.npz", "day2/scan0.npz"]
    answer = command("drop", store)
    assert answer.code == 1
    assert "expected scans to drop; found none" in answer.err
    assert "day2/scan0.npz)" in answer.err
    # The network is trained on what is left, as it was prepared.
    flags = [*TINY_FLAGS, "--steps", "2"]
    answer = command("train", store, "--out", tmp_path / "run", *flags)
    assert answer.code == 0, answer.err
    assert "val/loss" in answer.out
    answer = command("train", store, "--out", tmp_path / "other", *flags, "--val-by", "region")
    assert answer.code == 1
    assert "val_by:" in answer.err


@pytest.mark.contract("cli.stores")
def test_network_is_trained_on_folders_and_judged_on_regions(command: Command, days: Path, tmp_path: Path) -> None:
    flags = [*TINY_FLAGS, "--steps", "2", "--val-by", "region", "--val-fraction", "0.2", "--val-gap-px", "4"]
    answer = command("train", days / "day1", days / "day2", "--out", tmp_path / "run", *flags)
    assert answer.code == 0, answer.err
    store = Store.open(tmp_path / "run" / "store")
    assert len(store.scans) == 4
    assert not any(entry.held_out for entry in store.scans)
    held_out = store.tensors["frame_scan"][store.tensors["val"]["members"].flatten()]
    assert held_out.bincount().tolist() == [round(0.2 * entry.n_frames) for entry in store.scans]


@pytest.mark.contract("cli.stores")
def test_run_is_not_resumed_on_a_store_that_has_changed(command: Command, days: Path, tmp_path: Path) -> None:
    store, flags = tmp_path / "store", [*TINY_FLAGS, "--steps", "2"]
    assert command("prepare", f"{days}/day1/*0.npz", "--out", store, "--gridsize", "1").code == 0
    assert command("train", store, "--out", tmp_path / "run", *flags).code == 0
    assert command("append", store, days / "day2").code == 0
    answer = command("train", store, "--out", tmp_path / "run", *flags, "--steps", "4", "--resume")
    assert answer.code == 1
    assert "has 3 scans" in answer.err
    assert "trained on 1. Scans were added or dropped: start a new run from this one, with --from" in answer.err
