"""Moving images by fractions of a pixel, and warping them."""

from __future__ import annotations

import tensorflow as tf


def translate(
    images: tf.Tensor, offsets: tf.Tensor, interpolation: str = "bilinear", use_xla_translate: bool = True
) -> tf.Tensor:
    """Move the content of each image by its offset: out(x, y) = in(x - dx, y - dy).

    Bilinear: each of the four neighbours that lies outside the image contributes 0, so that borders fade. Nearest: the
    neighbour at the source coordinate rounded half to even, 0 where the unrounded source lies outside [0, size - 1].

    Arguments:
        images: (B, H, W, 1), real or complex.
        offsets: (K, 2) as (dx, dy), x along columns. Image i takes offset i % K.
        interpolation: "bilinear" or "nearest".
        use_xla_translate: False takes the original's other path, a bug: out(x, y) = in(x + dx, y + dy); bilinear with
            0 wherever one of the four neighbours lies outside, so that an offset of 0 loses the last row and column;
            nearest with the border's pixels repeated.
    """
    real, batch, (height, width) = images.dtype.real_dtype, tf.shape(images)[0], images.shape[1:3]
    offsets = tf.cast(offsets, real) * (1 if use_xla_translate else -1)
    offsets = tf.gather(offsets, tf.range(batch) % tf.shape(offsets)[0])
    x = tf.cast(tf.range(width), real)[None, None, :] - offsets[:, 0, None, None]
    y = tf.cast(tf.range(height), real)[None, :, None] - offsets[:, 1, None, None]
    if use_xla_translate:
        return _sample(images, x, y, interpolation, "zeros")
    moved = _sample(images, x, y, interpolation, "edge")
    if interpolation == "nearest":
        return moved
    x0, y0 = tf.floor(x), tf.floor(y)
    all_inside = (x0 >= 0) & (x0 + 1 <= width - 1) & (y0 >= 0) & (y0 + 1 <= height - 1)
    return moved * tf.cast(all_inside, images.dtype)[..., None]


def projective_warp_xla(
    images: tf.Tensor, transforms: tf.Tensor, interpolation: str = "bilinear", fill_mode: str = "edge"
) -> tf.Tensor:
    """Warp images: out(x, y) = in(u/w, v/w) with (u, v, w) = T (x, y, 1).

    Arguments:
        images: (B, H, W, 1), real or complex.
        transforms: T, (B, 3, 3).
        interpolation: "bilinear" or "nearest", rounded half to even.
        fill_mode: outside the image stand its border's pixels ("edge") or 0 ("zeros"), as in `translate`.
    """
    real, (height, width) = images.dtype.real_dtype, images.shape[1:3]
    x = tf.cast(tf.range(width), real)[None, None, :]
    y = tf.cast(tf.range(height), real)[None, :, None]
    rows = tf.cast(transforms, real)[:, :, :, None, None]
    u, v, w = (rows[:, i, 0] * x + rows[:, i, 1] * y + rows[:, i, 2] for i in range(3))
    return _sample(images, u / w, v / w, interpolation, fill_mode)


def _sample(images: tf.Tensor, x: tf.Tensor, y: tf.Tensor, interpolation: str, fill_mode: str) -> tf.Tensor:
    """Images at coordinates x and y that together have the shape (B, H, W)."""
    height, width = images.shape[1:3]
    pixels = tf.reshape(images, (-1,))
    first = tf.range(tf.shape(images)[0])[:, None, None] * (height * width)

    def read(row: tf.Tensor, column: tf.Tensor, weight: tf.Tensor, fill_mode: str = fill_mode) -> tf.Tensor:
        """Pixels at whole coordinates, times a weight."""
        if fill_mode == "zeros":
            inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
            weight *= tf.cast(inside, weight.dtype)
        row = tf.cast(tf.clip_by_value(row, 0, height - 1), tf.int32)
        column = tf.cast(tf.clip_by_value(column, 0, width - 1), tf.int32)
        return tf.gather(pixels, first + row * width + column) * tf.cast(weight, images.dtype)

    if interpolation == "nearest":
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        weight = tf.cast(inside | (fill_mode == "edge"), x.dtype)
        return read(tf.round(y), tf.round(x), weight, "edge")[..., None]
    x0, y0 = tf.floor(x), tf.floor(y)
    wx, wy = x - x0, y - y0
    upper = read(y0, x0, (1 - wy) * (1 - wx)) + read(y0, x0 + 1, (1 - wy) * wx)
    lower = read(y0 + 1, x0, wy * (1 - wx)) + read(y0 + 1, x0 + 1, wy * wx)
    return (upper + lower)[..., None]
