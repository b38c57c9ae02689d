"""The network: diffraction of a group to amplitude and phase of its object patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_reference._arrays import stay_off_gpus
from tf_reference._channels import combine_complex
from tf_reference._padding import mk_centermask

ENCODER = {64: (32, 64, 128), 128: (16, 32, 64, 128), 256: (8, 16, 32, 64, 128)}
DECODER = {64: (64, 32), 128: (128, 64, 32), 256: (256, 128, 64, 32)}
"""Filters by frame size, to be multiplied by n_filters_scale."""
BORDER_CHANNELS = 4
AMPLITUDE_ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "sigmoid": tf.sigmoid,
    "swish": tf.nn.silu,
    "softplus": tf.nn.softplus,
    "relu": tf.nn.relu,
}


class Operator(keras.layers.Layer):
    """A function on tensors as a layer without weights."""

    def __init__(self, compute: Callable[..., tf.Tensor], name: str | None = None, **options: Any) -> None:
        super().__init__(name=name)
        self.compute, self.options = compute, options

    def call(self, *tensors: tf.Tensor) -> tf.Tensor:
        return self.compute(*tensors, **self.options)


class Weights:
    """The weights of a network.

    Arguments:
        model: diffraction to the heads "amp" and "phi" and the complex patches "obj".
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model

    @property
    def weight_names(self) -> list[str]:
        return [variable.path for variable in self.model.trainable_weights]

    def get_weights(self) -> list[np.ndarray]:
        """Kernels and biases in the order of Keras' `trainable_weights`."""
        return [variable.numpy() for variable in self.model.trainable_weights]

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        for variable, value in zip(self.model.trainable_weights, weights, strict=True):
            variable.assign(value)

    def gradients_of(self, value: tf.Tensor, tape: tf.GradientTape) -> list[tf.Tensor]:
        """With respect to each weight; 0 for those that the value does not depend on."""
        variables = [variable.value for variable in self.model.trainable_weights]
        gradients: list[tf.Tensor] = tape.gradient(value, variables, unconnected_gradients="zero")
        return gradients


class Network(Weights):
    """The network alone; built by `create_network`."""

    def predict(self, diffraction: np.ndarray) -> np.ndarray:
        """Normalised amplitudes (B, N, N, C) to complex object patches, in one batch."""
        return np.asarray(self.model(diffraction)["obj"].numpy())

    def gradients(self, diffraction: np.ndarray, cotangent: np.ndarray) -> list[np.ndarray]:
        """Of Re sum(conj(cotangent) * patches) with respect to each weight."""
        with tf.GradientTape() as tape:
            product = tf.math.conj(tf.constant(cotangent)) * self.model(diffraction)["obj"]
            real = tf.reduce_sum(tf.math.real(product))
        return [gradient.numpy() for gradient in self.gradients_of(real, tape)]


def create_network(
    gridsize: int,
    N: int,
    *,
    n_filters_scale: int = 2,
    amp_activation: str = "sigmoid",
    probe_big: bool = True,
    object_big: bool = True,
    pad_object: bool = True,
    seed: int = 0,
) -> Network:
    """Diffraction (B, N, N, C) to complex object patches, (B, N, N, C).

    An encoder of [conv, conv, max-pool] stages and two decoders, of amplitude and phase, of [conv, conv, upsample]
    stages, all convolutions 3 x 3 with ReLU. A head (B, N/2, N/2, C) predicts the central half from all but the last
    four channels; these four predict the border.

    Arguments:
        gridsize: groups hold C = gridsize^2 frames.
        N: frame edge: 64, 128 or 256.
        n_filters_scale: multiplies the filters of all convolutions but the heads.
        amp_activation: key of AMPLITUDE_ACTIVATIONS, for the amplitude's head; the phase's is pi tanh.
        probe_big: predict the border, through swish for amplitude and phase alike; otherwise it is 0.
        object_big: predict C patches; otherwise one for the whole group, also where C is written above.
        pad_object: False: a head (B, N, N, C) predicts the whole patch from all channels, whatever `probe_big`.
        seed: of the first weights: Glorot-uniform kernels, and biases of 0.
    """
    stay_off_gpus()
    layers = _Layers(seed)
    channels = gridsize**2 if object_big else 1
    first = ENCODER[N][0] * n_filters_scale
    code = diffraction = keras.Input((N, N, gridsize**2), name="input")
    for filters in ENCODER[N]:
        code = keras.layers.MaxPooling2D(padding="same")(layers.two_convolutions(code, filters * n_filters_scale))

    def decode(activation: Operator, padded_name: str) -> tuple[tf.Tensor, tf.Tensor]:
        # Numbered before the stages and used after them; a head that is not used has its number all the same.
        head, border_head = layers.convolution(channels), layers.convolution(channels)
        x = code
        for filters in DECODER[N]:
            x = layers.up_block(x, filters * n_filters_scale)
        if not pad_object:
            whole = activation(border_head(layers.up_block(x, first)))
            return whole, whole
        center = activation(head(x[..., :-BORDER_CHANNELS]))
        padded = keras.layers.ZeroPadding2D(N // 4, name=padded_name)(center)
        if not probe_big:
            return center, padded
        border = Operator(tf.nn.silu)(border_head(layers.up_block(x[..., -BORDER_CHANNELS:], first)))
        # A layer of its own, as the product is: Keras orders the weights by a layer's distance from the outputs.
        mask = Operator(mk_centermask, N=N, c=1, kind="border")(border)
        return center, keras.layers.Add()([padded, keras.layers.Multiply()([border, mask])])

    amp, amplitude = decode(Operator(AMPLITUDE_ACTIVATIONS[amp_activation], "amp"), "amp_padded")
    phi, phase = decode(Operator(pi_tanh, "phi"), "phase_padded")
    obj = Operator(combine_complex, "obj")(amplitude, phase)
    return Network(keras.Model(diffraction, {"amp": amp, "phi": phi, "obj": obj}))


def pi_tanh(x: tf.Tensor) -> tf.Tensor:
    return math.pi * tf.tanh(x)


class _Layers:
    """Builds convolutions, whose names count from "conv2d" and "conv2d_1" on within one network."""

    def __init__(self, seed: int) -> None:
        self.seed, self.count = seed, 0

    def convolution(self, filters: int, activation: str | None = None) -> keras.layers.Conv2D:
        name = f"conv2d_{self.count}" if self.count else "conv2d"
        # Seeded here: Keras' own seed is global.
        kernel = keras.initializers.GlorotUniform(seed=1000 * self.seed + self.count)
        self.count += 1
        return keras.layers.Conv2D(
            filters, 3, padding="same", activation=activation, kernel_initializer=kernel, name=name
        )

    def two_convolutions(self, x: tf.Tensor, filters: int) -> tf.Tensor:
        for _ in range(2):
            x = self.convolution(filters, "relu")(x)
        return x

    def up_block(self, x: tf.Tensor, filters: int) -> tf.Tensor:
        return keras.layers.UpSampling2D()(self.two_convolutions(x, filters))
