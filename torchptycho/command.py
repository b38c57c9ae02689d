"""What all commands of the command line share."""

from __future__ import annotations

from rich.console import Console
from rich.status import Status

__all__ = ["Command"]


class Command:
    """One command; a dataclass derives from it, its fields become arguments and options.

    Fields named as sections of `RunConfig` take their defaults from the file given with `--config`.
    """

    def run(self) -> None:
        raise NotImplementedError

    @property
    def console(self) -> Console:
        return Console(highlight=False, soft_wrap=True)

    def working(self, what: str) -> Status:
        """A sign of life on standard error, where that is a terminal, for work whose length is not known beforehand."""
        return Console(stderr=True).status(what)
