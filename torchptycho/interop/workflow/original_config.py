"""Conversion of the original PtychoPINN's configuration names to this package's, by one table.

Names and meanings are those of its `ModelConfig`, `TrainingConfig`, `InferenceConfig` and, for how to compute, its
`PyTorchExecutionConfig`.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchptycho.core.config import GroupConfig, RunConfig, from_dict, to_dict
from torchptycho.core.errors import ConfigError
from torchptycho.models.lightning_module import PtychoPINN

__all__ = ["ALIASES", "TABLE", "OptionMapping", "OriginalSettings", "read_settings", "run_config", "to_original_names"]

_log = logging.getLogger(__name__)

Values = Mapping[str, Any]
Change = dict[str, Any]
"""Values that are set in this package's configuration, by "section.field"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionMapping:
    """Conversion of one name of the original.

    Arguments:
        note: description of the conversion, for users.
        change: returns the resulting settings for its value and all values.
        unchanged_field: field that holds the value unchanged, from which it can be converted back; None if there is
            none.
    """

    note: str
    change: Callable[[Any, Values], Change]
    unchanged_field: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OriginalSettings:
    """A parsed configuration of the original.

    Arguments:
        run: this package's configuration.
        n_px: edge of the frames that it was written for, or None.
        output_dir: folder for results, or None.
    """

    run: RunConfig
    n_px: int | None = None
    output_dir: Path | None = None


def _map_to(field: str, note: str = "") -> OptionMapping:
    return OptionMapping(note=note or f"`{field}`", change=lambda value, _: {field: value}, unchanged_field=field)


def _ignore(note: str) -> OptionMapping:
    return OptionMapping(note=f"no counterpart: {note}", change=lambda *_: {})


def _require_value(name: str, *allowed: Any, why: str) -> OptionMapping:
    def change(value: Any, settings: Values) -> Change:
        if value not in allowed:
            raise ConfigError(f"{name}: expected {' or '.join(map(repr, allowed))}; found {value!r}. {why}")
        return {}

    return OptionMapping(note=f"{' or '.join(f'`{value!r}`' for value in allowed)} only: {why}", change=change)


def _count_members(settings: Values) -> int:
    """Count the frames of a group."""
    gridsize = settings.get("gridsize")
    return (gridsize if isinstance(gridsize, int) else GroupConfig().gridsize) ** 2


def _convert_architecture(value: Any, _: Values) -> Change:
    others = (
        "ffno", "fno", "hybrid", "stable_hybrid", "fno_vanilla", "neuralop_uno", "hybrid_resnet",
        "spectral_resnet_bottleneck_net",
    )  # fmt: skip
    if value in others:
        raise ConfigError(
            f"architecture: expected 'cnn' or a generator of torchptycho; found {value!r}, which only the "
            "original has. Omit it for the default."
        )
    return {"model.generator": value}


def _convert_object_big(value: Any, settings: Values) -> Change:
    if not value and _count_members(settings) > 1:
        raise ConfigError(
            "object_big: expected True with gridsize above 1; found False. torchptycho predicts one patch for each "
            "frame of a group, not one for all: use gridsize 1."
        )
    return {}


def _convert_probe_mask(value: Any, settings: Values) -> Change:
    if not value:
        return {}
    if not isinstance(settings.get("N"), int):
        raise ConfigError("probe_mask: the diameter of the mask is N/2; expected an integer N; found none. Give N.")
    return {"experiment.probe_support_px": settings["N"] / 2}


def _convert_neighbor_pool(value: Any, settings: Values) -> Change:
    return {"group.neighbor_count": value} if settings.get("enable_oversampling") else {}


def _convert_n_images(value: Any, settings: Values) -> Change:
    warnings.warn("n_images: use n_groups, which means the same at any gridsize", DeprecationWarning, stacklevel=2)
    return {} if settings.get("n_groups") is not None else {"group.n_groups": value}


def _convert_scheduler(value: Any, _: Values) -> Change:
    here = {"Default": "constant", "WarmupCosine": "cosine", "ReduceLROnPlateau": "plateau", "Adaptive": "plateau"}
    if value not in here:
        raise ConfigError(f"scheduler: expected one of {', '.join(here)}; found {value!r}.")
    return {"train.schedule": here[value]}


def _convert_loss_mode(value: Any, _: Values) -> Change:
    if value not in ("poisson", "mae"):
        raise ConfigError(f"torch_loss_mode: expected 'poisson' or 'mae'; found {value!r}.")
    return {"loss.nll_weight": 0.0, "loss.mae_weight": 1.0} if value == "mae" else {}


