"""Training data that Ptychodus has exported."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.io import read_scan
from torchptycho.io.storage.archive import NpzArchive, is_zip
from torchptycho.io.storage.file_access import read_head

__all__ = ["PATCH_CENTRE_OFFSET_PX", "find_training_files", "read_training_scan"]

PATCH_CENTRE_OFFSET_PX = 0.5
"""Ptychodus places the middle of a patch, (N - 1) / 2, at the position; this package places pixel N / 2 there."""


def find_training_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Find the files to train on, and the files for validation.

    In a folder these are train_data.npz and, if it exists, test_data.npz; else every NPZ file; else product.h5, whose
    frames are in diffraction.h5 next to it.

    Raises:
        ScanError: the folder has none of them.
    """
    if path.is_file():
        return [path], []
    train, test, product = (path / name for name in ("train_data.npz", "test_data.npz", "product.h5"))
    if train.is_file():
        return [train], [test] if test.is_file() else []
    files = sorted(path.glob("*.npz")) or [file for file in [product] if file.is_file()]
    if not files:
        raise ScanError(
            path,
            None,
            expected="train_data.npz, another NPZ of training data, or product.h5",
            found="none of them",
            remedy="Export training data into this folder first.",
        )
    return files, []


def read_training_scan(path: Path, *, subtract_mean_phase: bool) -> Scan:
    """Read a training scan; the frames of an NPZ file of Ptychodus are counts, whatever their dtype.

    Arguments:
        subtract_mean_phase: multiply the object, the label of supervised training, by a phase factor that makes its
            mean real.

    Raises:
        ScanError: the file is not a scan.
    """
    exported = is_zip(read_head(path)) and "diff3d" in NpzArchive(path)
    scan = read_scan(path, domain="counts" if exported else None)
    if exported:
        nominal = scan.nominal_positions_px
        scan = dataclasses.replace(
            scan,
            positions_px=scan.positions_px + PATCH_CENTRE_OFFSET_PX,
            nominal_positions_px=None if nominal is None else nominal + PATCH_CENTRE_OFFSET_PX,
        )
    if subtract_mean_phase and scan.truth is not None:
        phase_factor = np.exp(-1j * np.angle(scan.truth.sum(dtype=np.complex128)))
        scan = dataclasses.replace(scan, truth=(scan.truth * phase_factor).astype(np.complex64))
    return scan
