"""The probe of each frame while a scan is refined: what changes from frame to frame, and how it is found.

The projection methods fit weights and power of a frame whenever they see it, before object and probe are corrected by
what is left, and the modes of variation together with the probe.
Reference: Odstrcil, Baksh, Boden, Card, Chad, Frey, Brocklesby, Opt. Express 24, 8360 (2016).
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from torchptycho.core.config import RefineConfig
from torchptycho.core.errors import ConfigError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.physics.multislice import pass_through_slices
from torchptycho.physics.variable_probe import (
    combine_probe,
    mix_modes,
    orthogonalize_variation,
    smooth_weights,
    solve_frame_changes,
    spread_over_modes,
)
from torchptycho.reconstructors.iterative.problem import Problem
from torchptycho.reconstructors.iterative.state import RefinementState

__all__ = [
    "MIN_SCALE",
    "VariationFit",
    "begin_variation",
    "build_image_probe",
    "check_variation",
    "fix_variation_gauge",
    "take_over_variation",
]

# Size of the random weights that begin; what they are multiplied by is fitted.
_INITIAL_WEIGHT = 0.1
# Longest step of a frame's weights and of the logarithm of its scale.
_MAX_WEIGHT_STEP, _MAX_SCALE_STEP = 0.5, 0.3
MIN_SCALE, _MAX_SCALE = 0.1, 10.0
"""Smallest and largest scale of a frame."""
# Part of the mean curvature that is added to each mode's.
_MODE_RIDGE = 1e-3


def build_image_probe(
    image: Reconstruction, index: Int64[Tensor, " k"], device: torch.device | str = "cpu"
) -> Complex[Tensor, "*frames p n n"]:
    """Build the probe with which an image was refined: of each of these frames, or one for all where it is stable."""
    assert image.probe is not None
    probe = torch.from_numpy(image.probe).to(device)
    if image.opr_modes is None and image.frame_scale is None:
        return probe
    rows = index.to(device)
    modes, weights, scale = probe[:0], probe.real.new_zeros(len(rows), 0), probe.real.new_ones(len(rows))
    if image.opr_modes is not None and image.opr_weights is not None:
        modes = torch.from_numpy(image.opr_modes).to(device)
        weights = torch.from_numpy(image.opr_weights).to(device)[rows]
    if image.frame_scale is not None:
        scale = torch.from_numpy(image.frame_scale).to(device)[rows]
    return combine_probe(probe, modes, weights, scale)


def check_variation(config: RefineConfig, n_frames: int) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: a variation of a probe that is not refined, more modes than frames, or smoothing without modes.
    """
    if config.opr_modes and not config.probe_update:
        raise ConfigError(
            f"opr_modes: expected 0 for a probe that is not refined; found {config.opr_modes}. Leave probe_update on."
        )
    if config.opr_modes >= n_frames:
        raise ConfigError(
            f"opr_modes: expected fewer than the {n_frames} frames of the scan; found {config.opr_modes}."
        )
    if config.opr_smoothing and not config.opr_modes:
        raise ConfigError(
            f"opr_smoothing: expected 0 without modes of variation; found {config.opr_smoothing:g}. Set opr_modes too."
        )


def begin_variation(state: RefinementState, n_modes: int, seed: int) -> None:
    """Give a state a probe that may change: dark modes, and random weights, by which the first update sketches it.

    Reference: Halko, Martinsson, Tropp, SIAM Rev. 53, 217 (2011).
    """
    generator = torch.Generator().manual_seed(seed)
    weights = _INITIAL_WEIGHT * torch.randn(len(state.positions_px), n_modes, generator=generator, dtype=torch.float64)
    state.opr_modes = state.probe.new_zeros(n_modes, *state.probe.shape[1:])
    state.opr_weights = weights.to(state.probe.device, state.probe.real.dtype)
    state.frame_scale = state.probe.real.new_ones(len(weights))


def take_over_variation(state: RefinementState, start: Reconstruction, config: RefineConfig) -> None:
    """Take over from an earlier image of the same frames how its probe varied, as far as it is to be refined.

    The state's probe may have been scaled since, by a factor that all modes share.
    """
    device, real = state.probe.device, state.frame_scale.dtype
    if config.frame_scale and start.frame_scale is not None and len(start.frame_scale) == len(state.frame_scale):
        state.frame_scale = torch.from_numpy(start.frame_scale).to(device, real)
    modes, weights = start.opr_modes, start.opr_weights
    if modes is None or weights is None or start.probe is None or len(weights) != len(state.frame_scale):
        return
    count = min(config.opr_modes, len(modes))
    if modes.shape[1:] == state.probe.shape[1:]:
        state.opr_modes[:count] = torch.from_numpy(modes[:count]).to(device, state.probe.dtype)
        state.opr_weights[:, :count] = torch.from_numpy(weights[:, :count]).to(device, real)


