"""`tune` finds options that explain a scan better, and writes them for `refine`."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_run import Command

import torchptycho as tp
from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import write_scan
from torchptycho.reconstructors.diagnosis.likelihood import Judgement
from torchptycho.reconstructors.tuning import DEFAULT_PARAMETERS, PARAMETERS, procedure
from torchptycho.reconstructors.tuning.parameters import (
    apply_to_scan,
    choose_parameters,
    make_reading_options,
    needs_probe_file,
)
from torchptycho.reconstructors.tuning.study import Study
from torchptycho.reconstructors.tuning.trials import TrialRunner

PIXEL_M, ANGLE_DEG, SCALE = 1e-8, 5.0, 1.1
SMALL = ["--neighbours", "30", "--trial-epochs", "15"]


def make_scan() -> Scan:
    made = simulate(
        SimulateConfig(
            n_px=32, object_px=72, n_frames=60, photons_per_frame=1e5, probe_defocus_waves=1.0, simulation_seed=4
        )
    )
    return dataclasses.replace(made, truth=None, metadata={})


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan whose positions are in metres and turned by -5 degrees, and whose object pixel is 1e-8 m."""
    scan = make_scan()
    cosine, sine = math.cos(math.radians(-ANGLE_DEG)), math.sin(math.radians(-ANGLE_DEG))
    turned = scan.positions_px @ np.array([[cosine, sine], [-sine, cosine]]).T
    path = tmp_path_factory.mktemp("scan") / "scan.npz"
    write_scan(dataclasses.replace(scan, positions_px=np.ascontiguousarray(turned)), path)
    with np.load(path) as arrays:
        content = {key: arrays[key] for key in arrays.files if key != "_metadata"}
    for key in ("xcoords", "ycoords"):
        content[key] = content[key] * PIXEL_M
    np.savez(path, **content)
    return path


READING = ["--positions-unit", "m", "--object-pixel-m", f"{PIXEL_M * SCALE}", "--domain", "counts"]


