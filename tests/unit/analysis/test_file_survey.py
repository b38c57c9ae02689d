"""What a file holds that is no scan: what is shown, what is left out, and which message comes first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchptycho.analysis.file_survey import survey_file
from torchptycho.core.config import ReadConfig, SimulateConfig
from torchptycho.core.errors import ScanError
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan

SCAN = simulate(SimulateConfig(n_px=16, object_px=40, n_frames=12, photons_per_frame=1e4, probe_defocus_waves=1))
ARRAYS = {
    "diffraction": SCAN.frames[:],
    "ycoords": SCAN.positions_px[:, 0],
    "xcoords": SCAN.positions_px[:, 1],
    "probeGuess": SCAN.probe,
}
OF_POSITIONS = {"positions_unit", "field_px", "step_px", "n_duplicate_positions", "overlap"}
OF_PROBE = {"probe_diameter_px", "n_modes", "probe_is_calibrated", "overlap"}


def save(path: Path, *missing: str, **changed: np.ndarray) -> Path:
    np.savez(path, **{key: value for key, value in (ARRAYS | changed).items() if key not in missing})
    return path


def fail_to_read(path: Path, config: ReadConfig) -> ScanError:
    with pytest.raises(ScanError) as error:
        read_scan(path, config)
    return error.value


@pytest.mark.contract("inspect.partial")
@pytest.mark.parametrize(
    ("missing", "hidden", "shown", "needs"),
    [
        (["probeGuess"], OF_PROBE, OF_POSITIONS - {"overlap"}, ["need a probe"]),
        (["xcoords"], OF_POSITIONS, OF_PROBE - {"overlap"}, ["needs a position"]),
        (["ycoords", "probeGuess"], OF_POSITIONS | OF_PROBE, {"photons_mean"}, ["needs a position", "need a probe"]),
    ],
)
def test_what_placeholders_would_say_is_left_out(
    missing: list[str], hidden: set[str], shown: set[str], needs: list[str], tmp_path: Path
) -> None:
    path = save(tmp_path / "part.npz", *missing)
    config = ReadConfig()
    fault = fail_to_read(path, config)
    survey = survey_file(path, config, fault)
    assert survey.summary is not None
    assert hidden.isdisjoint(survey.summary)
    assert shown <= set(survey.summary)
    assert {"usable", "problems"}.isdisjoint(survey.summary)
    assert survey.summary["n_frames"] == 12
    assert survey.summary["photons_mean"] == pytest.approx(float(SCAN.frames[:].sum((1, 2)).mean()), rel=1e-6)
    assert survey.faults[0] == str(fault)
    assert len(survey.faults) == len(needs)
    assert [words in need for words, need in zip(needs, survey.needs, strict=True)] == [True] * len(needs)
    plain = survey.to_dict()
    assert (plain["usable"], plain["problems"], plain["source"]) == (False, survey.faults, str(path))
    assert {array["name"] for array in plain["arrays"]} == set(ARRAYS) - set(missing)


@pytest.mark.contract("inspect.partial")
def test_frames_that_cannot_be_read_leave_their_messages(tmp_path: Path) -> None:
    path = save(tmp_path / "flat.npz", diffraction=np.ones((12, 16)))
    config = ReadConfig()
    fault = fail_to_read(path, config)
    survey = survey_file(path, config, fault)
    assert (survey.summary, survey.needs) == (None, ["Every command needs the frames."])
    assert survey.faults[0] == str(fault)
    assert len(set(survey.faults)) == len(survey.faults)
    assert {array.name for array in survey.arrays} == set(ARRAYS)


@pytest.mark.contract("inspect.partial")
def test_a_probe_that_was_asked_for_is_not_asked_for_again(tmp_path: Path) -> None:
    path = save(tmp_path / "part.npz", "xcoords", "probeGuess")
    config = ReadConfig(guess_probe=True)
    survey = survey_file(path, config, fail_to_read(path, config))
    assert survey.summary is not None
    assert len(survey.needs) == 1
    assert "needs a position" in survey.needs[0]
    assert "probe_diameter_px" in survey.summary


@pytest.mark.contract("inspect.partial")
def test_a_file_without_arrays_is_the_fault_itself(tmp_path: Path) -> None:
    path = tmp_path / "none.npz"
    path.write_bytes(b"nothing")
    config = ReadConfig()
    fault = fail_to_read(path, config)
    with pytest.raises(ScanError) as error:
        survey_file(path, config, fault)
    assert error.value is fault
