"""What is done to recorded frames as they are read: shift, cut, dark, flat, binning."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex64, Float32

from torchptycho.core.config.base import Domain
from torchptycho.core.scan import Frames

__all__ = ["ProcessedFrames", "Processing", "crop_or_pad", "resample_probe"]

_READ_BYTES = 16 * 2**20


def crop_or_pad(image: np.ndarray, top: int, left: int, height: int, width: int, fill: Any = 0) -> np.ndarray:
    """Cut a window out of the last two axes, with `fill` beyond the edge."""
    rows, columns = image.shape[-2:]
    if top >= 0 and left >= 0 and top + height <= rows and left + width <= columns:
        return image[..., top : top + height, left : left + width]
    out = np.full((*image.shape[:-2], height, width), fill, image.dtype)
    y0, y1, x0, x1 = max(top, 0), min(top + height, rows), max(left, 0), min(left + width, columns)
    if y0 < y1 and x0 < x1:
        out[..., y0 - top : y1 - top, x0 - left : x1 - left] = image[..., y0:y1, x0:x1]
    return out


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Processing:
    """The steps, in this order: shift, cut to the window, subtract dark, divide by flat, clip, bin.

    What lies under the mask is not looked at, and a binned pixel that holds some of it is masked itself.

    Arguments:
        shift: move the zero frequency from [0, 0] to [H//2, W//2].
        top, left: where the window begins, after the shift; it may reach beyond the detector.
        n_px: edge N of the result.
        binning: detector pixels along the edge of a pixel of the result.
        dark: counts of each detector pixel without X-rays; None for none.
        flat: response of each detector pixel, 1 for a perfect one; None for none.
        bad_pixels: [H, W], True where a detector pixel is not to be trusted.
        clip: set negative counts to 0; a dark sets them to 0 in any case.
    """

    shift: bool
    top: int
    left: int
    n_px: int
    binning: int
    bad_pixels: Bool[np.ndarray, "h w"]
    dark: Float32[np.ndarray, "h w"] | None = None
    flat: Float32[np.ndarray, "h w"] | None = None
    clip: bool = False

    def crop_to_window(self, image: np.ndarray, fill: Any = 0) -> np.ndarray:
        """Shift and cut frames or an image of the detector."""
        shifted = np.fft.fftshift(image, axes=(-2, -1)) if self.shift else image
        edge = self.n_px * self.binning
        return crop_or_pad(shifted, self.top, self.left, edge, edge, fill)

    @property
    def bad_in_window(self) -> Bool[np.ndarray, "e e"]:
        bad = np.array(self.crop_to_window(self.bad_pixels, True))
        if self.flat is not None:
            bad |= ~(self.crop_to_window(self.flat) > 0)
        return bad

    @property
    def mask(self) -> Bool[np.ndarray, "n n"]:
        """Good pixels of the result: those all of whose detector pixels are good."""
        n, b = self.n_px, self.binning
        return np.array(~self.bad_in_window.reshape(n, b, n, b).any(axis=(1, 3)))

    def choose_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Choose the resulting dtype: the detector's own, integers wide enough for sums, or float32 if corrected."""
        if dtype.kind == "f" or self.dark is not None or self.flat is not None:
            return np.dtype(np.float32)
        if self.binning == 1:
            return dtype
        return np.dtype(np.uint32 if dtype.kind == "u" and dtype.itemsize <= 2 else np.int64)

    def apply(self, frames: np.ndarray, domain: Domain) -> np.ndarray:
        """Convert frames [K, H, W] of the file to frames [K, N, N] of the scan."""
        target = self.choose_dtype(frames.dtype)
        values = self.crop_to_window(frames)
        if self.dark is not None or self.flat is not None:
            values = values.astype(np.float32)
            if self.dark is not None:
                values = np.maximum(values - self.crop_to_window(self.dark), 0)
            if self.flat is not None:
                flat = self.crop_to_window(self.flat)
                values = values / np.where(flat > 0, flat, 1)
        if self.clip:
            values = np.maximum(values, 0)
        if self.binning > 1:
            n, b = self.n_px, self.binning
            squared = domain == "amplitude"
            wide = values.astype(np.float64 if target.kind == "f" else target)
            with np.errstate(over="ignore", invalid="ignore"):
                wide = (wide**2 if squared else wide).reshape(len(values), n, b, n, b).sum(axis=(2, 4))
                values = np.sqrt(wide) if squared else wide
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, dtype=target)

    def fingerprint(self) -> str:
        """Return a short text that identifies the steps."""
        digest = hashlib.sha256(repr((self.shift, self.top, self.left, self.n_px, self.binning, self.clip)).encode())
        for array in (self.bad_pixels, self.dark, self.flat):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class ProcessedFrames:
    """Another stack, processed as it is read."""

    inner: Frames
    steps: Processing
    domain: Domain

    @property
    def key(self) -> str:
        return str(getattr(self.inner, "key", "frames"))

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.inner.shape[0], self.steps.n_px, self.steps.n_px)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.steps.choose_dtype(self.inner.dtype)

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        # Recorded frames may be much larger than the cropped ones.
        _, height, width = self.inner.shape
        few = max(1, _READ_BYTES // (height * width * self.inner.dtype.itemsize))
        for chunk in self.inner.chunks(min(frames_per_chunk, few)):
            yield self.steps.apply(chunk, self.domain)

    def __getitem__(self, index: Any) -> np.ndarray:
        wanted = np.arange(self.shape[0])[index]
        flat = np.ravel(wanted)
        return self.steps.apply(self.inner[flat], self.domain).reshape(*np.shape(wanted), *self.shape[1:])


def resample_probe(probe: Complex64[np.ndarray, "p a a"], n_px: int, binning: int) -> Complex64[np.ndarray, "p b b"]:
    """Resample a probe for frames that are cut to n_px * binning detector pixels and binned.

    Cutting the detector makes the object pixel larger: the probe's Fourier transform is cut likewise, and what is
    beyond it is lost. Binning keeps the object pixel and makes the field smaller: the probe is cut. The photons of what
    remains are unchanged.
    """
    edge, before = n_px * binning, probe.shape[-1]
    wave = probe.astype(np.complex128)
    if edge != before:
        spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(wave, axes=(-2, -1))), axes=(-2, -1)) / before
        start = before // 2 - edge // 2
        spectrum = crop_or_pad(spectrum, start, start, edge, edge)
        wave = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))), axes=(-2, -1)) * edge
    if binning > 1:
        start = edge // 2 - n_px // 2
        wave = crop_or_pad(wave, start, start, n_px, n_px)
    assert math.isfinite(float(np.abs(wave).sum()))
    return np.ascontiguousarray(wave, dtype=np.complex64)
