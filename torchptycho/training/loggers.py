"""Loggers of metrics and images: always a CSV file, and others on request."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from torchptycho.analysis.history import LOGS_FOLDER
from torchptycho.core.errors import ConfigError
from torchptycho.core.text import format_error

__all__ = ["build_loggers", "send_image"]

_log = logging.getLogger(__name__)


def build_loggers(names: Sequence[str], out: Path) -> list[Logger]:
    """Build the CSV logger, and those of the names "tensorboard", "mlflow", "wandb".

    All write into `out`/logs, unless the environment names a server (MLFLOW_TRACKING_URI, WANDB_MODE and so on).

    Raises:
        ConfigError: a package is not installed.
    """
    loggers: list[Logger] = [CSVLogger(out, name=LOGS_FOLDER, flush_logs_every_n_steps=100)]
    for name in names:
        try:
            loggers.append(_build_logger(name, out))
        except ImportError as error:
            reason = format_error(error, 200)
            raise ConfigError(
                f"logger: '{name}' is not installed ({reason}). Install it with: pip install 'torchptycho[{name}]'."
            ) from None
    return loggers


def _build_logger(name: str, out: Path) -> Logger:
    if name == "tensorboard":
        return TensorBoardLogger(out / LOGS_FOLDER, name="tensorboard", default_hp_metric=False)
    if name == "mlflow":
        server = os.environ.get("MLFLOW_TRACKING_URI")
        files = (out / LOGS_FOLDER / "mlflow").absolute()
        # A database, because MLflow 3 no longer writes plain files.
        database = f"sqlite:///{files}.db"
        return MLFlowLogger(
            "torchptycho",
            run_name=out.name,
            tracking_uri=server or database,
            artifact_location=None if server else str(files),
        )
    return WandbLogger(name=out.name, project="torchptycho", save_dir=out / LOGS_FOLDER)


def send_image(logger: Logger, name: str, picture: Path, step: int) -> None:
    """Give a PNG file to a logger that takes pictures; the CSV logger does not."""
    if isinstance(logger, TensorBoardLogger):
        with Image.open(picture) as image:
            logger.experiment.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        assert logger.run_id is not None
        logger.experiment.log_artifact(logger.run_id, str(picture), artifact_path=name)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [str(picture)])
