"""Work shared among the cores of a CPU, a piece at a time to each of them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["ordered_map"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# More threads would only wait for Python's global lock.
_MAX_THREADS = 8


def ordered_map(
    run: Callable[[Item], Result], pieces: Sequence[Item], *, serial: bool = False
) -> contextlib.closing[Generator[Result, None, None]]:
    """Yield what `run` returns for each item, in order, while the cores compute the next ones.

    Each core processes separate items. Threads that share every operation would wait for each other by spinning at the
    end of each operation, which takes five times as long if another program uses one of the cores.

    Arguments:
        run: called by several threads at once, in the grad and inference mode of the calling one.
        pieces: the items, of which at most one more than the number of threads are in work or waiting.
        alone: one after the other in the calling thread, with all of torch's threads, as for a GPU.

    Returns:
        A context manager; inside it torch has fewer threads in the calling thread.
    """
    return contextlib.closing(_map_serially(run, pieces) if serial else _map_in_threads(run, pieces))


def _map_serially(run: Callable[[Item], Result], pieces: Sequence[Item]) -> Generator[Result, None, None]:
    for piece in pieces:
        yield run(piece)


def _map_in_threads(run: Callable[[Item], Result], pieces: Sequence[Item]) -> Generator[Result, None, None]:
    threads = torch.get_num_threads()
    at_once = max(1, min(threads, _MAX_THREADS, len(pieces)))
    each = -(-threads // at_once)
    at_once = -(-threads // each)
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def run_item(piece: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return run(piece)

    # The setting applies to this thread and to threads created later.
    torch.set_num_threads(each)
    pool = ThreadPoolExecutor(at_once)
    try:
        coming: deque[Future[Result]] = deque()
        for piece in pieces:
            coming.append(pool.submit(run_item, piece))
            if len(coming) > at_once:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
