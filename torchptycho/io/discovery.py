"""Which scans are meant: files as they are, and those found in a folder or by a pattern."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.inputs import as_path, describe_type
from torchptycho.core.scan import Scan
from torchptycho.core.text import format_first
from torchptycho.io import read_scan
from torchptycho.io.formats.npz import has_frames
from torchptycho.io.formats.registry import find_reader, recognise
from torchptycho.io.frames.frame_stacks import find_backing_files
from torchptycho.io.storage.file_access import make_format_error, read_head

__all__ = ["Source", "Sources", "as_sources", "expand_sources", "open_scans"]

_log = logging.getLogger(__name__)

Source: TypeAlias = Scan | str | Path
"""An opened scan, a file, a folder of files, or a pattern as the shell's: `day1/*.npz`, `**/*.cxi`."""
Sources: TypeAlias = Source | Sequence[Source]

_MANIFEST = "store.json"
_GLOB_CHARACTERS = "*?["
_MAX_LISTED = 10


def open_scans(sources: Sources, config: ReadConfig, val_sources: Sources = ()) -> tuple[list[Scan], list[Scan]]:
    """Open the scans that are meant, those to train on and those to validate on, in the order given.

    Of a folder or a pattern every file is taken that a reader recognises, by name, without those of folders inside it
    and hidden ones. What is not recognised is named in a warning. A file that another scan reads its frames from is
    part of that scan. Scans that are also named by themselves, in `val_sources`, or by an earlier pattern are taken
    once.

    Raises:
        ConfigError: a folder is given together with a mapping, or is a store.
        ScanError: a scan cannot be read, nothing is found, or two files hold the same frames.
    """
    taken = _OpenedScans()
    wanted = (as_sources(val_sources), as_sources(sources))
    # Explicitly named scans come first: they determine which of several files represents the same frames.
    named = [[None if _is_folder_or_pattern(one) else taken.add(_read(one, config)) for one in part] for part in wanted]
    _refuse_held_out_twice(*named)
    held_out, trained = (
        [
            scan
            for one, known in zip(part, scans, strict=True)
            for scan in ([known] if known is not None else _open_matching(one, config, taken))
        ]
        for part, scans in zip(wanted, named, strict=True)
    )
    return trained, held_out


def _refuse_held_out_twice(held_out: list[Scan | None], trained: list[Scan | None]) -> None:
    """Refuse sources that are both trained on and held out, as happens when a shell expands a pattern."""
    files = {
        _identify_frames(scan): scan.source for scan in held_out if scan is not None and find_backing_files(scan.frames)
    }
    for scan in trained:
        if scan is not None and _identify_frames(scan) in files:
            raise ScanError(
                scan.source,
                None,
                expected="scans that are either trained on or held out",
                found=f"it, and in val_scans {files[_identify_frames(scan)]}",
                remedy="Name it once.",
            )


def expand_sources(sources: Sources, config: ReadConfig) -> list[Path] | None:
    """Return the files that sources stand for, those of no format among them; None when a source is no file.

    Raises:
        ConfigError, ScanError: as `open_scans`.
    """
    paths: list[Path] = []
    for source in as_sources(sources):
        if isinstance(source, Scan):
            return None
        paths += _list_files(source, config) if _is_folder_or_pattern(source) else [Path(source)]
    return paths


class _OpenedScans:
    """Which frames a scan stands for already, and which files belong to one."""

    def __init__(self) -> None:
        self.frames: dict[object, str] = {}
        self.files: set[Path] = set()

    def add(self, scan: Scan) -> Scan:
        self.frames.setdefault(_identify_frames(scan), scan.source)
        self.files |= {Path(scan.source).resolve(), *_list_backing_files(scan)}
        return scan


def as_sources(sources: Sources) -> list[Source]:
    """Return sources as a list.

    Raises:
        ConfigError: they are neither scans nor paths.
        ScanError: the probe of a scan has no intensity.
    """
    if isinstance(sources, (Scan, str, Path)):
        sources = [sources]
    if not isinstance(sources, Iterable) or hasattr(sources, "shape"):
        raise ConfigError(f"scans: expected scans, files, folders or patterns; found {describe_type(sources)}.")
    for one in sources:
        if isinstance(one, Scan):
            one.require_probe()
    return [one if isinstance(one, Scan) else as_path(one, "scans", "a Scan or a path") for one in sources]


