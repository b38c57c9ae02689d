"""The overlap constraint inside a group: merge its patches into one object, and read them back."""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from torchptycho.physics.group_patches import extract_groups, place_groups
from torchptycho.physics.patches import locate_corner

__all__ = ["central_weight", "merge", "merge_canvas_px", "probe_weight"]

# Lower bound of the summed weight, relative to its maximum: below it there is no information, and 0/0 must not occur.
_MIN_RELATIVE_WEIGHT = 1e-6


def probe_weight(probe: Complex[Tensor, "*batch p n n"]) -> Float[Tensor, "*batch n n"]:
    """Compute sum_m |P_m|^2, the illumination of each pixel, scaled to a maximum of 1."""
    power = (probe.real.square() + probe.imag.square()).sum(dim=-3)
    peak = power.amax(dim=(-2, -1), keepdim=True)
    return power / peak.clamp_min(torch.finfo(power.dtype).tiny)


def central_weight(n_px: int, like: Tensor) -> Float[Tensor, "n n"]:
    """Return a weight of 1 on the central N/2 x N/2 pixels and 0 elsewhere."""
    weight = like.new_zeros(n_px, n_px, dtype=like.real.dtype)
    weight[n_px // 4 : n_px - n_px // 4, n_px // 4 : n_px - n_px // 4] = 1
    return weight


def merge_canvas_px(n_px: int, max_offset_px: float) -> int:
    """Compute the edge of the smallest even canvas for patches with offsets up to `max_offset_px` on each axis."""
    return n_px + 2 * (math.ceil(max_offset_px) + 1)


def merge(
    patches: Complex[Tensor, "b c n n"],
    offset_px: Float[Tensor, "b c 2"],
    weight: Float[Tensor, "*weight_batch n n"],
    canvas_px: int,
) -> Complex[Tensor, "b c n n"]:
    """Average the C patches of each group where they overlap, and extract the C patches of the average.

    Numerator and denominator have the same support: a pixel without weight contributes to neither.

    Arguments:
        patches: object patches of the frames in a group.
        offset_px: (y, x) of each frame from the group's centre.
        weight: [n, n], or [b, n, n] when the groups have different probes.
        canvas_px: edge of the group's canvas, see `merge_canvas_px`. It holds every patch; what does not fit is an
            error of the index on a CPU, and wrong on a GPU.
    """
    n_px = patches.shape[-1]
    if patches.shape[1] == 1:
        return patches
    middle = canvas_px // 2
    corner_px = locate_corner(offset_px, n_px, (-middle, -middle))
    if weight.dim() == 3:
        weight = weight[:, None]
    numerator = place_groups(patches * weight, corner_px, canvas_px)
    denominator = place_groups(weight.expand(patches.shape), corner_px, canvas_px)
    return extract_groups(numerator / denominator.clamp_min(_MIN_RELATIVE_WEIGHT), corner_px, n_px)
