"""PtychoPINN as a LightningModule: it wires the generator, the physics and the loss together, and logs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jaxtyping import Complex
from torch import Tensor, nn

from torchptycho.core.config import RunConfig, to_dict
from torchptycho.core.config.base import Domain
from torchptycho.core.errors import ConfigError, TrainingError
from torchptycho.core.versions import collect_versions
from torchptycho.data.batch import GroupBatch
from torchptycho.data.datasets import GroupDataset
from torchptycho.data.store import Store
from torchptycho.models.epoch_mean import EpochMean
from torchptycho.models.generators import require_trusted_generator
from torchptycho.models.losses import Loss, LossInputs
from torchptycho.models.network import CHECKPOINT_FORMAT, PtychoNetwork
from torchptycho.physics.overlap import central_weight

__all__ = ["PtychoPINN", "build_learning_rate_schedule"]

# With the default of 0.999 the second moment lags behind a sudden rise of the gradient by a thousand steps; training on
# a measured scan then once collapsed from a nearly converged image to a flat one.
_BETAS = (0.9, 0.95)
# Steps without a better validation loss after which the plateau schedule halves the learning rate.
_PLATEAU_STEPS = 300


class PtychoPINN(PtychoNetwork, L.LightningModule):
    """Trains a generator without labels: patches -> expected counts -> Poisson likelihood of the measured counts.

    Reference: Hoidn, Mishra, Mehta, Scientific Reports 13, 22789 (2023).

    All arguments are plain data, and a checkpoint brings them along with the statistics and the probe, so
    `PtychoPINN.load_from_checkpoint(path, weights_only=True)` needs nothing else. Build one with `for_store`.

    Arguments:
        config: a `RunConfig` as a dict.
        n_px: frame edge N.
        n_scans, n_modes: scans and incoherent probe modes that it was made for.
        domain: content of the frames.
        max_offset_px: largest distance of a frame from its group's centre, which sizes the merging canvas.
        has_validation: whether there are held-out frames to watch.
        started_from: checkpoint whose network this one went on from, or None.
    """

    truth_phase_factor: Tensor

    def __init__(
        self,
        config: dict[str, Any],
        n_px: int,
        n_scans: int = 1,
        n_modes: int = 1,
        domain: Domain = "counts",
        max_offset_px: float = 0.0,
        has_validation: bool = True,
        started_from: str | None = None,
    ) -> None:
        super().__init__(config, n_px, n_scans, n_modes, domain, max_offset_px)
        self.save_hyperparameters(
            {
                "config": config,
                "n_px": n_px,
                "n_scans": n_scans,
                "n_modes": n_modes,
                "domain": domain,
                "max_offset_px": max_offset_px,
                "has_validation": has_validation,
                "started_from": started_from,
            }
        )
        self.has_validation = has_validation
        self.loss = Loss.from_config(self.config)
        # Phase factor that gives each scan's truth the phase of a transparent object; used in training only.
        self.register_buffer("truth_phase_factor", torch.ones(n_scans, dtype=torch.complex64), persistent=False)
        self._train_mean = EpochMean()
        self._val_means: dict[str, EpochMean] = {}
        self._random_state: Tensor | None = None
        self.last_batch: GroupBatch | None = None
        self.planned_steps: int | None = None
        """Optimiser steps after which training ends, for the learning rate; None takes the Trainer's epochs."""

    @classmethod
    def for_store(cls, store: Store, config: RunConfig, *, started_from: str | None = None) -> PtychoPINN:
        """Build a module with the statistics, probes and masks of a store.

        Arguments:
            started_from: provenance of the network from which training started, for the checkpoint.

        Raises:
            ConfigError: the configuration does not fit the store.
        """
        if config.group.gridsize != store.gridsize:
            raise ConfigError(f"gridsize: expected {store.gridsize} as in {store.path}; found {config.group.gridsize}.")
        probes = store.tensors["probes"]
        module = cls(
            to_dict(config),
            n_px=store.n_px,
            n_scans=len(store.scans),
            n_modes=int(probes.shape[1]),
            domain=store.scans[0].scaling.domain,
            max_offset_px=store.max_offset_px,
            has_validation=len(store.groups("val")) > 0,
            started_from=started_from,
        )
        if module.loss.needs_truth and not store.has_truth:
            raise ConfigError(f"realspace_weight, realspace_mae_weight: {store.path} has scans without a truth.")
        scalings = [entry.scaling for entry in store.scans]
        module.probe_parts.data = torch.view_as_real(probes.clone()).contiguous()
        module.input_scale = torch.tensor([s.input_scale for s in scalings], dtype=torch.float64)
        module.photons_per_frame = torch.tensor([s.photons_per_frame for s in scalings], dtype=torch.float64)
        module.masks = store.tensors["masks"].clone()
        mean_counts = module.photons_per_frame / module.masks.sum(dim=(-2, -1))
        # Frames are read only when this is used.
        floor_counts = store.estimate_floor_counts() if config.experiment.background_trainable else 0 * mean_counts
        module.experiment.initialize(probes, mean_counts, floor_counts)
        if module.loss.needs_truth:
            module.truth_phase_factor = store.truth_phase_factors()
        if config.train.freeze_encoder:
            module.generator.freeze_encoder()
        return module

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, *arguments: Any, trust_generator: bool | str = False, **options: Any
    ) -> PtychoPINN:
        """Load a module as Lightning does, with only tensors and plain data, and with the generators that are trusted.

        Arguments:
            trust_generator: as in `load_checkpoint`.
        """
        content = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__} instead of a table")
        parameters = content.get("hyper_parameters")
        if isinstance(parameters, dict):
            require_trusted_generator(parameters.get("config"), checkpoint_path, trust_generator)
        options["weights_only"] = True
        return super().load_from_checkpoint(checkpoint_path, *arguments, **options)

    def _evaluate_loss(self, batch: GroupBatch) -> dict[str, Tensor]:
        return self._compute_loss_terms(self(batch), batch)

    def _compute_loss_terms(self, patches: Tensor, batch: GroupBatch) -> dict[str, Tensor]:
        """Compute the terms of the loss of these patches."""
        seen = self.loss.needs_counts
        comparison = LossInputs(
            expected=self.compute_expected_counts(patches, batch) if seen else None,
            counts=self.compute_measured_counts(batch) if seen else None,
            mean_count=self.compute_mean_count(batch),
            mask=self._select_mask(batch),
            patches=patches,
            truth=None
            if batch.truth is None
            else batch.truth * self.truth_phase_factor[batch.scan][:, None, None, None],
            truth_weight=self._compute_truth_weight(patches),
        )
        terms: dict[str, Tensor] = self.loss(comparison)
        return terms

    def _compute_truth_weight(self, patches: Tensor) -> Tensor:
        if self.config.model.probe_big:
            return patches.real.new_ones(self.n_px, self.n_px)
        return central_weight(self.n_px, patches)

    def training_step(self, batch: GroupBatch, batch_index: int) -> Tensor:
        self.require_statistics()
        patches: Tensor = self(batch)
        terms = self._compute_loss_terms(patches, batch)
        self._require_finite("the loss", terms["loss"], batch, patches)
        size = batch.batch_size[0]
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, batch_size=size)
        self._train_mean.add(terms["loss"], size)
        self.last_batch = batch
        return terms["loss"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # In half precision occasional overflows are expected: the gradient scaler skips the step.
        if self.last_batch is not None and self.trainer.precision != "16-mixed":
            self._require_finite("the gradient", norm, self.last_batch)
        self.log("train/gradient_norm", norm)
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/parameter_norm", nn.utils.get_total_norm([p.detach() for p in parameters]))

    def _require_finite(self, what: str, value: Tensor, batch: GroupBatch, patches: Tensor | None = None) -> None:
        if bool(value.isfinite()):
            return
        faulty = torch.ones_like(batch.members, dtype=torch.bool)
        if patches is not None:
            per_frame = self._compute_intensity(batch).isfinite().flatten(2).all(-1)
            per_frame &= torch.view_as_real(patches.detach()).isfinite().flatten(2).all(-1)
            # All frames of the batch if no single frame is the cause.
            faulty = faulty if bool(per_frame.all()) else ~per_frame
        frames = tuple(batch.members[faulty].tolist())
        scans = sorted(set(batch.scan[faulty.any(1)].tolist()))
        raise TrainingError(
            f"{what} is {value.item()} at step {self.global_step}, scans {scans}, frames {list(frames)}", frames
        )

    def validation_step(self, batch: GroupBatch, batch_index: int) -> Tensor:
        patches: Tensor = self(batch)
        terms = self._compute_loss_terms(patches, batch)
        size = batch.batch_size[0]
        for name, value in terms.items():
            self._val_means.setdefault(name, EpochMean()).add(value, size)
        return patches.detach()

    def measure_validation_loss(self) -> Tensor | None:
        """Measure the monitored loss on the held-out frames with the weights as they are; logs nothing.

        None where this process and all others have no held-out frames.
        """
        modes = {part: part.training for part in self.modules()}
        self.eval()
        loader, strategy = self.trainer.datamodule.val_dataloader(), self.trainer.strategy  # type: ignore[attr-defined]
        with torch.no_grad(), self.trainer.precision_plugin.val_step_context():
            for number, batch in enumerate(loader):
                self.validation_step(strategy.batch_to_device(batch), number)
        for part, training in modes.items():
            part.training = training
        means = {name: mean.compute_and_reset(strategy) for name, mean in self._val_means.items()}
        return means.get(self.loss.monitored)

    def on_train_epoch_end(self) -> None:
        mean = self._train_mean.compute_and_reset(self.trainer.strategy)
        if mean is None:  # resumed after the end of this epoch
            return
        self.log("train/loss_epoch", mean, sync_dist=True)
        if not self.has_validation and (self.current_epoch + 1) % (self.trainer.check_val_every_n_epoch or 1) == 0:
            self._step_plateau_scheduler(mean)

    def on_validation_epoch_end(self) -> None:
        # Lightning's mean (2.6) is wrong if processes have different numbers of groups.
        means = {name: mean.compute_and_reset(self.trainer.strategy) for name, mean in self._val_means.items()}
        for name, mean in means.items():
            if mean is not None:
                self.log(f"val/{name}", mean, sync_dist=True)
        monitored = means.get(self.loss.monitored)
        if monitored is not None and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._step_plateau_scheduler(monitored)

    def _step_plateau_scheduler(self, mean: Tensor) -> None:
        # Stepped here, because Lightning steps it after the checkpoint is written, which would then lack the last loss.
        for entry in self.trainer.lr_scheduler_configs:
            if entry.reduce_on_plateau:
                entry.scheduler.step(float(mean))  # type: ignore[arg-type]

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        if metric is None:
            scheduler.step()

    def on_train_start(self) -> None:
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)
            self._random_state = None

    def on_train_end(self) -> None:
        self.last_batch = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["format"] = {"version": CHECKPOINT_FORMAT, "written_with": collect_versions()}
        checkpoint["epoch_so_far"] = self._train_mean.state_dict()
        checkpoint["random_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (version := checkpoint["format"]["version"]) != CHECKPOINT_FORMAT:
            raise ValueError(f"its format is {version}, expected {CHECKPOINT_FORMAT}")
        self._train_mean.load_state_dict(checkpoint["epoch_so_far"])
        # Loading a module does not change torch's generator; only a resumed run restores it.
        self._random_state = checkpoint["random_state"] if self._trainer is not None else None

    def on_predict_start(self) -> None:
        # One canvas size for all batches, because the network's output depends slightly on the margin around a group.
        dataset = getattr(self.trainer.predict_dataloaders, "dataset", None)
        if isinstance(dataset, GroupDataset):
            self.expect_offsets(dataset.max_offset_px)

    def on_predict_end(self) -> None:
        self.expect_offsets(None)

    def predict_step(self, batch: GroupBatch, batch_index: int) -> Complex[Tensor, "b c n n"]:
        self.require_statistics()
        return self(batch)  # type: ignore[no-any-return]

    @property
    def monitor(self) -> str:
        """Name of the metric that says how good the module is; lower is better."""
        return f"val/{self.loss.monitored}" if self.has_validation else "train/loss_epoch"

    def configure_optimizers(self) -> Any:
        config = self.config.train
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        trained = [parameter for parameter in self.generator.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"params": trained, "lr": config.learning_rate}]
        if self.probe_parts.requires_grad:
            size = float(self.probe_parts.detach().square().mean().sqrt())
            groups.append({"params": [self.probe_parts], "lr": config.probe_learning_rate * size, "weight_decay": 0.0})
        if others := list(self.experiment.parameters()):
            rate = self.config.experiment.experiment_learning_rate
            groups.append({"params": others, "lr": rate, "weight_decay": 0.0})
        # Asking for the number of steps makes Lightning count the batches.
        estimated = int(self.trainer.estimated_stepping_batches)
        steps = self.planned_steps or estimated
        shape = build_learning_rate_schedule(config.schedule, min(config.warmup_steps, steps // 10), steps)
        for group in groups:
            group["lr"] *= config.learning_rate_factor * shape(0)
        optimizer = kind(groups, betas=_BETAS)
        # Multiplicative, because a schedule that sets the rate would reverse the reductions on a plateau.
        follow = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda step: shape(step) / shape(step - 1))
        schedulers: list[dict[str, Any]] = [{"scheduler": follow, "interval": "step", "name": "learning_rate"}]
        if config.schedule == "plateau":
            every = self.trainer.check_val_every_n_epoch or 1
            batches = int(self.trainer.num_training_batches)
            steps_between = every * math.ceil(batches / self.trainer.accumulate_grad_batches)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=0.5, patience=max(2, round(_PLATEAU_STEPS / steps_between)), min_lr=1e-6
            )
            watch = {"scheduler": plateau, "interval": "epoch", "frequency": every, "monitor": self.monitor}
            schedulers.append(watch | {"name": "plateau"})
        return [optimizer], schedulers


def build_learning_rate_schedule(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the step, relative to its peak, without the reductions on a plateau."""

    def shape(step: int) -> float:
        rise = min(1.0, (step + 1) / max(1, warmup))
        if schedule != "cosine":
            return rise
        done = min(1.0, max(0.0, (step - warmup) / max(1, steps - warmup)))
        return rise * max(1e-3, 0.5 * (1 + math.cos(math.pi * done)))

    return shape
