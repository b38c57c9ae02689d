"""The order in which groups are seen: the same for any number of processes, and known after an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from torchptycho.data.batch import GroupBatch
from torchptycho.data.dataset import GroupDataset
from torchptycho.data.loading import ThreadedLoader

__all__ = ["EpochOrder", "InOrder", "ResumableLoader"]


class EpochOrder(DistributedSampler[GroupBatch]):
    """A random order that depends on seed and epoch alone, dealt out to the processes in turn.

    Batch k of all W processes together is batch k of one process with W times the batch size. Of the remainder of a
    division by W nobody gets anything, so that all have as many; it is another remainder in every epoch.

    Lightning leaves a `DistributedSampler` as it is and tells it the epoch.
    """

    def __init__(self, dataset: GroupDataset, seed: int, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank, seed=seed, drop_last=True)
        self._resumed = (-1, 0)

    def resume(self, epoch: int, given: int) -> None:
        """Begin this epoch after so many groups, and every other one from its start."""
        self._resumed = (epoch, given)

    @property
    def start(self) -> int:
        """Groups of the present epoch that this process has had before it was resumed."""
        return self._resumed[1] if self.epoch == self._resumed[0] else 0

    def __len__(self) -> int:
        return len(self.dataset) // self.num_replicas  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        order = torch.randperm(len(self.dataset), generator=generator).tolist()  # type: ignore[arg-type]
        mine = order[: len(self) * self.num_replicas][self.rank :: self.num_replicas]
        return iter(mine[self.start :])


class InOrder(DistributedSampler[GroupBatch]):
    """Every group once, in order, dealt out to the processes: no group twice, as padding would have it."""

    def __init__(self, dataset: GroupDataset, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank, shuffle=False)
        groups = range(len(dataset))
        # A process without any would leave the others waiting; it repeats one where there are not enough.
        self._mine = list(groups[rank::ranks]) or list(groups[:1])

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        return iter(self._mine)


class ResumableLoader(ThreadedLoader):
    """A loader over `EpochOrder` that Lightning saves in the middle of an epoch and that goes on from there."""

    _given = 0

    def __iter__(self) -> Iterator[GroupBatch]:  # type: ignore[override]
        # A generator: nothing, not even a thread, looks at the order before Lightning has told the epoch.
        assert isinstance(self.sampler, EpochOrder)
        assert self.batch_size is not None
        self._given = self.sampler.start // self.batch_size
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches were given out."""
        assert isinstance(self.sampler, EpochOrder)
        return {"epoch": self.sampler.epoch, "batches": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        assert isinstance(self.sampler, EpochOrder)
        assert self.batch_size is not None
        self.sampler.resume(state["epoch"], state["batches"] * self.batch_size)
