"""A simulated probe that changes from frame to frame: it drifts, its power fluctuates, and its shape wanders."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from jaxtyping import Complex, Complex64, Float64
from scipy.special import eval_hermite
from torch import Tensor

from torchptycho.core.config import SimulateConfig
from torchptycho.physics.pie import shift_probe
from torchptycho.physics.variable_probe import combine_probe

__all__ = ["ProbeChanges", "draw_probe_changes"]

_N_SHAPES = 3
# Cosines that a weight is drawn from, and how fast their amplitudes fall: about six swings over the scan.
_N_WAVES, _ROLL_OFF = 24, 6.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ProbeChanges:
    """What each frame's probe differs by.

    Arguments:
        power: photons in the probe relative to the mean probe.
        shift_px: (y, x) by which it is shifted.
        weights: of the shapes.
        shapes: what is added to the first mode, each of the power of the probe.
    """

    power: Float64[np.ndarray, " m"]
    shift_px: Float64[np.ndarray, "m 2"]
    weights: Float64[np.ndarray, "m v"]
    shapes: Complex64[np.ndarray, "v n n"]

    def apply(self, probe: Complex[Tensor, "p n n"], frames: slice) -> Complex[Tensor, "k p n n"]:
        """Return the probe of each of these frames."""
        real = probe.real.dtype
        scale = torch.from_numpy(np.sqrt(self.power[frames])).to(real)
        weights = torch.from_numpy(self.weights[frames]).to(real)
        probes = combine_probe(probe, torch.from_numpy(self.shapes).to(probe.dtype), weights, scale)
        shift = torch.from_numpy(self.shift_px[frames]).to(real)
        return shift_probe(probes, shift[:, None])[:, 0] if shift.any() else probes

    def describe(self) -> dict[str, list[float] | list[list[float]]]:
        """Return what the metadata of the scan hold about it."""
        return {
            "probe_power": self.power.tolist(),
            "probe_shift_px": self.shift_px.tolist(),
            "probe_weights": self.weights.tolist(),
        }


def draw_probe_changes(
    config: SimulateConfig, probe: Complex64[np.ndarray, "p n n"], n_frames: int, rng: np.random.Generator
) -> ProbeChanges | None:
    """Draw the changes configured by `config`; None if the probe is stable.

    The power of each frame is drawn on its own, with mean 1. The drift is a straight line over the scan, 0 in its
    middle. Each of three shapes has a weight that wanders smoothly, with mean 0; together their root mean square is
    `probe_wander`. A shape is the first mode times a Hermite polynomial of second order and a random phase, orthogonal
    to the mode and to the other shapes.
    """
    if not (config.probe_drift_px or config.power_fluctuation or config.probe_wander):
        return None
    power = np.clip(1 + config.power_fluctuation * rng.standard_normal(n_frames), 0.1, None)
    angle = rng.uniform(0, 2 * np.pi)
    time = np.linspace(-0.5, 0.5, n_frames) if n_frames > 1 else np.zeros(1)
    shift_px = config.probe_drift_px * time[:, None] * np.array([np.sin(angle), np.cos(angle)])
    weights = _draw_wandering_weights(n_frames, rng)
    return ProbeChanges(
        power=power / power.mean(),
        shift_px=shift_px,
        weights=weights * config.probe_wander / math.sqrt(_N_SHAPES),
        shapes=_make_shapes(probe[0].astype(np.complex128), rng),
    )


def _draw_wandering_weights(n_frames: int, rng: np.random.Generator) -> Float64[np.ndarray, "m v"]:
    """Draw smooth functions of the frame's number, of mean 0 and mean square 1."""
    order = np.arange(1, _N_WAVES + 1)
    amplitudes = rng.standard_normal((_N_WAVES, _N_SHAPES)) / (1 + (order[:, None] / _ROLL_OFF) ** 2)
    time = (np.arange(n_frames) + 0.5) / n_frames
    weights = np.cos(np.pi * time[:, None] * order) @ amplitudes
    weights -= weights.mean(0)
    return np.asarray(weights / np.maximum(np.sqrt((weights**2).mean(0)), 1e-12))


def _make_shapes(mode: np.ndarray, rng: np.random.Generator) -> Complex64[np.ndarray, "v n n"]:
    n_px = len(mode)
    along = np.arange(n_px) - n_px // 2
    intensity = np.abs(mode) ** 2
    width = math.sqrt(float((intensity.sum(1) + intensity.sum(0)) @ along**2 / (2 * intensity.sum())))
    y, x = along[:, None] / max(width, 1e-9), along[None, :] / max(width, 1e-9)
    shapes: list[np.ndarray] = [mode, 1j * mode]
    for j, k in ((2, 0), (1, 1), (0, 2))[:_N_SHAPES]:
        shape = mode * eval_hermite(j, y) * eval_hermite(k, x) * np.exp(2j * np.pi * rng.random())
        for other in shapes:
            shape = shape - other * np.real(np.vdot(other, shape)) / np.real(np.vdot(other, other))
        shapes.append(shape * math.sqrt(float(intensity.sum() / np.sum(np.abs(shape) ** 2))))
    return np.asarray(np.stack(shapes[2:]), dtype=np.complex64)
