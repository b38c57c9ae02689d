"""The formats that scans come in: one reader per file, distinguished by content; packages add more by an entry
point."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ConfigError
from torchptycho.io.raw_scan import RawScan
from torchptycho.io.storage.file_access import make_format_error, read_head

__all__ = ["ENTRY_POINTS", "Reader", "find_reader", "list_readers", "recognise"]

ENTRY_POINTS = "torchptycho.readers"
"""Group of entry points; each names a `Reader`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """A file format.

    Arguments:
        name: what the format is called.
        sniff: from the path and the first 16 bytes, why the file is of this format, in a few words; else None. It is
            called for any file, and a file of another format must not make it fail.
        read: the content of the file. Errors of the file are `ScanError`s.
    """

    name: str
    sniff: Callable[[Path, bytes], str | None]
    read: Callable[[Path, ReadConfig], RawScan]


# Tried in this order; modules are imported when they are tried. A format that is a special case of another comes first.
_BUILTIN_READERS = (
    ("electron microscope", "microscope", "sniff_microscope_file", "read_microscope_file"),
    ("CXI / NXcxi_ptycho", "cxi", "sniff_cxi", "read_cxi"),
    ("Ptychodus product", "ptychodus_reader", "sniff_product", "read_product"),
    ("PtyPy .ptyd", "ptypy", "sniff_ptyd", "read_ptyd"),
    ("pty-chi", "ptychi", "sniff_ptychi", "read_ptychi"),
    ("EIGER master", "eiger", "sniff_eiger", "read_eiger"),
    ("NPZ", "npz", "sniff_npz", "read_npz"),
)


@functools.cache
def list_readers() -> tuple[Reader, ...]:
    """List all readers: those of other packages first, so that they can claim files that look like more common ones.

    Raises:
        ConfigError: an entry point is no reader.
    """
    return (*_load_plugin_readers(), *(_make_builtin_reader(*names) for names in _BUILTIN_READERS))


def _make_builtin_reader(name: str, module: str, sniff: str, read: str) -> Reader:
    def function(attribute: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            return getattr(importlib.import_module(f"torchptycho.io.formats.{module}"), attribute)(*arguments)

        return call

    return Reader(name=name, sniff=function(sniff), read=function(read))


def _load_plugin_readers() -> list[Reader]:
    readers = []
    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        reader = point.load()
        if not isinstance(reader, Reader):
            raise ConfigError(
                f"entry point '{point.name}' of {ENTRY_POINTS}: expected a torchptycho.io.Reader; found {reader!r}."
            )
        readers.append(reader)
    return readers


def recognise(path: Path) -> tuple[Reader, str]:
    """Return the reader of a file, and why.

    Raises:
        ScanError: no file, or of no known format.
    """
    head = read_head(path)
    found = find_reader(path, head)
    if found is None:
        raise make_format_error(path, head, [reader.name for reader in list_readers()])
    return found


def find_reader(path: Path, head: bytes) -> tuple[Reader, str] | None:
    """Return the reader of a file that begins with `head`, and why; None for a file of no known format.

    Raises:
        ScanError: the file is damaged.
    """
    for reader in list_readers():
        why = reader.sniff(path, head)
        if why is not None:
            return reader, why
    return None
