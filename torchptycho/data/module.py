"""The Lightning data module over a store."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import torch
from torch.utils.data import DataLoader, Sampler

from torchptycho.data.batch import GroupBatch
from torchptycho.data.dataset import GroupDataset, identity
from torchptycho.data.store import Store

__all__ = ["PtychoDataModule"]


class _EpochOrder(Sampler[int]):
    """A random order that depends on seed and epoch alone, so that a resumed run sees what it would have seen."""

    def __init__(self, length: int, seed: int) -> None:
        self._length, self._seed, self._epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self._seed, self._epoch)) % 2**63)
        return iter(torch.randperm(self._length, generator=generator).tolist())


class PtychoDataModule(L.LightningDataModule):
    """Training, validation and prediction batches of one store.

    Arguments:
        store: made by `prepare`.
        batch_size: frames per batch in training; groups are batch_size / gridsize^2, at least 1.
        predict_batch_size: the same for validation and prediction.
        num_workers: loading processes; 0 loads in the training process.
        seed: of the order of the groups, which is drawn anew each epoch.
        with_truth: add object patches (real-space losses).
        training_scan: whose probe and scale prediction uses; None takes each frame's own, for the training store.
    """

    def __init__(
        self,
        store: Store,
        *,
        batch_size: int = 64,
        predict_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        with_truth: bool = False,
        training_scan: int | None = None,
    ) -> None:
        super().__init__()
        self.store = store
        members = store.gridsize**2
        self._batch_groups = max(1, batch_size // members)
        self._predict_groups = max(1, predict_batch_size // members)
        self._num_workers = num_workers
        self._with_truth = with_truth
        self._seed = seed
        self._training_scan = training_scan

    def train_dataloader(self) -> DataLoader[GroupBatch]:
        dataset = GroupDataset(self.store, "train", with_truth=self._with_truth)
        # A ragged last batch would weigh its few groups more than the others; one batch is better than none.
        drop_last = len(dataset) > self._batch_groups
        return self._loader(dataset, self._batch_groups, shuffle=True, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader[GroupBatch]:
        dataset = GroupDataset(self.store, "val", with_truth=self._with_truth)
        return self._loader(dataset, self._predict_groups)

    def predict_dataloader(self) -> DataLoader[GroupBatch]:
        return self._loader(
            GroupDataset(self.store, "predict", training_scan=self._training_scan), self._predict_groups
        )

    def _loader(
        self, dataset: GroupDataset, batch_size: int, *, shuffle: bool = False, drop_last: bool = False
    ) -> DataLoader[GroupBatch]:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=_EpochOrder(len(dataset), self._seed) if shuffle else None,
            drop_last=drop_last,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            # Workers get a seed even where nothing is random; without a generator it would be drawn from torch's own.
            generator=torch.Generator().manual_seed(self._seed),
            collate_fn=identity,
        )
