"""The phase that every patch is free in: brought to agree with the patches that it overlaps."""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Complex, Float, Int64
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from torch import Tensor

from torchptycho.core.parallel import ordered_map

__all__ = ["synchronize_phases"]

_MAX_NEIGHBOURS = 10
# On a CPU, few enough for its caches; on a GPU, where each chunk needs a synchronisation, enough to fill it.
_CPU_CHUNK_PAIRS, _GPU_CHUNK_PIXELS = 64, 1 << 24
# Samples per axis at which patches are compared: enough to determine one phase.
_SAMPLES_PER_AXIS = 32
_ITERATIONS = 5
# Regularises phases that no overlap determines, relative to the mean weight.
_REGULARIZATION = 1e-9


def synchronize_phases(
    patches: Complex[Tensor, "m n n"],
    positions_px: Float[Tensor, "m 2"],
    weight: Float[Tensor, "*weight_m n n"],
    group: Int64[Tensor, " m"],
) -> Complex[Tensor, " m"]:
    """Find the phase factors, one for all patches of a group, after which overlapping patches agree.

    Diffraction does not determine the global phase of a group's object, and without alignment the low spatial
    frequencies of the phase are lost in the average. The overlaps determine all phases but one. Phase differences
    between neighbours are first added along a spanning tree of the strongest overlaps, then fitted to all overlaps by
    weighted least squares; the remaining global phase is the one that changes the patches least.
    Reference: Singer, Appl. Comput. Harmon. Anal. 30, 20 (2011), whose cost this maximises.

    Arguments:
        patches: predicted patches, on any device.
        positions_px: (y, x) of pixel N/2 of each patch.
        weight: reliability of the pixels.
        group: number of the group of each patch, from 0.
    """
    group_of = group.cpu().numpy()
    n_groups = int(group_of.max()) + 1
    first, second = _find_neighbours(positions_px.cpu().double().numpy(), group_of)
    overlap = _compute_overlaps(patches, positions_px, weight, first, second) if len(first) else np.zeros(0)
    if not overlap.any():
        return torch.ones(len(patches), dtype=patches.dtype, device=patches.device)
    one, other = group_of[first], group_of[second]
    # One edge from the lower to the higher group, for all pairs of patches between them.
    overlap = np.where(one < other, overlap, overlap.conj())
    edges, where = np.unique(np.stack([np.minimum(one, other), np.maximum(one, other)]), axis=1, return_inverse=True)
    total = np.zeros(edges.shape[1], complex)
    np.add.at(total, where.ravel(), overlap)
    phase = _fit_phases(edges, total, n_groups)
    power = torch.zeros(n_groups, dtype=torch.float64)
    # In chunks, because the patches may be in a file larger than the memory.
    powers = [torch.view_as_real(chunk).square().sum((1, 2, 3)).double() for chunk in torch.split(patches, 512)]
    power.index_add_(0, torch.from_numpy(group_of), torch.cat(powers).cpu())
    phase = _remove_global_phase(phase, edges, power.numpy())
    return torch.from_numpy(np.exp(1j * phase))[group.cpu()].to(patches.device, patches.dtype)


