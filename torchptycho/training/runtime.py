"""Lightning as a guest: without its advice, and leaving the caller's signals alone."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterator

import lightning as L
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from torchptycho.core.devices import find_devices
from torchptycho.core.errors import ConfigError
from torchptycho.core.text import format_error

__all__ = ["check_devices", "restore_keyboard_interrupt", "silence_lightning"]

_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
_SILENCED_WARNINGS = (
    ".*does not have many workers.*", ".*treespec.*", ".*Checkpoint directory.*exists.*", ".*LeafSpec.*",
    ".*across ranks is zero.*",
)  # fmt: skip


def check_devices(accelerator: str, devices: int, nodes: int = 1) -> ClusterEnvironment | None:
    """Return the launcher of the processes of this run, if there can be several.

    Raises:
        ConfigError: this machine has no such devices, or torchrun or Slurm started other processes.
    """
    if accelerator not in _ACCELERATORS:
        raise ConfigError(
            f"accelerator '{accelerator}': expected {', '.join(_ACCELERATORS)}. CUDA_VISIBLE_DEVICES chooses one of "
            "several GPUs."
        )
    find_devices(accelerator, devices)
    try:
        with silence_lightning():
            trainer = L.Trainer(
                accelerator=accelerator, devices=devices, num_nodes=nodes, logger=False, enable_checkpointing=False
            )
            # Lightning checks this only when training begins.
            environment: ClusterEnvironment | None = getattr(trainer.strategy, "cluster_environment", None)
            if environment is not None:
                environment.validate_settings(num_devices=devices, num_nodes=nodes)
    except (MisconfigurationException, ValueError) as error:
        reason = format_error(error)
        asked = f"accelerator '{accelerator}', devices {devices}" + (f", nodes {nodes}" if nodes > 1 else "")
        raise ConfigError(f"{asked}: not on this machine ({reason}).") from None
    return environment


@contextlib.contextmanager
def restore_keyboard_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl+C, for which Lightning calls sys.exit and leaves the signal ignored."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error


@contextlib.contextmanager
def silence_lightning() -> Iterator[None]:
    """Keep Lightning's advice (number of workers, tips, device list) from the user; its warnings of faults pass."""
    loggers = [
        logging.getLogger(name)
        for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _SILENCED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
