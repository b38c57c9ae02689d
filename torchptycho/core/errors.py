"""Errors caused by user input, as opposed to faults of this package.

The command line prints these as one line and exits with their exit code; anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

__all__ = [
    "ConfigError",
    "EvaluationError",
    "ExportError",
    "FramesLostError",
    "GroupingError",
    "ScanError",
    "StoreError",
    "TorchptychoError",
    "TrainingError",
]


class TorchptychoError(Exception):
    """Base class of all errors that a user can cause and fix."""

    exit_code: ClassVar[int] = 1


class ConfigError(TorchptychoError):
    """An option has a wrong name or value.

    Not a ValueError, which libraries that parse values would take for one of their own.
    """


class EvaluationError(TorchptychoError):
    """A reconstruction and a truth cannot be compared."""


class ExportError(TorchptychoError):
    """A network cannot be exported, or an exported one cannot run here."""


class FramesLostError(TorchptychoError):
    """An image was made of a scan of which frames were lost while it was recorded."""

    exit_code: ClassVar[int] = 3


class GroupingError(TorchptychoError, ValueError):
    """The requested groups cannot be formed from these positions."""


class StoreError(TorchptychoError):
    """A store or a checkpoint is incomplete, altered or of another version."""


class TrainingError(TorchptychoError, ArithmeticError):
    """Training failed: a number is not finite, or the network predicts featureless patches.

    Arguments:
        frames: indices in the store of the frames that cause the failure, if known.
    """

    def __init__(self, message: str, frames: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.frames = frames


class ScanError(TorchptychoError, ValueError):
    """A scan or one of its arrays breaks the file contract.

    Arguments:
        source: the faulty file (or a description of the origin).
        key: array or entry in it; None if the whole file is at fault.
        expected: what the contract requires.
        found: the actual content.
        remedy: how the user can fix it.
        part: which part of a scan is at fault, as `mask`; None where that is not known.
    """

    def __init__(
        self, source: str | Path, key: str | None, *, expected: str, found: str, remedy: str, part: str | None = None
    ) -> None:
        self.source, self.key, self.part = str(source), key, part
        self.expected, self.found, self.remedy = expected, found, remedy
        where = f"{source}: '{key}'" if key else f"{source}"
        super().__init__(f"{where}: expected {expected}; found {found}. {remedy}")