def _convert_model_type(value: Any, _: Values) -> Change:
    if value not in ("pinn", "supervised"):
        raise ConfigError(f"model_type: expected 'pinn' or 'supervised'; found {value!r}.")
    return {"loss.nll_weight": 0.0, "loss.realspace_weight": 1.0} if value == "supervised" else {}


_DATA = "pass the data to the functions"

TABLE: dict[str, OptionMapping] = {
    # ModelConfig
    "N": _ignore("the frame size is taken from the data; another N is an error."),
    "gridsize": _map_to("group.gridsize"),
    "n_filters_scale": _map_to("model.n_filters_scale"),
    "architecture": OptionMapping(
        note="`model.generator`: `cnn`, or a generator of this package", change=_convert_architecture
    ),
    "amp_activation": OptionMapping(
        note="`model.amplitude_activation` (of `cnn`); `silu` is `swish`",
        change=lambda value, _: {"model.amplitude_activation": "swish" if value == "silu" else value},
    ),
    "object_big": OptionMapping(
        note="`True`, or `False` with gridsize 1: one patch is predicted for each frame", change=_convert_object_big
    ),
    "probe_big": _map_to("model.probe_big"),
    "probe_mask": OptionMapping(note="`True`: `experiment.probe_support_px` = N/2", change=_convert_probe_mask),
    "pad_object": _require_value(
        "pad_object", True, why="A network that predicts the whole patch with one head is not supported."
    ),
    "probe_scale": _ignore("the probe carries the photons, and a transparent object is 1."),
    "gaussian_smoothing_sigma": _map_to("experiment.exit_smoothing_px"),
    # TrainingConfig and InferenceConfig
    "train_data_file": _ignore(_DATA + "."),
    "test_data_file": _ignore(_DATA + "."),
    "model_path": _ignore("pass the module to the functions; `load_inference_bundle` loads it."),
    "output_dir": _ignore("`train_cdi_model` saves its run and its bundle in this folder."),
    "debug": _ignore("configure logging in your application."),
    "batch_size": OptionMapping(
        note="counts groups there, frames here: `train.batch_size` = batch_size * gridsize^2",
        change=lambda value, given: {"train.batch_size": value * _count_members(given)},
    ),
    "nepochs": _map_to("train.epochs"),
    "mae_weight": _map_to("loss.mae_weight"),
    "nll_weight": _map_to("loss.nll_weight"),
    "realspace_mae_weight": _map_to("loss.realspace_mae_weight"),
    "realspace_weight": _map_to("loss.realspace_weight"),
    "nphotons": _map_to("prepare.nphotons", "`prepare.nphotons`, for amplitudes; the dose of counts is measured"),
    "n_groups": _map_to("group.n_groups"),
    "n_images": OptionMapping(note="deprecated: `n_groups`", change=_convert_n_images),
    "n_subsample": _map_to("group.n_subsample"),
    "subsample_seed": OptionMapping(
        note="`group.subsample_seed` and `group.group_seed`",
        change=lambda value, _: {"group.subsample_seed": value, "group.group_seed": value},
    ),
    "neighbor_count": _map_to("group.neighbor_count"),
    "enable_oversampling": _map_to("group.oversample"),
    "neighbor_pool_size": OptionMapping(
        note="`group.neighbor_count`, with `enable_oversampling`", change=_convert_neighbor_pool
    ),
    "sequential_sampling": _map_to("group.sequential"),
    "positions_provided": _require_value("positions_provided", True, why="Positions are required."),
    "probe_trainable": _map_to("model.probe_trainable"),
    "intensity_scale_trainable": _ignore(
        "the original does not train it either; the photons are measured. `experiment.scale_trainable` trains a factor."
    ),
    "intensity_scale": _ignore("it is computed from the photons."),
    "offset": _ignore("distances between frames follow from their positions."),
    "max_position_jitter": _ignore("the canvas of a group is large enough for all of its frames."),
    "backend": _require_value("backend", "pytorch", "tensorflow", why="Both use PyTorch here."),
    # PyTorchExecutionConfig
    "learning_rate": _map_to("train.learning_rate"),
    "scheduler": OptionMapping(
        note="`train.schedule`: Default is constant, WarmupCosine cosine, ReduceLROnPlateau and Adaptive plateau",
        change=_convert_scheduler,
    ),
    "optimizer": _map_to("train.optimizer"),
    "gradient_clip_val": _map_to("train.gradient_clip"),
    "gradient_clip_algorithm": _require_value(
        "gradient_clip_algorithm", "norm", why="Gradients are clipped by their norm."
    ),
    "accum_steps": _map_to("train.accumulate"),
    "num_workers": _map_to("train.num_workers"),
    "accelerator": OptionMapping(
        note="`train.accelerator`; `cuda` is `gpu`",
        change=lambda value, _: {"train.accelerator": "gpu" if value == "cuda" else value},
    ),
    "early_stop_patience": _map_to("train.early_stop"),
    "inference_batch_size": OptionMapping(
        note="counts groups there, frames here: `reconstruct.predict_batch_size` = inference_batch_size * gridsize^2",
        change=lambda value, given: {"reconstruct.predict_batch_size": value * _count_members(given)},
    ),
    # After the weights, which these replace
    "torch_loss_mode": OptionMapping(
        note="`mae`: `loss.nll_weight` 0 and `loss.mae_weight` 1", change=_convert_loss_mode
    ),
    "model_type": OptionMapping(
        note="`supervised`: `loss.nll_weight` 0 and `loss.realspace_weight` 1", change=_convert_model_type
    ),
}
"""Every supported name, in the order in which they are applied. A value of None keeps this package's default."""

