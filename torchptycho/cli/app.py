"""The command line: `torchptycho COMMAND`, a thin layer over the Python functions of the same names."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.metadata
import inspect
import io
import itertools
import logging
import re
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from torchptycho.cli.base import NEXT_TO_RESULT, Command
from torchptycho.cli.command_table import COMMAND_GROUPS, COMMANDS
from torchptycho.cli.remedies import adapt_logs, describe_error
from torchptycho.core.config import RunConfig, load_config
from torchptycho.core.errors import ConfigError, TorchptychoError
from torchptycho.core.text import format_error

__all__ = ["main"]

_EPILOGUE = """
torchptycho COMMAND --help describes one command; --debug shows tracebacks and
the log; --version; --completion bash (zsh, fish) prints a completion script."""

_SHELLS = ("bash", "zsh", "fish")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 for a user's mistake (one line says which), 2 for a bad option, and
    3 where frames of a watched scan were lost."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_make_overview())
        return 0
    if argv[0] == "--version":
        sys.stdout.write(f"torchptycho {_get_version()}\n")
        return 0
    if argv[0] == "--completion":
        return _print_completion(argv[1:])
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(levelname)s: %(message)s")
    kind = COMMANDS.get(argv[0])
    try:
        with contextlib.nullcontext() if kind is None else adapt_logs(kind):
            _parse(argv).run()
    except BrokenPipeError:
        raise
    except (TorchptychoError, OSError, FloatingPointError) as error:
        if debug:
            raise
        sys.stderr.write(f"torchptycho: {format_error(error) if kind is None else describe_error(error, kind)}\n")
        return error.exit_code if isinstance(error, TorchptychoError) else 1
    except (MemoryError, RuntimeError) as error:
        # torch.OutOfMemoryError is recognised by name, to avoid the import.
        if debug or not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
            raise
        sys.stderr.write("torchptycho: there is not enough memory for this; try smaller batches, or fewer devices.\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("torchptycho: interrupted\n")
        return 130
    return 0


def _get_version() -> str:
    try:
        return importlib.metadata.version("torchptycho")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _make_overview() -> str:
    lines = ["Ptychography in PyTorch: from a scan file to an image.", "usage: torchptycho COMMAND"]
    grouped = {name for names in COMMAND_GROUPS.values() for name in names}
    rest = tuple(name for name in COMMANDS if name not in grouped)
    for purpose, names in {**COMMAND_GROUPS, "the rest": rest}.items():
        lines.append(f"{purpose}:")
        lines += [f"  {name:<12} {(COMMANDS[name].__doc__ or '').splitlines()[0]}" for name in names]
    return "\n".join(lines) + "\n" + _EPILOGUE + "\n"


def _make_description(kind: type[Command]) -> str:
    """Make the help text of a command; its examples keep their lines."""
    lines = inspect.cleandoc(kind.__doc__ or "").splitlines()
    return "\n".join(f"  {line}" if line.startswith("torchptycho ") else line for line in lines)


def _print_completion(rest: Sequence[str]) -> int:
    if len(rest) != 1 or rest[0] not in _SHELLS:
        sys.stderr.write(f"torchptycho: --completion: expected one of {', '.join(_SHELLS)}; found {' '.join(rest)}.\n")
        return 1
    script = io.StringIO()
    # "-" is standard output; tyro then raises SystemExit.
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            dict(COMMANDS),
            prog="torchptycho",
            args=["--tyro-write-completion", rest[0], "-"],
            config=(tyro.conf.OmitArgPrefixes,),
        )
    for line in script.getvalue().splitlines():
        # A description of two lines would be offered as two options (tyro 1.0).
        sys.stdout.write((re.sub(r"\\n *", " ", line) if line.startswith("COMPLETION_SPEC = ") else line) + "\n")
    return 0


def _parse(argv: Sequence[str]) -> Command:
    """Parse a command line: flags override the configuration file, which overrides the defaults."""
    name, rest = argv[0], list(argv[1:])
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"Commands: {', '.join(COMMANDS)}."
        raise ConfigError(f"unknown command '{name}'. {hint}")
    kind = COMMANDS[name]
    takes_file = "config" in {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    config = _load_config_file(rest) if takes_file else None
    rest = _insert_file_names(rest, kind.OPTIONAL_FILE_SUFFIXES)
    return tyro.cli(  # type: ignore[return-value]
        kind,
        args=rest,
        prog=f"torchptycho {name}",
        description=_make_description(kind),
        default=None if config is None else _apply_config(kind, config),
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _insert_file_names(arguments: Sequence[str], optional: dict[str, str]) -> list[str]:
    """Complete options that may stand without a file name: what follows is their file only when it has the right
    ending, so that `--report scan.npz` does not take the scan for the report."""
    out: list[str] = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        out.append(argument)
        ending = optional.get(argument)
        if ending is not None and not (following or "").lower().endswith((ending, ending[:-1], NEXT_TO_RESULT)):
            out.append(NEXT_TO_RESULT)
    return out


def _apply_config(kind: type[Command], config: RunConfig) -> Command:
    """Build the command with the sections of a configuration file; its other fields keep their defaults."""
    # Set after construction, because the field types do not allow tyro's placeholder.
    command = object.__new__(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value: Any = tyro.MISSING
        # Except `watch --model`, which is a file and only has the name of a section.
        section = field.default_factory is not dataclasses.MISSING
        if section and hasattr(config, field.name):
            value = getattr(config, field.name)
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        object.__setattr__(command, field.name, value)
    return command


def _load_config_file(arguments: Sequence[str]) -> RunConfig | None:
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        if argument.startswith("--config="):
            return load_config(argument.partition("=")[2])
        if argument == "--config":
            if following is None:
                raise ConfigError("--config: expected a file; found nothing.")
            return load_config(following)
    return None
