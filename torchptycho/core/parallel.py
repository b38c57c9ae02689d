"""Work shared among the cores of a CPU, a piece at a time to each of them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["in_turn"]

Piece = TypeVar("Piece")
Found = TypeVar("Found")

# Threads beyond this would wait for Python's lock.
_MOST_THREADS = 8


def in_turn(
    run: Callable[[Piece], Found], pieces: Sequence[Piece], *, alone: bool = False
) -> contextlib.closing[Generator[Found, None, None]]:
    """What `run` returns for each piece, in their order, while the cores compute the next ones.

    Each core has pieces of its own. Threads that share every operation wait for each other at the end of each, by
    spinning: where one of them is kept off its core by another program, the whole takes five times as long.

    Arguments:
        run: called by several threads at once, in the grad and inference mode of the calling one.
        pieces: as many as there are threads, and one more, are in work or wait for being taken.
        alone: one after the other in the calling thread, with all of torch's threads, as for a GPU.

    Returns:
        To be used by `with`: until then torch has fewer threads where it was called.
    """
    return contextlib.closing(_one_by_one(run, pieces) if alone else _at_once(run, pieces))


def _one_by_one(run: Callable[[Piece], Found], pieces: Sequence[Piece]) -> Generator[Found, None, None]:
    for piece in pieces:
        yield run(piece)


def _at_once(run: Callable[[Piece], Found], pieces: Sequence[Piece]) -> Generator[Found, None, None]:
    threads = torch.get_num_threads()
    at_once = max(1, min(threads, _MOST_THREADS, len(pieces)))
    each = -(-threads // at_once)
    at_once = -(-threads // each)
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def found(piece: Piece) -> Found:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return run(piece)

    # It holds for this thread, which would disturb the others, and for threads to come.
    torch.set_num_threads(each)
    pool = ThreadPoolExecutor(at_once)
    try:
        coming: deque[Future[Found]] = deque()
        for piece in pieces:
            coming.append(pool.submit(found, piece))
            if len(coming) > at_once:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
