"""The rule for files and folders that are written, checked before anything is computed.

What exists is kept unless it may be replaced, an input is never replaced, and the place must be one to write to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from torchptycho.core.errors import ConfigError
from torchptycho.core.text import format_error
from torchptycho.io.storage.file_access import make_draft_path

__all__ = ["check_output_file", "check_output_folder", "refuse_inputs"]


def check_output_file(
    path: str | Path, *, option: str = "out", replace: bool = True, remedy: str = "Choose another name."
) -> None:
    """Refuse a file that cannot or may not be written; its folders need not exist yet, and nothing is made.

    Arguments:
        option: what messages call it.
        replace: whether a file that exists may be replaced.
        remedy: what to do about a file that exists and is kept.

    Raises:
        ConfigError: it exists and is kept, is a folder, or cannot be made there.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ConfigError(f"{option}: expected a file to write; found the folder {path}. Add a file name.")
        if path.exists() and not replace:
            raise ConfigError(f"{option}: expected the name of a new file; found {path}, which exists. {remedy}")
        if path.parent.is_dir():
            # Of the name under which it will be written first, which may be too long where its own is not.
            draft = make_draft_path(path)
            with draft.open("xb"):
                pass
            draft.unlink()
        else:
            _try_folder(path.parent)
    except (OSError, ValueError) as error:
        raise _make_error(option, "a place that can be written to", path, error) from None


def check_output_folder(path: str | Path, *, option: str = "out") -> None:
    """Refuse a folder that cannot be made or written to; nothing is made.

    Raises:
        ConfigError: it is a file, or there can be no such folder.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{option}: expected a folder or an unused name; found {path}, a file. Name another one.")
        _try_folder(path)
    except (OSError, ValueError) as error:
        raise _make_error(option, "a folder that can be created", path, error) from None


def refuse_inputs(paths: Iterable[str | Path], inputs: Iterable[str | Path], *, option: str = "out") -> None:
    """Refuse to write over a file that is read, whether or not files may be replaced.

    Raises:
        ConfigError: one of the paths is an input.
    """
    read = {Path(file).resolve() for file in inputs}
    for path in paths:
        if Path(path).resolve() in read:
            raise ConfigError(f"{option}: expected a new file; found {path}, which is read. Choose another name.")


def _try_folder(folder: Path) -> None:
    """Try to write into a folder, or into the one in which it would be made.

    Raises:
        OSError: the system refuses; permissions alone do not say so of a read-only disk, or to the superuser.
    """
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file")
    with tempfile.TemporaryFile(dir=existing):
        pass


def _make_error(option: str, expected: str, path: Path, error: Exception) -> ConfigError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else format_error(error, 200)
    return ConfigError(f"{option}: expected {expected}; found {str(path)[:300]} ({why}). Choose another one.")
