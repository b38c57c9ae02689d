"""Losses, as Keras calls them: what they return is averaged over its elements."""

from __future__ import annotations

import tensorflow as tf

from tf_reference._channels import separate_amp_phase
from tf_reference._padding import mk_centermask


def negloglik(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Poisson likelihood y_pred - y_true log(y_pred) of each pixel; y_pred = 0 gives inf, or NaN where y_true = 0."""
    return y_pred - y_true * tf.math.log(y_pred)


def mean_absolute_error(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Keras' loss "mae", averaged: mean |y_true - y_pred|."""
    return tf.reduce_mean(tf.abs(y_true - y_pred))


def total_variation(images: tf.Tensor, amp_only: bool = False) -> tf.Tensor:
    """Sum over the batch of the squared differences between neighbours in rows and columns, (B, H, W, K).

    Complex images: of real plus of imaginary part; with `amp_only` of the modulus.
    """
    if images.dtype.is_complex:
        if not amp_only:
            return total_variation(tf.math.real(images)) + total_variation(tf.math.imag(images))
        images = tf.abs(images)
    down, right = images[:, 1:] - images[:, :-1], images[:, :, 1:] - images[:, :, :-1]
    return tf.reduce_sum(down**2) + tf.reduce_sum(right**2)


def complex_mae(target: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
    """Mean over channels of |target - pred|, (B, H, W) of (B, H, W, K).

    A complex target is taken apart: its modulus and its angle are both held against the whole of `pred`, real or
    complex, and the two errors are added.
    """
    if target.dtype.is_complex:
        amplitude, phase = separate_amp_phase(target)
        return complex_mae(amplitude, pred) + complex_mae(phase, pred)
    return tf.reduce_mean(tf.abs(tf.cast(target, pred.dtype) - pred), axis=-1)


def masked_mae(target: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
    """`complex_mae` after what `pred` holds outside the central N/2 x N/2 is set to 0; the target keeps it."""
    return complex_mae(target, _centre(pred))


def realspace_loss(
    target: tf.Tensor,
    pred: tf.Tensor,
    *,
    tv_weight: float = 0.0,
    realspace_mae_weight: float = 0.0,
    probe_big: bool = True,
) -> tf.Tensor:
    """Total variation of the batch (a number) plus `complex_mae` of each pixel (B, H, W), each times its weight.

    A term of weight 0 is left out: 0 without any, a number with the first alone.

    Arguments:
        target, pred: (B, N, N, 1), real or complex.
        probe_big: False sets what `pred` holds outside the central N/2 x N/2 to 0; the target keeps it.
    """
    if not probe_big:
        pred = _centre(pred)
    loss = tf.zeros((), pred.dtype.real_dtype)
    if tv_weight > 0:
        loss += tv_weight * total_variation(pred)
    if realspace_mae_weight > 0:
        loss += realspace_mae_weight * complex_mae(target, pred)
    return loss


def meanSquaredLoss(target: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
    """Mean of the squared difference of two real arrays."""
    return tf.reduce_mean((target - pred) ** 2)


def gram_matrix(images: tf.Tensor) -> tf.Tensor:
    """Products of channels c and d, averaged over the pixels: (B, K, K) of (B, H, W, K)."""
    return tf.einsum("bijc,bijd->bcd", images, images) / (images.shape[1] * images.shape[2])


def _centre(images: tf.Tensor) -> tf.Tensor:
    return images * mk_centermask(images, images.shape[1], images.shape[3])
