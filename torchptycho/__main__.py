"""The program `torchptycho`, also as `python -m torchptycho`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["run"]

_INTERRUPTED = 128 + signal.SIGINT
# As a shell reports a program that was ended by SIGPIPE, which Windows does not have.
_PIPE_CLOSED = 128 + 13


def run() -> int:
    """Run the command line of this process; return its exit code.

    Ctrl+C ends it with one line from the first import on. A reader of its output that leaves early, as `head`, ends
    it quietly.
    """
    try:
        code = _run_command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("torchptycho: interrupted\n")
        code = _INTERRUPTED
    except BrokenPipeError:
        # Python would try to write what is still buffered, and report that it cannot.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _PIPE_CLOSED
    return code


def _run_command() -> int:
    usual = signal.getsignal(signal.SIGINT)
    # Libraries turn an interrupt within their import into errors of their own.
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        from torchptycho.cli.app import main
    finally:
        signal.signal(signal.SIGINT, usual)
    try:
        return main()
    except SystemExit as left:  # how the parser of options ends
        return left.code if isinstance(left.code, int) else int(left.code is not None)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"torchptycho: interrupted\n")
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(run())
