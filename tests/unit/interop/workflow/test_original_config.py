"""The original's names of configuration: every one becomes what the table says, and nothing else does."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest

from torchptycho.core.config import GroupConfig, RunConfig, to_dict
from torchptycho.core.errors import ConfigError
from torchptycho.interop.workflow import TABLE, run_config
from torchptycho.interop.workflow.original_config import ALIASES, read_settings

Given = dict[str, Any]
CASES: dict[str, list[tuple[Given, Given]]] = {
    "N": [({"N": 128}, {})],
    "gridsize": [({"gridsize": 3}, {"group.gridsize": 3})],
    "n_filters_scale": [({"n_filters_scale": 4}, {"model.n_filters_scale": 4})],
    "architecture": [
        ({"architecture": "cnn"}, {"model.generator": "cnn"}),
        ({"architecture": "resunet"}, {"model.generator": "resunet"}),
    ],
    "amp_activation": [
        ({"amp_activation": "swish"}, {"model.amplitude_activation": "swish"}),
        ({"amp_activation": "silu"}, {"model.amplitude_activation": "swish"}),
    ],
    "object_big": [
        ({"object_big": True, "gridsize": 3}, {"group.gridsize": 3}),
        ({"object_big": False, "gridsize": 1}, {"group.gridsize": 1}),
    ],
    "probe_big": [({"probe_big": False}, {"model.probe_big": False})],
    "probe_mask": [
        ({"probe_mask": True, "N": 64}, {"experiment.probe_support_px": 32.0}),
        ({"probe_mask": False}, {}),
    ],
    "pad_object": [({"pad_object": True}, {})],
    "probe_scale": [({"probe_scale": 10.0}, {})],
    "gaussian_smoothing_sigma": [({"gaussian_smoothing_sigma": 0.7}, {"experiment.exit_smoothing_px": 0.7})],
    "train_data_file": [({"train_data_file": Path("a.npz")}, {})],
    "test_data_file": [({"test_data_file": "b.npz"}, {})],
    "model_path": [({"model_path": "runs"}, {})],
    "output_dir": [({"output_dir": "out"}, {})],
    "debug": [({"debug": True}, {})],
    "batch_size": [
        ({"batch_size": 8}, {"train.batch_size": 32}),
        ({"batch_size": 16, "gridsize": 3}, {"train.batch_size": 144, "group.gridsize": 3}),
    ],
    "nepochs": [({"nepochs": 50}, {"train.epochs": 50})],
    "mae_weight": [({"mae_weight": 0.5}, {"loss.mae_weight": 0.5})],
    "nll_weight": [({"nll_weight": 0.25}, {"loss.nll_weight": 0.25})],
    "realspace_mae_weight": [({"realspace_mae_weight": 0.1}, {"loss.realspace_mae_weight": 0.1})],
    "realspace_weight": [({"realspace_weight": 0.2}, {"loss.realspace_weight": 0.2})],
    "nphotons": [({"nphotons": 1e6}, {"prepare.nphotons": 1e6})],
    "n_groups": [({"n_groups": 77}, {"group.n_groups": 77})],
    "n_images": [({"n_images": 78}, {"group.n_groups": 78}), ({"n_images": 78, "n_groups": 5}, {"group.n_groups": 5})],
    "n_subsample": [({"n_subsample": 99}, {"group.n_subsample": 99})],
    "subsample_seed": [({"subsample_seed": 5}, {"group.subsample_seed": 5, "group.group_seed": 5})],
    "neighbor_count": [({"neighbor_count": 9}, {"group.neighbor_count": 9})],
    "enable_oversampling": [({"enable_oversampling": True}, {"group.oversample": True})],
    "neighbor_pool_size": [
        (
            {"neighbor_pool_size": 11, "neighbor_count": 4, "enable_oversampling": True},
            {"group.neighbor_count": 11, "group.oversample": True},
        ),
        ({"neighbor_pool_size": 11, "neighbor_count": 5}, {"group.neighbor_count": 5}),
    ],
    "sequential_sampling": [({"sequential_sampling": True}, {"group.sequential": True})],
    "positions_provided": [({"positions_provided": True}, {})],
    "probe_trainable": [({"probe_trainable": True}, {"model.probe_trainable": True})],
    "intensity_scale_trainable": [({"intensity_scale_trainable": True}, {})],
    "intensity_scale": [({"intensity_scale": 988.2}, {})],
    "offset": [({"offset": 4}, {})],
    "max_position_jitter": [({"max_position_jitter": 10}, {})],
    "backend": [({"backend": "pytorch"}, {}), ({"backend": "tensorflow"}, {})],
    "learning_rate": [({"learning_rate": 5e-4}, {"train.learning_rate": 5e-4})],
    "scheduler": [
        ({"scheduler": "Default"}, {"train.schedule": "constant"}),
        ({"scheduler": "WarmupCosine"}, {"train.schedule": "cosine"}),
        ({"scheduler": "ReduceLROnPlateau"}, {"train.schedule": "plateau"}),
        ({"scheduler": "Adaptive"}, {"train.schedule": "plateau"}),
    ],
    "optimizer": [({"optimizer": "adamw"}, {"train.optimizer": "adamw"})],
    "gradient_clip_val": [
        ({"gradient_clip_val": 0.5}, {"train.gradient_clip": 0.5}),
        ({"gradient_clip_val": None}, {}),
    ],
    "gradient_clip_algorithm": [({"gradient_clip_algorithm": "norm"}, {})],
    "accum_steps": [({"accum_steps": 2}, {"train.accumulate": 2})],
    "num_workers": [({"num_workers": 3}, {"train.num_workers": 3})],
    "accelerator": [
        ({"accelerator": "cuda"}, {"train.accelerator": "gpu"}),
        ({"accelerator": "cpu"}, {"train.accelerator": "cpu"}),
    ],
    "early_stop_patience": [({"early_stop_patience": 6}, {"train.early_stop": 6})],
    "inference_batch_size": [
        ({"inference_batch_size": 8, "gridsize": 3}, {"reconstruct.predict_batch_size": 72, "group.gridsize": 3})
    ],
    "torch_loss_mode": [
        ({"torch_loss_mode": "mae", "nll_weight": 1.0}, {"loss.nll_weight": 0.0, "loss.mae_weight": 1.0}),
        ({"torch_loss_mode": "poisson"}, {}),
    ],
    "model_type": [
        (
            {"model_type": "supervised", "nll_weight": 1.0},
            {"loss.nll_weight": 0.0, "loss.realspace_weight": 1.0},
        ),
        ({"model_type": "pinn"}, {}),
    ],
}
"""By name, what is given and what it changes from the defaults."""


def changed(config: RunConfig) -> Given:
    """Fields that are not as by default."""
    usual, found = to_dict(RunConfig()), to_dict(config)
    return {
        f"{section}.{key}": value
        for section, values in found.items()
        for key, value in values.items()
        if value != usual[section][key]
    }


@pytest.mark.contract("workflow.configuration.every-name")
def test_every_name_has_a_case() -> None:
    assert CASES.keys() == TABLE.keys()
    assert set(ALIASES.values()) <= TABLE.keys()


@pytest.mark.contract("workflow.configuration.every-name")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:n_images:DeprecationWarning")
def test_a_name_becomes_what_the_table_says(name: str) -> None:
    usual = {
        f"{section}.{key}": value for section, values in to_dict(RunConfig()).items() for key, value in values.items()
    }
    for given, expected in CASES[name]:
        # What happens to be the default does not show.
        assert changed(run_config(given)) == {key: value for key, value in expected.items() if usual[key] != value}
    if (field := TABLE[name].unchanged_field) is not None:
        assert field in CASES[name][0][1]


@pytest.mark.contract("workflow.configuration.every-name")
def test_every_name_stands_in_the_table_of_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "migration.md").read_text(encoding="utf-8")
    for name, row in TABLE.items():
        assert f"| `{name}` | {row.note} |" in page, name


@pytest.mark.contract("workflow.configuration.n_images")
def test_n_images_is_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="use n_groups"):
        run_config({"n_images": 10})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_config({"n_groups": 10, "n_images": None})


@pytest.mark.contract("workflow.configuration.unknown")
@pytest.mark.parametrize(
    ("name", "meant"),
    [("gridsiz", "gridsize"), ("neighbour_count", "neighbor_count"), ("probe.trainble", "probe.trainable")],
)
def test_an_unknown_name_is_named_with_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown name '{name}'. Did you mean '{meant}'"):
        run_config({name: 1})
    with pytest.raises(ConfigError, match="unknown name 'gridsiz'"):
        run_config({"model": {"gridsiz": 2}})


@pytest.mark.contract("workflow.configuration.refused")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"object_big": False, "gridsize": 2}, "object_big"),
        ({"object_big": False}, "object_big"),
        ({"pad_object": False}, "pad_object"),
        ({"positions_provided": False}, "positions_provided"),
        ({"architecture": "fno"}, "architecture"),
        ({"backend": "jax"}, "backend"),
        ({"model_type": "gan"}, "model_type"),
        ({"torch_loss_mode": "x"}, "torch_loss_mode"),
        ({"scheduler": "Exponential"}, "scheduler"),
        ({"gradient_clip_algorithm": "agc"}, "gradient_clip_algorithm"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"probe_mask": True}, "N"),
        ({"gridsize": "two"}, "gridsize"),
        ({"nll_weight": -1.0}, "nll_weight"),
    ],
)
def test_what_has_no_place_here_is_refused(given: Given, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        run_config(given)
    assert "\n" not in str(caught.value)


@dataclasses.dataclass(frozen=True)
class _Model:
    N: int = 64
    gridsize: int = 1
    fno_modes: int = 12


@dataclasses.dataclass
class _Training:
    """As the original's is made: a model inside, defaults everywhere, fields that only it knows."""

    model: _Model
    nphotons: float = 1e9
    n_images: int | None = None
    weight_decay: float = 0.0
    output_dir: Path = Path("training_outputs")


