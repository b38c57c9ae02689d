"""A refinement in several processes: started here, one for each device, or by torchrun or Slurm."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, ProcessRaisedException, start_processes

from torchptycho.core.errors import StoreError, TorchptychoError
from torchptycho.core.launched import LaunchedProcess
from torchptycho.core.text import format_error
from torchptycho.io.frames.shared_frames import share_frames
from torchptycho.reconstructors.iterative.reducer import GroupReducer, OneProcess, Reducer

__all__ = [
    "Notify",
    "ProcessGroupRun",
    "Work",
    "join_launched_group",
    "open_folder",
    "run_side_by_side",
    "start_refinement",
]

_POLL_S, _WAIT_FOR_CAUSE_S = 0.05, 5.0
_LOG = "torchptycho"
# A forked process could not use a GPU.
_START_METHOD = "spawn"

Notify = Callable[[str, Any], None]
"""Sends the first process' news, a word and what comes with it, to the process that started it."""
Work = Callable[[Any, torch.device, Reducer, Notify], Any]
"""What each process does: with its order, its device, the others, and a way to send news. It can be pickled."""


class ProcessGroupRun:
    """Processes that share one piece of work, started by this one, which hears what happens.

    They are spawned, so a script that uses them needs `if __name__ == "__main__":`.

    Arguments:
        work: what each of them does.
        order: what it is given.
        devices: one for each process.
        folder: for the meeting of the processes; it stays until they have ended.
        on_news: called in this process with what the first one sends.
    """

    def __init__(
        self, work: Work, order: Any, devices: list[torch.device], folder: Path, on_news: Notify | None = None
    ) -> None:
        self._on_news, self._n_processes = on_news, len(devices)
        context = torch.multiprocessing.get_context(_START_METHOD)
        self._queue = context.Queue()
        n_threads = max(1, torch.get_num_threads() // len(devices))
        arguments = (work, order, devices, str(folder / "meeting"), n_threads, self._queue)
        self._processes: ProcessContext = start_processes(  # type: ignore[no-untyped-call]
            _run_member, arguments, nprocs=len(devices), join=False, start_method=_START_METHOD
        )
        self._is_done, self._is_interrupted, self._result = False, False, None
        self._error: BaseException | None = None

    def poll(self) -> bool:
        """Pass on what has happened since; return True when all processes have ended well.

        Raises:
            TorchptychoError: one of them ended with it, or was ended; the others have been ended too.
            FloatingPointError: what is fitted is no longer finite.
        """
        if self._is_done:
            return True
        self._take_news()
        # It tells of the processes that it ends, which the error does.
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
        try:
            self._is_done = self._processes.join(timeout=_POLL_S)
        except (ProcessExitedException, ProcessRaisedException) as error:
            self._take_news()
            self._is_done = True
            raise self._explain(error) from None
        if self._is_done:
            self._take_news()
        return self._is_done

    @property
    def result(self) -> Any:
        """What the first process returned."""
        return self._result

    def interrupt(self) -> None:
        """Ask the processes to end with what they have."""
        self._is_interrupted = True
        for process in self._processes.processes:
            if process.is_alive() and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)

    def end(self) -> None:
        """End all processes that still run, at once."""
        for process in self._processes.processes:
            if process.is_alive():
                process.terminate()
        for process in self._processes.processes:
            process.join()
        self._queue.close()

    def _take_news(self) -> None:
        while True:
            try:
                kind, content = self._queue.get(timeout=0.001)
            except queue.Empty:
                return
            if kind == "result":
                self._result = content
            elif kind == "error":
                self._error = self._error or content
            elif kind == "log":
                logging.getLogger(content.name).handle(content)
            elif self._on_news is not None:
                self._on_news(kind, content)

    def _explain(self, error: BaseException) -> BaseException:
        if self._is_interrupted and self._error is None:
            return KeyboardInterrupt()
        if self._error is not None:
            return self._error
        reason = str(error).strip().splitlines()[-1]
        return StoreError(
            f"devices: one of the {self._n_processes} processes that shared the frames ended: {reason}. Continue from "
            "the last state with resume, or use fewer devices, so that each has more memory."
        )


