"""Monitor for collapsed networks, which predict featureless patches, or the same patch for every frame."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from torchptycho.core.errors import TrainingError
from torchptycho.data.batch import GroupBatch
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.physics.noise import poisson_deviance, poisson_sample
from torchptycho.physics.overlap import probe_weight

__all__ = ["CollapseMonitor", "CollapseStatistics"]

_log = logging.getLogger(__name__)

# Networks are not judged before this step: a good one starts from the transparent object too.
MIN_STEPS = 200
# Number of validation batches for the statistics.
_MAX_BATCHES = 4
# Lowest contrast, relative to the RMS of |O|, of an image. Thin biological samples have 0.05 and more.
_MIN_CONTRAST = 0.02
# Smallest fraction of the empty sample's misfit by which a network with such a low contrast must reduce it.
_MIN_MISFIT_REDUCTION = 0.1
# Smallest misfit of the empty sample, relative to photon noise, for the data to contain structure.
_MIN_EMPTY_TO_NOISE = 1.5


@dataclasses.dataclass(frozen=True)
class CollapseStatistics:
    """Contrast and misfit of a network, and references for them.

    Arguments:
        within, between: standard deviation of O inside a patch, and from patch to patch at the same pixel, weighted by
            |P|^2 and relative to the root-mean-square of |O|.
        misfit: half the deviance of the network's counts over their mean.
        empty: the same of the best transparent object, one for each frame.
        noise: the same of photon noise alone.
    """

    contrast_within: float
    contrast_between: float
    misfit: float
    empty: float
    noise: float

    @property
    def contrast(self) -> float:
        return min(self.contrast_within, self.contrast_between)

    @property
    def has_collapsed(self) -> bool:
        """Whether patches are featureless and misfit counts that differ from those of an empty sample."""
        if not self.empty > _MIN_EMPTY_TO_NOISE * self.noise:
            return False
        no_image = self.contrast < _MIN_CONTRAST and self.misfit > (1 - _MIN_MISFIT_REDUCTION) * self.empty
        return no_image or not self.misfit < self.empty


class CollapseMonitor(Callback):
    """Measures it at each validation (without held-out frames, on the last batch of an epoch) and ends a flat run.

    A run of at least 200 steps is judged from its half on: flat at two validations in a row, or at the last, is flat.

    Arguments:
        action: raise TrainingError, or warn.
        total_steps: optimiser steps of the whole run.
    """

    def __init__(self, action: Literal["fail", "warn"], total_steps: int) -> None:
        self._action = action
        self._check_from_step = max(MIN_STEPS, total_steps // 2)
        self._total_steps = total_steps
        self._sums: dict[str, Tensor] = {}
        self._consecutive_collapses = 0

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._sums = {}

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: GroupBatch, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx < _MAX_BATCHES:
            assert isinstance(pl_module, PtychoPINN)
            self._accumulate(pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._sums and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._check_collapse(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PtychoPINN)
        if pl_module.has_validation or (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1):
            return
        batch = pl_module.last_batch
        if batch is None:  # resumed after the end of this epoch, which has been judged
            return
        self._sums = {}
        with torch.no_grad():
            self._accumulate(pl_module, pl_module(batch), batch)
        self._check_collapse(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self._consecutive_collapses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._consecutive_collapses = state_dict["in_a_row"]

    def _accumulate(self, module: PtychoPINN, patches: Tensor, batch: GroupBatch) -> None:
        with torch.no_grad():
            weight = probe_weight(module.select_probe(batch))[:, None]
            weight = weight / weight.sum(dim=(-2, -1), keepdim=True)
            power = (patches.abs().square() * weight).sum(dim=(-2, -1))
            mean = (patches * weight).sum(dim=(-2, -1))
            counts = module.compute_measured_counts(batch)
            empty = module.compute_expected_counts(torch.ones_like(patches), batch)
            good = module.masks[batch.scan][:, None]
            # The best-fitting empty sample: one transmission per frame.
            empty = (
                empty * ((counts * good).sum((-2, -1)) / (empty * good).sum((-2, -1)).clamp_min(1e-30))[..., None, None]
            )
            noisy = poisson_sample(empty, torch.Generator(empty.device).manual_seed(0))
            scale = module.compute_mean_count(batch)[:, None, None, None]

            def misfit(expected: Tensor, measured: Tensor) -> Tensor:
                return 0.5 * poisson_deviance(expected / scale, measured / scale, good, 0.5 / scale) * power.numel()

            batch_sums = {
                "frames": torch.tensor(float(power.numel()), device=power.device),
                "power": power.sum(),
                "within": (power - mean.abs().square()).sum(),
                "patch": (patches * weight.sqrt()).sum(dim=(0, 1)),
                "misfit": misfit(module.compute_expected_counts(patches, batch), counts),
                "empty": misfit(empty, counts),
                "noise": misfit(empty, noisy),
            }
        self._sums = {name: value + self._sums[name] if self._sums else value for name, value in batch_sums.items()}

    def _measure(self, trainer: L.Trainer) -> CollapseStatistics:
        reduced = {
            name: trainer.strategy.reduce(torch.view_as_real(value) if value.is_complex() else value, reduce_op="sum")
            for name, value in self._sums.items()
        }
        frames = float(reduced["frames"])
        power = max(float(reduced["power"]) / frames, 1e-30)
        common = float((reduced["patch"] / frames).square().sum())
        # The mean of n patches with independent errors keeps 1/n of their variance.
        contrast_between = max(0.0, power - common) * frames / (frames - 1) if frames > 1 else power
        return CollapseStatistics(
            contrast_within=math.sqrt(max(0.0, float(reduced["within"]) / frames) / power),
            contrast_between=math.sqrt(contrast_between / power),
            misfit=float(reduced["misfit"]) / frames,
            empty=float(reduced["empty"]) / frames,
            noise=float(reduced["noise"]) / frames,
        )

    def _check_collapse(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        statistics = self._measure(trainer)
        pl_module.log("contrast", statistics.contrast, sync_dist=True)
        pl_module.log("misfit_over_empty", statistics.misfit / max(statistics.empty, 1e-30), sync_dist=True)
        if trainer.global_step < self._check_from_step:
            return
        self._consecutive_collapses = self._consecutive_collapses + 1 if statistics.has_collapsed else 0
        if self._consecutive_collapses < 2 and not (
            self._consecutive_collapses and trainer.global_step >= self._total_steps
        ):
            return
        message = (
            f"the network predicts featureless patches after {trainer.global_step} steps: their contrast is "
            f"{statistics.contrast:.2g}, and they fit the counts no better than an empty sample (misfit "
            f"{statistics.misfit:.3g}, empty {statistics.empty:.3g}, photon noise {statistics.noise:.3g}). Check the "
            "probe and the centre of the frames (torchptycho inspect); then try another --seed, a lower "
            "--learning-rate, or --bootstrap-probe 40."
        )
        if self._action == "fail":
            raise TrainingError(message)
        _log.warning("%s", message)
