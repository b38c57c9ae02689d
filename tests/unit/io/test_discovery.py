"""Folders and patterns of scan files: which scans are meant, each once, and what is told of the rest."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scan_files

from torchptycho.core.config import MappingConfig, PrepareConfig, ReadConfig, RunConfig, SimulateConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan, write_scan
from torchptycho.io.discovery import open_scans

GUESS = ReadConfig(guess_probe=True)
SCANS = ["product.h5", "s_dp.hdf5", "scan.cxi", "scan.npz", "scan.ptyd"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A scan of each format with its companions, and what else lies in such folders."""
    folder = tmp_path / "day1"
    (folder / "older").mkdir(parents=True)
    for case in scan_files.make_cases():
        if case.name in ("npz", "cxi, virtual", "product", "ptyd", "pty-chi"):
            for name, content in case.files.items():
                (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("sample 4 was upside down")
    (folder / "empty.log").write_text("")
    (folder / ".hidden").write_text("not of interest")
    np.savez(folder / "image.npz", object=np.ones((8, 8), np.complex64))
    (folder / "older" / "scan.npz").write_bytes((folder / "scan.npz").read_bytes())
    return folder


def names(scans: list[Any]) -> list[str]:
    return [Path(scan.source).name for scan in scans]


@pytest.mark.contract("data.find.folder")
@pytest.mark.parametrize("as_pattern", [False, True])
def test_folder_stands_for_its_scans_and_foreign_files_are_named(
    folder: Path, caplog: pytest.LogCaptureFixture, as_pattern: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        scans, _ = open_scans(f"{folder}/*" if as_pattern else folder, GUESS)
    assert names(scans) == SCANS
    (told,) = [message for message in caplog.messages if "no scans" in message]
    assert "3 file(s)" in told
    for foreign in ("notes.txt (", "empty.log (an empty file", "image.npz (an archive without frames)"):
        assert foreign in told
    # Parts of other scans are not foreign.
    for part in ("diffraction.h5", "part.h5", "s_para.hdf5", ".hidden"):
        assert part not in told


@pytest.mark.contract("data.find.folder")
def test_nothing_to_find_is_an_error(folder: Path) -> None:
    for nothing, why in (("*.tif", "no file"), ("*.txt", r"none among 1 files \(notes\.txt \(other content")):
        with pytest.raises(ScanError, match=why):
            open_scans(f"{folder}/{nothing}", GUESS)
    (folder / "empty").mkdir()
    with pytest.raises(ScanError, match="expected scan files; found no file"):
        open_scans(folder / "empty", GUESS)


@pytest.mark.contract("data.find.folder")
def test_damaged_scan_in_a_folder_is_an_error(folder: Path) -> None:
    content = (folder / "scan.npz").read_bytes()
    (folder / "scan.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ScanError, match=r"scan\.npz"):
        open_scans(folder, GUESS)
    # And so is one that lacks its other half.
    (folder / "scan.npz").write_bytes(content)
    (folder / "s_para.hdf5").unlink()
    with pytest.raises(ScanError, match=r"s_dp\.hdf5"):
        open_scans(folder, GUESS)


@pytest.mark.contract("data.find.once")
def test_same_scan_is_taken_once_and_not_trained_on_when_it_is_validated_on(folder: Path) -> None:
    scans, held_out = open_scans(
        [folder / "scan.ptyd", folder, f"{folder}/*.npz", f"{folder}/**/*.npz"], GUESS, [folder / "scan.cxi"]
    )
    assert names(scans) == ["scan.ptyd", "product.h5", "s_dp.hdf5", "scan.npz", "scan.npz"]
    assert Path(scans[-1].source).parent.name == "older"
    assert names(held_out) == ["scan.cxi"]
    # What is asked for twice by name is given twice.
    assert names(open_scans([folder / "scan.npz"] * 2, GUESS)[0]) == ["scan.npz"] * 2
    with pytest.raises(ScanError, match="either trained on or held out"):
        open_scans([folder / "scan.npz", folder / "scan.cxi"], GUESS, [folder / "scan.npz"])


@pytest.mark.contract("data.find.once")
@pytest.mark.parametrize("half", ["s_dp.hdf5", "s_para.hdf5"])
def test_other_half_of_a_held_out_pair_is_not_trained_on(
    folder: Path, caplog: pytest.LogCaptureFixture, half: str
) -> None:
    with caplog.at_level(logging.WARNING):
        scans, held_out = open_scans(folder, GUESS, [folder / half, folder / "scan.cxi"])
    assert names(held_out) == [half, "scan.cxi"]
    assert names(scans) == ["product.h5", "scan.npz", "scan.ptyd"]
    assert "part.h5" not in caplog.text


@pytest.mark.contract("data.find.once")
def test_two_files_with_the_same_frames_are_ambiguous(folder: Path) -> None:
    (folder / "second.h5").write_bytes((folder / "product.h5").read_bytes())
    with pytest.raises(ScanError, match=r"second\.h5: expected frames of its own; found those of .*product\.h5"):
        open_scans(folder, GUESS)
    assert names(open_scans([folder / "product.h5", folder / "second.h5"], GUESS)[0]) == ["product.h5", "second.h5"]
    assert names(open_scans([folder, folder / "second.h5"], GUESS)[0]) == [*SCANS[1:], "second.h5"]


@pytest.mark.contract("data.find.mapping")
def test_with_a_mapping_files_are_named_by_a_pattern(tmp_path: Path) -> None:
    (case,) = [case for case in scan_files.make_cases() if case.name == "mapping"]
    for number in range(2):
        (tmp_path / f"raw_{number}.h5").write_bytes(case.files["raw.h5"])
    (tmp_path / "other.csv").write_text("x,y\n")
    assert names(open_scans(f"{tmp_path}/raw_*.h5", case.config)[0]) == ["raw_0.h5", "raw_1.h5"]
    assert isinstance(case.config.mapping, MappingConfig)
    with pytest.raises(ConfigError, match=r"name them by a pattern, as '.*\*\.h5'"):
        open_scans(tmp_path, case.config)


@pytest.mark.contract("data.find.store")
def test_store_among_scans_is_refused(tmp_path: Path) -> None:
    given = simulate(SimulateConfig(n_px=32, object_px=72, n_frames=12))
    write_scan(given, tmp_path / "a[1].npz")
    config = RunConfig(prepare=PrepareConfig(val_fraction=0.2))
    # A file of that very name is no pattern; single sources need no list.
    store = prepare(tmp_path / "a[1].npz", config, tmp_path / "store")
    assert names(list(store.scans)) == ["a[1].npz"]
    with pytest.raises(ConfigError, match="found a store, which is prepared already"):
        prepare([tmp_path / "a[1].npz", tmp_path / "store"], config, tmp_path / "other")
    # A folder that holds both stands for the scan.
    assert prepare([tmp_path], config, tmp_path / "store").fingerprint == store.fingerprint
    assert prepare(read_scan(tmp_path / "a[1].npz"), config, tmp_path / "store").scans == store.scans
