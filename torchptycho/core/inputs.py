"""Checks of the types of arguments, whose errors are of one line."""

from __future__ import annotations

import os
from pathlib import Path

from torchptycho.core.errors import ConfigError

__all__ = ["as_path", "describe_type", "require_type"]


def as_path(value: object, name: str, expected: str = "the path of a file") -> Path:
    """Return a path.

    Arguments:
        name: of the argument.
        expected: what else would do, for the error.

    Raises:
        ConfigError: it is not a path.
    """
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str) and path and "\0" not in path:
            return Path(path)
    raise ConfigError(f"{name}: expected {expected}; found {describe_type(value)}.")


def require_type(value: object, kind: type, name: str) -> None:
    """Refuse, by ConfigError, an argument of another type."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name}: expected a {kind.__name__}; found {describe_type(value)}.")


def describe_type(value: object) -> str:
    """Describe a value of a wrong type in a few words."""
    if value is None or isinstance(value, str | int | float | bool):
        return repr(value)[:60]
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__}{'' if shape is None else f' of shape {tuple(shape)}'}"