class VariationFit:
    """One epoch's fit of the variation, for the projection methods."""

    def __init__(self, problem: Problem, state: RefinementState, config: RefineConfig) -> None:
        self._problem, self._state, self._config = problem, state, config
        self._change = torch.zeros_like(state.opr_modes)
        self._transmission = torch.zeros_like(state.probe[0].real)
        self._normal = state.frame_scale.new_zeros(len(state.opr_modes), len(state.opr_modes))
        self._power = state.frame_scale.new_zeros(())
        self._n_frames = 0

    def fit_frames(
        self,
        batch: Int64[Tensor, " frames"],
        index: Int64[Tensor, " k"],
        patches: Complex[Tensor, "slices k n n"],
        wave: Complex[Tensor, "k p n n"],
        intensity: Float[Tensor, "k n n"],
        counts: Float[Tensor, "k n n"],
    ) -> tuple[Complex[Tensor, "k p n n"], Float[Tensor, "k n n"]]:
        """Fit weights and scale of these frames; return their new waves on the detector and new expected counts.

        What a batch has in common is left to object and probe: if the frames followed it, nothing would stop their
        momentum.

        Arguments:
            batch: the frames of all processes.
            index: those of this process.
            patches: of each slice of the object.
            intensity: with background.
        """
        state = self._state
        scale = state.frame_scale[index]
        first = (patches[0] * scale[:, None, None])[None]
        columns = pass_through_slices(torch.cat([first, patches[1:]]), state.opr_modes, self._problem.gap).exit
        columns = self._problem.propagator.forward(columns)
        weight_step, scale_step = solve_frame_changes(
            wave, columns, intensity, counts, self._problem.mask_or_none, fits_scale=self._config.frame_scale
        )
        # Each process keeps weights and scales of all frames.
        steps = self._problem.collect(torch.cat([weight_step, scale_step[:, None]], 1), batch)
        steps = steps - steps.mean(0) if len(batch) > 1 else steps
        weight_step, scale_step = steps[:, :-1], steps[:, -1]
        length = weight_step.norm(dim=1, keepdim=True).clamp_min(1e-30)
        weight_step = weight_step * (_MAX_WEIGHT_STEP / length).clamp_max(1)
        factor = scale_step.clamp(-_MAX_SCALE_STEP, _MAX_SCALE_STEP).exp()
        before_scale = state.frame_scale[batch]
        factor = (before_scale * factor).clamp(MIN_SCALE, _MAX_SCALE) / before_scale
        state.opr_weights[batch] += weight_step
        state.frame_scale[batch] = before_scale * factor
        if self._problem.is_own is not None:
            own = self._problem.is_own[batch]
            weight_step, factor = weight_step[own], factor[own]
        before = (wave.real.square() + wave.imag.square()).sum(1)
        if len(state.opr_modes):
            added = (weight_step[:, None].to(columns.dtype) @ columns.flatten(2)).reshape(
                len(index), *columns.shape[2:]
            )
            wave = torch.cat([(wave[:, 0] + added)[:, None], wave[:, 1:]], 1)
        wave = wave * factor[:, None, None, None]
        after = (wave.real.square() + wave.imag.square()).sum(1)
        return wave, (intensity - before).clamp_min(0) + after

    def accumulate(
        self,
        index: Int64[Tensor, " k"],
        n_frames: int,
        patches: Complex[Tensor, "k n n"],
        exit_change: Complex[Tensor, "k p n n"],
    ) -> None:
        """Add what these frames ask of the modes of variation; `n_frames` are those of all processes in the batch.

        Arguments:
            patches: of the first slice.
            exit_change: of the waves behind it.
        """
        state = self._state
        if not len(state.opr_modes):
            return
        weights, scale = state.opr_weights[index], state.frame_scale[index]
        squared = scale.square()
        self._change += spread_over_modes(exit_change[:, 0] * patches.conj(), weights, scale)
        transmission = patches.real.square() + patches.imag.square()
        self._transmission += (transmission * squared[:, None, None]).sum(0)
        self._normal += (weights * squared[:, None]).mT @ weights
        self._power += squared.sum()
        self._n_frames += n_frames

    def update_modes(self) -> None:
        """Update the modes of variation by the frames since the last time.

        The least squares with one transmission for all of them; to their own weights' curvature that of the mean frame
        is added, because a few frames do not determine all modes.
        """
        state = self._state
        if not self._n_frames:
            return
        self._problem.reducer.sum(self._change, self._transmission, self._normal, self._power)
        all_squared = state.frame_scale.square()[:, None]
        part = self._n_frames / len(all_squared)
        normal = self._normal + part * (state.opr_weights * all_squared).mT @ state.opr_weights
        eye = torch.eye(len(normal), dtype=normal.dtype, device=normal.device)
        normal = normal + (_MODE_RIDGE * normal.diagonal().mean() + 1e-30) * eye
        mean = self._transmission / self._power
        mean = (1 - self._config.alpha) * mean + self._config.alpha * mean.max()
        change = mix_modes(torch.linalg.inv(normal), self._change) / mean
        if self._config.frame_scale:
            change = _remove_power(change, state.probe[0])
        state.opr_modes = state.opr_modes + change
        for total in (self._change, self._transmission, self._normal, self._power):
            total.zero_()
        self._n_frames = 0