@pytest.mark.contract("tune.finds")
def test_scale_and_rotation_are_brought_back(scan_file: Path) -> None:
    config = tp.ReadConfig(positions_unit="m", object_pixel_m=PIXEL_M * SCALE, domain="counts")
    wrong = tp.read_scan(scan_file, config)
    found = procedure.tune(wrong, over=["scale", "rotation"], trials=6, frames=36, epochs=12)
    assert set(found.values) == {"scale", "rotation"}
    assert found.gain > 5 * found.error > 0
    # Positions were off by 3 px at the edge of the neighbourhood.
    assert found.reading["object_pixel_m"] == pytest.approx(PIXEL_M, rel=0.03)
    assert found.reading["positions_rotation_deg"] == pytest.approx(ANGLE_DEG, abs=0.8)


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Trials without a refinement: the nearer to the right values, the likelier; the values that were tried."""
    tried: list[dict[str, float]] = []

    def run(self: TrialRunner, values: dict[str, float], on_part: Callable[[int, float], None] | None) -> Judgement:
        tried.append(dict(values))
        scale, rotation = values.get("scale", 1.0), values.get("rotation", 0.0)
        likelihood = 1 - abs(scale - SCALE) - 0.01 * abs(rotation - ANGLE_DEG)
        if on_part is not None:
            on_part(self.epochs // 3, likelihood)
        noise = np.linspace(-0.01, 0.01, 20)
        return Judgement(log_ratio=likelihood + noise * scale, counts=20.0, misfit=1.0)

    monkeypatch.setattr(TrialRunner, "run", lambda self, values, on_part=None: run(self, values, on_part))
    return tried


@pytest.mark.contract("tune.files")
@pytest.mark.contract("tune.resume")
def test_search_goes_on_and_its_configuration_is_one_that_refine_takes(
    command: Command, tmp_path: Path, scan_file: Path, instant: list[dict[str, float]]
) -> None:
    out = tmp_path / "tuned"
    arguments = ["tune", scan_file, "--out", out, *READING, *SMALL, "--over", "scale", "rotation", "--json"]
    answer = command(*arguments, "--trials", "5", "--epochs", "7")
    assert answer.code == 0, answer.err
    before = json.loads(answer.out)["trials"]
    assert instant[0] == before[0]["values"] == {"scale": 1.0, "rotation": 0.0}
    answer = command(*arguments, "--trials", "6", "--epochs", "7")
    assert answer.code == 1
    assert "Continue with --resume" in answer.err
    answer = command(*arguments, "--trials", "9", "--resume", "--epochs", "7")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    after = found["trials"]
    assert after[: len(before)] == before
    # Four of the search, and perhaps further ones around the best.
    assert len(after) >= len(before) + 4
    assert len({json.dumps(one["values"]) for one in after}) == len(after)
    assert {one["state"] for one in after} == {"complete", "pruned"}

    tuned = yaml.safe_load((out / "tuned.yaml").read_text())
    best = max((one for one in after if one["state"] == "complete"), key=lambda one: one["likelihood"])["values"]
    assert tuned["refine"] == {"epochs": 7}
    assert tuned["prepare"] == {
        "domain": "counts",
        "positions_unit": "m",
        "object_pixel_m": pytest.approx(PIXEL_M * SCALE / best["scale"]),
        "positions_rotation_deg": pytest.approx(best["rotation"]),
    }
    with (out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [one["number"] for one in after]
    assert float(rows[0]["rotation"]) == 0.0
    names = {"tuned.yaml", "trials.csv", "tuning.png", "tuning.json", "trials.journal"}
    assert {file.name for file in out.iterdir()} == names

    refined = command("refine", scan_file, "--out", tmp_path / "image.npz", "--config", out / "tuned.yaml", "--dry-run")
    assert refined.code == 0, refined.err
    assert "7 epochs" in refined.out
    read = tp.read_scan(scan_file, tp.load_config(out / "tuned.yaml").reading).positions_px
    right = make_scan().positions_px
    left = (read - read.mean(axis=0)) - (right - right.mean(axis=0))
    assert np.abs(left).max() < 2.0

    answer = command(*arguments, "--trials", "11", "--resume", "--seed", "1")
    assert answer.code == 1
    assert "another options and seed" in answer.err


@pytest.mark.contract("tune.resume")
def test_search_that_goes_on_draws_nothing_twice(tmp_path: Path, instant: list[dict[str, float]]) -> None:
    scan, journal = make_scan(), tmp_path / "trials.journal"
    for trials in (3, 6):
        found = procedure.tune(scan, over=["alpha"], trials=trials, frames=20, journal=journal, resume=True)
        assert len(found.trials) == trials
    assert len({one.values["alpha"] for one in found.trials}) == 6


@pytest.mark.contract("tune.noise")
def test_what_gains_nothing_stays_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best trial has another alpha, by chance, and a rotation that matters."""
    loss = {"rotation": 0.1, "alpha": 0.0}
    noise = np.random.default_rng(0).normal(0, 0.3, 20)

    def run(self: TrialRunner, values: dict[str, float], on_part: object = None) -> Judgement:
        log_ratio = 10 - loss["rotation"] * abs(values["rotation"] - 5.0) + (values["alpha"] > 0.1) * noise
        return Judgement(log_ratio=log_ratio, counts=100.0, misfit=1.0)

    monkeypatch.setattr(TrialRunner, "run", run)
    monkeypatch.setattr(Study, "best", property(lambda self: {"rotation": 5.0, "alpha": 0.9}))
    found = procedure.tune(make_scan(), over=["alpha", "rotation"], trials=2, frames=20)
    assert {one.parameter.name: one.is_changed for one in found.changes} == {"rotation": True, "alpha": False}
    # Both gains are far above their standard errors, the larger one first.
    assert found.changes[0].parameter.name == "rotation"
    assert found.changes[0].gain == pytest.approx(20 * 0.5 / 100, rel=0.1)
    assert found.changes[1].error > 0
    assert found.values == {"rotation": 5.0}
    assert found.reading == {"positions_rotation_deg": 5.0}
    assert found.refinement == {}


@pytest.mark.contract("tune.options")
def test_options_do_to_the_file_what_the_trial_did_to_the_scan(tmp_path: Path, scan_file: Path) -> None:
    config = tp.ReadConfig(positions_unit="m", object_pixel_m=PIXEL_M, domain="counts", positions_rotation_deg=1.0)
    scan = tp.read_scan(scan_file, config)
    values = {"scale": 0.9, "rotation": 3.0, "defocus": 20.0}
    tried = apply_to_scan(scan, values)
    options = make_reading_options(scan, values)
    read = tp.read_scan(scan_file, dataclasses.replace(config, **options))
    given, wanted = (one.positions_px - one.positions_px.mean(axis=0) for one in (read, tried))
    np.testing.assert_allclose(given, wanted, atol=1e-9)
    # No option of reading moves a probe of the file.
    assert needs_probe_file(scan, values)
    assert not needs_probe_file(scan, {"scale": 0.9})
    geometry = Geometry(energy_eV=8e3, distance_m=1.0, detector_pixel_m=1e-4)
    known = dataclasses.replace(scan, geometry=geometry, reading=tp.ReadConfig(guess_probe=True, probe_defocus_m=1e-3))
    assert make_reading_options(known, {"scale": 1.25})["distance_m"] == pytest.approx(0.8)
    pixel_m = geometry.with_object_pixel(32).object_pixel_m
    assert pixel_m is not None
    assert geometry.wavelength_m is not None
    # A phase of -pi lambda z / (4 p^2) at the edge.
    moved_m = make_reading_options(known, {"defocus": 20.0})["probe_defocus_m"] - 1e-3
    assert -math.pi * geometry.wavelength_m * moved_m / (4 * pixel_m**2) == pytest.approx(20.0)


