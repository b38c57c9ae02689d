"""The order in which groups are seen: the same for any number of processes, and known after an interruption."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from torchptycho.data.batch import GroupBatch
from torchptycho.data.dataloader import ThreadedLoader
from torchptycho.data.datasets import GroupDataset

__all__ = ["EpochBatchSampler", "InOrderSampler", "ResumableLoader", "batches_per_epoch"]


class EpochBatchSampler(DistributedSampler[GroupBatch]):
    """Batches in a random order that depends on seed and epoch alone, each divided among the processes.

    Every group is in one batch of one process. There are as few batches as the largest size allows, and their sizes
    differ by one group at most: a small last one would weigh its groups more than the others. Batch k of all W
    processes together is batch k of one process with W times the batch size. All have equally many, and none is empty,
    for which a batch may have to be one group larger than `batch_groups` where that is 1.

    Lightning does not replace a `DistributedSampler`, and sets its epoch.

    Arguments:
        batch_groups: largest number of groups in a batch of one process.
        ranks, rank: how many processes train together, and which of them this is.
    """

    def __init__(self, dataset: Sized, seed: int, batch_groups: int, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank, seed=seed)  # type: ignore[arg-type]
        self._n_groups = len(dataset)
        self._n_batches = batches_per_epoch(self._n_groups, batch_groups, ranks)
        self._resume_point = (-1, 0)

    def resume(self, epoch: int, given: int) -> None:
        """Begin this epoch after a number of batches, and every other one from its start."""
        self._resume_point = (epoch, given)

    @property
    def start(self) -> int:
        """Batches of the present epoch that were given before it was resumed."""
        return self._resume_point[1] if self.epoch == self._resume_point[0] else 0

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        order = torch.randperm(self._n_groups, generator=generator)
        together = order.tensor_split(self._n_batches) if self._n_batches else ()
        return iter([batch[self.rank :: self.num_replicas].tolist() for batch in together][self.start :])


def batches_per_epoch(groups: int, batch_groups: int, ranks: int = 1) -> int:
    """Return the number of training batches that each process gets in an epoch."""
    return min(-(-groups // (ranks * batch_groups)), groups // ranks)


class InOrderSampler(DistributedSampler[GroupBatch]):
    """Every group once, in order, dealt out to the processes: no group twice, as padding would have it."""

    def __init__(self, dataset: GroupDataset, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank, shuffle=False)
        groups = range(len(dataset))
        # A process without groups would make the others wait; if there are too few groups, it repeats the first.
        self._indices = list(groups[rank::ranks]) or list(groups[:1])

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        return iter(self._indices)


class ResumableLoader(ThreadedLoader):
    """A loader of the batches of an `EpochBatchSampler` whose position within an epoch Lightning saves and resumes."""

    _batches_given = 0

    def __iter__(self) -> Iterator[GroupBatch]:  # type: ignore[override]
        # A generator, so that no thread reads the order before Lightning has set the epoch.
        assert isinstance(self.sampler, EpochBatchSampler)
        self._batches_given = self.sampler.start
        for batch in super().__iter__():
            self._batches_given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, and how many of its batches were given out."""
        assert isinstance(self.sampler, EpochBatchSampler)
        return {"epoch": self.sampler.epoch, "batches": self._batches_given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        assert isinstance(self.sampler, EpochBatchSampler)
        self.sampler.resume(state["epoch"], state["batches"])
