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
    """A loader whose batches are gathered in advance by threads, in the order of the sampler.

    Threads suffice, because gathering copies memory or waits for the disk, which threads can do in parallel. Sending a
    batch from another process would take longer than gathering it.

    Arguments:
        threads: 0 gathers each batch when it is requested.
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
