"""Reading and writing scans, probes and reconstructions. A reader is chosen by what a file holds, not by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torchptycho.io.archive import is_zip
from torchptycho.io.checks import checked_chunks
from torchptycho.io.files import file_head, foreign_content
from torchptycho.io.npz import read_npz_scan, write_scan
from torchptycho.io.probes import read_probe
from torchptycho.io.reconstructions import read_reconstruction, write_reconstruction
from torchptycho.scan import Scan

__all__ = ["checked_chunks", "read_probe", "read_reconstruction", "read_scan", "write_reconstruction", "write_scan"]


@dataclasses.dataclass(frozen=True)
class _Reader:
    """A file format: whether a file of it begins like this, and how it becomes a scan."""

    name: str
    sniff: Callable[[Path, bytes], bool]
    read: Callable[..., Scan]


_READERS = (_Reader("NPZ", lambda path, head: is_zip(head), read_npz_scan),)


def read_scan(
    path: str | Path,
    *,
    domain: Literal["counts", "amplitude"] | None = None,
    probe: str | Path | None = None,
    frames: slice | None = None,
) -> Scan:
    """Open a scan. Its frames stay in the file and are read when they are needed.

    Arguments:
        path: an NPZ file with `diffraction`, `xcoords`, `ycoords`, `probeGuess`.
        domain: what the frames hold; None follows the file's metadata, then the dtype (integers are counts).
        probe: NPZ whose `probeGuess` or `probe` replaces the file's own; its power counts as unknown.
        frames: frames to keep, with all that belongs to them.

    Raises:
        ScanError: the file breaks the contract; file, key, expected, found and remedy are named. The values of the
            frames are judged as they are read: see `checked_chunks`.
    """
    path = Path(path)
    head = file_head(path)
    for reader in _READERS:
        if reader.sniff(path, head):
            return reader.read(path, domain=domain, probe=probe, frames=frames)
    raise foreign_content(path, head)
