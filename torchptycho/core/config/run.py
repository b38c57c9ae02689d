"""The configuration of a whole run, and how it is read from and written to YAML and TOML files."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from torchptycho.core.config.base import to_config_error, validated_dataclass
from torchptycho.core.config.data import GroupConfig, PrepareConfig
from torchptycho.core.config.experiment import ExperimentConfig, LogConfig
from torchptycho.core.config.model import LossConfig, ModelConfig
from torchptycho.core.config.read import MappingConfig, ReadConfig, extract_read_config
from torchptycho.core.config.reconstruct import ReconstructConfig
from torchptycho.core.config.refine import RefineConfig
from torchptycho.core.config.train import TrainConfig
from torchptycho.core.errors import ConfigError
from torchptycho.core.inputs import as_path, describe_type
from torchptycho.core.text import format_error

__all__ = ["RunConfig", "as_config", "from_dict", "load_config", "save_config", "to_dict"]

T = TypeVar("T")


@validated_dataclass
class RunConfig:
    """All options of a run from scan to image."""

    prepare: PrepareConfig = Field(default_factory=PrepareConfig)
    group: GroupConfig = Field(default_factory=GroupConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    experiment: ExperimentConfig = Field(default_factory=ExperimentConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    reconstruct: ReconstructConfig = Field(default_factory=ReconstructConfig)
    refine: RefineConfig = Field(default_factory=RefineConfig)

    @property
    def reading(self) -> ReadConfig:
        """The options of `prepare` that hold wherever a scan is opened."""
        return extract_read_config(self.prepare)


_SECTIONS: dict[str, type] = {
    "prepare": PrepareConfig,
    "group": GroupConfig,
    "model": ModelConfig,
    "experiment": ExperimentConfig,
    "loss": LossConfig,
    "train": TrainConfig,
    "log": LogConfig,
    "reconstruct": ReconstructConfig,
    "refine": RefineConfig,
}


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a configuration to plain str/int/float/bool/None/list/dict, for checkpoints and files."""
    plain = TypeAdapter(type(config)).dump_python(config, mode="json")
    assert isinstance(plain, dict)
    return plain


def from_dict(kind: type[T], values: dict[str, Any], *, source: str = "configuration") -> T:
    """Build `kind` from plain data, strictly.

    Raises:
        ConfigError: a key is unknown (the nearest valid one is named) or a value is out of range.
    """
    _refuse_unknown_keys(kind, values, source, "")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise to_config_error(error, source) from None


def as_config(kind: type[T], config: object, name: str = "config") -> T:
    """Return a configuration, built from a dict, with the defaults for None, or taken from that of a whole run.

    Raises:
        ConfigError: it is none of these, or the dict has an unknown key or a bad value.
    """
    if config is None:
        return kind()
    if isinstance(config, kind):
        return config
    if isinstance(config, dict):
        return from_dict(kind, config, source=name)
    if isinstance(config, RunConfig):
        parts = (config.reading, *(getattr(config, section) for section in _SECTIONS))
        for part in parts:
            if type(part) is kind:
                return part
    raise ConfigError(f"{name}: expected {kind.__name__}, a dict or None; found {describe_type(config)}.")


def _refuse_unknown_keys(kind: Any, values: Any, source: str, prefix: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: '{prefix.rstrip('.') or 'top level'}': expected a table; found {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f" Did you mean '{prefix}{near[0]}'?" if near else f" Valid keys: {', '.join(sorted(fields))}."
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'.{hint}")
        if kind is RunConfig:
            _refuse_unknown_keys(_SECTIONS[key], value, source, f"{prefix}{key}.")
        elif key == "mapping" and value is not None:
            _refuse_unknown_keys(MappingConfig, value, source, f"{prefix}{key}.")


def load_config(path: str | Path) -> RunConfig:
    """Read a YAML (.yaml, .yml) or TOML (.toml) file with the sections of `RunConfig`.

    Raises:
        ConfigError: unreadable, not a table, an unknown key or a bad value.
    """
    path = as_path(path, "path", "the path of a configuration file")
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = format_error(error)
        raise ConfigError(f"{path}: expected YAML or TOML; {reason}.") from None
    values = {} if values is None else values
    _refuse_unknown_keys(RunConfig, values, str(path), "")
    return from_dict(RunConfig, values, source=str(path))


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write the fully resolved configuration as YAML that `load_config` reads back."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
