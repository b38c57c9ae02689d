"""Weights of the original PtychoPINN's Keras network, for `torchptycho.models.generators.cnn.CNN` and back.

Keras and torch define convolution in the same way (a zero-padded correlation) and differ in the layout of its kernel:
(height, width, inputs, outputs) in Keras, (outputs, inputs, height, width) in torch. The original's list is in the
order of Keras' `model.trainable_weights`, kernel and bias of each convolution:

1. the encoder,
2. the stages of both decoders, alternately one of the amplitude and one of the phase,
3. with `probe_big`, the border blocks in the same order, and the last convolutions of the borders,
4. the convolutions that predict the central half, amplitude and phase.

    weights = [variable.numpy() for variable in keras_model.trainable_weights]
    network = CNN(n_px=64, channels=4, n_filters_scale=2, amplitude_activation="sigmoid", probe_big=True)
    network.load_state_dict(state_dict_from_keras(weights, network))

The list does not contain the amplitude's activation, which you have to name, the intensity scale or the probe. If it
holds the scale, as a scalar (its logarithm), or the probe, as a complex array, they are skipped. Networks of the
original that predict one patch for a group (object_big False) or the whole patch by one head (pad_object False) have no
counterpart here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchptycho.core.errors import ConfigError
from torchptycho.models.generators.cnn import CNN

__all__ = ["keras_from_state_dict", "list_keras_entries", "state_dict_from_keras"]

_REMEDY = (
    "Build the network with the N, gridsize, n_filters_scale and probe_big that the weights were trained with, "
    "and give them in the order of Keras' trainable_weights."
)

_REMEDY_STATE = "Take the generator's own state dict, and build the network with the options of the trained one."


def list_keras_entries(network: CNN) -> tuple[str, ...]:
    """List the names of the state dict's entries in the order of the Keras list."""
    amplitude, phase = network.amplitude, network.phase
    convolutions = _list_convolutions(network.encoder, "encoder")
    for part in ("stages", "border"):
        pair = [
            _list_convolutions(getattr(d, part), f"{n}.{part}") for d, n in ((amplitude, "amplitude"), (phase, "phase"))
        ]
        convolutions += chain.from_iterable(zip(*pair, strict=True))
    convolutions += ["amplitude.central", "phase.central"]
    return tuple(f"{name}.{kind}" for name in convolutions for kind in ("weight", "bias"))


def state_dict_from_keras(weights: Sequence[np.ndarray | np.generic], network: CNN) -> dict[str, Tensor]:
    """Convert the original's weights to a state dict for `network`, without a change of dtype. The round trip is exact.

    Arguments:
        weights: kernels and biases in the order of Keras' `trainable_weights`; scalars and complex arrays are skipped.
        network: defines the expected shapes; it is not changed.

    Raises:
        ConfigError: too few or too many weights, or one of another shape.
    """
    arrays = [np.asarray(array) for array in weights]
    numbered = [(number, array) for number, array in enumerate(arrays) if array.ndim > 0 and array.dtype.kind != "c"]
    expected = network.state_dict()
    state: dict[str, Tensor] = {}
    for name, (number, array) in zip(list_keras_entries(network), numbered, strict=False):
        shape = _to_keras_shape(expected[name])
        if array.shape != shape or array.dtype.kind != "f":
            raise ConfigError(
                f"weights[{number}]: expected floats of shape {shape}, for '{name}'; "
                f"found {array.dtype} {array.shape}. {_REMEDY}"
            )
        state[name] = torch.from_numpy(np.array(_to_oihw(array), order="C"))
    if len(numbered) != len(expected):
        raise ConfigError(f"weights: expected {len(expected)} kernels and biases; found {len(numbered)}. {_REMEDY}")
    return state


def keras_from_state_dict(state: Mapping[str, Tensor], network: CNN) -> list[Float[np.ndarray, "..."]]:
    """Copy the entries of a state dict into the original's list of weights, without a change of dtype.

    Arguments:
        state: of a network like `network`, on any device.
        network: defines the expected entries and shapes; it is not changed.

    Raises:
        ConfigError: an entry is missing, unknown, or of another shape.
    """
    expected = network.state_dict()
    if missing := sorted(expected.keys() - state.keys()):
        raise ConfigError(f"state dict: expected the entry '{missing[0]}'; it is missing. {_REMEDY_STATE}")
    if unknown := sorted(state.keys() - expected.keys()):
        raise ConfigError(f"state dict: expected the entries of a CNN alone; found '{unknown[0]}'. {_REMEDY_STATE}")
    arrays = []
    for name in list_keras_entries(network):
        if state[name].shape != expected[name].shape:
            shape, expected_shape = tuple(state[name].shape), tuple(expected[name].shape)
            raise ConfigError(f"state dict: '{name}': expected shape {expected_shape}; found {shape}. {_REMEDY_STATE}")
        arrays.append(np.array(_to_hwio(state[name].detach().cpu().numpy()), order="C"))
    return arrays


def _list_convolutions(layers: nn.Sequential | None, prefix: str) -> list[str]:
    if layers is None:
        return []
    return [f"{prefix}.{index}" for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]


def _to_keras_shape(parameter: Tensor) -> tuple[int, ...]:
    shape = tuple(parameter.shape)
    return (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape


def _to_oihw(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def _to_hwio(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
