"""Scales: of the frames as the network sees them, and from there to photons."""

from __future__ import annotations

import math

import numpy as np


def normalize_data(diffraction: np.ndarray, N: int) -> np.ndarray:
    """Amplitudes (B, N, N, C) times one factor, so that the mean over frames of sum X^2 is (N/2)^2; float32.

    Whole numbers are converted before they are squared, and do not overflow. The original has it twice.
    """
    return (diffraction * math.sqrt((N / 2) ** 2 / _mean_power(diffraction))).astype(np.float32)


def scale_nphotons(X: np.ndarray, nphotons: float = 1e9) -> np.float32:
    """s so that frames s X (B, N, N, C) have `nphotons` photons, sum (s X)^2, in the mean."""
    return np.float32(math.sqrt(nphotons / _mean_power(X)))


def count_photons(X: np.ndarray) -> np.ndarray:
    """Sum of X^2 over each frame of (B, N, N, C), (B, C) float32."""
    return _power(X).astype(np.float32)


def calculate_intensity_scale(nphotons: float, N: int) -> float:
    """s = sqrt(nphotons) / (N/2) of frames that `normalize_data` has scaled."""
    return math.sqrt(nphotons) / (N / 2)


def _mean_power(frames: np.ndarray) -> float:
    return float(np.mean(_power(frames)))


def _power(frames: np.ndarray) -> np.ndarray:
    """In float64, without a copy of the frames."""
    return np.asarray(np.einsum("byxc,byxc->bc", frames, frames, dtype=np.float64))
