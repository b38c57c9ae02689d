"""The configuration: strict, plain, and the same object whichever way it was said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from torchptycho.cli.app import _parse
from torchptycho.cli.command_table import COMMANDS
from torchptycho.cli.commands.network import Train
from torchptycho.core.config import (
    GroupConfig,
    LossConfig,
    ModelConfig,
    PrepareConfig,
    RunConfig,
    SimulateConfig,
    TrainConfig,
    from_dict,
    load_config,
    save_config,
    to_dict,
)
from torchptycho.core.errors import ConfigError

OTHER = RunConfig(
    prepare=PrepareConfig(domain="counts", val_fraction=0.2),
    group=GroupConfig(gridsize=2, neighbor_count=9, bounds=(0.1, 0.9, 0.0, 0.5)),
    model=ModelConfig(generator="cnn", n_filters_scale=1),
    loss=LossConfig(tv_weight=1e-4),
    train=TrainConfig(steps=77, learning_rate=3e-4, schedule="cosine"),
)
YAML = """
prepare: {domain: counts, val_fraction: 0.2}
group:
  gridsize: 2
  neighbor_count: 9
  bounds: [0.1, 0.9, 0.0, 0.5]
model: {generator: cnn, n_filters_scale: 1}
loss: {tv_weight: 1e-4}
train: {steps: 77, learning_rate: 3e-4, schedule: cosine}
"""
TOML = """
[prepare]
domain = "counts"
val_fraction = 0.2
[group]
gridsize = 2
neighbor_count = 9
bounds = [0.1, 0.9, 0.0, 0.5]
[model]
generator = "cnn"
n_filters_scale = 1
[loss]
tv_weight = 1e-4
[train]
steps = 77
learning_rate = 3e-4
schedule = "cosine"
"""
FLAGS = [
    "--domain", "counts", "--val-fraction", "0.2", "--gridsize", "2", "--neighbor-count", "9",
    "--bounds", "0.1", "0.9", "0.0", "0.5", "--generator", "cnn", "--n-filters-scale", "1",
    "--tv-weight", "1e-4", "--steps", "77", "--learning-rate", "3e-4", "--schedule", "cosine",
]  # fmt: skip


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def run_config_of(arguments: list[str]) -> RunConfig:
    command = _parse(["train", "scan.npz", "--out", "run", *arguments])
    assert isinstance(command, Train)
    sections = ("prepare", "group", "model", "loss", "train")
    return RunConfig(**{name: getattr(command, name) for name in sections})


class TestStrict:
    @pytest.mark.contract("config.unknown-key")
    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"train": {"stps": 3}}, ["unknown key 'train.stps'", "Did you mean 'train.steps'?"]),
            ({"modell": {}}, ["unknown key 'modell'", "Did you mean 'model'?"]),
            ({"loss": {"qqq": 1}}, ["unknown key 'loss.qqq'", "Valid keys: ", "nll_weight"]),
            ({"train": 3}, ["'train'", "expected a table", "found 3"]),
        ],
    )
    def test_unknown_key_names_the_nearest_valid_one(self, values: dict[str, Any], words: list[str]) -> None:
        with pytest.raises(ConfigError) as caught:
            from_dict(RunConfig, values, source="run.yaml")
        for word in ["run.yaml", *words]:
            assert word in str(caught.value)

    @pytest.mark.contract("config.one-line")
    @pytest.mark.parametrize(
        ("kind", "values", "words"),
        [
            (TrainConfig, {"steps": 0}, ["TrainConfig", "'steps'", "greater than or equal to 1", "found 0"]),
            (TrainConfig, {"stps": 10}, ["TrainConfig", "'stps'"]),
            (TrainConfig, {"schedule": "linear"}, ["'schedule'", "'plateau'", "found 'linear'"]),
            (TrainConfig, {"learning_rate": float("nan")}, ["'learning_rate'", "nan"]),
            (PrepareConfig, {"val_fraction": 1.0}, ["'val_fraction'", "less than 1", "found 1.0"]),
            (GroupConfig, {"bounds": (0.5, 0.5, 0.0, 1.0)}, ["bounds", "start < stop", "0.5"]),
            (GroupConfig, {"min_distance_px": 9.0, "max_distance_px": 3.0}, ["max_distance_px", "9.0", "found 3.0"]),
            (LossConfig, {"nll_weight": -1.0}, ["'nll_weight'", "found -1.0"]),
            (SimulateConfig, {"n_px": 33}, ["'n_px'", "multiple of 2", "found 33"]),
        ],
    )
    def test_bad_value_in_python_is_a_config_error_of_one_line(
        self, kind: type, values: dict[str, Any], words: list[str]
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            kind(**values)
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message

    @pytest.mark.contract("config.one-line")
    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("c.yaml", "train: {steps: 0}", ["train.steps", "found 0"]),
            ("c.yaml", "train: [", ["expected YAML or TOML"]),
            ("c.toml", "[train\nsteps = 1", ["expected YAML or TOML"]),
            ("c.yaml", "- 1\n- 2\n", ["top level", "expected a table"]),
            ("c.yaml", "train: {steps: !!python/object/apply:os.getpid []}", ["expected YAML or TOML"]),
        ],
    )
    def test_bad_file_is_a_config_error_of_one_line_that_names_it(
        self, tmp_path: Path, name: str, text: str, words: list[str]
    ) -> None:
        path = written(tmp_path / name, text)
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        message = str(caught.value)
        assert "\n" not in message
        for word in [str(path), *words]:
            assert word in message

    @pytest.mark.contract("config.one-line")
    def test_absent_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
            load_config(tmp_path / "absent.yaml")

    @pytest.mark.contract("config.frozen")
    def test_configuration_does_not_change_once_it_is_built(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            OTHER.train.steps = 5  # type: ignore[misc]


class TestSources:
    @pytest.mark.contract("config.sources")
    def test_yaml_toml_flags_and_python_give_the_same_object(self, tmp_path: Path) -> None:
        assert load_config(written(tmp_path / "c.yaml", YAML)) == OTHER
        assert load_config(written(tmp_path / "c.toml", TOML)) == OTHER
        assert run_config_of(FLAGS) == OTHER
        assert from_dict(RunConfig, yaml.safe_load(YAML)) == OTHER

    @pytest.mark.contract("config.sources")
    @pytest.mark.parametrize("text", ["", "{}", "train: {}"])
    def test_what_is_not_said_keeps_its_default(self, tmp_path: Path, text: str) -> None:
        assert load_config(written(tmp_path / "c.yaml", text)) == RunConfig() == run_config_of([])

    @pytest.mark.contract("config.precedence")
    @pytest.mark.parametrize("style", ["--config={}", "--config {}"])
    @pytest.mark.parametrize("flags_first", [True, False])
    def test_flags_override_the_file_which_overrides_the_defaults(
        self, tmp_path: Path, style: str, flags_first: bool
    ) -> None:
        path = written(tmp_path / "c.yaml", YAML)
        flags, file = ["--steps", "5"], style.format(path).split()
        config = run_config_of([*flags, *file] if flags_first else [*file, *flags])
        assert config == dataclasses.replace(OTHER, train=dataclasses.replace(OTHER.train, steps=5))

    def test_field_names_are_unique_over_the_sections_of_a_command(self) -> None:
        sections = to_dict(RunConfig())
        for command in COMMANDS.values():
            taken = [field.name for field in dataclasses.fields(command)]  # type: ignore[arg-type]
            names = [key for section in taken if section in sections for key in sections[section]]
            assert len(names) == len(set(names))


class TestRoundTrip:
    @pytest.mark.contract("config.saved")
    @pytest.mark.parametrize("config", [RunConfig(), OTHER])
    def test_saved_configuration_reads_back_equal(self, tmp_path: Path, config: RunConfig) -> None:
        save_config(config, tmp_path / "config.yaml")
        assert load_config(tmp_path / "config.yaml") == config
        saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
        assert {section: set(values) for section, values in saved.items()} == {
            section: set(values) for section, values in to_dict(RunConfig()).items()
        }

    @pytest.mark.contract("config.plain")
    @given(
        rate=st.floats(1e-12, 1e3),
        seed=st.integers(-(2**63), 2**63),
        nphotons=st.none() | st.floats(1e-3, 1e30),
        probe=st.none() | st.text(max_size=20),
    )
    def test_configuration_is_plain_data_that_survives_json(
        self, rate: float, seed: int, nphotons: float | None, probe: str | None
    ) -> None:
        config = RunConfig(
            prepare=PrepareConfig(nphotons=nphotons, probe=probe), train=TrainConfig(learning_rate=rate, seed=seed)
        )
        plain = to_dict(config)
        assert_plain(plain)
        assert from_dict(RunConfig, json.loads(json.dumps(plain))) == config


def assert_plain(value: Any) -> None:
    assert type(value) in (str, int, float, bool, type(None), list, dict)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        assert_plain(item)
