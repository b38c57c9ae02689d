"""How likely an image makes photons that it was not fitted to, frame by frame."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from jaxtyping import Bool, Float64

from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.physics.noise import poisson_log_ratio
from torchptycho.physics.patches import extract_inside
from torchptycho.physics.propagation import build_propagator
from torchptycho.reconstructors.iterative.fit import propagate_to_detector
from torchptycho.reconstructors.iterative.variable_probe import build_image_probe

__all__ = ["Gain", "Judgement", "compare", "judge"]

_FRAMES_AT_ONCE = 25
# Part of the mean pattern in what is expected: a pixel that an image makes dark by mistake must not decide alone.
_FLOOR = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """What held-out counts say of an image.

    Arguments:
        log_ratio: log-likelihood of each held-out frame above that under the mean pattern.
        counts: number of held-out photons in the judged pixels.
        misfit: squared deviation of the held-out counts over that of photon noise; 1 for a perfect image.
    """

    log_ratio: Float64[np.ndarray, " m"]
    counts: float
    misfit: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gain:
    """How much likelier one image makes the held-out counts than another.

    Arguments:
        per_count: log-likelihood per held-out photon.
        error: its standard error, from the spread over the frames.
        share: gain relative to what the better image gains over the mean pattern.
    """

    per_count: float
    error: float
    share: float

    def is_significant(self, min_sigma: float, min_share: float) -> bool:
        """Return whether the gain is above the noise, and large enough to matter."""
        return self.per_count > min_sigma * self.error and self.share > min_share


def judge(image: Reconstruction, held: Scan, factor: float, mask: Bool[np.ndarray, "n n"] | None = None) -> Judgement:
    """Judge an image by counts that it was not fitted to.

    Arguments:
        image: refined, with its probe and its position of every held frame.
        held: the counts.
        factor: expected held-out counts over those that the image was fitted to.
        mask: pixels that judge; None takes the good ones of `held`.
    """
    assert image.positions_px is not None
    n_px = held.n_px
    good = torch.from_numpy(np.fft.ifftshift(held.mask if mask is None else mask))
    counts = np.fft.ifftshift(held.frames[:].astype(np.float32), axes=(1, 2))
    propagator = build_propagator(held.geometry, n_px)
    if not propagator.zero_frequency_first:
        counts, good = np.fft.fftshift(counts, axes=(1, 2)), torch.fft.fftshift(good)
    measured = torch.from_numpy(np.ascontiguousarray(counts)) * good
    mean = (measured.sum(0) + 0.5) / len(measured)
    background = torch.zeros(n_px, n_px)
    if image.background is not None:
        shift = np.fft.ifftshift if propagator.zero_frequency_first else np.asarray
        background = torch.from_numpy(np.ascontiguousarray(shift(image.background)))
    corners_px = torch.from_numpy(image.positions_px - np.array(image.origin_px) - n_px // 2)
    canvas = torch.from_numpy(image.object)
    found, deviation, expected_deviation = [], 0.0, 0.0
    for part in torch.split(torch.arange(len(measured)), _FRAMES_AT_ONCE):
        patches = extract_inside(canvas, corners_px[part], n_px)
        _, intensity = propagate_to_detector(patches, build_image_probe(image, part), propagator)
        expected = (1 - _FLOOR) * factor * (intensity + background) + _FLOOR * mean
        weight = good / (expected + 1)
        deviation += float(((measured[part] - expected).square() * weight).sum())
        expected_deviation += float((expected * weight).sum())
        found += [poisson_log_ratio(*pair, good) for pair in _with_reference(expected, mean, measured[part])]
    return Judgement(
        log_ratio=torch.stack(found).numpy(),
        counts=float(measured.sum(dtype=torch.float64)),
        misfit=deviation / max(expected_deviation, 1e-30),
    )


def compare(better: Judgement, worse: Judgement) -> Gain:
    """Compare two images by the same held-out counts."""
    difference = better.log_ratio - worse.log_ratio
    total = float(difference.sum())
    scale = max(float(better.log_ratio.sum()), abs(total), 1e-30)
    error = float(difference.std()) * math.sqrt(len(difference))
    counts = max(worse.counts, 1.0)
    return Gain(per_count=total / counts, error=error / counts, share=total / scale)


def _with_reference(
    expected: torch.Tensor, mean: torch.Tensor, counts: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    return [(one, mean, measured) for one, measured in zip(expected, counts, strict=True)]
