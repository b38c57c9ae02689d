"""Programs in processes that are forked from one which has imported the package; to import it takes each seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

from torchptycho.cli.app import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torchptycho.cli.app",
        "torchptycho.data.prepare",
        "torchptycho.io.formats.npz",
        "torchptycho.live",
        "torchptycho.live.replay",
        "torchptycho.live.watch_session",
        "torchptycho.training.train",
        "scipy.spatial",
        "scipy.ndimage",
        "pytest",
    ]
)


class Program:
    """A script, or the command line where there is none, in a process of its own.

    Arguments:
        folder: gets what it prints.
        environment: what it finds in addition to this process's environment.
    """

    def __init__(
        self, *arguments: object, folder: Path, script: Path | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self._printed = folder / "stdout.txt", folder / "stderr.txt"
        given = os.environ | (environment or {})
        self._process = CONTEXT.Process(
            target=_run, args=(script, [str(argument) for argument in arguments], self._printed, given), daemon=True
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it has ended; return what it printed to stdout and stderr."""
        self._process.join(timeout)
        assert self.returncode is not None, f"it has not ended within {timeout} s"
        out, err = (path.read_text(encoding="utf-8") for path in self._printed)
        return out, err

    def end(self) -> None:
        if self.returncode is None:
            self._process.kill()
        self._process.join()


def _run(script: Path | None, arguments: list[str], printed: tuple[Path, Path], environment: dict[str, str]) -> None:
    for path, number in zip(printed, (1, 2), strict=True):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    if script is None:
        sys.exit(main(arguments))
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")
