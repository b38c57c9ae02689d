"""Arrays that hold a probe, in the orders of axes that programs write: brought to modes [P, N, N]."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from jaxtyping import Complex64

from torchptycho.core.errors import ScanError

__all__ = ["to_probe_modes"]

_REMEDY = "Save it as complex numbers, (P, N, N), or give another probe with --probe FILE."


def to_probe_modes(
    path: Path, key: str, values: np.ndarray, n_px: int | None = None, notes: list[str] | None = None
) -> Complex64[np.ndarray, "p n n"]:
    """Arrange an array as incoherent modes.

    Its axes may be (N, N), (P, N, N), (N, N, P), or with variable modes (OPR) in front (K, P, N, N) or behind
    (N, N, P, K), of which the first of K is taken. Real arrays whose first or last axis has two entries hold real and
    imaginary parts, unless neither is ever negative: these are amplitudes of two modes.

    Arguments:
        n_px: expected edge, which decides between orders of axes that look alike.
        notes: what was done is appended to it.

    Raises:
        ScanError: no numbers, of another shape, dark, or not finite.
    """
    notes = [] if notes is None else notes
    if values.dtype.kind not in "fc":
        found = f"{values.dtype} {values.shape}"
        raise ScanError(
            path, key, expected="a complex array", found=found, remedy="Save the complex wave, not an image of it."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        wave = _join_parts(path, key, values, notes).astype(np.complex64)
    return _check_probe(path, key, np.ascontiguousarray(_arrange_axes(path, key, wave, n_px, notes)))


def _join_parts(path: Path, key: str, values: np.ndarray, notes: list[str]) -> np.ndarray:
    """Join real and imaginary parts that lie along the first or the last axis."""
    if values.dtype.kind == "c" or values.ndim < 3:
        return values
    for axis, name in ((-1, "last"), (0, "first")):
        if values.shape[axis] != 2:
            continue
        first, second = np.moveaxis(values, axis, 0)
        if first.shape[-1] != first.shape[-2] and first.shape[0] != first.shape[1]:
            continue
        if not (first < 0).any():
            if not (second < 0).any() and values.ndim == 3:
                # Amplitudes of two modes.
                return values
            if np.abs(second).max() <= 2 * math.pi:
                raise ScanError(
                    path,
                    key,
                    expected="complex numbers",
                    found=f"real {values.shape}, which may be real and imaginary part, or amplitude and phase",
                    remedy=_REMEDY,
                )
        notes.append(f"'{key}': real and imaginary part along the {name} axis")
        joined: np.ndarray = first + 1j * second
        return joined
    return values


def _arrange_axes(path: Path, key: str, wave: np.ndarray, n_px: int | None, notes: list[str]) -> np.ndarray:
    """Bring the axes into the order (P, N, N)."""
    modes, shape = wave, wave.shape
    if modes.ndim > 4:
        modes = modes.reshape(*(length for length in shape[:-2] if length != 1), *shape[-2:])
    if modes.ndim == 2:
        modes = modes[None]
    if modes.ndim in (3, 4):
        modes_last = _has_modes_last(modes.shape, n_px)
        n_variable = modes.shape[-1 if modes_last else 0] if modes.ndim == 4 else 1
        if n_variable > 1:
            notes.append(f"'{key}': {n_variable} variable modes (OPR), of which the first is taken")
        if modes.ndim == 4:
            modes = modes[..., 0] if modes_last else modes[0]
        modes = np.moveaxis(modes, -1, 0) if modes_last else modes
    if modes.ndim != 3 or modes.shape[1] != modes.shape[2] or modes.shape[1] < 2:
        size = f"of {n_px}x{n_px} pixels" if n_px else "of square pixels (N, N)"
        raise ScanError(
            path,
            key,
            expected=f"a probe {size}, with modes (P, N, N) or (N, N, P)",
            found=f"{shape}",
            remedy="Cut it to a square around its centre, or give another with --probe FILE.",
        )
    return modes


def _has_modes_last(shape: tuple[int, ...], n_px: int | None) -> bool:
    """Return whether the square of pixels lies in the first two axes; in doubt it lies in the last two."""
    front, back = shape[:2], shape[-2:]
    if n_px is not None and (n_px, n_px) in (front, back):
        return back != (n_px, n_px)
    return back[0] != back[1] and front[0] == front[1]


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
