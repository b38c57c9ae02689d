"""Conversion of Ptychodus' settings for this network to a `RunConfig`, by one table.

A setting is named as in a settings file of Ptychodus, GROUP.NAME, without the prefix "PtychoPINNTorch" of its groups.
Its value comes from the panel "PtychoPINN-Torch" or from such a file. The group Torchptycho belongs to this package.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

from torchptycho.core.config import RunConfig, from_dict
from torchptycho.core.errors import ConfigError

__all__ = [
    "CHOICES",
    "COMBINED",
    "OWN_SETTINGS",
    "SINGLE_FIELDS",
    "WITHOUT_EFFECT",
    "convert_settings",
    "warn_without_effect",
]

_log = logging.getLogger(__name__)

Mode = Literal["PINN", "Supervised", "Refine"]

SINGLE_FIELDS: dict[str, str] = {
    "Training.learning_rate": "train.learning_rate",
    "Training.gradient_accumulation_steps": "train.accumulate",
    "Training.gradient_clip_val": "train.gradient_clip",
    "Model.probe_big": "model.probe_big",
    "Model.num_filters_scale": "model.n_filters_scale",
    "Model.intensity_scale_trainable": "experiment.scale_trainable",
    "Torchptycho.generator": "model.generator",
    "Torchptycho.probe_trainable": "model.probe_trainable",
    "Torchptycho.refine_method": "refine.method",
    "Torchptycho.refine_probe_update": "refine.probe_update",
    "Torchptycho.refine_position_update": "refine.position_update",
    "Torchptycho.refine_opr_modes": "refine.opr_modes",
    "Torchptycho.refine_frame_scale": "refine.frame_scale",
    "Torchptycho.refine_n_slices": "refine.n_slices",
}
"""Settings that correspond to one field each."""

CHOICES: dict[str, tuple[str, dict[str, str]]] = {
    "Training.device": ("train.accelerator", {"cuda": "auto", "auto": "auto", "gpu": "gpu", "cpu": "cpu"}),
    "Training.learning_rate_scheduler": ("train.schedule", {"Default": "plateau", "Cosine": "cosine"}),
    "Model.amplitude_activation_function": ("model.amplitude_activation", {"silu": "swish", "sigmoid": "sigmoid"}),
    "Inference.patch_weighting_method": ("reconstruct.stitch_weight", {"probe": "probe", "uniform": "central"}),
}
"""Settings whose values are renamed."""

COMBINED: dict[str, str] = {
    "Training.epochs": "train.epochs and refine.epochs",
    "Torchptycho.refine_slice_spacing_m": "refine.slice_spacing_m; 0 is none",
    "Data.grid_size_x": "group.gridsize",
    "Data.grid_size_y": "group.gridsize",
    "Data.num_channels": "grid_size_x * grid_size_y",
    "Training.batch_size": "train.batch_size, in groups there and in frames here",
    "Data.x_lower_bound": "group.bounds",
    "Data.x_upper_bound": "group.bounds",
    "Data.y_lower_bound": "group.bounds",
    "Data.y_upper_bound": "group.bounds",
    "Data.neighbor_lookup_method": "group.quadrants; Min_dist: group.min_distance_px, max_distance_px",
    "Data.min_neighbor_distance": "group.min_distance_px, with Min_dist",
    "Data.max_neighbor_distance": "group.max_distance_px, with Min_dist",
    "Data.num_nearest_neighbors_for_lookup": "group.neighbor_count",
    "Data.num_nearest_neighbors_for_quadrant_lookup": "group.neighbor_count, with 4_quadrant",
    "Model.loss_function": "loss.nll_weight (Poisson), mae_weight (MAE)",
    "Training.use_negative_log_likelihood_loss": "loss.nll_weight, else mae_weight",
    "Data.subtract_mean_phase": "Supervised: the label's mean phase is removed",
    "Inference.batch_size": "reconstruct.predict_batch_size, 256 frames at most",
    "Training.visible_gpu_indices": "CUDA_VISIBLE_DEVICES of the process that computes",
    "Training.n_devices": "1: see `torchptycho train` for more",
    "Torchptycho.refine_start": "Refine: start from the product's object, or from a uniform object",
    "Torchptycho.refine_image_every_epochs": "Refine: epochs between two intermediate products",
}
"""Settings that act together or only for one reconstructor, and their meaning."""

_OTHER_NETWORK = "of another network's layers"
_OTHER_UNITS = "one convention of units holds here, see specs/physics.md"
_STAGES = "the whole network is trained at once"
WITHOUT_EFFECT: dict[str, str] = {
    "Data.model_size": "the size of the frames is used",
    "Data.data_normalization_mode": _OTHER_UNITS,
    "Data.normalize_probe": _OTHER_UNITS,
    "Data.probe_scale": _OTHER_UNITS,
    "Data.data_scaling_method": _OTHER_UNITS,
    "Model.intensity_scale": _OTHER_UNITS,
    "Data.scan_pattern": "any positions are taken",
    "Data.coordinate_subsampling_factor": "every frame is in one group of an epoch",
    "Data.probe_ramp_removal": "the probe is used unchanged",
    "Model.object_big": "patches of a group always share one object",
    "Model.max_position_jitter": "positions are used unchanged",
    "Model.num_datasets": "the number of files is used",
    "Model.probe_reference_loss_coeff": "the probe is free, or fixed",
    **{
        f"Model.{name}": "the likelihood alone decides"
        for name in (
            "auxiliary_amplitude_loss",
            "auxiliary_amplitude_loss_coeff",
            "auxiliary_phase_loss",
            "auxiliary_phase_loss_coeff",
            "amplitude_variance_loss",
            "amplitude_variance_coeff",
        )
    },
    **{
        f"Model.{name}": _OTHER_NETWORK
        for name in (
            "cbam_encoder",
            "cbam_bottleneck",
            "cbam_decoder",
            "eca_encoder",
            "eca_decoder",
            "use_shared_decoder",
            "spatial_decoder",
            "decoder_spatial_kernel",
            "decoder_last_c_outer_fraction",
            "use_batch_normalization",
            "edge_pad",
            "offset",
        )
    },
    **{
        f"Training.{name}": _STAGES
        for name in (
            "epochs_finetune",
            "finetune_gamma",
            "enable_staged_finetuning",
            "finetune_stage1_epochs",
            "finetune_stage2_epochs",
            "finetune_stage3_epochs",
            "finetune_stage1_lr_decoder",
            "finetune_stage2_lr_encoder_top",
            "finetune_stage2_lr_decoder",
            "finetune_stage2_lr_phase_head",
            "finetune_stage3_lr_encoder_bottom",
            "finetune_stage3_lr_encoder_top",
            "finetune_stage3_lr_decoder",
            "finetune_stage3_lr_phase_head",
            "finetune_skip_stage3",
            "finetune_early_stop_patience",
            "finetune_val_split",
        )
    },
    "Training.num_dataloader_workers": "frames come from a memory map, in one process",
    "Training.distributed_strategy": "one device is used",
    "Training.learning_rate_warmup_epochs": "the rate rises over the first 100 steps",
    "Training.minimum_learning_rate_ratio": "the schedule defines it",
    "Training.notes": "not kept",
    "Training.model_name": "not kept",
    "Inference.middle_trim": "patches are weighted, not trimmed",
    "Inference.pad_eval": "the canvas holds every patch",
    "Inference.window": "pixels that no frame illuminated are 0",
    "Inference.experiment_number": "one product is reconstructed",
}
"""Settings without effect, and the reasons."""

OWN_SETTINGS: dict[str, Any] = {
    "generator": "pie_unet",
    "probe_trainable": False,
    "refine_method": "rpie",
    "refine_probe_update": True,
    "refine_position_update": "none",
    "refine_opr_modes": 0,
    "refine_frame_scale": False,
    "refine_n_slices": 1,
    "refine_slice_spacing_m": 0.0,
    "refine_start": "product",
    "refine_image_every_epochs": 10,
}
"""The group Torchptycho, with its defaults."""

_MAX_BATCH_FRAMES = 256


def convert_settings(values: Mapping[str, Any], mode: Mode) -> RunConfig:
    """Convert settings of Ptychodus to a configuration.

    Arguments:
        values: every setting of the table by its name.
        mode: name of the reconstructor; "Supervised" trains on the product's object as a label, without diffraction,
            and "Refine" does not group frames.

    Raises:
        ConfigError: a value has no counterpart, or settings contradict each other.
    """
    sections: dict[str, dict[str, Any]] = {}

    def put(field: str, value: Any) -> None:
        section, _, name = field.partition(".")
        sections.setdefault(section, {})[name] = value

    for setting, field in SINGLE_FIELDS.items():
        put(field, values[setting])
    for setting, (field, names) in CHOICES.items():
        put(field, _choose(setting, values[setting], names))
    for field in ("train.epochs", "refine.epochs"):
        put(field, values["Training.epochs"])
    put("refine.slice_spacing_m", values["Torchptycho.refine_slice_spacing_m"] or None)
    if mode != "Refine":
        for name, value in _convert_grouping(values).items():
            put(f"group.{name}", value)
        put("train.batch_size", values["Training.batch_size"] * sections["group"]["gridsize"] ** 2)
    put("reconstruct.predict_batch_size", min(values["Inference.batch_size"], _MAX_BATCH_FRAMES))
    if mode == "Supervised":
        sections["loss"] = {"nll_weight": 0.0, "realspace_weight": 1.0}
    elif _uses_likelihood(values):
        sections["loss"] = {"nll_weight": 1.0}
    else:
        sections["loss"] = {"nll_weight": 0.0, "mae_weight": 1.0}
    return from_dict(RunConfig, sections, source="settings of Ptychodus")


def warn_without_effect(changed: Mapping[str, Any], mode: Mode) -> None:
    """Warn of changed settings that have no effect."""
    without_effect = [f"{name} ({WITHOUT_EFFECT[name]})" for name in changed if name in WITHOUT_EFFECT]
    if changed.get("Training.n_devices", 1) > 1:
        without_effect.append("Training.n_devices (`torchptycho train --devices N` trains on several)")
    if without_effect:
        _log.warning("%s: settings without effect here: %s", mode, "; ".join(without_effect))


def _choose(setting: str, value: str, names: Mapping[str, str]) -> str:
    if value not in names:
        raise ConfigError(f"{setting}: expected {' or '.join(names)}; found '{value}'. Choose one of these.")
    return names[value]


def _uses_likelihood(values: Mapping[str, Any]) -> bool:
    setting = "Model.loss_function"
    loss = _choose(setting, values[setting], {"Poisson": "poisson", "MAE": "mae"})
    return loss == "poisson" and bool(values["Training.use_negative_log_likelihood_loss"])


def _convert_grouping(values: Mapping[str, Any]) -> dict[str, Any]:
    data = {name.partition(".")[2]: value for name, value in values.items() if name.startswith("Data.")}
    rows, columns, channels = data["grid_size_y"], data["grid_size_x"], data["num_channels"]
    if rows != columns or channels != rows * columns:
        raise ConfigError(
            "Data.num_channels, grid_size_x, grid_size_y: expected a square of frames, and as many channels; "
            f"found {channels} channels, {columns} x {rows}. Set channels to {math.prod((columns, rows))}, or the grid."
        )
    lookup = data["neighbor_lookup_method"]
    _choose("Data.neighbor_lookup_method", lookup, {"Nearest": "", "Min_dist": "", "4_quadrant": ""})
    quadrants = lookup == "4_quadrant"
    nearest = data["num_nearest_neighbors_for_quadrant_lookup" if quadrants else "num_nearest_neighbors_for_lookup"]
    bounds = [data[f"{axis}_{end}_bound"] for axis in "yx" for end in ("lower", "upper")]
    grouping: dict[str, Any] = {
        "gridsize": rows,
        "quadrants": quadrants,
        "neighbor_count": nearest or None,
        "bounds": tuple(bounds),
    }
    if lookup == "Min_dist":
        grouping["min_distance_px"] = data["min_neighbor_distance"]
        grouping["max_distance_px"] = data["max_neighbor_distance"] or None
    return grouping
