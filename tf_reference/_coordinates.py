"""Coordinates of groups, (B, 1, 2, C) with (x, y) on axis 2, and the sizes that follow from the grid."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_reference._channels import flatten_offsets


def get_relative_coords(coords_nn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over a group (B, 1, 2, 1), and -(coordinates - mean), (B, 1, 2, C)."""
    offsets = coords_nn.mean(axis=3, keepdims=True)
    return offsets, -(coords_nn - offsets)


def center_reassembly_offsets(coords: tf.Tensor) -> tf.Tensor:
    """Coordinates (B, 1, 2, C) less their mean over all members of all groups, (B*C, 2) float32 as (x, y)."""
    flat = tf.cast(flatten_offsets(coords), tf.float32)
    return flat - tf.reduce_mean(flat, axis=0)


def get_bigN(N: int, gridsize: int, offset: int) -> int:
    """Edge of what a grid of patches at a pitch of `offset` covers."""
    return N + (gridsize - 1) * offset


def get_padding_size(gridsize: int, offset: int, max_position_jitter: int) -> int:
    """What the canvas of a group is larger than a patch."""
    return (gridsize - 1) * offset + max_position_jitter


def get_padded_size(N: int, gridsize: int, offset: int, max_position_jitter: int) -> int:
    """Edge of the canvas that a group is merged on, whatever the offsets of its members are."""
    return N + get_padding_size(gridsize, offset, max_position_jitter)


def extract_coords(
    size: int, repeats: int, outer_offset: int, N: int, gridsize: int, offset: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the nested patches of images of size x size lie: grids of patches at a pitch of `outer_offset` // 2.

    Arguments:
        repeats: images; all have the same places.

    Returns:
        Offsets (B, 1, 2, C) float32 from each patch to the middle of its grid as (x, y), and the middles of the
        patches, x and y, (B, 1, 1, C) float32. The middle of a patch at 0 is (N - 1) / 2.
    """
    starts = np.arange(0, size - get_bigN(N, gridsize, offset) + 1, outer_offset // 2)
    row, column = np.divmod(np.arange(gridsize**2), gridsize)
    start_y, start_x = (axis.reshape(-1, 1) for axis in np.meshgrid(starts, starts, indexing="ij"))
    x, y = start_x + offset * column + (N - 1) / 2, start_y + offset * row + (N - 1) / 2
    _, relative = get_relative_coords(np.stack([x, y], axis=1)[:, None])
    here = (relative, x[:, None, None], y[:, None, None])
    relative, x, y = (np.tile(values, (repeats, 1, 1, 1)).astype(np.float32) for values in here)
    return relative, x, y
