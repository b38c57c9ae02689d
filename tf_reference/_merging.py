"""Merging the patches of a group into one object."""

from __future__ import annotations

import tensorflow as tf

from tf_reference._coordinates import center_reassembly_offsets
from tf_reference._padding import mk_centermask, pad_reconstruction
from tf_reference._translation import translate

EPSILON = 0.001
"""What the original adds to the denominator."""


def reassemble_patches_position_real(
    channels: tf.Tensor, offsets_xy: tf.Tensor, padded_size: int, batch_size: int | None = None
) -> tf.Tensor:
    """The sum of each group's patches at minus their offsets from the mean of the whole batch: (B, P, P, 1).

    What reaches beyond the canvas of P pixels is lost.

    Arguments:
        channels: (B, N, N, C), real.
        offsets_xy: (B, 1, 2, C) as (x, y).
        padded_size: P.
        batch_size: where B*C is this or more, all groups are summed into one canvas, (1, P, P, 1), as in
            `mk_reassemble_position_batched_real`. None: never.
    """
    padded = pad_reconstruction(channels, padded_size)
    moved = translate(padded, -center_reassembly_offsets(offsets_xy))
    size = padded.shape[1]
    canvas = tf.reduce_sum(tf.reshape(moved, (-1, channels.shape[3], size, size, 1)), axis=1)
    if batch_size is None:
        return canvas
    return tf.cond(
        tf.shape(padded)[0] < batch_size, lambda: canvas, lambda: tf.reduce_sum(canvas, axis=0, keepdims=True)
    )


def mk_norm(channels: tf.Tensor, offsets_xy: tf.Tensor, padded_size: int, batch_size: int | None = None) -> tf.Tensor:
    """The denominator: the sum of masks of the central N/2 x N/2, plus 0.001. Arguments as above."""
    N, members = channels.shape[1], channels.shape[3]
    mask = mk_centermask(tf.math.real(channels), N, members)
    return reassemble_patches_position_real(mask, offsets_xy, padded_size, batch_size) + EPSILON


def reassemble_patches(
    channels: tf.Tensor, offsets_xy: tf.Tensor, padded_size: int, batch_size: int | None = None
) -> tf.Tensor:
    """Each group's object (B, P, P, 1): the sum of its patches, not masked, divided by `mk_norm`.

    Arguments:
        channels: (B, N, N, C), complex. The others as above.
    """
    real, imaginary = (
        reassemble_patches_position_real(part(channels), offsets_xy, padded_size, batch_size)
        for part in (tf.math.real, tf.math.imag)
    )
    norm = mk_norm(channels, offsets_xy, padded_size, batch_size)
    return tf.complex(real / norm, imaginary / norm)


def reassemble_patches_real(channels: tf.Tensor, gridsize: int, offset: int, average: bool = True) -> tf.Tensor:
    """Patches (B, N, N, C) at their nominal places on a grid of `offset` pixels: (B, n, n, 1).

    Arguments:
        channels: real.
        average: divide by the number of patches on each pixel.
    """
    N = channels.shape[1]
    room = (gridsize - 1) * offset
    count = tf.zeros((1, N + room, N + room), channels.dtype)
    total = count
    for c in range(gridsize**2):
        y, x = (offset * place for place in divmod(c, gridsize))
        around = ((0, 0), (y, room - y), (x, room - x))
        total += tf.pad(channels[..., c], around)
        count += tf.pad(tf.ones((1, N, N), channels.dtype), around)
    return (total / count if average else total)[..., None]
