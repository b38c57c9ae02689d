"""Reading and writing scans, probes and reconstructions. A reader is chosen by what a file holds, not by its name."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from torchptycho.core.config import ReadConfig, as_config, extract_read_config
from torchptycho.core.config.base import Domain
from torchptycho.core.inputs import as_path
from torchptycho.core.scan import Scan
from torchptycho.io.checks import iter_checked_chunks
from torchptycho.io.field import find_islands
from torchptycho.io.formats.mapped import read_mapped
from torchptycho.io.formats.registry import Reader, recognise
from torchptycho.io.position_scale import find_particle_problem, find_scale_problem, refuse_isolated_frames
from torchptycho.io.probe_fitting import read_probe
from torchptycho.io.raw_scan import RawScan
from torchptycho.io.reconstruction_files import read_reconstruction, write_reconstruction
from torchptycho.io.scan_builder import build_scan
from torchptycho.io.source_files import list_other_files, read_file_state
from torchptycho.io.storage.file_access import read_head
from torchptycho.io.tiff_files import write_tiff
from torchptycho.io.write import write_scan

_log = logging.getLogger(__name__)

__all__ = [
    "RawScan",
    "Reader",
    "iter_checked_chunks",
    "read_probe",
    "read_reconstruction",
    "read_scan",
    "write_reconstruction",
    "write_scan",
    "write_tiff",
]


def read_scan(
    path: str | Path,
    config: ReadConfig | dict[str, Any] | None = None,
    *,
    domain: Domain | None = None,
    probe: str | Path | None = None,
    frames: slice | None = None,
) -> Scan:
    """Open a scan. Its frames stay in the file and are read when they are needed.

    Arguments:
        path: a file of any format that is known, or of any layout that `config.mapping` describes.
        config: what replaces or completes what the file says, and what is done to its frames as they are read.
        domain: what the frames hold; None follows the file, then the dtype (integers are counts).
        probe: file whose probe replaces the scan's own; its power counts as unknown.
        frames: frames to keep, with all that belongs to them.

    Raises:
        ScanError: the file breaks the contract; file, key, expected, found and remedy are named. The values of the
            frames are judged as they are read: see `iter_checked_chunks`.
    """
    path = as_path(path, "path", "the path of a scan file")
    given: dict[str, Any] = {
        "domain": domain,
        "probe": None if probe is None else str(probe),
        "frames": None if frames is None else _format_slice(frames),
    }
    base = extract_read_config(as_config(ReadConfig, config))
    reading = dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})
    if reading.mapping is not None:
        read_head(path)
        before = read_file_state(path)
        recorded, why = read_mapped(path, reading, reading.mapping), "the configuration says where it keeps what"
    else:
        reader, why = recognise(path)
        before = read_file_state(path)
        recorded = reader.read(path, reading)
    others = tuple(read_file_state(file) for file in list_other_files(recorded, reading))
    scan = dataclasses.replace(build_scan(recorded, why, reading), files=(before, *others))
    if recorded.format == "NPZ" and not recorded.metadata:
        # Its positions are taken for object pixels, for want of any word on their unit.
        refuse_isolated_frames(scan)
    for problem in (*recorded.warnings, find_scale_problem(scan) or find_islands(scan), find_particle_problem(scan)):
        if problem is not None:
            _log.warning("%s: %s", path, problem)
    return scan


def _format_slice(frames: slice) -> str:
    parts = [frames.start, frames.stop] + ([] if frames.step is None else [frames.step])
    return ":".join("" if part is None else str(part) for part in parts)