ALIASES = {
    "object.big": "object_big",
    "probe.big": "probe_big",
    "probe.mask": "probe_mask",
    "probe.trainable": "probe_trainable",
    "intensity_scale.trainable": "intensity_scale_trainable",
    "positions.provided": "positions_provided",
    "output_prefix": "output_dir",
    "train_data_file_path": "train_data_file",
    "test_data_file_path": "test_data_file",
}
"""Names in the original's older dictionary of parameters."""


def run_config(config: object) -> RunConfig:
    """Convert a configuration of the original to this package's.

    Arguments:
        config: its `TrainingConfig`, `InferenceConfig` or `ModelConfig`, or any mapping with their names, a nested
            `model` included; a `RunConfig` is returned unchanged.

    Raises:
        ConfigError: a name is unknown (the message suggests the nearest known one), or a value is not supported.
        TypeError: neither a dataclass nor a mapping.
    """
    return read_settings(config).run


def read_settings(config: object) -> OriginalSettings:
    """Convert a configuration as `run_config` does; return it with the values that have no field in `RunConfig`."""
    if isinstance(config, RunConfig):
        return OriginalSettings(run=config)
    settings = _flatten(config)
    sections: dict[str, dict[str, Any]] = {name: {} for name in to_dict(RunConfig())}
    for name, row in TABLE.items():
        if settings.get(name) is None:
            continue
        change = row.change(settings[name], settings)
        if not change:
            _log.debug("%s = %r: %s", name, settings[name], row.note)
        for field, value in change.items():
            section, key = field.split(".")
            sections[section][key] = value
    n_px, out = settings.get("N"), settings.get("output_dir")
    run = from_dict(RunConfig, sections, source="configuration of the original")
    return OriginalSettings(run=run, n_px=n_px, output_dir=None if out is None else Path(out))


def to_original_names(module: PtychoPINN) -> dict[str, Any]:
    """Convert the configuration of a trained module to the original's names.

    The names are those whose value is kept unchanged, and N, `batch_size` (in groups), `nphotons` as measured in the
    first training scan, `intensity_scale` = sqrt(nphotons) / (N/2), `model_type` and `backend`.
    """
    plain = to_dict(module.config)
    values: dict[str, Any] = {}
    for name, row in TABLE.items():
        if row.unchanged_field is not None:
            section, key = row.unchanged_field.split(".")
            values[name] = plain[section][key]
    photons, loss = float(module.photons_per_frame[0]), module.config.loss
    return values | {
        "N": module.n_px,
        "amp_activation": plain["model"]["amplitude_activation"],
        "architecture": plain["model"]["generator"],
        "batch_size": max(1, module.config.train.batch_size // module.gridsize**2),
        "subsample_seed": plain["group"]["subsample_seed"],
        "nphotons": photons,
        "intensity_scale": photons**0.5 / (module.n_px / 2),
        "model_type": "supervised" if not (loss.nll_weight or loss.mae_weight) else "pinn",
        "backend": "pytorch",
    }


def _flatten(config: object) -> dict[str, Any]:
    """Collect the names and values of a configuration and of the `model` nested in it; replace old names."""
    if isinstance(config, Mapping):
        fields, defaults = {str(name): value for name, value in config.items()}, {}
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
    else:
        raise TypeError(
            "config: expected a RunConfig, or a configuration of the original as a dataclass or a mapping; found "
            f"{type(config).__name__}"
        )
    model = fields.pop("model", None)
    settings = {} if model is None else _flatten(model)
    for name, value in fields.items():
        current_name = ALIASES.get(name, name)
        if current_name in TABLE:
            settings[current_name] = value
        # A dataclass has all of its fields; an unknown one is accepted if it has its default value.
        elif name not in defaults or value != defaults[name]:
            near = difflib.get_close_matches(name, [*TABLE, *ALIASES], n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" Known names: {', '.join(sorted(TABLE))}."
            raise ConfigError(f"configuration of the original: unknown name '{name}'.{hint}")
    return settings
