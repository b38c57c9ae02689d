"""The rule for a folder that holds a training: it is continued, or replaced where that is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

from torchptycho.core.errors import ConfigError

__all__ = ["check_earlier_run", "remove_earlier_run"]

# What a run writes besides its store, which is replaced only if it is of other scans.
_PARTS = ("checkpoints", "logs", "images", "history.png", "config.yaml", "bootstrap.npz")


def check_earlier_run(out: Path, last: Path, *, resume: bool, overwrite: bool, inputs: tuple[object, ...] = ()) -> None:
    """Refuse a folder with a run that is neither continued nor replaced.

    Arguments:
        last: checkpoint that tells a run.
        inputs: what is read, among it perhaps files of that run, which must not be replaced then.

    Raises:
        ConfigError: naming what may be done with the run.
    """
    if resume and overwrite:
        raise ConfigError("overwrite: expected to continue a run or to replace it; found both. Leave one of them out.")
    if not last.exists() or resume:
        return
    if not overwrite:
        raise ConfigError(
            f"{out}: holds a finished or interrupted run. Continue it with --resume, replace it with --overwrite, or "
            "choose another --out."
        )
    for given in inputs:
        if isinstance(given, str | Path) and _belongs_to_run(Path(given).resolve(), out.resolve()):
            raise ConfigError(
                f"out: expected another folder than that of {given}, which is read; found {out}. Choose another --out."
            )


def _belongs_to_run(path: Path, out: Path) -> bool:
    """Return whether a path is a folder of a run, or one of the files that are replaced with it."""
    return path == out or (path.is_relative_to(out) and path.relative_to(out).parts[0] in (*_PARTS, "store"))


def remove_earlier_run(out: Path) -> None:
    """Remove what a run has written, but for its store and for files that it did not write."""
    for name in _PARTS:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
