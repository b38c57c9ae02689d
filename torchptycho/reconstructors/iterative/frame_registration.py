"""How far apart frames are, by what they show, and the positions that agree with most of these distances."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Complex, Float, Float64, Int64
from torch import Tensor

__all__ = ["PairShifts", "find_pairs", "register_pairs", "remove_common", "solve_positions"]

_PAIRS_AT_ONCE = 64
_MAX_NEIGHBOURS = 32
# What fewer images have in common may be the sample.
_MIN_FOR_COMMON = 16
# Part of the largest possible overlap that two images need to be compared.
_MIN_OVERLAP = 0.25
# The scale, in pixels, beyond which a distance that does not agree loses its weight: it falls from the first to the
# last value by this factor in each iteration (graduated non-convexity).
_FIRST_SCALE_PX, _LAST_SCALE_PX, _SCALE_FACTOR = 20.0, 0.7, 0.85
_N_ITERATIONS = 60
# Weight of the given positions, relative to that of the distances of a frame.
_GIVEN_WEIGHT = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PairShifts:
    """Distances between frames.

    Arguments:
        first, second: numbers of the frames of each pair.
        shift_px: [K, 2] position of the second minus that of the first, (y, x).
        quality: correlation of what both show, 0 to 1.
    """

    first: Int64[Tensor, " k"]
    second: Int64[Tensor, " k"]
    shift_px: Float64[Tensor, "k 2"]
    quality: Float64[Tensor, " k"]


def find_pairs(positions_px: Float64[np.ndarray, "m 2"], radius_px: float) -> Int64[np.ndarray, "k 2"]:
    """Find the pairs of frames that are said to be near each other, with at most 32 neighbours for a frame."""
    from scipy.spatial import cKDTree

    count = min(len(positions_px), _MAX_NEIGHBOURS + 1)
    distance, near = cKDTree(positions_px).query(positions_px, k=count)
    first = np.repeat(np.arange(len(positions_px)), count)
    second, distance = near.reshape(-1), distance.reshape(-1)
    keep = (first != second) & (distance < radius_px)
    pairs = np.unique(np.sort(np.stack([first[keep], second[keep]], axis=1), axis=1), axis=0)
    return np.ascontiguousarray(pairs, np.int64).reshape(-1, 2)


def register_pairs(
    images: Complex[Tensor, "m a b"], weight: Float[Tensor, "a b"], pairs: Int64[Tensor, "k 2"]
) -> PairShifts:
    """Find by how much each pair of images is shifted, by their masked normalised cross-correlation.

    The images lose their mean, which is about the same everywhere; of the correlation the magnitude is taken, because
    their phases have nothing in common.
    Reference: Padfield, IEEE Trans. Image Process. 21, 2706 (2012).
    """
    size = tuple(2 * edge for edge in images.shape[-2:])
    mean = (weight * images).sum((1, 2), keepdim=True) / weight.sum()
    window = torch.fft.fft2(weight.to(images.dtype), s=size)
    overlap = torch.fft.ifft2(window * window.conj()).real
    comparable = overlap > _MIN_OVERLAP * overlap.max()
    shifts, qualities = [], []
    for part in torch.split(pairs, _PAIRS_AT_ONCE):
        used, place = torch.unique(part, return_inverse=True)
        wave = images[used] - mean[used]
        spectrum = torch.fft.fft2(weight * wave, s=size)
        energy = torch.fft.fft2((weight * wave.abs().square()).to(images.dtype), s=size)
        a, b = place.T
        product = torch.fft.ifft2(spectrum[a] * spectrum[b].conj()).abs()
        norm = torch.fft.ifft2(energy[a] * window.conj()).real.clamp_min(1e-12)
        norm = norm * torch.fft.ifft2(window * energy[b].conj()).real.clamp_min(1e-12)
        correlation = torch.where(comparable, product * norm.rsqrt(), 0.0)
        shift, quality = _find_peaks(correlation)
        shifts.append(shift)
        qualities.append(quality)
    return PairShifts(first=pairs[:, 0], second=pairs[:, 1], shift_px=torch.cat(shifts), quality=torch.cat(qualities))


def remove_common(images: Complex[Tensor, "m a b"], weight: Float[Tensor, "a b"]) -> Complex[Tensor, "m a b"]:
    """Remove what all images show at the same pixels, which moves with the probe and not with the sample.

    It would register every pair at no shift at all. Few images may have most in common, and keep it.
    """
    mean = (weight * images).sum((1, 2), keepdim=True)
    aligned = images * mean.conj() / mean.abs().clamp_min(1e-12)
    return aligned - aligned.mean(0) if len(images) >= _MIN_FOR_COMMON else aligned


def _find_peaks(correlation: Float[Tensor, "k h w"]) -> tuple[Float64[Tensor, "k 2"], Float64[Tensor, " k"]]:
    """Find the highest value of each map and its place, to parts of a pixel by a parabola along each axis."""
    height, width = correlation.shape[1:]
    quality, flat = correlation.flatten(1).max(1)
    y, x = flat // width, flat % width
    index = torch.arange(len(flat), device=flat.device)

    def refine(before: Tensor, after: Tensor) -> Tensor:
        bend = before - 2 * quality + after
        return torch.where(bend < 0, 0.5 * (before - after) / bend, torch.zeros_like(bend)).clamp(-0.5, 0.5)

    dy = refine(correlation[index, (y - 1) % height, x], correlation[index, (y + 1) % height, x])
    dx = refine(correlation[index, y, (x - 1) % width], correlation[index, y, (x + 1) % width])
    rows = torch.where(y >= height // 2, y - height, y) + dy
    columns = torch.where(x >= width // 2, x - width, x) + dx
    return torch.stack([rows, columns], 1).double(), quality.double()


def solve_positions(
    shifts: PairShifts, given_px: Float64[Tensor, "m 2"]
) -> tuple[Float64[Tensor, "m 2"], Float64[Tensor, " m"]]:
    """Solve for the positions that agree with most distances, by least squares whose outliers lose their weight.

    The cost is that of Geman and McClure, whose scale shrinks from iteration to iteration, so that no start is needed.
    Reference: Yang, Antonante, Tzoumas, Carlone, IEEE Robot. Autom. Lett. 5, 1127 (2020).

    Returns:
        positions; and for each frame how many distances agree with its own, by their weight.
    """
    import scipy.sparse
    import scipy.sparse.linalg

    m = len(given_px)
    i, j = shifts.first.cpu().numpy(), shifts.second.cpu().numpy()
    shift, given = shifts.shift_px.cpu().numpy(), given_px.cpu().numpy()
    trust = shifts.quality.cpu().numpy() ** 4
    weight, scale, positions = trust, _FIRST_SCALE_PX, given
    for _ in range(_N_ITERATIONS):
        degree = np.bincount(i, weight, m) + np.bincount(j, weight, m)
        tie = _GIVEN_WEIGHT * degree.mean() + 1e-12
        laplacian = scipy.sparse.diags(degree + tie) - scipy.sparse.coo_matrix(
            (np.concatenate([weight, weight]), (np.concatenate([i, j]), np.concatenate([j, i]))), (m, m)
        )
        right = tie * given
        for axis in (0, 1):
            pull = weight * shift[:, axis]
            right[:, axis] += np.bincount(j, pull, m) - np.bincount(i, pull, m)
        positions = scipy.sparse.linalg.splu(laplacian.tocsc()).solve(right)
        rest = np.hypot(*(positions[j] - positions[i] - shift).T)
        weight = trust / (1 + (rest / scale) ** 2) ** 2
        scale = max(_LAST_SCALE_PX, scale * _SCALE_FACTOR)
    agrees = (rest < 2 * _LAST_SCALE_PX).astype(np.float64)
    support = np.bincount(i, agrees, m) + np.bincount(j, agrees, m)
    return torch.from_numpy(positions).to(given_px.device), torch.from_numpy(support).to(given_px.device)
