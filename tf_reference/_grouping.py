"""Which frames go together: the original's groups, in its own sequence of random draws."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from tf_reference._coordinates import get_relative_coords
from tf_reference._object_patches import get_image_patches
from tf_reference._scaling import normalize_data


def get_neighbor_indices(xcoords: np.ndarray, ycoords: np.ndarray, K: int) -> np.ndarray:
    """[M, K + 1] int64: each frame and its K nearest, nearest first. Coordinates are [M]."""
    points = np.column_stack([xcoords, ycoords])
    return np.asarray(cKDTree(points).query(points, k=K + 1)[1], dtype=np.int64).reshape(len(points), K + 1)


def group_indices(
    xcoords: np.ndarray,
    ycoords: np.ndarray,
    gridsize: int,
    K: int = 4,
    nsamples: int = 1,
    seed: int | None = None,
    sequential_sampling: bool = False,
    enable_oversampling: bool = False,
    neighbor_pool_size: int | None = None,
    global_seed: int = 0,
) -> np.ndarray:
    """`nn_indices` of `generate_grouped_data`, [n, C]: C of the K neighbours of each seed frame, without that frame.

    n is `nsamples`, with gridsize 1 at most the number of frames. dtype int32 for plain groups of several frames, else
    int64.

    Arguments:
        seed: what the original seeds NumPy's global generator with; None leaves it as it is. It does not seed the
            sequential mode without oversampling.
        neighbor_pool_size: neighbours that combinations are taken from when oversampling; None for K.
        global_seed: what had seeded the global generator before the call.
    """
    n_frames = len(xcoords)
    if gridsize == 1:
        rng = np.random.RandomState(seed if seed is not None else global_seed)
        return _seeds(n_frames, min(nsamples, n_frames), sequential_sampling, rng)[:, None]
    oversampling = nsamples > n_frames
    pool_size = neighbor_pool_size if oversampling and neighbor_pool_size is not None else K
    _check(n_frames, gridsize**2, pool_size, nsamples, enable_oversampling)
    neighbours = get_neighbor_indices(xcoords, ycoords, pool_size)[:, 1:]
    unseeded = seed is None or (sequential_sampling and not oversampling)
    rng = np.random.RandomState(global_seed if unseeded else seed)
    if oversampling:
        return _combinations(neighbours, gridsize**2, nsamples, sequential_sampling, rng)
    seeds = _seeds(n_frames, nsamples, sequential_sampling, rng)
    return np.array([rng.choice(neighbours[s], gridsize**2, replace=False) for s in seeds], dtype=np.int32)


def generate_grouped_data(
    xcoords: np.ndarray,
    ycoords: np.ndarray,
    diff3d: np.ndarray,
    N: int,
    gridsize: int,
    objectGuess: np.ndarray | None = None,
    xcoords_start: np.ndarray | None = None,
    ycoords_start: np.ndarray | None = None,
    **options: Any,
) -> dict[str, np.ndarray | None]:
    """Frames and coordinates of groups, with the ground truth where there is an object.

    Returns:
        `diffraction` [n, N, N, C] as given, `X_full` the same normalised, `Y` the object's patches (None without an
        object), `nn_indices` [n, C], coordinates `coords_nn` [n, 1, 2, C] as (x, y), `coords_offsets` [n, 1, 2, 1]
        their means, `coords_relative` [n, 1, 2, C], the same three of the start positions as `coords_start_*`,
        `objectGuess`.

    Arguments:
        xcoords, ycoords: [M], float64.
        diff3d: [M, N, N] amplitudes.
        objectGuess: [H, W] complex64.
        xcoords_start, ycoords_start: nominal positions; None for the positions themselves.
        options: those of `group_indices`.
    """
    nn_indices = group_indices(xcoords, ycoords, gridsize, **options)
    coords_nn = _coords(xcoords, ycoords, nn_indices)
    coords_start_nn = _coords(
        xcoords if xcoords_start is None else xcoords_start,
        ycoords if ycoords_start is None else ycoords_start,
        nn_indices,
    )
    offsets, relative = get_relative_coords(coords_nn)
    start_offsets, start_relative = get_relative_coords(coords_start_nn)
    diffraction = np.moveaxis(diff3d[nn_indices], 1, -1)
    return {
        "diffraction": diffraction,
        "Y": None if objectGuess is None else get_image_patches(objectGuess, offsets, relative, N, gridsize),
        "coords_offsets": offsets,
        "coords_relative": relative,
        "coords_start_offsets": start_offsets,
        "coords_start_relative": start_relative,
        "coords_nn": coords_nn,
        "coords_start_nn": coords_start_nn,
        "nn_indices": nn_indices,
        "objectGuess": objectGuess,
        "X_full": normalize_data(diffraction, N),
    }


def _check(n_frames: int, size: int, pool_size: int, nsamples: int, enable_oversampling: bool) -> None:
    if nsamples > n_frames and not enable_oversampling:
        raise ValueError(f"nsamples: {nsamples} of {n_frames} frames need enable_oversampling")
    if pool_size < size:
        raise ValueError(f"neighbours: {pool_size} are fewer than the {size} frames of a group")
    if pool_size > n_frames - 1:
        raise ValueError(f"neighbours: {pool_size} asked for, each of {n_frames} frames has {n_frames - 1}")


def _seeds(n_frames: int, wanted: int, sequential: bool, rng: np.random.RandomState) -> np.ndarray:
    """In the order drawn, unsorted; nothing is drawn when all are taken."""
    if sequential or wanted >= n_frames:
        return np.arange(min(wanted, n_frames))
    return rng.choice(n_frames, wanted, replace=False)


def _combinations(
    neighbours: np.ndarray, size: int, wanted: int, sequential: bool, rng: np.random.RandomState
) -> np.ndarray:
    """Groups drawn from a pool of twice as many combinations, or of all there are when these are fewer."""
    n_frames, per_seed = len(neighbours), math.comb(neighbours.shape[1], size)
    pool_size = min(2 * wanted, n_frames * per_seed)
    seeds = _seeds(n_frames, -(-pool_size // per_seed), sequential, rng)
    each = (combination for s in seeds for combination in itertools.combinations(neighbours[s], size))
    pool = np.array(list(itertools.islice(each, pool_size)), dtype=np.int64)
    return np.asarray(pool[rng.choice(len(pool), wanted, replace=wanted > len(pool))])


def _coords(xcoords: np.ndarray, ycoords: np.ndarray, nn_indices: np.ndarray) -> np.ndarray:
    return np.stack([xcoords[nn_indices], ycoords[nn_indices]], axis=1)[:, None]