@pytest.mark.contract("workflow.configuration.forms")
def test_dataclasses_mappings_and_older_names_are_the_same() -> None:
    settings = read_settings(_Training(_Model(N=128, gridsize=2), nphotons=1e6))
    assert settings.n_px == 128
    assert settings.output_dir == Path("training_outputs")
    assert settings.run == RunConfig(group=GroupConfig(gridsize=2), prepare=settings.run.prepare)
    assert settings.run.prepare.nphotons == 1e6
    flat = {"N": 128, "gridsize": 2, "nphotons": 1e6, "output_prefix": "training_outputs"}
    assert read_settings(flat) == settings
    nested = {"model": {"N": 128, "gridsize": 2}, "nphotons": 1e6, "output_dir": "training_outputs"}
    assert read_settings(nested) == settings
    for old, new in ALIASES.items():
        value: Any = "x" if "data_file" in new or new == "output_dir" else True
        assert read_settings({old: value, "N": 32}) == read_settings({new: value, "N": 32})


@pytest.mark.contract("workflow.configuration.forms")
def test_fields_that_only_the_original_knows_are_passed_over_until_they_are_touched() -> None:
    assert run_config(_Training(_Model())) == run_config({"gridsize": 1, "nphotons": 1e9})
    with pytest.raises(ConfigError, match="unknown name 'weight_decay'"):
        run_config(_Training(_Model(), weight_decay=0.1))
    with pytest.raises(ConfigError, match="unknown name 'fno_modes'"):
        run_config(_Training(_Model(fno_modes=3)))


@pytest.mark.contract("workflow.configuration.forms")
def test_own_configuration_is_taken_as_it_is_and_other_things_are_not() -> None:
    own = RunConfig(group=GroupConfig(gridsize=3))
    assert run_config(own) is own
    for other in (None, 3, "config.yaml", _Model):
        with pytest.raises(TypeError, match="expected a RunConfig"):
            run_config(other)