def start_refinement(
    work: Work, order: Any, devices: list[torch.device], folder: Path, on_news: Notify | None = None
) -> ProcessGroupRun:
    """Start processes for an order that holds a scan, whose frames they can open.

    Arguments:
        folder: of its own, see `ProcessGroupRun`; frames that an array holds are copied to it.
    """
    # A ground truth is not refined with, and may be as large as the frames.
    scan = dataclasses.replace(
        order.scan,
        frames=share_frames(order.scan.frames, folder / "frames"),
        truth=None,
        truth_patches=None,
    )
    return ProcessGroupRun(work, dataclasses.replace(order, scan=scan), devices, folder, on_news)


def run_side_by_side(runs: list[ProcessGroupRun]) -> list[Any]:
    """Wait for all of these to end, and return their results. Ctrl+C asks all to end with what they have.

    Raises:
        TorchptychoError: one of them failed; the others are ended.
        KeyboardInterrupt: they were interrupted before they had anything.
    """
    try:
        _wait(runs)
    except KeyboardInterrupt:
        for run in runs:
            run.interrupt()
        _wait(runs)
    finally:
        for run in runs:
            run.end()
    results = [run.result for run in runs]
    if any(result is None for result in results):
        raise KeyboardInterrupt
    return results


def _wait(runs: list[ProcessGroupRun]) -> None:
    waiting = runs
    while waiting:
        waiting = [run for run in waiting if not run.poll()]


def _run_member(
    rank: int, work: Work, order: Any, devices: list[torch.device], meeting: str, n_threads: int, news: Any
) -> None:
    """Do the work of one process; the first sends its news."""
    device = devices[rank]
    log = logging.getLogger(_LOG)
    log.propagate = False
    log.addHandler(_NewsHandler(news) if rank == 0 else logging.NullHandler())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(n_threads)
    try:
        with contextlib.ExitStack() as stack:
            reducer: Reducer = OneProcess()
            if len(devices) > 1:
                reducer = stack.enter_context(_join_group(device, rank, len(devices), f"file://{meeting}"))
            result = work(order, device, reducer, lambda kind, content: news.put((kind, content)))
        if rank == 0:
            news.put(("result", result))
    except TorchptychoError as error:
        # With the text alone, because not every error can be sent.
        news.put(("error", _copy_error(error)))
        raise
    except FloatingPointError as error:
        news.put(("error", FloatingPointError(str(error))))
        raise
    except RuntimeError as error:
        if _has_lost_others(error):
            # The one that ended first is reported; this one is ended meanwhile.
            time.sleep(_WAIT_FOR_CAUSE_S)
        raise


def _has_lost_others(error: RuntimeError) -> bool:
    """Return whether a process could not reach the others."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error) or "onnection" in str(error)


def _copy_error(error: TorchptychoError) -> TorchptychoError:
    """Return an error of the same text, and of the same class where that needs no more than the text."""
    return type(error)(str(error)) if type(error).__init__ is Exception.__init__ else TorchptychoError(str(error))


class _NewsHandler(QueueHandler):
    """Sends log records, as text, to the process that started this one."""

    def enqueue(self, record: logging.LogRecord) -> None:
        news: Any = self.queue
        news.put(("log", record))


@contextlib.contextmanager
def _join_group(device: torch.device, rank: int, size: int, meeting: str) -> Iterator[Reducer]:
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=size)
    handler = signal.getsignal(signal.SIGINT)
    try:
        reducer = GroupReducer(device)
        reducer.watch_interrupts()
        yield reducer
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        distributed.destroy_process_group()


@contextlib.contextmanager
def join_launched_group(process: LaunchedProcess, device: torch.device) -> Iterator[tuple[torch.device, Reducer]]:
    """Join the processes that a launcher has started, until the block ends, each with its device of its machine.

    Raises:
        StoreError: the first of them does not answer, or one of them ended.
    """
    if device.type == "cuda":
        device = torch.device("cuda", process.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    meeting = "env://" if process.address is None else "tcp://{}:{}".format(*process.address)
    try:
        with _join_group(device, process.rank, process.size, meeting) as reducer:
            yield device, reducer
    except RuntimeError as error:
        if not _has_lost_others(error):
            raise
        raise StoreError(
            f"devices: process {process.rank} of {process.size} lost the others ({format_error(error)}). See the "
            "output of the one that ended first; continue from the last state with resume."
        ) from error


@contextlib.contextmanager
def open_folder(scratch: str | Path | None) -> Iterator[Path]:
    """Open a temporary folder for the meeting of processes and for frames that they share."""
    with tempfile.TemporaryDirectory(prefix=".torchptycho-", dir=scratch) as folder:
        yield Path(folder)
