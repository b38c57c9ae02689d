"""Counts thinned binomially as they are read: two stacks that are independent, from one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool

from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames

__all__ = ["ThinnedFrames", "are_whole_numbers", "thin"]


@dataclasses.dataclass(frozen=True, eq=False)
class ThinnedFrames:
    """A part of the photons of another stack, each of which is kept or held out by a draw of its own.

    y1 ~ Binomial(y, p) and y2 = y - y1 are independent Poisson counts of p I and (1 - p) I when y is one of I. What is
    drawn from a frame depends on the seed and on its place in the stack alone, so that any part may be read in any
    order, and nothing is held in memory.
    Reference: Kingman, Poisson Processes (1993), sec. 5.1.

    Arguments:
        inner: photon counts, whole numbers of at least 0 where the mask is True.
        kept_fraction: p, the probability that a photon is kept.
        seed: of the draws.
        held_out: give y2 and not y1.
        mask: [N, N] good pixels; all others are set to 0.
        source: names the scan in errors.
    """

    inner: Frames
    kept_fraction: float
    seed: int
    held_out: bool
    mask: Bool[np.ndarray, "n n"]
    source: str = "memory"

    @property
    def key(self) -> str:
        return str(getattr(self.inner, "key", "frames"))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.inner.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.inner.dtype

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        start = 0
        for chunk in self.inner.chunks(frames_per_chunk):
            yield self._thin(chunk, np.arange(start, start + len(chunk)))
            start += len(chunk)

    def __getitem__(self, index: Any) -> np.ndarray:
        wanted = np.arange(self.shape[0])[index]
        flat = np.ravel(wanted)
        return self._thin(self.inner[flat], flat).reshape(*np.shape(wanted), *self.shape[1:])

    def _thin(self, frames: np.ndarray, rows: np.ndarray) -> np.ndarray:
        thinned = np.zeros(frames.shape, self.dtype)
        for frame, row, out in zip(frames, rows, thinned, strict=True):
            good = frame[self.mask]
            if not are_whole_numbers(good):
                raise ScanError(
                    self.source,
                    self.key,
                    expected="photon counts, whole numbers of at least 0, to hold out a part of them",
                    found=f"other values in frame {row}",
                    remedy="Divide by the detector's gain if it is known, or hold out whole frames.",
                )
            kept = thin(good, self.kept_fraction, self.seed, int(row))
            out[self.mask] = good - kept if self.held_out else kept
        return thinned


def thin(counts: np.ndarray, kept_fraction: float, seed: int, frame: int) -> np.ndarray:
    """Draw which photons of a frame are kept, in the dtype of the counts; the same seed and frame give the same."""
    drawn = np.random.default_rng([seed, frame]).binomial(counts.astype(np.int64), kept_fraction)
    return drawn.astype(counts.dtype)


def are_whole_numbers(values: np.ndarray) -> bool:
    """Return True when all values can be counts: finite, whole and at least 0."""
    if values.dtype.kind in "ub":
        return True
    with np.errstate(invalid="ignore"):
        whole = values >= 0
        if values.dtype.kind == "f":
            whole &= (values == np.rint(values)) & (values < 2.0**62)
    return bool(whole.all())
