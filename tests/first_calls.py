"""Type checks of the first calls of every function in every test.

A refinement calls the same fifty functions tens of thousands of times with arrays of the same shapes, and checking all
of these calls takes longer than computing them. `CHECK_CALLS=all` checks every call.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar

from beartype import BeartypeConf, beartype

_LIMIT = {"all": sys.maxsize}.get(os.environ.get("CHECK_CALLS", ""), 50)
# An int may stand where a float is expected (PEP 484).
_CONFIG = BeartypeConf(is_pep484_tower=True)


class _Unchecked:
    """Functions that had their checks in the test that runs."""

    test = 0
    functions: ClassVar[set[FunctionType]] = set()


def check_first_calls(signature: Callable[..., Any]) -> Callable[..., Any]:
    """Check arguments as beartype does, in the first calls of a test; jaxtyping's type checker."""
    checked: Callable[..., Any] | None = None
    test = calls = 0

    def check(*arguments: Any, **options: Any) -> Any:
        nonlocal checked, test, calls
        # Most functions of the package are never called in a process.
        checked = checked or beartype(conf=_CONFIG)(signature)
        test, calls = _Unchecked.test, calls + 1 if test == _Unchecked.test else 1
        if calls == _LIMIT and (function := _find_function(signature)):
            function.__no_type_check__ = True  # type: ignore[attr-defined]
            _Unchecked.functions.add(function)
        return checked(*arguments, **options)

    return check


def check_again() -> None:
    """Check the next calls of all functions."""
    _Unchecked.test += 1
    for function in _Unchecked.functions:
        function.__no_type_check__ = False  # type: ignore[attr-defined]
    _Unchecked.functions.clear()


def _find_function(signature: Callable[..., Any]) -> FunctionType | None:
    """Find the function that jaxtyping made a signature for; None for one within another function."""
    found: Any = sys.modules.get(signature.__module__)
    for name in signature.__qualname__.split("."):
        found = inspect.getattr_static(found, name, None)
    found = getattr(found, "fget", None) or getattr(found, "func", None) or getattr(found, "__func__", found)
    found = inspect.unwrap(found) if callable(found) else None
    same = getattr(found, "__qualname__", None) == signature.__qualname__
    return found if isinstance(found, FunctionType) and same else None
