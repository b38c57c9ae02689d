"""The files behind a scan: which they are, and whether they are still what they were."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan, SourceFile
from torchptycho.io.array_refs import parse_array_ref
from torchptycho.io.frames.frame_stacks import find_backing_files
from torchptycho.io.probe_files import parse_probe_ref
from torchptycho.io.raw_scan import RawScan

__all__ = ["describe_changes", "list_other_files", "read_file_state", "refuse_changes", "was_rewritten"]


def read_file_state(path: str | Path) -> SourceFile:
    """Return size and modification time of a file without reading it.

    Raises:
        ScanError: it is gone.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise ScanError(
            path,
            None,
            expected="a file",
            found=f"{error.strerror}" if os.path.exists(path) else "nothing of that name",
            remedy="Put it back, or name another.",
        ) from None
    return SourceFile(path=os.path.abspath(path), n_bytes=status.st_size, modified_ns=status.st_mtime_ns)


def list_other_files(recorded: RawScan, config: ReadConfig) -> list[Path]:
    """List the files that the scan depends on besides the scan file itself, each once."""
    backing = find_backing_files(recorded.frames)
    named = [*recorded.companion_files, *(() if backing is None else backing[0])]
    named += [parse_probe_ref(config.probe)[0]] if config.probe is not None else []
    named += [
        parse_array_ref(text, Path()).path
        for text in (config.dark, config.flat, config.mask, *(config.positions or ()))
        if text is not None
    ]
    scan_path = os.path.abspath(recorded.path)
    return [Path(path) for path in dict.fromkeys(os.path.abspath(path) for path in named) if path != scan_path]


def describe_changes(files: Iterable[SourceFile]) -> list[str]:
    """Describe what has changed about files since they were recorded, one clause each."""
    changes = []
    for was in files:
        try:
            now = read_file_state(was.path)
        except ScanError as error:
            changes.append(f"{was.path} (gone: {error.found})")
            continue
        if now.n_bytes != was.n_bytes:
            changes.append(f"{was.path} (size: {was.n_bytes} bytes then, {now.n_bytes} now)")
        elif now.modified_ns != was.modified_ns:
            changes.append(f"{was.path} (written again: {(now.modified_ns - was.modified_ns) / 1e9:+.3f} s)")
    return changes


def was_rewritten(was: SourceFile) -> bool:
    """Return whether a file of the same size was written since it was recorded, perhaps with the same content."""
    try:
        now = read_file_state(was.path)
    except ScanError:
        return False
    return now.n_bytes == was.n_bytes and now.modified_ns != was.modified_ns


@contextmanager
def refuse_changes(scan: Scan) -> Iterator[None]:
    """Refuse a scan whose files change while its frames are read from them: it would be of no one moment.

    The change is reported, whatever error reading has met because of it.

    Raises:
        ScanError: naming the first of these files.
    """
    files = () if find_backing_files(scan.frames) is None else scan.files
    try:
        yield
    except ScanError:
        _refuse_changed(files)
        raise
    _refuse_changed(files)


def _refuse_changed(files: Iterable[SourceFile]) -> None:
    changes = describe_changes(files)
    if changes:
        path, _, what = changes[0].partition(" (")
        raise ScanError(
            path,
            None,
            expected="a file that stays as it was when it was opened",
            found=f"a change ({what}",
            remedy="Wait until it is written completely, and read it again.",
        )
