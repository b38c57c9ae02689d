"""The illumination, from a scan file or from a file of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Complex64

from torchptycho.errors import ScanError
from torchptycho.io.archive import Member, NpzArchive
from torchptycho.io.checks import crop_advice

__all__ = ["load_probe", "read_probe"]


def read_probe(path: str | Path, n_px: int) -> Complex64[np.ndarray, "p n n"]:
    """The probe in an NPZ: its array `probeGuess`, else `probe`.

    Arguments:
        path: any NPZ that holds a probe; a scan or a reconstruction may serve.
        n_px: frame edge N that the probe must fit.

    Returns:
        All modes [P, N, N]; a real probe gets phase 0.

    Raises:
        ScanError: no probe in the file, one of another size (how to crop or pad is said), zero or not finite.
    """
    archive = NpzArchive(path)
    for key in ("probeGuess", "probe"):
        if key in archive:
            return load_probe(archive, key, n_px)
    raise archive.missing("probeGuess", f"a probe of {n_px}x{n_px} pixels under this key or 'probe'")


def load_probe(archive: NpzArchive, key: str, n_px: int) -> Complex64[np.ndarray, "p n n"]:
    """The probe under `key` of an archive that is already open; see `read_probe`."""
    member = archive.member(key)
    if member.dtype.kind not in "fc":
        found = f"{member.dtype} {member.shape}"
        remedy = "Save the complex wave, not an image of it."
        raise ScanError(archive.path, key, expected="a complex array", found=found, remedy=remedy)
    modes_last = _modes_last(archive.path, member, n_px)
    probe = np.moveaxis(archive.load(key), -1, 0) if modes_last else archive.load(key)
    with np.errstate(over="ignore"):
        probe = np.ascontiguousarray(probe.reshape(-1, n_px, n_px), dtype=np.complex64)
    if not np.isfinite(probe).all():
        found = f"NaN or infinity in {int((~np.isfinite(probe)).sum())} pixels"
        remedy = "Give another probe with --probe FILE."
        raise ScanError(archive.path, key, expected="finite values", found=found, remedy=remedy)
    if not probe.any():
        remedy = "A first guess may be rough, but not dark: give one with --probe FILE."
        raise ScanError(archive.path, key, expected="a probe with intensity", found="zeros only", remedy=remedy)
    return probe


def _modes_last(path: Path, member: Member, n_px: int) -> bool:
    """Whether the modes lie along the last axis; refuses shapes that are no probe for frames of this size."""
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
        remedy = f"To be {verb} around its centre: {crop_advice(size, n_px)}, in rows and in columns."
    elif len(shape) in {2, 3}:
        height, width = shape[-2:]
        remedy = f"Rows: {crop_advice(height, n_px)}; columns: {crop_advice(width, n_px)}."
    else:
        remedy = "Save it with the modes along the first axis."
    raise ScanError(path, member.key, expected=expected, found=f"{member.shape}", remedy=remedy)
