"""Parts of a scan file that options leave out or replace."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from scan_files import LENGTHS, POSITIONS_M, M, N, ScanFileCase, _npz_bytes, make_cases

from torchptycho.core.config import ReadConfig
from torchptycho.core.config.read import OptionalPart
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.scan import Scan
from torchptycho.io import read_scan

CASES = {case.name: case for case in make_cases()}


def write(case: ScanFileCase, folder: Path) -> Path:
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    return folder / case.main


def open_case(name: str, folder: Path, **options: Any) -> Scan:
    case = CASES[name]
    return read_scan(write(case, folder), dataclasses.replace(case.config, **options))


def load_npz() -> dict[str, Any]:
    with np.load(io.BytesIO(CASES["npz"].files["scan.npz"])) as archive:
        return {key: archive[key] for key in archive.files}


@pytest.mark.contract("files.read.ignore")
@pytest.mark.parametrize("part", get_args(OptionalPart))
def test_ignored_part_is_not_read_and_all_else_is_as_before(tmp_path: Path, part: OptionalPart) -> None:
    arrays = load_npz() | {"scan_index": np.arange(M) // 3, "Y": np.ones((M, N, N), np.complex64)}
    arrays["ycoords_start"], arrays["xcoords_start"] = arrays["ycoords"] + 1, arrays["xcoords"]
    path = tmp_path / "scan.npz"
    path.write_bytes(_npz_bytes(arrays, compressed=True))
    before = read_scan(path)
    after = read_scan(path, ReadConfig(ignore=(part,), guess_probe=part == "probe"))
    assert any(f"left unread: {part}" in note for note in after.notes)
    changed = {
        "probe": {"probe"}, "object": {"truth"}, "patches": {"truth_patches"}, "mask": {"mask"},
        "nominal-positions": {"nominal_positions_px"}, "scan-index": {"scan_id"}, "metadata": {"metadata", "geometry"},
        "energy": {"geometry"}, "distance": {"geometry"}, "detector-pixel": {"geometry"},
    }.get(part, set())  # fmt: skip
    for field in dataclasses.fields(Scan):
        if field.name not in ("frames", "notes", "reading", "files"):
            one, other = getattr(before, field.name), getattr(after, field.name)
            same = np.array_equal(one, other) if isinstance(one, np.ndarray) else one is other or one == other
            assert same == (field.name not in changed), field.name


@pytest.mark.contract("files.read.given-positions")
@pytest.mark.parametrize("name", [name for name in CASES if name != "mapping, NPY and CSV"])
def test_given_positions_replace_those_of_every_format(tmp_path: Path, name: str) -> None:
    table = tmp_path / "list.csv"
    shifted = POSITIONS_M * 2e6
    table.write_text("x_um,y_um\n" + "\n".join(f"{x},{y}" for y, x in shifted))
    named = (f"{table}:y_um", f"{table}:x_um")
    lengths: dict[str, Any] = {} if name in ("pty-chi", "product", "product NPZ") else LENGTHS
    before = open_case(name, tmp_path, **lengths)
    scan = open_case(name, tmp_path, positions=named, positions_unit="um", **lengths)
    pixel_m = scan.geometry.with_object_pixel(scan.n_px).object_pixel_m
    assert pixel_m is not None
    expected = shifted * 1e-6 / pixel_m
    np.testing.assert_allclose(np.diff(scan.positions_px, axis=0), np.diff(expected, axis=0), atol=1e-9)
    assert not np.allclose(np.diff(before.positions_px, axis=0)[0], np.diff(expected, axis=0)[0], atol=0.01)
    assert str(table) in {file.path for file in scan.files}
    cut = open_case(name, tmp_path, positions=named, positions_unit="um", frames="2:5", **lengths)
    np.testing.assert_allclose(np.diff(cut.positions_px, axis=0), np.diff(expected[2:5], axis=0), atol=1e-9)
    table.write_text("x_um,y_um\n" + "\n".join(f"{x},{y}" for y, x in shifted[:4]))
    with pytest.raises(ScanError, match=r"expected 6 entries, one per frame; found 4"):
        open_case(name, tmp_path, positions=named, positions_unit="um", **lengths)


@pytest.mark.contract("files.read.object-pixel")
@pytest.mark.parametrize("name", ["cxi", "product", "ptyd", "pty-chi"])
def test_given_object_pixel_replaces_that_of_every_format(tmp_path: Path, name: str) -> None:
    scan = open_case(name, tmp_path, object_pixel_m=1e-8)
    assert scan.geometry.object_pixel_m == pytest.approx(1e-8)
    steps = np.abs(np.diff(scan.positions_px, axis=0))
    # The product has no position for its last frame.
    np.testing.assert_allclose(steps, np.abs(np.diff(POSITIONS_M / 1e-8, axis=0))[: len(steps)], atol=1e-6)
    with pytest.raises(ConfigError, match="--object-pixel-m"):
        open_case(name, tmp_path, object_pixel_m=1e-8, distance_m=1.0)


@pytest.mark.contract("files.read.ambiguous-order")
def test_axis_of_the_frames_may_be_given(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(9, (8, 8, 8))
    arrays = {"ycoords": np.arange(8.0), "xcoords": np.arange(8.0) % 3, "probeGuess": np.ones((8, 8), complex)}
    path = tmp_path / "cube.npz"
    np.savez(path, diffraction=frames, **arrays)
    with pytest.raises(ScanError, match="--frames-axis 0"):
        read_scan(path)
    np.testing.assert_array_equal(read_scan(path, ReadConfig(frames_axis=0)).frames[:], frames)
    np.testing.assert_array_equal(read_scan(path, ReadConfig(frames_axis=2)).frames[:], np.moveaxis(frames, 2, 0))


@pytest.mark.contract("files.read.ignore")
def test_option_replaces_a_wrong_value_of_the_metadata(tmp_path: Path) -> None:
    arrays = load_npz()
    path = tmp_path / "scan.npz"
    for wrong, option in (
        ({"energy_eV": "eight"}, {"energy_eV": 8e3}), ({"distance_m": -1}, {"distance_m": 1.0}),
        ({"positions_unit": 3}, {"positions_unit": "px"}), ({"particle": "muon"}, {"particle": "photon"}),
        ({"propagation": "odd"}, {"propagation": "far"}), ({"domain": "odd"}, {"domain": "counts"}),
    ):  # fmt: skip
        path.write_bytes(_npz_bytes(arrays | {"_metadata": np.array(json.dumps(LENGTHS | wrong))}, compressed=False))
        with pytest.raises(ScanError, match=f"--{next(iter(option)).replace('_', '-')}"):
            read_scan(path)
        assert read_scan(path, option).n_frames == M
