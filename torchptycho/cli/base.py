"""Common base of all commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.console import Console, RenderableType
from rich.status import Status

from torchptycho.core.errors import ConfigError
from torchptycho.io.storage.outputs import check_output_file, refuse_inputs
from torchptycho.visualization.tables import to_json

__all__ = [
    "NEXT_TO_RESULT",
    "Command",
    "ModelCommand",
    "NextToResult",
    "WritingCommand",
    "require_png",
    "split_checkpoint",
]

NextToResult = Literal["beside"]
NEXT_TO_RESULT: NextToResult = "beside"
"""Value of an option for a file that is given without a name: next to the result, with the result's name."""


def require_png(option: str, path: Path | None) -> None:
    """Refuse the name of a figure that does not end in .png, before anything is computed."""
    if path is not None and path.suffix.lower() != ".png":
        raise ConfigError(f"{option}: expected a file whose name ends in .png; found {path}.")


class _Console(Console):
    """A console that leaves a reader who has gone to the program, which ends quietly."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Command:
    """One command; a dataclass derives from it, its fields become arguments and options.

    Fields named as sections of `RunConfig` take their defaults from the file given with `--config`.
    """

    OPTIONAL_FILE_SUFFIXES: ClassVar[dict[str, str]] = {}
    """Options that may stand without a file's name, and how a name ends that follows them."""

    SCAN_REMEDY: ClassVar[str] = "Correct the scan file first: `torchptycho convert` has options for that."
    """What to do where a scan needs an option of reading that the command does not have."""

    def run(self) -> None:
        raise NotImplementedError

    @property
    def console(self) -> Console:
        # Markup is disabled: [3, 4] is a pixel and torchptycho[wandb] a package, not a style.
        return _Console(highlight=False, soft_wrap=True, markup=False)

    def print_result(self, values: dict[str, Any], *lines: RenderableType, json: bool) -> None:
        """Print the result on standard output: for people its lines, for scripts its values as one JSON object."""
        if json:
            self.console.print_json(to_json(values))
            return
        for line in lines:
            self.console.print(line)

    def show_status(self, what: str) -> Status:
        """Show progress on standard error, if that is a terminal, for work of unknown length."""
        return Console(stderr=True).status(what)


def split_checkpoint(inputs: tuple[Path, ...]) -> tuple[Path | None, tuple[Path, ...]]:
    """Split arguments into the checkpoint, None where none is named, and the scans."""
    from torchptycho.models.checkpoints import names_network

    if not inputs:
        raise ConfigError("expected a scan file, after a checkpoint if there is one; found nothing.")
    first, *rest = inputs
    if names_network(first) or (rest and not first.is_file()):
        return first, tuple(rest)
    return None, inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCommand(Command):
    """Options of the commands that load a trained network."""

    trust_generator: bool = False
    """Import the generator that the network's file names as package.module:Class, which runs that module; without it
    only registered generators are used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WritingCommand(Command):
    """Options of the commands that write files."""

    overwrite: bool = False
    """Replace files that exist. Without it they are kept, and the command ends before it computes anything."""

    def claim_files(
        self, option: str, *files: Path | None, inputs: Iterable[Path] = (), resumes: bool | None = None
    ) -> None:
        """Refuse files that the command may not or cannot write, before anything is computed.

        Arguments:
            option: that names the first of them.
            files: to write, None for one that is not asked for.
            inputs: files that the command reads.
            resumes: whether the command continues what made these files; None when it cannot.
        """
        named = [file for file in files if file is not None]
        refuse_inputs(named, inputs, option=option)
        choices = "Choose another name, or replace it with --overwrite."
        for file in named:
            check_output_file(
                file,
                option=option,
                replace=self.overwrite or bool(resumes),
                remedy=choices if resumes is None else f"Continue with --resume, where this was interrupted. {choices}",
            )
