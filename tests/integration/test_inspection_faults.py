"""Every part of every format is damaged in turn: it is inspected all the same, and the fault names an option."""

from __future__ import annotations

import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scan_files import ScanFileCase, _npz_bytes, make_cases
from tiny_run import Command

from torchptycho.analysis.file_survey import FileSurvey, survey_file
from torchptycho.analysis.inspection import inspect_scan
from torchptycho.cli.command_table import COMMANDS
from torchptycho.cli.remedies import collect_options
from torchptycho.core.errors import ScanError
from torchptycho.io import read_scan
from torchptycho.io.inventory import list_arrays

OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
CASES = {case.name: case for case in make_cases()}
# What stands in the place of an array.
WRONG: dict[str, Any] = {
    "another shape": np.random.default_rng(0).poisson(5, (3, 4, 5)).astype(float),
    "text": np.array(b"xyz"),
    "nan": np.full(6, np.nan),
    "negative": np.array(-1.0),
}
# Without these nothing is left to inspect.
FRAMES = ("diffraction", "data", "patterns", "dp", "rest", "frames")


def damage_npz(content: bytes) -> Iterator[tuple[str, str, bytes]]:
    with np.load(io.BytesIO(content)) as archive:
        arrays: dict[str, Any] = {key: archive[key] for key in archive.files}
    members = zipfile.ZipFile(io.BytesIO(content))
    for key in arrays:
        for kind, wrong in WRONG.items():
            yield key, kind, _npz_bytes(arrays | {key: wrong}, compressed=False)
        yield key, "missing", _npz_bytes({name: one for name, one in arrays.items() if name != key}, compressed=False)
        info = members.getinfo(f"{key}.npy")
        changed = bytearray(content)
        changed[info.header_offset + 30 + len(info.filename) + 20 + (info.compress_size - 20) * 2 // 3] ^= 0x5A
        yield key, "changed", bytes(changed)


def damage_hdf5(content: bytes) -> Iterator[tuple[str, str, bytes]]:
    names: list[str] = []
    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    for key in names:
        for kind, wrong in {
            **WRONG,
            "missing": None,
            "broken link": h5py.SoftLink("/nowhere"),
            "unit": "parsec",
        }.items():
            stream = io.BytesIO(content)
            with h5py.File(stream, "r+") as file:
                attributes = dict(file[key].attrs)
                if kind != "unit":
                    del file[key]
                    if wrong is not None:
                        file[key] = wrong
                if kind in WRONG:
                    file[key].attrs.update(attributes)
                elif kind == "unit":
                    file[key].attrs["units"] = "parsec/fortnight"
            yield key, kind, stream.getvalue()


def damage(case: ScanFileCase) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every way in which one array of one file of a case is wrong."""
    for name, content in case.files.items():
        if not name.endswith((".csv", ".npy")):
            for key, kind, wrong in (damage_npz if name.endswith(".npz") else damage_hdf5)(content):
                if not key.rpartition("/")[2].startswith(FRAMES):
                    yield f"{name}: {key}, {kind}", {**case.files, name: wrong}


def survey(path: Path, case: ScanFileCase) -> tuple[str, FileSurvey] | None:
    """The fault of a file, and what is found all the same; None when it has no fault."""
    try:
        inspect_scan(read_scan(path, case.config))
    except ScanError as error:
        return str(error), survey_file(path, case.config, error)
    return None


@pytest.mark.contract("inspect.parts")
@pytest.mark.contract("inspect.remedies")
@pytest.mark.parametrize("name", CASES)
def test_each_part_may_be_wrong(name: str, tmp_path: Path) -> None:
    case, options = CASES[name], collect_options(COMMANDS["inspect"])
    n_faults = 0
    # Every fourth: each array in two or three ways.
    for number, (what, files) in enumerate(itertools.islice(damage(case), None, None, 4)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        found = survey(folder / case.main, case)
        if found is None:
            continue
        n_faults += 1
        fault, rest = found
        assert rest.summary is not None, (what, rest.faults)
        assert rest.faults[0] == fault
        for message in rest.faults:
            named = set(OPTION.findall(message))
            assert named & options, (what, message)
            assert named <= options, (what, message)
        assert rest.needs, what
    assert n_faults > 2 or name == "mapping, NPY and CSV"


@pytest.mark.contract("inspect.parts")
def test_several_faults_are_listed_together(command: Command, tmp_path: Path) -> None:
    case = CASES["npz"]
    with np.load(io.BytesIO(case.files[case.main])) as archive:
        arrays: dict[str, Any] = {key: archive[key] for key in archive.files}
    arrays |= {"objectGuess": np.ones((3, 3)), "bad_pixels": np.ones((4, 4), bool), "_metadata": np.array("{")}
    path = tmp_path / "scan.npz"
    path.write_bytes(_npz_bytes(arrays, compressed=False))
    answer = command("inspect", path, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    for key, part in (("objectGuess", "object"), ("bad_pixels", "mask"), ("_metadata", "metadata")):
        assert any(f"'{key}'" in fault and f"--ignore {part}" in fault for fault in found["problems"])
    assert {"has_truth", "n_masked_pixels", "metadata"}.isdisjoint(found["summary"])
    assert "step_px" in found["summary"]
    parts = ["object", "mask", "metadata"]
    assert command("inspect", path, "--ignore", *parts).code == 0


@pytest.mark.contract("inspect.parts")
def test_arrays_that_cannot_be_read_are_named_in_any_layout(tmp_path: Path) -> None:
    path = tmp_path / "raw.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("run/a", data=np.arange(4096.0), chunks=(4096,), fletcher32=True)
        file["run/b"] = np.ones(3)
    content = bytearray(path.read_bytes())
    content[content.index(np.arange(100.0, 101).tobytes())] ^= 1
    path.write_bytes(content)
    faults = {array.name: array.fault for array in list_arrays(path)}
    assert faults["/run/b"] is None
    assert "damaged" in (faults["/run/a"] or "")
