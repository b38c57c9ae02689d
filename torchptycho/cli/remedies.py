"""Messages of the library in the words of one command: a remedy names only options that the command has."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import re
import typing
from collections.abc import Iterator
from typing import Any

import tyro

from torchptycho.cli.base import Command
from torchptycho.core.config import ReadConfig
from torchptycho.core.text import format_error

__all__ = ["adapt_logs", "adapt_message", "collect_options", "describe_error"]

_OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
# What stands in backticks is another command with options of its own.
_QUOTED = re.compile(r"`[^`]*`")
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z'\"`(])")
_BETWEEN_CHOICES = re.compile(r",? or (?!more\b)|; ")
_PARENTHESIS = re.compile(r"\s*\([^()]*\)")


def collect_options(kind: type[Command]) -> frozenset[str]:
    """Collect the options of a command as they are typed."""
    names: set[str] = {"--help", "--debug", "--version", "--completion"}
    for field, place in _iterate_fields(kind):
        hidden, name = False, field.name
        for mark in getattr(place, "__metadata__", ()):
            hidden = hidden or mark in (tyro.conf.Positional, tyro.conf.Suppress)
            name = getattr(mark, "name", None) or name
        if not hidden:
            names |= {f"--{name.replace('_', '-')}", f"--no-{name.replace('_', '-')}"}
    return frozenset(names)


def adapt_message(message: str, kind: type[Command]) -> str:
    """Leave out of a message what names options that the command does not have.

    The first sentence says what is wrong and stays; of the remedies after it those remain that are of use here.
    """
    options = collect_options(kind)
    if not _find_foreign(message, options):
        return message
    first, *remedies = _BETWEEN_SENTENCES.split(message)
    kept, dropped = [], set(_find_foreign(" ".join(remedies), options))
    for sentence in remedies:
        choices = [part for part in _BETWEEN_CHOICES.split(sentence) if not _find_foreign(part, options)]
        if choices:
            text = ", or ".join(choices).strip()
            kept.append(text[:1].upper() + text[1:] + ("" if text[-1] in ".!?" else "."))
    if dropped & _list_reading_options():
        kept.append(kind.SCAN_REMEDY)
    return " ".join([_strip_foreign(first, options), *kept])


def describe_error(error: BaseException, kind: type[Command]) -> str:
    """Return the text of an error in one line, with the remedies that the command has."""
    return adapt_message(format_error(error), kind)


@contextlib.contextmanager
def adapt_logs(kind: type[Command]) -> Iterator[None]:
    """Adapt the records that are logged while the block runs."""

    def adapt(record: logging.LogRecord) -> bool:
        record.msg, record.args = adapt_message(record.getMessage(), kind), ()
        return True

    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(adapt)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(adapt)


@functools.cache
def _list_reading_options() -> frozenset[str]:
    return frozenset(f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(ReadConfig))


def _iterate_fields(kind: type) -> Iterator[tuple[dataclasses.Field[object], object]]:
    """Iterate over the fields of a command, with their types, and over those of its sections in their place."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        section: Any = field.default_factory
        if isinstance(section, type) and dataclasses.is_dataclass(section):
            yield from _iterate_fields(section)
        else:
            yield field, hints[field.name]


def _find_foreign(text: str, options: frozenset[str]) -> list[str]:
    return [option for option in _OPTION.findall(_QUOTED.sub("", text)) if option not in options]


def _strip_foreign(sentence: str, options: frozenset[str]) -> str:
    """Leave out parentheses with other options, and name others without the dashes with which they are typed."""
    sentence = _PARENTHESIS.sub(lambda found: "" if _find_foreign(found.group(), options) else found.group(), sentence)
    return _OPTION.sub(lambda found: found.group() if found.group() in options else found.group()[2:], sentence)