def fix_variation_gauge(problem: Problem, state: RefinementState, config: RefineConfig, *, update_probe: bool) -> None:
    """Bring the variation to its standard form, and smooth its weights; but for the smoothing no probe changes.

    The mean of the weights goes into the probe, the mean of the scale into the object. With a free scale, an object
    times exp(a r), a probe times exp(-a r) and scales times exp(-a r_j) give the same counts: the scales keep no trend
    along the positions. Modes and weights are orthogonal, strongest first.
    """
    if len(state.opr_modes) and update_probe:
        weights = state.opr_weights
        if config.opr_smoothing:
            weights = smooth_weights(weights, config.opr_smoothing)
        mean = weights.mean(0)
        moved = mix_modes(mean[None], state.opr_modes)[0]
        for name in ("probe", "probe_anchor"):
            probe = getattr(state, name).clone()
            probe[0] += moved
            setattr(state, name, probe)
        weights = weights - mean
        if config.frame_scale:
            parts = _measure_power_parts(state.opr_modes, state.probe[0])
            factor = (1 + weights @ parts).clamp(0.5, 2)
            state.opr_modes = _remove_power(state.opr_modes, state.probe[0])
            state.frame_scale, weights = state.frame_scale * factor, weights / factor[:, None]
        power = float(state.probe[0].abs().square().sum())
        turn, state.opr_weights = orthogonalize_variation(state.opr_modes, weights, power)
        state.opr_modes = mix_modes(turn, state.opr_modes)
    if config.frame_scale:
        _remove_scale_trend(problem, state, update_probe=update_probe)


def _remove_scale_trend(problem: Problem, state: RefinementState, *, update_probe: bool) -> None:
    """Move mean and, if the probe is free, linear trend of the logarithm of the scales into object and probe."""
    away = state.positions_px - state.positions_px.mean(0)
    trend = torch.zeros(2, dtype=away.dtype, device=away.device)
    if update_probe:
        logarithm = state.frame_scale.double().log()
        trend = torch.linalg.pinv(away.T @ away, hermitian=True) @ (away.T @ (logarithm - logarithm.mean()))
        state.frame_scale = state.frame_scale * (-(away @ trend)).exp().to(state.frame_scale.dtype)
    mean = state.frame_scale.mean()
    state.frame_scale = state.frame_scale / mean
    middle_px = problem.compute_corners_px(state.positions_px.mean(0)[None])[0] + problem.n_px // 2
    frame_middle_px = torch.full_like(middle_px, problem.n_px // 2)
    for names, center, sign, factor in (
        (("object", "velocity", "anchor"), middle_px, 1.0, mean),
        (("probe", "probe_velocity", "probe_anchor", "opr_modes"), frame_middle_px, -1.0, torch.ones_like(mean)),
    ):
        for name in names:
            values = getattr(state, name)
            rows, columns = (
                (sign * slope * (torch.arange(edge, dtype=torch.float64, device=away.device) - middle)).exp()
                for slope, edge, middle in zip(trend, values.shape[-2:], center, strict=True)
            )
            ramp = (rows[:, None] * columns * factor.double()).to(values.real.dtype)
            setattr(state, name, values * ramp)


def _measure_power_parts(modes: Complex[Tensor, "v n n"], probe: Complex[Tensor, "n n"]) -> Float[Tensor, " v"]:
    """Measure how much of the probe itself each mode holds: Re <P, B_k> / <P, P>."""
    parts: Tensor = (modes * probe.conj()).real.sum((1, 2)) / probe.abs().square().sum()
    return parts


def _remove_power(modes: Complex[Tensor, "v n n"], probe: Complex[Tensor, "n n"]) -> Complex[Tensor, "v n n"]:
    """Remove from modes their part along the probe, which changes the power only and is left to the scale."""
    return modes - _measure_power_parts(modes, probe)[:, None, None] * probe
