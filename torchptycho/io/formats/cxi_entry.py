"""Entries of CXI files: which there are, and what one of them holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.text import format_first
from torchptycho.io.storage.hdf5 import is_group, list_names, locate_dataset

__all__ = ["DETECTOR", "FRAMES", "Entry", "choose_entry", "list_entries"]

DETECTOR = "instrument_1/detector_1"
FRAMES = (f"{DETECTOR}/data", "data_1/data")
_MAX_LISTED = 10


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of a file; names are relative to it."""

    file: Any
    path: Path
    name: str

    def locate(self, *names: str) -> tuple[str, Any]:
        """Find the first of these datasets; return its full name and itself, or ("", None)."""
        return locate_dataset(self.file, self.path, *(f"{self.name}/{name}" for name in names))

    def find(self, *names: str) -> Any:
        return self.locate(*names)[1]


def list_entries(file: Any, path: Path) -> list[str]:
    """List the entries that hold frames where CXI has them."""
    return [name for name in list_names(file, path) if _find_frames(Entry(file, path, name)) is not None]


def _find_frames(entry: Entry) -> Any:
    """Find the frames of an entry, among CXI's places for them that only a CXI file has; None for no such entry."""
    if not is_group(entry.file, entry.path, entry.name):
        return None
    return entry.find(*(FRAMES if entry.name.startswith("entry_") else FRAMES[:1]))


def choose_entry(file: Any, path: Path, config: ReadConfig, notes: list[str]) -> Entry:
    """Choose the entry that is asked for, or the only one.

    Raises:
        ScanError: several entries hold frames, or none of that name.
    """
    entries = list_entries(file, path)
    asked = config.entry
    if asked is None and len(entries) > 1:
        raise ScanError(
            path,
            None,
            expected="one entry with frames",
            found=f"{len(entries)}: {format_first(entries, _MAX_LISTED)}",
            remedy=f"Take one with --entry {entries[0]}.",
        )
    if asked is not None and asked not in entries:
        raise ScanError(
            path,
            asked,
            expected="an entry with frames",
            found=f"entries {format_first(entries, _MAX_LISTED)}" if entries else "no entry with frames",
            remedy="Name one of these with --entry.",
        )
    if len(entries) > 1:
        notes.append(f"{asked} of the entries {format_first(entries, _MAX_LISTED)}")
    return Entry(file, path, asked or (entries[0] if entries else "entry_1"))
