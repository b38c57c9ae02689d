"""Whether frames of floats hold counts or amplitudes, judged by their values."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float64

from torchptycho.core.config.base import Domain
from torchptycho.core.scan import Frames
from torchptycho.io.frames.frame_stacks import sample_frames

__all__ = ["InferredDomain", "infer_domain"]

# Steps of float32 can be seen up to here; most values must lie on one.
_MAX_STEPS, _STEP_TOLERANCE, _MIN_ON_STEPS, _MIN_VALUES = 1000.0, 0.02, 0.99, 200
# Local variance against mean, variance ~ mean^slope: from 1 (photon noise) to 2 (speckles) for counts, from 0 for their
# roots; between them are both.
_MAX_SLOPE_OF_ROOTS, _MIN_SLOPE_OF_COUNTS = 0.9, 1.4
# Long lags of the autocorrelation of the values, relative to those of their squares. An intensity has a short one.
_MIN_TAIL_OF_ROOTS, _MAX_TAIL_OF_COUNTS = 0.7, 0.35
_LONG_LAG, _MIN_EDGE_PX = 0.3, 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferredDomain:
    """What frames of floats seem to hold.

    Arguments:
        domain: counts or amplitudes.
        why: in a few words.
        is_certain: whether the values leave no doubt.
        count: what one photon is in these values, where they are multiples of it.
    """

    domain: Domain
    why: str
    is_certain: bool
    count: float | None = None


def infer_domain(frames: Frames) -> InferredDomain:
    """Infer what frames of floats hold.

    Whole numbers, and multiples of one number, are counts; roots of such are amplitudes. Other values are judged by
    their noise and by the autocorrelation of a frame, and are amplitudes where that leaves a doubt.
    """
    sample = np.stack([np.asarray(frame, np.float64) for frame in sample_frames(frames)])
    values = sample[np.isfinite(sample) & (sample > 0)]
    if len(values) == 0 or values.min() == values.max():
        return InferredDomain(domain="amplitude", why="there is nothing to judge", is_certain=False)
    if (values == np.round(values)).all() and (values > 1).any():
        return InferredDomain(domain="counts", why="the values are whole numbers", is_certain=True)
    smallest = float(values.min())
    if _is_on_steps(values / smallest):
        why = f"the values are multiples of {smallest:.4g}"
        return InferredDomain(domain="counts", why=why, is_certain=True, count=smallest)
    if _is_on_steps((values / smallest) ** 2):
        why = f"the squared values are multiples of {smallest**2:.4g}"
        return InferredDomain(domain="amplitude", why=why, is_certain=True, count=smallest**2)
    clean = np.where(np.isfinite(sample) & (sample > 0), sample, 0.0)
    if min(clean.shape[1:]) >= _MIN_EDGE_PX and len(values) >= _MIN_VALUES:
        slope, tail = _fit_noise_slope(clean), _compare_tails(clean)
        if slope < _MAX_SLOPE_OF_ROOTS or tail > _MIN_TAIL_OF_ROOTS:
            why = "their noise and autocorrelation are those of amplitudes"
            return InferredDomain(domain="amplitude", why=why, is_certain=True)
        if slope > _MIN_SLOPE_OF_COUNTS and tail < _MAX_TAIL_OF_COUNTS:
            why = "their noise and autocorrelation are those of counts"
            return InferredDomain(domain="counts", why=why, is_certain=False)
    return InferredDomain(domain="amplitude", why="their statistics do not tell", is_certain=False)


def _is_on_steps(ratios: Float64[np.ndarray, " k"]) -> bool:
    """Return whether values that are small multiples of the smallest one are whole multiples of it."""
    small = ratios[ratios < _MAX_STEPS]
    if len(small) < min(_MIN_VALUES, len(ratios)) or len(np.unique(np.round(small))) < 3:
        return False
    return bool((np.abs(small - np.round(small)) < _STEP_TOLERANCE).mean() >= _MIN_ON_STEPS)


def _fit_noise_slope(frames: Float64[np.ndarray, "k h w"]) -> float:
    """Fit the exponent of the local variance against the mean, from second differences along the rows."""
    before, here, after = frames[:, :, :-2], frames[:, :, 1:-1], frames[:, :, 2:]
    variance = ((before - 2 * here + after) ** 2 / 6).ravel()
    mean = ((before + here + after) / 3).ravel()
    order = np.argsort(mean[mean > 0])
    bins = [part for part in np.array_split(order, 25) if len(part)]
    variance, mean = variance[mean > 0], mean[mean > 0]
    means = np.array([mean[part].mean() for part in bins])
    variances = np.array([variance[part].mean() for part in bins])
    seen = variances > 0
    if seen.sum() < 3 or np.ptp(np.log(means[seen])) == 0:
        return 0.0
    return float(np.polyfit(np.log(means[seen]), np.log(variances[seen]), 1)[0])


def _compare_tails(frames: Float64[np.ndarray, "k h w"]) -> float:
    """Compare the long lags of the frames with those of the squared frames."""
    height, width = frames.shape[1:]
    y, x = (np.fft.fftfreq(edge) for edge in (height, width))
    lag = np.hypot(y[:, None], x)
    near, far = (lag > 0) & (lag <= _LONG_LAG), lag > _LONG_LAG
    parts = []
    for values in (frames, frames**2):
        power = np.mean([np.abs(np.fft.fft2(frame)) ** 2 for frame in values], axis=0)
        parts.append(power[far].mean() / max(float(power[near].mean()), 1e-300))
    return float(parts[0] / max(float(parts[1]), 1e-300))
