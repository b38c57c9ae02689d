"""The library of reconstructors that Ptychodus lists: "PINN", "Supervised" and "Refine"."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ptychodus.api.io import save_ptychopinn_training_data
from ptychodus.api.reconstruct import ReconstructInput, Reconstructor
from ptychodus.api.settings import SettingsRegistry
from ptychodus.model.processing.subprocess_reconstructor import SubprocessReconstructor
from ptychodus.model.ptychopinn_torch import PtychoPINNTorchReconstructorLibrary

from torchptycho.core.config import to_dict
from torchptycho.core.errors import ConfigError
from torchptycho.interop.ptychodus.jobs import ReconstructJob, RefineJob, TrainJob
from torchptycho.interop.ptychodus.settings import OWN_SETTINGS, convert_settings, warn_without_effect

__all__ = ["TorchptychoReconstructorLibrary"]

_log = logging.getLogger(__name__)

_PREFIX = "PtychoPINNTorch"
_GROUPS = tuple(f"{_PREFIX}{name}" for name in ("Data", "Model", "Training", "Inference"))
_OWN_GROUP = "Torchptycho"
_WORKER_MODULE = "torchptycho.interop.ptychodus.worker"


class TorchptychoReconstructorLibrary(PtychoPINNTorchReconstructorLibrary):
    """Ptychodus' library for this kind of network, with the reconstructors of torchptycho.

    Name, settings and panel are those of Ptychodus, with an additional group of settings `Torchptycho`. Every training
    and every reconstruction runs in a separate process; this one loads neither torch nor a GPU library. If another
    package `ptycho_torch` can be imported, its reconstructors are listed instead.

    Arguments:
        settings_registry: where the settings live.
        is_developer_mode_enabled: from Ptychodus; without effect here.
    """

    def __init__(self, settings_registry: SettingsRegistry, is_developer_mode_enabled: bool = False) -> None:
        super().__init__(settings_registry, is_developer_mode_enabled)
        # Ptychodus shows the messages of this logger.
        self._logger = logging.getLogger("torchptycho")
        self._registry = settings_registry
        group = settings_registry.create_group(_OWN_GROUP)
        for name, value in OWN_SETTINGS.items():
            if isinstance(value, bool):
                group.create_boolean_parameter(name, value)
            elif isinstance(value, int):
                group.create_integer_parameter(name, value, minimum=min(value, 1))
            elif isinstance(value, float):
                group.create_real_parameter(name, value, minimum=0.0)
            else:
                group.create_string_parameter(name, value)
        self._defaults = self._read_values()
        self._other_package = find_spec("ptycho_torch")
        self._own_reconstructors = [
            self._make_network_reconstructor("PINN"),
            self._make_network_reconstructor("Supervised"),
            self._make_refinement_reconstructor(),
        ]

    def __iter__(self) -> Iterator[Reconstructor]:
        if self._other_package is None:
            return iter(self._own_reconstructors)
        _log.warning(
            "ptycho_torch is installed (%s): its reconstructors are listed, those of torchptycho are not",
            self._other_package.origin,
        )
        return iter(self._reconstructors)

    def _read_values(self) -> dict[str, Any]:
        return {
            f"{group.removeprefix(_PREFIX)}.{name}": parameter.get_value()
            for group in (*_GROUPS, _OWN_GROUP)
            for name, parameter in self._registry[group].parameters().items()
        }

    def _build_config(self, mode: Literal["PINN", "Supervised", "Refine"]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the settings and convert them to a configuration; return both as plain data."""
        values = self._read_values()
        return values, to_dict(convert_settings(values, mode))

    def _read_epochs(self) -> int:
        return int(self.training_settings.epochs.get_value())

    def _make_network_reconstructor(self, mode: Literal["PINN", "Supervised"]) -> SubprocessReconstructor:
        def make_reconstruct_job(parameters: ReconstructInput, model: Path | None) -> ReconstructJob:
            if model is None:
                raise ConfigError(
                    f"{mode}: expected a trained network; found none. Train one, or load a model (.ckpt)."
                )
            values, config = self._build_config(mode)
            return ReconstructJob(
                mode=mode,
                config=config,
                checkpoint=model,
                parameters=parameters,
                goal=self._read_epochs(),
                visible_gpus=values["Training.visible_gpu_indices"],
            )

        def make_train_job(input_path: Path, output_path: Path) -> TrainJob:
            values, config = self._build_config(mode)
            warn_without_effect({k: value for k, value in values.items() if value != self._defaults[k]}, mode)
            return TrainJob(
                mode=mode,
                config=config,
                input_path=Path(input_path),
                output_path=Path(output_path),
                subtract_mean_phase=mode == "Supervised" and values["Data.subtract_mean_phase"],
                visible_gpus=values["Training.visible_gpu_indices"],
            )

        return SubprocessReconstructor(
            name=mode,
            reconstruct_entry_point=f"{_WORKER_MODULE}:reconstruct_product",
            progress_goal_fn=self._read_epochs,
            build_reconstruct_payload=make_reconstruct_job,
            is_trainable=True,
            train_entry_point=f"{_WORKER_MODULE}:train_network",
            build_train_payload=make_train_job,
            model_file_filter="torchptycho Checkpoints (*.ckpt)",
            model_file_extension=".ckpt",
            training_data_file_filter="NumPy Zipped Archive (*.npz)",
            export_training_data=save_ptychopinn_training_data,
        )

    def _make_refinement_reconstructor(self) -> SubprocessReconstructor:
        def make_refine_job(parameters: ReconstructInput, model: Path | None) -> RefineJob:
            values, config = self._build_config("Refine")
            start = values["Torchptycho.refine_start"]
            if start not in ("product", "nothing"):
                raise ConfigError(f"Torchptycho.refine_start: expected product or nothing; found '{start}'.")
            return RefineJob(
                config=config,
                parameters=parameters,
                from_product=start == "product",
                image_every_epochs=values["Torchptycho.refine_image_every_epochs"],
                visible_gpus=values["Training.visible_gpu_indices"],
            )

        return SubprocessReconstructor(
            name="Refine",
            reconstruct_entry_point=f"{_WORKER_MODULE}:refine_product",
            progress_goal_fn=self._read_epochs,
            build_reconstruct_payload=make_refine_job,
        )
