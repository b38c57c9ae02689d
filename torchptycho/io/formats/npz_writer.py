"""Scans written to NPZ files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.scan import Scan
from torchptycho.io.checks import iter_raw_chunks
from torchptycho.io.formats.npz_metadata import FORMAT, FORMAT_VERSION, RESERVED
from torchptycho.io.frames.frame_stacks import working_dtype
from torchptycho.io.storage.archive import write_array, write_header
from torchptycho.io.storage.file_access import dump_json, replace_atomically

__all__ = ["write_npz"]


def write_npz(scan: Scan, path: Path, *, compressed: bool = True) -> None:
    """Write a scan as canonical NPZ, streaming its frames; the file appears only when it is whole.

    Arguments:
        compressed: deflate the arrays. Without it the file is larger, and its frames can be memory-mapped.

    Raises:
        ScanError: the frames fail `iter_checked_chunks`, the metadata is not plain, or the place cannot be written to.
    """
    known: dict[str, Any] = {key: value for key, value in scan.geometry.lengths.items() if value is not None}
    if scan.geometry.particle != "photon":
        known["particle"] = scan.geometry.particle
    metadata = (
        {key: value for key, value in scan.metadata.items() if key not in RESERVED}
        | known
        | ({"propagation": "near"} if scan.geometry.propagation == "near" else {})
        | {
            "domain": scan.domain,
            "probe_is_calibrated": scan.probe_is_calibrated,
            "frames_axis": 0,
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
        }
    )
    text = dump_json(metadata, scan.source, "_metadata")
    small = {
        "xcoords": scan.positions_px[:, 1],
        "ycoords": scan.positions_px[:, 0],
        "probeGuess": scan.probe,
        "scan_index": scan.scan_id,
        "objectGuess": scan.truth if scan.truth_slices is None else scan.truth_slices,
        "Y": scan.truth_patches,
        "mask": None if scan.mask.all() else scan.mask,
        "_metadata": np.array(text),
    }
    if scan.nominal_positions_px is not None:
        small |= {"xcoords_start": scan.nominal_positions_px[:, 1], "ycoords_start": scan.nominal_positions_px[:, 0]}
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with replace_atomically(path) as target, zipfile.ZipFile(target, "w", method) as archive:
        for key, array in small.items():
            if array is not None:
                write_array(archive, key, np.asarray(array))
        info = zipfile.ZipInfo("diffraction.npy")
        info.compress_type = method
        with archive.open(info, "w", force_zip64=True) as stream:
            assert isinstance(stream, io.BufferedIOBase)
            _stream_frames(scan, stream)


def _stream_frames(scan: Scan, stream: io.BufferedIOBase) -> None:
    dtype = working_dtype(scan.frames.dtype)
    write_header(stream, dtype, scan.frames.shape)
    for chunk in iter_raw_chunks(scan):
        stream.write(np.ascontiguousarray(chunk, dtype=dtype).data)