def _is_folder_or_pattern(source: Source) -> bool:
    if isinstance(source, Scan):
        return False
    path = Path(source)
    return path.is_dir() or (any(sign in str(source) for sign in _GLOB_CHARACTERS) and not path.exists())


def _read(source: Source, config: ReadConfig) -> Scan:
    return source if isinstance(source, Scan) else read_scan(source, config)


def _identify_frames(scan: Scan) -> object:
    """Return a key that two files share when they open the same frames."""
    backing = find_backing_files(scan.frames)
    return scan.source if backing is None else (frozenset(file.resolve() for file in backing[0]), backing[1])


def _list_backing_files(scan: Scan) -> set[Path]:
    """List the files that a scan's frames are read from."""
    backing = find_backing_files(scan.frames)
    return set() if backing is None else {file.resolve() for file in backing[0]}


def _list_files(source: str | Path, config: ReadConfig) -> list[Path]:
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


def _open_matching(source: Source, config: ReadConfig, taken: _OpenedScans) -> list[Scan]:
    """Open the scans in a folder or of a pattern that are not taken yet; log the files of no format."""
    assert not isinstance(source, Scan)
    files = _list_files(source, config)
    opened: dict[Path, Scan] = {}
    foreign: dict[Path, str] = {}
    faults: dict[Path, ScanError] = {}
    for path in files:
        if path.resolve() in taken.files:
            continue
        try:
            why = None if config.mapping is not None else _explain_foreign(path)
            if why is None:
                opened[path] = read_scan(path, config)
            else:
                foreign[path] = why
        except ScanError as error:
            faults[path] = error
    if len(foreign) == len(files):
        raise ScanError(
            source,
            None,
            expected="scan files",
            found=f"none among {len(files)} files ({_describe_foreign(foreign)})",
            remedy="Describe them in the section 'mapping' of a --config file.",
        )
    new = _drop_duplicates({path: scan for path, scan in opened.items() if _identify_frames(scan) not in taken.frames})
    parts = taken.files.union(*(_list_backing_files(scan) for scan in opened.values()))
    for scan in new:
        taken.add(scan)
    for path, fault in faults.items():
        if path.resolve() not in parts:
            raise fault
    foreign = {path: why for path, why in foreign.items() if path.resolve() not in parts}
    if foreign:
        _log.warning(
            "%s: %d file(s) are no scans and are passed over: %s", source, len(foreign), _describe_foreign(foreign)
        )
    return new


def _describe_foreign(foreign: dict[Path, str]) -> str:
    return format_first((f"{path.name} ({why})" for path, why in foreign.items()), _MAX_LISTED, separator="; ")


def _explain_foreign(path: Path) -> str | None:
    """Return why a file is not a scan, or None.

    Raises:
        ScanError: it is damaged.
    """
    try:
        head = read_head(path)
    except ScanError as error:
        return error.found
    recognised = find_reader(path, head)
    if recognised is None:
        return make_format_error(path, head).found
    return "an archive without frames" if recognised[0].name == "NPZ" and not has_frames(path) else None


def _drop_duplicates(opened: dict[Path, Scan]) -> list[Scan]:
    """Keep each set of frames once: both halves of a pair of files open the same scan.

    Raises:
        ScanError: two files that are no such pair hold the same frames.
    """
    first: dict[object, Path] = {}
    for path, scan in opened.items():
        other = first.setdefault(_identify_frames(scan), path)
        halves = {path.resolve(), other.resolve()} & (_list_backing_files(scan) | _list_backing_files(opened[other]))
        if other == path or (halves and recognise(path)[0] is recognise(other)[0]):
            continue
        raise ScanError(
            path,
            None,
            expected="frames of its own",
            found=f"those of {other}",
            remedy="Name the one that is meant, so that no frame counts twice.",
        )
    return [opened[path] for path in first.values()]
