"""Which scans are meant: files as they are, and those found in a folder or by a pattern."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from torchptycho.config import ReadConfig
from torchptycho.errors import ConfigError, ScanError
from torchptycho.io import read_scan
from torchptycho.io.files import file_head, foreign_content
from torchptycho.io.frames import backing_files
from torchptycho.io.npz import holds_frames
from torchptycho.io.registry import reader_of, recognise
from torchptycho.scan import Scan

__all__ = ["Source", "Sources", "open_scans"]

_log = logging.getLogger(__name__)

Source: TypeAlias = Scan | str | Path
"""An opened scan, a file, a folder of files, or a pattern as the shell's: `day1/*.npz`, `**/*.cxi`."""
Sources: TypeAlias = Source | Sequence[Source]

_MANIFEST = "store.json"
_PATTERN = "*?["
_FEW = 10


def open_scans(sources: Sources, config: ReadConfig, val_sources: Sources = ()) -> tuple[list[Scan], list[Scan]]:
    """Open the scans that are meant, those to train on and those to validate on, in the order given.

    Of a folder or a pattern every file is taken that a reader recognises, by name, without those of folders inside it
    and hidden ones. What is not recognised is named in a warning. A file that another scan reads its frames or its
    positions from is part of that scan. Scans that are also named by themselves, or in `val_sources`, are taken once.

    Raises:
        ConfigError: a folder is given together with a mapping, or is a store.
        ScanError: a scan cannot be read, nothing is found, or two files hold the same frames.
    """
    trained, validated = _listed(sources), _listed(val_sources)
    named = {Path(one).resolve() for one in (*trained, *validated) if not isinstance(one, Scan) and not _is_many(one)}
    held_out = [scan for one in validated for scan in _opened(one, config, named)]
    named |= {Path(scan.source).resolve() for scan in held_out}
    return [scan for one in trained for scan in _opened(one, config, named)], held_out


def _listed(sources: Sources) -> list[Source]:
    return [sources] if isinstance(sources, (Scan, str, Path)) else list(sources)


def _is_many(source: str | Path) -> bool:
    path = Path(source)
    return path.is_dir() or (any(sign in str(source) for sign in _PATTERN) and not path.exists())


def _opened(source: Source, config: ReadConfig, named: set[Path]) -> list[Scan]:
    if isinstance(source, Scan):
        return [source]
    if not _is_many(source):
        return [read_scan(source, config)]
    found = [path for path in _files(source, config) if path.resolve() not in named]
    scans = _scans_among(source, found, config)
    # Of two patterns that find the same file the first has it.
    named |= {Path(scan.source).resolve() for scan in scans}
    return scans


def _files(source: str | Path, config: ReadConfig) -> list[Path]:
    folder = Path(source)
    if not folder.is_dir():
        paths = sorted(Path(name) for name in glob.glob(str(source), recursive=True))
        files = [path for path in paths if path.is_file()]
    elif (folder / _MANIFEST).is_file():
        raise ConfigError(f"{folder}: expected scans; found a store, which is prepared already.")
    elif config.mapping is not None:
        raise ConfigError(
            f"{folder}: with a mapping any file could be a scan; name them by a pattern, as '{folder / '*.h5'}'."
        )
    else:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise ScanError(source, None, expected="scan files", found="no file", remedy="Check the spelling of the path.")
    return files


def _scans_among(source: str | Path, files: list[Path], config: ReadConfig) -> list[Scan]:
    """The scans in these files; parts of others are left out, and foreign files named."""
    opened: dict[Path, Scan] = {}
    foreign: dict[Path, str] = {}
    faults: dict[Path, ScanError] = {}
    for path in files:
        try:
            why = None if config.mapping is not None else _no_scan(path)
            if why is None:
                opened[path] = read_scan(path, config)
            else:
                foreign[path] = why
        except ScanError as error:
            faults[path] = error
    if files and not (opened or faults):
        told = "; ".join(f"{path.name}: {why}" for path, why in list(foreign.items())[:_FEW])
        raise ScanError(source, None, expected="scan files", found=f"none among {len(files)} files ({told})",
                        remedy="Describe them in the section 'mapping' of a --config file.")  # fmt: skip
    parts = {file.resolve() for path, scan in opened.items() for file in _read_by(path, scan)}
    for path, fault in faults.items():
        if path.resolve() not in parts:
            raise fault
    foreign = {path: why for path, why in foreign.items() if path.resolve() not in parts}
    if foreign:
        named = "; ".join(f"{path.name} ({why})" for path, why in list(foreign.items())[:_FEW])
        more = f"; and {len(foreign) - _FEW} more" if len(foreign) > _FEW else ""
        _log.warning("%s: %d file(s) are no scans and are passed over: %s%s", source, len(foreign), named, more)
    return _once(opened)


def _no_scan(path: Path) -> str | None:
    """Why a file is not a scan, or None.

    Raises:
        ScanError: it is damaged.
    """
    try:
        head = file_head(path)
    except ScanError as error:
        return error.found
    found = reader_of(path, head)
    if found is None:
        return foreign_content(path, head).found
    return "an archive without frames" if found[0].name == "NPZ" and not holds_frames(path) else None


def _read_by(path: Path, scan: Scan) -> list[Path]:
    """Other files that a scan's frames are read from."""
    backing = backing_files(scan.frames)
    return [] if backing is None else [file for file in backing[0] if file.resolve() != path.resolve()]


def _once(opened: dict[Path, Scan]) -> list[Scan]:
    """Each set of frames once: both halves of a pair of files open the same scan."""
    first: dict[object, Path] = {}
    for path, scan in opened.items():
        backing = backing_files(scan.frames)
        key: object = path if backing is None else (tuple(file.resolve() for file in backing[0]), backing[1])
        other = first.setdefault(key, path)
        if other == path:
            continue
        halves = path in _read_by(other, opened[other]) or other in _read_by(path, scan)
        if halves and recognise(path)[0] is recognise(other)[0]:
            continue
        raise ScanError(
            path, None, expected="frames of its own", found=f"those of {other}",
            remedy="Name the one that is meant, so that no frame counts twice.",
        )  # fmt: skip
    kept = set(first.values())
    return [scan for path, scan in opened.items() if path in kept]
