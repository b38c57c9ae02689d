"""A probe brought to the pixels of a scan: of another pixel size, of another field, or with its axes turned."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
from jaxtyping import Complex64

from torchptycho.core.errors import ScanError
from torchptycho.core.inputs import as_path
from torchptycho.core.scan import Scan
from torchptycho.io.guesses import compute_mean_pattern
from torchptycho.io.probe_files import ProbeFile, read_probe_file

__all__ = ["correlate_with_pattern", "fit_probe", "read_probe", "resample_field"]

_log = logging.getLogger(__name__)

# Pixel sizes that agree to this are the same.
_SAME_PIXEL = 1e-3
# A larger ratio of two pixel sizes indicates a wrong unit.
_MAX_SCALE = 16.0
# Relative improvement of the agreement with the frames that another interpretation of a probe needs.
_MIN_GAIN = 0.01


def read_probe(path: str | Path, n_px: int, object_pixel_m: float | None = None) -> Complex64[np.ndarray, "p n n"]:
    """Read the probe in a file: its array `probeGuess`, else `probe`; in CXI files `image_1` or the source's
    illumination; in a PtyPy reconstruction its probe; else the only array of the file.

    Arguments:
        path: an NPZ, NPY, HDF5 or MATLAB file that holds a probe, or `FILE:KEY`; a scan, a reconstruction or a
            Ptychodus product may serve.
        n_px: frame edge N that the probe must fit.
        object_pixel_m: edge of the pixels that it is resampled to, where its file states the edge of its own.

    Returns:
        All modes [P, N, N]; a real probe gets phase 0.

    Raises:
        ScanError: no probe in the file, one of another size and of unknown pixels, zero or not finite.
    """
    path = as_path(path, "path", "the path of a file with a probe")
    probe = read_probe_file(path, n_px)
    edge = probe.modes.shape[-1]
    if probe.pixel_m and object_pixel_m:
        ratio = _check_ratio(probe, probe.pixel_m / object_pixel_m)
        if edge != n_px or abs(ratio - 1) > _SAME_PIXEL:
            return resample_field(probe.modes, ratio, n_px)
    elif edge != n_px:
        raise ScanError(
            probe.path,
            probe.key,
            expected=f"a probe of ({n_px}, {n_px}), or one whose pixel size is known",
            found=f"{probe.modes.shape}",
            remedy="Resample it: for the same object pixels cut or pad it, for the same detector pixels its Fourier "
            "transform. `read_scan` does so by the frames.",
        )
    return probe.modes


def fit_probe(probe: ProbeFile, scan: Scan, notes: list[str]) -> Complex64[np.ndarray, "p n n"]:
    """Bring a probe to the size and the object pixel of a scan.

    Where both pixel sizes are known the field is resampled by its Fourier series. Where one is not, a probe of another
    size may be of the same field (another part of the detector) or of the same pixels (a finer or coarser detector
    pixel); which one is decided by the mean pattern of the frames, and said.

    Arguments:
        scan: its frames, mask and geometry are looked at.
        notes: what was done is appended to it.

    Raises:
        ScanError: the pixel sizes have nothing to do with each other.
    """
    n_px, modes = scan.n_px, probe.modes
    edge = modes.shape[-1]
    pixel_m = scan.geometry.with_object_pixel(n_px).object_pixel_m
    notes += probe.notes
    if probe.pixel_m and pixel_m:
        ratio = _check_ratio(probe, probe.pixel_m / pixel_m)
        same = abs(ratio - 1) < _SAME_PIXEL
        if edge != n_px or not same:
            modes = resample_field(modes, ratio, n_px)
            if edge == n_px and _agrees_better(probe.modes, modes, scan):
                # As after a correction of the geometry of the same frames.
                modes = probe.modes
                notes.append(f"probe kept pixel by pixel: it agrees so with the frames, of {ratio:.4g} times its pixel")
            else:
                sizes = f"{edge}x{edge} px of {probe.pixel_m:.4g} m", f"{n_px}x{n_px} px of {pixel_m:.4g} m"
                notes.append(f"probe of {sizes[0]} resampled to {sizes[1]}")
    elif edge != n_px:
        same_field, same_pixel = resample_field(modes, n_px / edge, n_px), resample_field(modes, 1.0, n_px)
        better = _agrees_better(same_pixel, same_field, scan)
        modes = same_pixel if better else same_field
        what = "the same object pixels, cut or padded" if better else "the same field, on other object pixels"
        notes.append(
            f"probe of {edge}x{edge} px for frames of {n_px}x{n_px}, where a pixel size is not known: taken for one of "
            f"{what}, which agrees better with the mean pattern"
        )
        _log.warning("%s: %s.", probe.path, notes[-1])
    if probe.may_be_transposed and _agrees_better(turned := np.swapaxes(modes, -1, -2), modes, scan):
        notes.append("probe transposed: MATLAB turns the order of axes around, and the frames say so")
        modes = np.ascontiguousarray(turned)
    return modes


def _check_ratio(probe: ProbeFile, ratio: float) -> float:
    if not 1 / _MAX_SCALE <= ratio <= _MAX_SCALE:
        raise ScanError(
            probe.path,
            probe.key,
            expected=f"object pixels at most {_MAX_SCALE:g} times as large or small as the scan's",
            found=f"{ratio:.4g} times",
            remedy="Correct the unit of energy, distance or detector pixel.",
        )
    return ratio


def resample_field(
    probe: Complex64[np.ndarray, "p a a"], scale: float, n_px: int
) -> Complex64[np.ndarray, "p n_px n_px"]:
    """Resample a probe to pixels 1 / scale as large by its Fourier series; it is 0 outside of its field, and keeps its
    photons."""
    edge = probe.shape[-1]
    at = (np.arange(n_px) - n_px // 2) / scale
    frequency = np.arange(edge) - edge // 2
    kept = (frequency / edge >= -0.5 * scale) & (frequency / edge < 0.5 * scale)
    wave = np.exp(2j * math.pi * np.outer(at, frequency) / edge) * kept
    wave[(at < -(edge // 2)) | (at >= edge - edge // 2)] = 0
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe, axes=(-2, -1))), axes=(-2, -1))
    values = wave @ spectrum @ wave.T
    photons, now = (float(np.square(np.abs(modes)).sum()) for modes in (probe, values))
    return np.ascontiguousarray(values * math.sqrt(photons / max(now, 1e-300)), np.complex64)


def _agrees_better(probe: Complex64[np.ndarray, "p n n"], other: Complex64[np.ndarray, "p n n"], scan: Scan) -> bool:
    """Return whether a probe agrees clearly better with the mean pattern of a scan than another does."""
    amplitude = np.sqrt(compute_mean_pattern(scan.frames, scan.domain)) * scan.mask
    return correlate_with_pattern(probe, amplitude) > correlate_with_pattern(other, amplitude) + _MIN_GAIN


def correlate_with_pattern(probe: Complex64[np.ndarray, "p n n"], amplitude: np.ndarray) -> float:
    """Compute how well the amplitude of the probe's pattern agrees with that of the frames, 0 to 1.

    Arguments:
        amplitude: square root of the mean pattern, 0 at masked pixels.
    """
    waves = np.fft.fftshift(np.fft.fft2(probe.astype(np.complex128)), axes=(-2, -1))
    modulus = np.sqrt(np.square(np.abs(waves)).sum(0)) * (amplitude > 0)
    return float((modulus * amplitude).sum() / max(float(np.linalg.norm(modulus) * np.linalg.norm(amplitude)), 1e-300))