def _find_neighbours(positions_px: np.ndarray, group_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs of nearby patches of different groups, each once."""
    count = min(_MAX_NEIGHBOURS + 1, len(positions_px))
    _, near = cKDTree(positions_px).query(positions_px, k=count)
    first = np.repeat(np.arange(len(positions_px)), count)
    near = np.asarray(near).reshape(-1)
    apart = group_of[first] != group_of[near]
    pairs = np.unique(np.sort(np.stack([first[apart], near[apart]]), axis=0), axis=1)
    return pairs[0], pairs[1]


def _compute_overlaps(
    patches: Tensor, positions_px: Tensor, weight: Tensor, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Compute sum over the common pixels of w_a O_a conj(w_b O_b), at whole pixels."""
    n_px = patches.shape[-1]
    sample = torch.arange(0, n_px, max(1, n_px // _SAMPLES_PER_AXIS), device=patches.device)
    at_once = max(_CPU_CHUNK_PAIRS, _GPU_CHUNK_PIXELS // n_px**2) if patches.is_cuda else _CPU_CHUNK_PAIRS

    def correlate_pairs(start: int) -> Tensor:
        a = torch.from_numpy(first[start : start + at_once]).to(patches.device)
        b = torch.from_numpy(second[start : start + at_once]).to(patches.device)
        apart = (positions_px[b.to(positions_px.device)] - positions_px[a.to(positions_px.device)]).round()
        place = sample + apart.to(patches.device, torch.int64)[..., None]
        inside = ((place >= 0) & (place < n_px))[:, 0, :, None] & ((place >= 0) & (place < n_px))[:, 1, None, :]
        rows, columns = place.clamp(0, n_px - 1).unbind(1)
        rows, columns = rows[:, :, None], columns[:, None, :]
        at_sample = (sample[:, None], sample)
        if weight.dim() == 2:
            weights = weight[rows, columns] * weight[at_sample]
        else:
            weights = weight[a[:, None, None], rows, columns] * weight[b][:, *at_sample]
        product = patches[a[:, None, None], rows, columns] * patches[b][:, *at_sample].conj()
        return (product * (weights * inside)).sum((1, 2)).cpu()

    # Allocated once: small arrays between freed ones would fragment the heap.
    overlap = torch.empty(len(first), dtype=torch.complex128)
    starts = range(0, len(first), at_once)
    with ordered_map(correlate_pairs, starts, serial=patches.is_cuda) as results:
        for start, values in zip(starts, results, strict=True):
            overlap[start : start + len(values)] = values
    return overlap.numpy()


def _fit_phases(edges: np.ndarray, overlap: np.ndarray, n_groups: int) -> np.ndarray:
    """Fit the phases t that make sum |h| cos(t_a + arg h - t_b) largest."""
    one, other = edges
    weight = np.abs(overlap)
    weight = weight / weight.mean() + _REGULARIZATION
    cost = scipy.sparse.coo_matrix((1 / weight, (one, other)), (n_groups, n_groups))
    tree = minimum_spanning_tree(cost.tocsr()).tocoo()
    # Ordered pairs (low, high) are encoded as one integer.
    in_tree = np.isin(one.astype(np.int64) * n_groups + other, tree.row.astype(np.int64) * n_groups + tree.col)
    angle = np.angle(overlap)
    # A tree has no cycles, so phase differences can be added without wrapping.
    phase = _solve_least_squares(one[in_tree], other[in_tree], np.ones(int(in_tree.sum())), angle[in_tree], n_groups)
    for _ in range(_ITERATIONS):
        left = np.angle(np.exp(1j * (phase[one] + angle - phase[other])))
        phase = phase + _solve_least_squares(one, other, weight, left, n_groups)
    return phase


def _solve_least_squares(
    one: np.ndarray, other: np.ndarray, weight: np.ndarray, angle: np.ndarray, n_groups: int
) -> np.ndarray:
    """Solve for the t that make sum w (t_a - t_b + angle)^2 smallest."""
    number = np.arange(len(one))
    difference = scipy.sparse.coo_matrix(
        (np.r_[np.ones(len(one)), -np.ones(len(one))], (np.r_[number, number], np.r_[one, other])),
        (len(one), n_groups),
    ).tocsc()
    weighted = difference.T.multiply(weight).tocsc()
    normal = weighted @ difference + _REGULARIZATION * scipy.sparse.identity(n_groups, format="csc")
    solution: np.ndarray = splu(normal.tocsc()).solve(-(weighted @ angle))
    return solution


def _remove_global_phase(phase: np.ndarray, edges: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Subtract the mean phase of the patches of each connected part."""
    ones = np.ones(edges.shape[1])
    graph = scipy.sparse.coo_matrix((ones, (edges[0], edges[1])), (len(power), len(power)))
    count, part = connected_components(graph, directed=False)
    phasor = power * np.exp(1j * phase)
    mean = np.bincount(part, phasor.real, count) + 1j * np.bincount(part, phasor.imag, count)
    turned: np.ndarray = phase - np.angle(mean)[part]
    return turned
