"""Padding, trimming and masks."""

from __future__ import annotations

import tensorflow as tf

from tf_reference._channels import channel_to_flat


def pad(images: tf.Tensor, size: int) -> tf.Tensor:
    """`size` pixels of 0 on each side of images (B, H, W, K)."""
    return tf.pad(images, ((0, 0), (size, size), (size, size), (0, 0)))


def pad_patches(images: tf.Tensor, padded_size: int) -> tf.Tensor:
    """Images (B, N, N, K) in the middle of `padded_size` pixels; one less where the difference to N is odd."""
    return pad(images, (padded_size - images.shape[1]) // 2)


def pad_reconstruction(channels: tf.Tensor, padded_size: int) -> tf.Tensor:
    """(B, N, N, C) as flat images (B*C, P, P, 1), P as in `pad_patches`."""
    return pad_patches(channel_to_flat(channels), padded_size)


def pad_obj(images: tf.Tensor) -> tf.Tensor:
    """A quarter of the height on each side."""
    return pad(images, images.shape[1] // 4)


def trim_reconstruction(images: tf.Tensor, N: int) -> tf.Tensor:
    """The middle N x N of images (B, P, P, K); N + 1 where P - N is odd, and none at all where N = P.

    The last is the original's: it cuts with the slice [clip:-clip].
    """
    clip = (images.shape[1] - N) // 2
    return images[:, clip:-clip, clip:-clip, :]


def mk_centermask(inputs: tf.Tensor, N: int, c: int, kind: str = "center") -> tf.Tensor:
    """1 on the central N/2 x N/2, 0 around them: (B, N, N, c), batch and dtype as of `inputs`.

    Arguments:
        N: a multiple of 4.
        kind: "center", or "border" for 1 minus that.
    """
    center = pad(tf.ones((tf.shape(inputs)[0], N // 2, N // 2, c), inputs.dtype), N // 4)
    return center if kind == "center" else 1 - center


def get_mask(images: tf.Tensor, support_threshold: float) -> tf.Tensor:
    """1 where a real image is above the threshold, 0 elsewhere."""
    return tf.cast(images > support_threshold, images.dtype)
