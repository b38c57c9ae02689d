"""How fast training goes, and how much memory it takes."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from torchptycho.data.batch import GroupBatch

__all__ = ["ThroughputMonitor", "peak_memory_GB"]


def peak_memory_GB(device: torch.device) -> float:
    """Return the peak memory so far: of a GPU by tensors, of the CPU by the process, mapped files included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    # Kilobytes on Linux, bytes on macOS.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class ThroughputMonitor(Callback):
    """Logs frames/s of all processes together, loading included and validation not, and the peak memory in GB."""

    def __init__(self) -> None:
        self._frames, self._start_s = 0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: GroupBatch, batch_idx: int
    ) -> None:
        self._frames += batch.members.numel()
        # At the interval of the metrics, over many batches, so that no synchronisation with a GPU is needed.
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            speed = self._frames * trainer.world_size / (time.perf_counter() - self._start_s)
            pl_module.log("frames_per_s", speed)
            pl_module.log("peak_memory_GB", peak_memory_GB(pl_module.device))
            self._restart()

    def _restart(self) -> None:
        self._frames, self._start_s = 0, time.perf_counter()
