"""A loader whose batches are gathered by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.utils.data import DataLoader

from torchptycho.data.batch import GroupBatch

__all__ = ["ThreadedLoader"]

# Number of prefetched batches per thread, so that no thread waits for training.
_QUEUED_PER_THREAD = 2


class ThreadedLoader(DataLoader[GroupBatch]):
    """A loader whose batches threads gather ahead of their use, in the order of the sampler.

    Threads and not processes: to gather is to copy memory or to wait for the disk, both of which other threads can do
    meanwhile, whereas what a process has gathered must be sent, which takes longer than to gather it.

    Arguments:
        threads: 0 gathers each batch when it is asked for.
    """

    def __init__(self, *arguments: Any, threads: int = 0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.threads = threads

    def __iter__(self) -> Iterator[GroupBatch]:  # type: ignore[override]
        return self._iterate_ahead() if self.threads else super().__iter__()

    def _iterate_ahead(self) -> Iterator[GroupBatch]:
        gather = self.dataset.__getitems__  # type: ignore[attr-defined]
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="torchptycho-batches")
        pending: deque[Future[GroupBatch]] = deque()
        try:
            # No batch size, because the sampler yields whole batches.
            for indices in self.sampler if self.batch_sampler is None else self.batch_sampler:
                pending.append(pool.submit(gather, indices))
                if len(pending) > _QUEUED_PER_THREAD * self.threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
