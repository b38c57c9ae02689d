"""One image from the patches of a whole scan."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_reference._merging import reassemble_patches
from tf_reference._padding import pad
from tf_reference._translation import translate


def shift_and_sum(objects: tf.Tensor, global_offsets: tf.Tensor, M: int = 10, chunk_size: int = 64) -> tf.Tensor:
    """The sum of the central M x M of all patches at their offsets, (S, S, 1), S = M + 2 pad.

    Offsets become float32 and lose their mean; pad is the largest that remains, rounded up to an even number. Canvas
    pixel (pad + M/2, pad + M/2) is that mean.

    Arguments:
        objects: (n, N, N, 1), complex64.
        global_offsets: float64, n pairs (x, y) as (n, 1, 1, 2) or (n, 1, 2, 1).
        M: even.
        chunk_size: patches that are held on the canvas at a time; memory only.
    """
    if global_offsets.dtype != tf.float64 or objects.dtype != tf.complex64:
        raise TypeError(f"expected float64 offsets, complex64 objects; found {global_offsets.dtype}, {objects.dtype}")
    if M % 2:
        raise ValueError(f"M: expected an even number; found {M}")
    offsets = tf.cast(tf.reshape(global_offsets, (-1, 2)), tf.float32)
    offsets -= tf.reduce_mean(offsets, axis=0)
    room = math.ceil(float(tf.reduce_max(tf.abs(offsets))))
    room += room % 2
    middle = objects.shape[1] // 2
    cut = slice(middle - M // 2, middle + M // 2)
    cropped = objects[:, cut, cut, :]
    total = tf.zeros((M + 2 * room, M + 2 * room, 1), objects.dtype)
    for begin in range(0, objects.shape[0], chunk_size):
        chunk = slice(begin, begin + chunk_size)
        total += tf.reduce_sum(translate(pad(cropped[chunk], room), offsets[chunk]), axis=0)
    return total


def reassemble_position(objects: tf.Tensor, global_offsets: tf.Tensor, M: int = 10, chunk_size: int = 64) -> tf.Tensor:
    """The average of overlapping patches: `shift_and_sum` divided by 1e-9 plus the same of ones."""
    total = shift_and_sum(objects, global_offsets, M, chunk_size)
    count = shift_and_sum(tf.ones_like(objects), global_offsets, M, chunk_size)
    return total / (count + 1e-9)


def reassemble_whole_object(
    patches: tf.Tensor, offsets_xy: tf.Tensor, size: int = 226, norm: bool = False
) -> tf.Tensor:
    """The sum of the merged objects of all groups on one canvas, (size, size, 1).

    Arguments:
        patches: (B, N, N, C), complex.
        offsets_xy: (B, 1, 2, C) as (x, y), minus the places of the patches.
        norm: divide by the same of ones, NaN where no patch lies.
    """
    total = tf.reduce_sum(reassemble_patches(patches, offsets_xy, size), axis=0)
    return total / reassemble_whole_object(tf.ones_like(patches), offsets_xy, size) if norm else total


def stitch_patches(
    patches: tf.Tensor, outer_offset: int, nimgs: int = 1, norm_Y_I: float = 1.0, part: str = "amp"
) -> tf.Tensor:
    """Patches of a regular grid without their borders, side by side, (nimgs, H, W, 1).

    Arguments:
        patches: (nimgs * k * k, N, N, 1), complex.
        outer_offset: twice the distance in pixels of neighbours, which is what stays of each patch.
        norm_Y_I: factor of the result.
        part: "amp", "phase" or "complex".
    """
    N, kept = patches.shape[1], outer_offset / 2
    left = math.ceil((N - kept) / 2)
    right = math.floor((N - kept) / 2)
    tiles = patches[:, left : N - right, left : N - right, 0]
    size, count = tiles.shape[1], math.isqrt(patches.shape[0] // nimgs)
    grid = tf.transpose(tf.reshape(tiles, (nimgs, count, count, size, size)), (0, 1, 3, 2, 4))
    image = tf.reshape(grid, (nimgs, count * size, count * size, 1))
    part_of = {"amp": tf.abs, "phase": tf.math.angle, "complex": tf.identity}[part]
    return part_of(image) * norm_Y_I
