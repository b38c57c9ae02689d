"""Layouts of a group's images (channel, flat and grid), and complex numbers as amplitude and phase.

| layout  | shape                   |                                          |
|---------|-------------------------|------------------------------------------|
| channel | (B, H, W, C)            | C = gridsize^2                           |
| flat    | (B*C, H, W, 1)          | index b*C + c                            |
| grid    | (B, gs, gs, H, W, 1)    | c = row * gs + column                    |
"""

from __future__ import annotations

import tensorflow as tf

from tf_reference._translation import translate


def channel_to_flat(channels: tf.Tensor) -> tf.Tensor:
    """(B, H, W, C) to (B*C, H, W, 1)."""
    height, width = channels.shape[1:3]
    return tf.reshape(tf.transpose(channels, (0, 3, 1, 2)), (-1, height, width, 1))


def flat_to_channel(flat: tf.Tensor, gridsize: int) -> tf.Tensor:
    """(B*C, H, W, 1) to (B, H, W, C). The original has it twice, the other one named `_flat_to_channel_2`."""
    height, width = flat.shape[1:3]
    return tf.transpose(tf.reshape(flat, (-1, gridsize**2, height, width)), (0, 2, 3, 1))


def togrid(flat: tf.Tensor, gridsize: int) -> tf.Tensor:
    """(B*C, H, W, 1) to (B, gs, gs, H, W, 1)."""
    return tf.reshape(flat, (-1, gridsize, gridsize, *flat.shape[1:3], 1))


def fromgrid(grid: tf.Tensor) -> tf.Tensor:
    """(B, gs, gs, H, W, 1) to (B*C, H, W, 1)."""
    return tf.reshape(grid, (-1, *grid.shape[3:5], 1))


def grid_to_channel(grid: tf.Tensor) -> tf.Tensor:
    """(B, gs, gs, H, W, 1) to (B, H, W, C)."""
    return flat_to_channel(fromgrid(grid), grid.shape[1])


def channel_to_patches(channels: tf.Tensor, gridsize: int) -> tf.Tensor:
    """(B, H, W, C) to (B, gs, gs, H*W)."""
    height, width = channels.shape[1:3]
    return tf.reshape(channel_to_flat(channels), (-1, gridsize, gridsize, height * width))


def flatten_offsets(coords: tf.Tensor) -> tf.Tensor:
    """Coordinates (B, 1, 2, C) of channels as those of flat images, (B*C, 2) as (x, y)."""
    return tf.reshape(tf.transpose(coords, (0, 3, 1, 2)), (-1, 2))


def center_channels(channels: tf.Tensor, coords: tf.Tensor) -> tf.Tensor:
    """Move the content of each channel by minus its coordinates: what lies at (x, y) from the middle comes there.

    Arguments:
        channels: (B, H, W, C), C a square.
        coords: (B, 1, 2, C) as (x, y).
    """
    moved = translate(channel_to_flat(channels), -flatten_offsets(coords))
    return flat_to_channel(moved, round(channels.shape[3] ** 0.5))


def combine_complex(amp: tf.Tensor, phi: tf.Tensor, use_polar: bool = True) -> tf.Tensor:
    """amp * exp(i phi), both real, of any shape.

    Arguments:
        use_polar: False gives amp + i phi, as the layer of this purpose did in older versions.
    """
    return tf.complex(amp * tf.cos(phi), amp * tf.sin(phi)) if use_polar else tf.complex(amp, phi)


def separate_amp_phase(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Modulus, and angle in (-pi, pi]."""
    return tf.abs(image), tf.math.angle(image)
