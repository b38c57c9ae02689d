"""`inspect` on files that are no scan yet: what is there is shown, and what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_run import Command

from torchptycho.core.config import SimulateConfig
from torchptycho.data.simulation import simulate

SCAN = simulate(SimulateConfig(n_px=32, object_px=64, n_frames=24, photons_per_frame=1e4, probe_diameter_px=10))
ARRAYS = {
    "diffraction": SCAN.frames[:],
    "ycoords": SCAN.positions_px[:, 0],
    "xcoords": SCAN.positions_px[:, 1],
    "probeGuess": SCAN.probe,
}


def save(path: Path, *missing: str, **changed: np.ndarray) -> Path:
    np.savez(path, **{key: value for key, value in (ARRAYS | changed).items() if key not in missing})
    return path


@pytest.mark.contract("inspect.partial")
@pytest.mark.parametrize(
    ("missing", "needed", "shown", "hidden"),
    [
        (["probeGuess"], ["need a probe"], ["n_frames", "step_px"], ["probe_diameter_px", "overlap"]),
        (["xcoords"], ["needs a position for each frame"], ["n_frames", "probe_diameter_px"], ["step_px", "field_px"]),
        (["ycoords", "probeGuess"], ["position for each frame", "a probe"], ["photons_mean"], ["step_px", "n_modes"]),
    ],
)
def test_frames_are_inspected_without_what_is_missing(
    command: Command, tmp_path: Path, missing: list[str], needed: list[str], shown: list[str], hidden: list[str]
) -> None:
    path = save(tmp_path / "part.npz", *missing)
    answer = command("inspect", path, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert not found["usable"]
    assert f"'{missing[0]}'" in found["problems"][0] or f"'{missing[-1]}'" in found["problems"][0]
    assert all(any(words in need for need in found["needs"]) for words in needed)
    assert set(shown) <= set(found["summary"])
    assert set(hidden).isdisjoint(found["summary"])
    assert found["summary"]["n_frames"] == 24
    assert {array["name"] for array in found["arrays"]} == set(ARRAYS) - set(missing)
    told = command("inspect", path).out
    assert "diffraction (24, 32, 32)" in told
    assert "not usable as it is" in told


@pytest.mark.contract("inspect.partial")
def test_wrong_positions_do_not_hide_the_frames(command: Command, tmp_path: Path) -> None:
    places = SCAN.positions_px[:, 0].copy()
    places[3] = 1e6
    for name, wrong in (("far", places), ("short", places[:20])):
        answer = command("inspect", save(tmp_path / f"{name}.npz", ycoords=wrong), "--json")
        assert answer.code == 0, answer.err
        assert json.loads(answer.out)["summary"]["photons_mean"] == pytest.approx(
            float(SCAN.frames[:].sum(axis=(1, 2)).mean()), rel=1e-6
        )


@pytest.mark.contract("inspect.partial")
def test_arrays_of_a_file_that_is_damaged_or_of_another_layout_are_listed(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "raw.h5"
    with h5py.File(path, "w") as file:
        file["run/detector/images"] = SCAN.frames[:]
        file["run/gone"] = h5py.ExternalLink("elsewhere.h5", "/data")
    answer = command("inspect", path)
    assert answer.code == 1
    assert "section 'mapping' of a --config file" in answer.err
    assert "/run/detector/images (24, 32, 32)" in answer.out
    assert "/run/gone: a link to what is not there" in answer.out
    answer = command("inspect", save(tmp_path / "bare.npz", "diffraction"))
    assert answer.code == 1
    assert "ycoords (24,)" in answer.out
    assert command("inspect", tmp_path / "none.npz").code == 1
