"""Ground truth: the patches of an object that belong to the frames of groups."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_reference._arrays import on_arrays
from tf_reference._channels import flat_to_channel, flatten_offsets
from tf_reference._translation import translate

_AT_A_TIME = 64


def get_image_patches(
    gt_image: np.ndarray, global_offsets: np.ndarray, local_offsets: np.ndarray, N: int, gridsize: int
) -> np.ndarray:
    """Patches (B, N, N, C) complex64 whose pixel N/2 lies at global + local offset, zero outside the object.

    With local offsets as `get_relative_coords` gives them this is 2 mean - coordinate for each member: for groups of
    several the patches are mirrored about the middle of the group, and are not those of the diffraction.

    Arguments:
        gt_image: (H, W) complex.
        global_offsets: (B, 1, 2, 1) as (x, y).
        local_offsets: (B, 1, 2, C).
    """
    flat_patches = on_arrays(_patches)
    image = gt_image.astype(np.complex64)
    where = (global_offsets + local_offsets).astype(np.float32)
    step = max(1, _AT_A_TIME // gridsize**2)
    parts = [flat_patches(image, where[i : i + step], N, gridsize) for i in range(0, len(where), step)]
    return np.concatenate(parts)


def _patches(image: tf.Tensor, where: tf.Tensor, N: int, gridsize: int) -> tf.Tensor:
    """One copy of the padded object for each patch, moved and cut."""
    padded = tf.pad(image, ((N // 2, N // 2), (N // 2, N // 2)))[None, :, :, None]
    offsets = flatten_offsets(where)
    copies = tf.repeat(padded, tf.shape(offsets)[0], axis=0)
    return flat_to_channel(translate(copies, -offsets)[:, :N, :N], gridsize)
