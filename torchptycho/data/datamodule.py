"""The Lightning data module over a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader

from torchptycho.core.errors import ConfigError
from torchptycho.core.inputs import as_path
from torchptycho.data.batch import GroupBatch
from torchptycho.data.dataloader import ThreadedLoader
from torchptycho.data.datasets import GroupDataset, collate_unchanged
from torchptycho.data.samplers import EpochBatchSampler, InOrderSampler, ResumableLoader, batches_per_epoch
from torchptycho.data.store import Store

__all__ = ["PtychoDataModule"]


class PtychoDataModule(L.LightningDataModule):
    """Training, validation and prediction batches of one store.

    Arguments:
        store: made by `prepare`.
        batch_size: frames per batch and process in training; groups are batch_size / gridsize^2, at least 1.
        predict_batch_size: the same for validation and prediction.
        num_workers: threads that gather batches ahead of their use; 0 gathers in the training thread.
        seed: of the order of the groups, which is drawn again each epoch.
        with_truth: add object patches (real-space losses).
        training_scan: whose probe and scale prediction uses; None takes each frame's own, for the training store.
    """

    def __init__(
        self,
        store: Store | str | Path,
        *,
        batch_size: int = 64,
        predict_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        with_truth: bool = False,
        training_scan: int | None = None,
    ) -> None:
        super().__init__()
        store = store if isinstance(store, Store) else Store.open(as_path(store, "store", "a store or its folder"))
        self.store = store
        members = store.gridsize**2
        self._groups_per_batch = max(1, batch_size // members)
        self._groups_per_predict_batch = max(1, predict_batch_size // members)
        self._num_workers = num_workers
        self._with_truth = with_truth
        self._seed = seed
        self._training_scan = training_scan
        self._loader: ResumableLoader | None = None
        self._resume_state: dict[str, Any] | None = None

    def batches_per_epoch(self, ranks: int = 1) -> int:
        """Return the number of training batches that each process gets in an epoch."""
        return max(1, batches_per_epoch(len(self._make_dataset("train")), self._groups_per_batch, ranks))

    def train_dataloader(self) -> DataLoader[GroupBatch]:
        dataset = self._make_dataset("train")
        order = EpochBatchSampler(dataset, self._seed, self._groups_per_batch, *self._world_size_and_rank)
        if not len(order):
            raise ConfigError(
                f"devices, nodes: expected at most {len(dataset)} processes for {len(dataset)} groups; "
                f"found {order.num_replicas}."
            )
        # No batch size, because the sampler yields whole batches.
        self._loader = ResumableLoader(dataset, batch_size=None, sampler=order, **self._loader_options())
        if self._resume_state is not None:
            self._loader.load_state_dict(self._resume_state)
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """Return the position within the epoch, for a checkpoint."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Lightning also saves the state of the loader, but has asked for the loader before it loads that state when the
        number of steps is needed to set the learning rate (2.6).
        """
        self._resume_state = state_dict or None

    def val_dataloader(self) -> DataLoader[GroupBatch]:
        dataset = self._make_dataset("val")
        return ThreadedLoader(
            dataset,
            batch_size=self._groups_per_predict_batch,
            sampler=InOrderSampler(dataset, *self._world_size_and_rank),
            **self._loader_options(),
        )

    def predict_dataloader(self) -> DataLoader[GroupBatch]:
        dataset = GroupDataset(self.store, "predict", training_scan=self._training_scan)
        return ThreadedLoader(dataset, batch_size=self._groups_per_predict_batch, **self._loader_options())

    def _make_dataset(self, split: Literal["train", "val"]) -> GroupDataset:
        return GroupDataset(self.store, split, with_truth=self._with_truth)

    @property
    def _world_size_and_rank(self) -> tuple[int, int]:
        """How many processes train together, and which of them this is."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _loader_options(self) -> dict[str, Any]:
        return {
            "threads": self._num_workers,
            # A loader draws a seed even if nothing is random; without its own generator it would advance torch's global
            # one.
            "generator": torch.Generator().manual_seed(self._seed),
            "collate_fn": collate_unchanged,
        }
