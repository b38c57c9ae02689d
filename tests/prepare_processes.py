"""Preparing a store in a process of its own that can be killed, held up, or given little room."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from programs import CONTEXT

from torchptycho.core.config import GroupConfig, PrepareConfig, RunConfig
from torchptycho.core.errors import TorchptychoError
from torchptycho.core.scan import Scan
from torchptycho.data import writer as writing_module
from torchptycho.data.cache import StoreRequest
from torchptycho.data.prepare import append_scans, drop_scans, prepare
from torchptycho.io import read_scan

_TRACED_PATHS = ("/torchptycho/data/", "/torchptycho/io/", "/tensordict/memmap.py")


def make_config(val_fraction: float = 0.2) -> RunConfig:
    return RunConfig(prepare=PrepareConfig(val_fraction=val_fraction), group=GroupConfig(gridsize=1))


def prepare_file(scan: Path, store: Path, config: RunConfig) -> None:
    prepare([read_scan(scan, config.prepare)], config, store, request=StoreRequest.from_sources([scan], config))


def start_process(function: Callable[..., None], *arguments: Any) -> Any:
    process = CONTEXT.Process(target=function, args=arguments, daemon=True)
    process.start()
    # The other end is the child's alone, so that whoever listens hears when it ends without a word.
    for argument in arguments:
        if isinstance(argument, Connection):
            argument.close()
    return process


def prepare_until_killed(line: int | None, scan: Path, store: Path, told: Connection) -> None:
    """Prepare, and be killed before the line of that number is executed; tells the number of lines otherwise."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if not any(part in frame.f_code.co_filename for part in _TRACED_PATHS):
            return None
        if event == "line":
            lines += 1
            if lines == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    prepare_file(scan, store, make_config())
    sys.settrace(None)
    told.send(lines)


def append_and_drop(store: Path, scan: Scan, number: int, times: int) -> None:
    """Add a scan to a store, where it is that number, and take it out again."""
    for _ in range(times):
        append_scans(store, scan)
        drop_scans(store, [number])


def prepare_with_file_size_limit(largest_file: int, scan: Path, store: Path, told: Connection) -> None:
    """Prepare where no file can grow beyond so many bytes; tells the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    told.send(_catch_error(scan, store, make_config()))


def prepare_and_pause(scan: Path, store: Path, val_fraction: float, began: Any, go_on: Any, told: Connection) -> None:
    """Prepare, and wait among the frames; tells the error or None."""
    whole = writing_module.iter_checked_chunks

    def halting(*arguments: Any) -> Iterator[Any]:
        for chunk in whole(*arguments):
            began.set()
            go_on.wait()
            yield chunk

    writing_module.iter_checked_chunks = halting  # type: ignore[assignment]
    told.send(_catch_error(scan, store, make_config(val_fraction)))


def prepare_concurrently(scan: Path, store: Path, val_fraction: float, waits: Any, told: Connection) -> None:
    """Prepare; `waits` is set when another process is found at it; tells the error or None."""

    class _WaitDetector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "another process is preparing it" in record.getMessage():
                waits.set()

    logging.getLogger("torchptycho").addHandler(_WaitDetector())
    told.send(_catch_error(scan, store, make_config(val_fraction)))


def _catch_error(scan: Path, store: Path, config: RunConfig) -> str | None:
    try:
        prepare_file(scan, store, config)
    except TorchptychoError as error:
        return f"{type(error).__name__}: {error}"
    return None
