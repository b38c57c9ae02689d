"""Patches of images: on regular grids, and at the positions of a group's members."""

from __future__ import annotations

import tensorflow as tf

from tf_reference._channels import channel_to_flat, flat_to_channel, flatten_offsets, togrid
from tf_reference._padding import trim_reconstruction
from tf_reference._translation import translate


def extract_patches_position(imgs: tf.Tensor, offsets_xy: tf.Tensor, N: int, gridsize: int) -> tf.Tensor:
    """Patches of each group's object: moved by +offset, then the middle N x N. Flat, (B*C, N, N, 1).

    With offsets of -(position - center) that is the patch about center + (position - center).

    Arguments:
        imgs: (B, P, P, 1), P > N.
        offsets_xy: (B, 1, 2, C) as (x, y), C = gridsize^2.
    """
    copies = channel_to_flat(tf.repeat(imgs, gridsize**2, axis=3))
    return trim_reconstruction(translate(copies, flatten_offsets(offsets_xy)), N)


def extract_patches(images: tf.Tensor, N: int, offset: int) -> tf.Tensor:
    """All N x N patches on a grid of `offset` pixels that lie inside (B, H, W, 1): (B, rows, columns, N*N)."""
    return tf.image.extract_patches(images, (1, N, N, 1), (1, offset, offset, 1), (1, 1, 1, 1), "VALID")


def extract_outer(images: tf.Tensor, N: int, gridsize: int, offset: int, outer_offset: int) -> tf.Tensor:
    """What a group of neighbours sees together, on a grid of half of `outer_offset` pixels: (B*groups, n, n, 1).

    Arguments:
        images: (B, H, W, 1).
        offset: distance in pixels of the neighbours in a group; n = N + (gridsize - 1) * offset.
    """
    n = N + (gridsize - 1) * offset
    return tf.reshape(extract_patches(images, n, outer_offset // 2), (-1, n, n, 1))


def extract_nested_patches(
    images: tf.Tensor, N: int, gridsize: int, offset: int, outer_offset: int, fmt: str = "flat"
) -> tf.Tensor:
    """The patches of the members of each group of `extract_outer`.

    Arguments:
        fmt: "flat" (B*groups*C, N, N, 1), "grid" (B*groups, gs, gs, N, N, 1) or "channel" (B*groups, N, N, C).
    """
    outer = extract_outer(images, N, gridsize, offset, outer_offset)
    flat = tf.reshape(extract_patches(outer, N, offset), (-1, N, N, 1))
    if fmt == "grid":
        return togrid(flat, gridsize)
    return flat_to_channel(flat, gridsize) if fmt == "channel" else flat
