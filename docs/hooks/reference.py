"""Pages that the code itself writes: every key of the configuration, every command's help, every public name."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union

import annotated_types
from pydantic.fields import FieldInfo

import torchptycho
from torchptycho.cli.app import main
from torchptycho.cli.command_table import COMMANDS
from torchptycho.core.config import MappingConfig, PrepareConfig, ReadConfig, RunConfig, SimulateConfig

__all__ = ["PAGES", "api", "commands", "configuration", "documented", "sections"]

_HELP_COLUMNS = "100"


def sections() -> dict[str, type]:
    """Every section of a configuration file, what stands inside them, and what only the command line takes."""
    names = typing.get_type_hints(RunConfig)
    return {**names, "prepare.mapping": MappingConfig, "simulation": SimulateConfig}


def documented(kind: type) -> dict[str, str]:
    """The docstring of each field, of base classes too, in one line."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


def configuration() -> str:
    """Every key with what it takes, its default and its meaning."""
    lines = [
        "# Configuration",
        "",
        "Written from the code by `docs/hooks/reference.py`. A configuration file has these sections, in YAML or "
        "TOML; a key that is not said keeps its default, and an unknown one is an error that names the nearest.",
        "",
        "Every key is also an option of the commands named below its section: `--` and its name with hyphens, so "
        "`batch_size: 32` is `--batch-size 32`, and `true` and `false` are `--smooth` and `--no-smooth` for a key "
        "`smooth`. Flags override the file. In Python each section is a class, and `RunConfig` holds them all.",
        "",
    ]
    for name, kind in sections().items():
        lines += [f"## {name}", "", f"`{kind.__name__}`. {_escaped(inspect.cleandoc(kind.__doc__ or ''))}", ""]
        users = [command for command, its in COMMANDS.items() if _takes(its, kind)]
        if users:
            lines += ["Options of " + ", ".join(f"`{user}`" for user in users) + ".", ""]
        if kind is PrepareConfig:
            readers = [command for command, its in COMMANDS.items() if _takes(its, ReadConfig)]
            lines += [
                "Those of `ReadConfig` (marked with R) hold wherever a scan is opened: also in "
                + ", ".join(f"`{reader}`" for reader in readers)
                + ".",
                "",
            ]
        lines += ["| key | takes | default | meaning |", "|---|---|---|---|"]
        reading = {field.name for field in dataclasses.fields(ReadConfig)} if kind is PrepareConfig else set()
        meanings = documented(kind)
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            mark = " R" if field.name in reading else ""
            lines.append(
                f"| `{field.name}`{mark} | {_takes_text(hints[field.name])} | {_default_text(field)} "
                f"| {_escaped(meanings[field.name])} |"
            )
        lines.append("")
    return "\n".join(lines)


def commands() -> str:
    """What `--help` of the program and of every command says."""
    lines = ["# Commands", "", "What `torchptycho --help` and `torchptycho COMMAND --help` say.", ""]
    lines += ["```text", _help(["--help"]), "```", ""]
    for name in COMMANDS:
        lines += [f"## {name}", "", "```text", _help([name, "--help"]), "```", ""]
    return "\n".join(lines)


def api() -> str:
    """Every public name, for mkdocstrings to fill in."""
    lines = ["# Python", "", "Every public name of `torchptycho`, with the module where it lives.", ""]
    for name in torchptycho.__all__:
        lines += [f"::: torchptycho.{torchptycho._MODULE_OF[name]}.{name}", ""]
    return "\n".join(lines)


PAGES = {"reference/configuration.md": configuration, "reference/commands.md": commands, "reference/python.md": api}
"""Path within docs/ of each page, and the function that writes it."""


def _takes(command: type, kind: type) -> bool:
    return any(found is kind for found in typing.get_type_hints(command).values())


def _takes_text(hint: Any) -> str:
    """A type with its limits, in words."""
    return _escaped(" or ".join(_alternatives(hint, ())))


def _alternatives(hint: Any, limits: Iterable[Any]) -> Iterator[str]:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        yield from _alternatives(hint.__origin__, [*limits, *_flat(hint.__metadata__)])
    elif origin in (Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _alternatives(part, limits)
    elif origin is Literal:
        yield ", ".join(f"`{value}`" for value in typing.get_args(hint))
    elif origin is tuple:
        inner = typing.get_args(hint)
        one = " or ".join(_alternatives(inner[0], ()))
        yield f"list of {one}" if inner[-1] is Ellipsis else f"{len(inner)} times {one}"
    elif hint is type(None):
        yield "none"
    elif dataclasses.is_dataclass(hint):
        yield "a section of its own"
    else:
        words = {int: "integer", float: "number", bool: "`true`, `false`", str: "text"}
        yield f"{words[hint]} {', '.join(_limits_text(limits))}".rstrip()


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for one in metadata:
        yield from one.metadata if isinstance(one, FieldInfo) else [one]


def _limits_text(limits: Iterable[Any]) -> Iterator[str]:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    for limit in limits:
        for name, sign in signs.items():
            if isinstance(limit, annotated_types.BaseMetadata) and hasattr(limit, name):
                yield f"{sign} {getattr(limit, name):g}"
        if isinstance(limit, annotated_types.MultipleOf):
            yield f"multiple of {limit.multiple_of}"
        if pattern := getattr(limit, "pattern", None):
            yield f"like `{pattern}`"


def _default_text(field: dataclasses.Field[Any]) -> str:
    value = field.default.default if isinstance(field.default, FieldInfo) else field.default
    if value is dataclasses.MISSING:
        return "must be given"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _help(arguments: list[str]) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _HELP_COLUMNS
    out = io.StringIO()
    try:
        # The option parser leaves by SystemExit.
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main(arguments)
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
