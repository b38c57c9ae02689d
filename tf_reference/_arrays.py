"""NumPy in, NumPy out: how functions on tensors are called from outside, and how their gradients are asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
import tensorflow as tf

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def stay_off_gpus() -> None:
    """Keep TensorFlow, and nothing else in this process, off the GPUs: it would take all of their memory.

    Raises:
        RuntimeError: TensorFlow has taken them already; call the oracle before any other TensorFlow code.
    """
    tf.config.set_visible_devices([], "GPU")


def on_arrays(compute: Callable[P, R]) -> Callable[P, R]:
    """The same function for NumPy arrays: they become tensors of the same dtype, and the tensors it returns arrays."""

    @functools.wraps(compute)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        stay_off_gpus()
        named = {name: _tensor(value) for name, value in kwargs.items()}
        result = compute(*(_tensor(value) for value in args), **named)
        arrays: R = tf.nest.map_structure(lambda value: value.numpy() if tf.is_tensor(value) else value, result)
        return arrays

    return call


def gradient(
    function: Callable[..., Any], *arguments: Any, cotangent: np.ndarray, wrt: int = 0, **options: Any
) -> np.ndarray:
    """Gradient of the real number Re sum(conj(cotangent) * function(*arguments)) with respect to one argument.

    For a complex argument z this is dL/d(Re z) + i dL/d(Im z).

    Arguments:
        function: one of this package's functions that return one array.
        cotangent: shape and dtype of what the function returns.
        wrt: place of the argument among `arguments`.
    """
    stay_off_gpus()
    compute: Callable[..., Any] = getattr(function, "__wrapped__", function)
    tensors = [_tensor(value) for value in arguments]
    with tf.GradientTape() as tape:
        tape.watch(tensors[wrt])
        product = tf.math.conj(tf.constant(cotangent)) * compute(*tensors, **options)
        real = tf.reduce_sum(tf.math.real(product))
    found = tape.gradient(real, tensors[wrt], unconnected_gradients="zero")
    return np.asarray(found.numpy())


def _tensor(value: Any) -> Any:
    return tf.constant(value) if isinstance(value, np.ndarray) else value