@pytest.mark.contract("tune.parameters")
def test_ranges_hold_the_given_value_and_every_name_is_an_option() -> None:
    scan = dataclasses.replace(make_scan(), positions_unit="m", geometry=Geometry(object_pixel_m=PIXEL_M))
    config = RefineConfig(n_modes=6, alpha=0.005, opr_modes=5, batch_size=7)
    parameters, _ = choose_parameters(PARAMETERS, scan, config)
    assert [one.name for one in parameters] == list(PARAMETERS)
    options = {field.name for field in dataclasses.fields(RefineConfig)}
    for one in parameters:
        held = one.given in one.choices if one.choices else one.low <= float(one.given) <= one.high
        assert held, one
        assert one.name in ("scale", "rotation", "defocus") or one.name.replace("-", "_") in options
    parameters, notes = choose_parameters(None, dataclasses.replace(scan, positions_unit="px"), config)
    assert [one.name for one in parameters] == [name for name in DEFAULT_PARAMETERS if name != "scale"]
    assert "scale is left out" in notes[0]


@pytest.mark.contract("tune.refused")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--over", "rotatoin"], "--over: expected names out of scale, rotation"),
        (["--over", "alpha", "alpha"], "each name once"),
        (["--trials", "0"], "--trials: expected at least 1"),
        (["--trial-epochs", "2"], "--trial-epochs: expected at least 6"),
        (["--minutes", "0"], "--minutes: expected more than 0"),
        (["--seed", "-1"], "--seed: expected 0 or more"),
        (["--over", "scale"], "positions in object pixels"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    command: Command, tmp_path: Path, tiny_scan: Path, arguments: list[str], expected: str
) -> None:
    answer = command("tune", tiny_scan, "--out", tmp_path / "tuned", *arguments)
    assert answer.code == 1
    assert expected in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (tmp_path / "tuned").exists()


@pytest.mark.contract("tune.refused")
def test_journal_of_something_else_is_refused(command: Command, tmp_path: Path, tiny_scan: Path) -> None:
    (tmp_path / "trials.journal").write_text("mine\n")
    answer = command("tune", tiny_scan, "--out", tmp_path, "--resume", *SMALL)
    assert answer.code == 1
    assert "trials.journal: expected the journal of a search" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert (tmp_path / "trials.journal").read_text() == "mine\n"


@pytest.mark.contract("tune.options")
def test_defocused_probe_is_written_and_read_again(
    command: Command, tmp_path: Path, scan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: TrialRunner, values: dict[str, float], on_part: object = None) -> Judgement:
        return Judgement(log_ratio=np.linspace(1.0, 1.1, 20) + abs(values["defocus"]), counts=20.0, misfit=1.0)

    monkeypatch.setattr(TrialRunner, "run", run)
    out, reading = tmp_path / "tuned", ["--positions-unit", "m", "--object-pixel-m", f"{PIXEL_M}", "--domain", "counts"]
    answer = command("tune", scan_file, "--out", out, *reading, "--over", "defocus", "--trials", "2", "--json")
    assert answer.code == 0, answer.err
    moved = max((one["values"]["defocus"] for one in json.loads(answer.out)["trials"]), key=abs)
    config = tp.load_config(out / "tuned.yaml")
    read = tp.read_scan(scan_file, config.reading)
    given = tp.read_scan(scan_file, tp.ReadConfig(positions_unit="m", object_pixel_m=PIXEL_M, domain="counts"))
    wanted = apply_to_scan(given, {"defocus": moved}).probe
    scale = np.vdot(wanted, read.probe) / np.vdot(wanted, wanted)
    assert np.abs(read.probe - scale * wanted).max() < 1e-5 * np.abs(read.probe).max()
    assert abs(moved) > 1
