"""The illumination, from a scan file or from a file of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Complex64

from torchptycho.core.errors import ScanError
from torchptycho.io.checks import advise_crop
from torchptycho.io.storage.archive import Member, NpzArchive
from torchptycho.io.storage.file_access import read_head
from torchptycho.io.storage.hdf5 import MAGIC, locate_dataset, open_hdf5
from torchptycho.io.storage.hdf5_datasets import load_complex

__all__ = ["PROBE_REMEDY", "load_probe", "read_probe", "read_probe_and_key", "to_probe_modes"]

PROBE_REMEDY = "one with --probe FILE, or begin with one from the mean pattern: --guess-probe."
"""What to give where there is no probe."""

_HDF5_KEYS = (
    "probeGuess", "probe", "entry_1/image_1/data", "entry_1/instrument_1/source_1/illumination",
    "entry_1/source_1/illumination",
)  # fmt: skip


def read_probe(path: str | Path, n_px: int) -> Complex64[np.ndarray, "p n n"]:
    """Read the probe in a file: its array `probeGuess`, else `probe`; in CXI files `image_1` or the source's
    illumination.

    Arguments:
        path: any NPZ or HDF5 file that holds a probe; a scan, a reconstruction or a Ptychodus product may serve.
        n_px: frame edge N that the probe must fit.

    Returns:
        All modes [P, N, N]; a real probe gets phase 0.

    Raises:
        ScanError: no probe in the file, one of another size (how to crop or pad is said), zero or not finite.
    """
    return read_probe_and_key(Path(path), (n_px,))[0]


def read_probe_and_key(path: Path, edges: tuple[int, ...]) -> tuple[Complex64[np.ndarray, "p n n"], str]:
    """Read the probe in a file and its key; its edge must be one of `edges`, preferably the first."""
    if read_head(path).startswith(MAGIC):
        return _read_hdf5_probe(path, edges)
    archive = NpzArchive(path)
    for key in ("probeGuess", "probe"):
        if key in archive:
            shape = tuple(length for length in archive.inspect_member(key).shape if length != 1)
            edge = next((edge for edge in edges if shape[-2:] == (edge, edge) or shape[:2] == (edge, edge)), edges[0])
            return load_probe(archive, key, edge), key
    raise archive.make_missing_error("probeGuess", f"a probe of {edges[0]}x{edges[0]} pixels under this key or 'probe'")


def _read_hdf5_probe(path: Path, edges: tuple[int, ...]) -> tuple[Complex64[np.ndarray, "p n n"], str]:
    with open_hdf5(path) as file:
        key, dataset = locate_dataset(file, path, *_HDF5_KEYS)
        if dataset is None:
            raise ScanError(
                path,
                None,
                expected=f"a probe under one of {', '.join(_HDF5_KEYS)}",
                found="none of these",
                remedy="Save it as 'probe', (P, N, N) complex.",
            )
        return to_probe_modes(path, key, load_complex(dataset, path, key), edges), key


def to_probe_modes(
    path: Path, key: str, values: Complex64[np.ndarray, "..."], edges: tuple[int, ...] | None = None
) -> Complex64[np.ndarray, "p n n"]:
    """Incoherent modes [P, N, N] of an array (N, N), (P, N, N) or (K, P, N, N), of which the first of K is taken.

    Raises:
        ScanError: of another shape or size, dark, or not finite.
    """
    modes = values[0] if values.ndim == 4 else values
    modes = modes[None] if modes.ndim == 2 else modes
    if modes.ndim != 3 or modes.shape[1] != modes.shape[2] or (edges is not None and modes.shape[1] not in edges):
        size = f"{edges[0]}x{edges[0]} pixels" if edges else "square pixels"
        raise ScanError(
            path,
            key,
            expected=f"a probe of {size}, with its modes along the first axis",
            found=f"{values.shape}",
            remedy="Cut it around its centre, or give another with --probe FILE.",
        )
    return _check_probe(path, key, np.ascontiguousarray(modes))


def load_probe(archive: NpzArchive, key: str, n_px: int | None) -> Complex64[np.ndarray, "p n n"]:
    """Load the probe under `key` of an open archive; see `read_probe`. Without n_px any square one is accepted."""
    member = archive.inspect_member(key)
    if member.dtype.kind not in "fc":
        found = f"{member.dtype} {member.shape}"
        remedy = "Save the complex wave, not an image of it."
        raise ScanError(archive.path, key, expected="a complex array", found=found, remedy=remedy)
    if n_px is None:
        shape = member.shape or (1,)
        n_px = shape[1] if len(shape) == 3 and shape[0] == shape[1] else shape[-1]
    modes_last = _has_modes_last(archive.path, member, n_px)
    probe = np.moveaxis(archive.load(key), -1, 0) if modes_last else archive.load(key)
    with np.errstate(over="ignore"):
        probe = np.ascontiguousarray(probe.reshape(-1, n_px, n_px), dtype=np.complex64)
    return _check_probe(archive.path, key, probe)


def _check_probe(path: Path, key: str, probe: Complex64[np.ndarray, "p n n"]) -> Complex64[np.ndarray, "p n n"]:
    """Check that a probe is finite and has intensity, and return it.

    Raises:
        ScanError: it is not so.
    """
    if not np.isfinite(probe).all():
        found = f"NaN or infinity in {int((~np.isfinite(probe)).sum())} pixels"
        remedy = "Give another probe with --probe FILE."
        raise ScanError(path, key, expected="finite values", found=found, remedy=remedy)
    if not probe.any():
        remedy = "A first guess may be rough, but not dark: give one with --probe FILE."
        raise ScanError(path, key, expected="a probe with intensity", found="zeros only", remedy=remedy)
    return probe


def _has_modes_last(path: Path, member: Member, n_px: int) -> bool:
    """Return whether the modes lie along the last axis; refuse shapes that are no probe for frames of this size."""
    shape = member.shape
    if len(shape) > 3:
        shape = tuple(length for length in shape if length != 1)
    n = (n_px, n_px)
    if shape == n or (len(shape) == 3 and shape[1:] == n):
        return False
    if len(shape) == 3 and shape[:2] == n and len(member.shape) == 3:
        return True
    expected = f"({n_px}, {n_px}) or (P, {n_px}, {n_px}), as the frames are {n_px}x{n_px}"
    if len(shape) in {2, 3} and shape[-1] == shape[-2]:
        size = shape[-1]
        verb = "cut" if size > n_px else "filled up"
        remedy = f"To be {verb} around its centre: {advise_crop(size, n_px)}, in rows and in columns."
    elif len(shape) in {2, 3}:
        height, width = shape[-2:]
        remedy = f"Rows: {advise_crop(height, n_px)}; columns: {advise_crop(width, n_px)}."
    else:
        remedy = "Save it with the modes along the first axis."
    raise ScanError(path, member.key, expected=expected, found=f"{member.shape}", remedy=remedy)
