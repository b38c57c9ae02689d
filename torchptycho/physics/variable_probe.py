"""A probe that changes from frame to frame: a truncated orthogonal basis, weights for each frame, and its power.

P_j = s_j (P + sum_k w_jk B_k) for the first incoherent mode, s_j P_m for the others; w and s are real.
Reference: Odstrcil, Baksh, Boden, Card, Chad, Frey, Brocklesby, Opt. Express 24, 8360 (2016).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

__all__ = [
    "combine_probe",
    "mix_modes",
    "orthogonalize_variation",
    "project_on_modes",
    "smooth_weights",
    "solve_frame_changes",
    "spread_over_modes",
]

# Part of the largest curvature that is added to each: modes that are still dark get no weight.
_RIDGE = 1e-6


def combine_probe(
    probe: Complex[Tensor, "p n n"],
    modes: Complex[Tensor, "v n n"],
    weights: Float[Tensor, "k v"],
    scale: Float[Tensor, " k"],
) -> Complex[Tensor, "k p n n"]:
    """Return the probe of each frame; linear in `probe` and `modes`.

    Arguments:
        probe: incoherent modes of the mean probe.
        modes: the modes of variation of the first of them.
        weights, scale: of each frame.
    """
    frames = probe.expand(len(scale), *probe.shape)
    if len(modes):
        first = probe[0] + mix_modes(weights, modes)
        frames = torch.cat([first[:, None], frames[:, 1:]], dim=1)
    return frames * scale[:, None, None, None]


def mix_modes(weights: Float[Tensor, "k v"], modes: Complex[Tensor, "v n n"]) -> Complex[Tensor, "k n n"]:
    """Compute sum_v w_kv B_v with real weights."""
    parts = torch.view_as_real(modes)
    mixed = (weights @ parts.reshape(len(parts), -1)).reshape(len(weights), *parts.shape[1:])
    return torch.view_as_complex(mixed)


def spread_over_modes(
    update: Complex[Tensor, "k n n"], weights: Float[Tensor, "k v"], scale: Float[Tensor, " k"]
) -> Complex[Tensor, "v n n"]:
    """Sum the frames' changes of their first mode over the modes of variation: the adjoint of `combine_probe` in
    `modes`."""
    return mix_modes((weights * scale[:, None]).mT, update)


def project_on_modes(
    update: Complex[Tensor, "k n n"], modes: Complex[Tensor, "v n n"], scale: Float[Tensor, " k"]
) -> Float[Tensor, "k v"]:
    """Compute Re <s_j B_k, update_j>: the adjoint of `combine_probe` in `weights`."""
    return scale[:, None] * (_flatten_real(update) @ _flatten_real(modes).mT)


def solve_frame_changes(
    wave: Complex[Tensor, "k p n n"],
    columns: Complex[Tensor, "k v n n"],
    intensity: Float[Tensor, "k n n"],
    counts: Float[Tensor, "k n n"],
    mask: Bool[Tensor, "n n"] | None,
    *,
    fits_scale: bool,
) -> tuple[Float[Tensor, "k v"], Float[Tensor, " k"]]:
    """Take one Gauss-Newton step of each frame's weights and scale towards the roots of its counts.

    With a = d sqrt(I) / d(w, log s) and the noise of the root the same everywhere: (a^T a) x = a^T (sqrt(y) - sqrt(I)).
    The phases on the detector are those of the model, not those of the waves before, so that no step is too short.

    Arguments:
        wave: on the detector.
        columns: s_j O_j B_k on the detector.
        intensity: expected counts with background.
        mask: good pixels; None where all are good.

    Returns:
        the changes of the weights, and of the logarithm of the scale (0 unless `fits_scale`).
    """
    # Half a count, because the root of 0 has no derivative.
    root = (intensity + 0.5).sqrt()
    first = wave[:, :1]
    slopes = [(columns.real * first.real + columns.imag * first.imag) / root[:, None]]
    if fits_scale:
        slopes.append(((wave.real.square() + wave.imag.square()).sum(1) / root)[:, None])
    jacobian, residual = torch.cat(slopes, 1), (counts + 0.5).sqrt() - root
    if mask is not None:
        jacobian, residual = jacobian * mask, residual * mask
    jacobian = jacobian.flatten(2)
    curvature = jacobian @ jacobian.mT
    slope = (jacobian @ residual.flatten(1)[..., None])[..., 0]
    ridge = _RIDGE * curvature.diagonal(dim1=1, dim2=2).amax(1)[:, None, None] + 1e-30
    eye = torch.eye(slope.shape[1], dtype=slope.dtype, device=slope.device)
    step = torch.linalg.solve(curvature + ridge * eye, slope)
    n_modes = columns.shape[1]
    return step[:, :n_modes], step[:, n_modes] if fits_scale else torch.zeros_like(step[:, 0]).detach()


def orthogonalize_variation(
    modes: Complex[Tensor, "v n n"], weights: Float[Tensor, "m v"], power: float
) -> tuple[Float[Tensor, "v v"], Float[Tensor, "m v"]]:
    """Find the basis in which modes and weights are orthogonal, strongest first; no probe changes.

    Modes are orthogonal as real vectors, Re <B_k, B_l> = 0, because the weights are real.

    Returns:
        T and the new weights; the new modes are sum_l T_kl B_l, each of sum |B|^2 = `power`.
    """
    flat = _flatten_real(modes).double()
    gram = flat @ flat.mT
    gram = gram + 1e-12 * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram), device=gram.device)
    lower = torch.linalg.cholesky(gram)
    left, singular, right = torch.linalg.svd(weights.double() @ lower, full_matrices=False)
    if len(singular) < len(modes):
        raise ValueError(f"expected as many frames as modes of variation; found {len(weights)} and {len(modes)}")
    # right @ lower^-1 is orthonormal on the modes.
    turn = torch.linalg.solve_triangular(lower, right, upper=False, left=False)
    # The sign of each vector is free: keep that of the mode that it is most like.
    overlap = right @ lower.mT
    sign = overlap.gather(1, overlap.abs().argmax(1, keepdim=True)).sign()
    size = power**0.5
    new_weights = left * singular * sign.mT / size
    return (turn * sign * size).to(weights.dtype), new_weights.to(weights.dtype)


def smooth_weights(weights: Float[Tensor, "m v"], frames: float) -> Float[Tensor, "m v"]:
    """Remove from the weights what changes within fewer frames than this, along the order of the scan.

    A projection onto the cosines (DCT-II) whose half period is at least `frames`.
    """
    count = len(weights)
    highest = min(int(count / max(frames, 1.0)), count - 1)
    place = torch.arange(count, dtype=torch.float64, device=weights.device) + 0.5
    order = torch.arange(highest + 1, dtype=torch.float64, device=weights.device)
    cosines = torch.cos(torch.pi / count * place[:, None] * order) * (2 / count) ** 0.5
    cosines[:, 0] *= 0.5**0.5
    smooth: Tensor = cosines @ (cosines.mT @ weights.double())
    return smooth.to(weights.dtype)


def _flatten_real(values: Complex[Tensor, "k n n"]) -> Float[Tensor, "k two_n_n"]:
    return torch.view_as_real(values.resolve_conj()).flatten(1)
