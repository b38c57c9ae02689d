"""The same network on both sides, with the same weights."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from agreement import assert_agree
from tolerances import relative_l2
from torch import Tensor

import tf_reference as oracle
from torchptycho.interop.keras_weights import keras_from_state_dict, state_dict_from_keras
from torchptycho.models.generators import GroupInput
from torchptycho.models.generators.cnn import CNN


def make_group_input(amplitude: Tensor) -> GroupInput:
    """Amplitudes as a generator takes them, with a beam and places that networks of this shape do not look at."""
    groups, members, n_px, _ = amplitude.shape
    return GroupInput(
        amplitude=amplitude,
        probe=torch.full((1, 1, n_px, n_px), 0.5 + 0j),
        offset_px=torch.zeros(groups, members, 2),
        mask=torch.ones(groups, 1, n_px, n_px, dtype=torch.bool),
        intensity_per_count=torch.full((groups,), 1e-6),
        background=torch.zeros(groups),
        canvas_px=n_px + 2,
    )


def draw_weights(shapes: list[tuple[int, ...]], seed: int, gain: float = 1.0) -> list[np.ndarray]:
    """Kernels that keep the size of what passes through, times `gain`, and biases of 0.05."""
    random = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        size = 0.05 if len(shape) == 1 else gain * math.sqrt(2 / math.prod(shape[:3]))
        return (size * random.standard_normal(shape)).astype(np.float32)

    return [draw(shape) for shape in shapes]


def draw_amplitudes(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Positive numbers with a bright middle, (B, N, N, C), scaled as normalised frames are.

    Nowhere constant: where all of an area's ReLUs are at 0 to the last digit, it opens on one side only.
    """
    random = np.random.default_rng(seed)
    edge = shape[1]
    away = np.abs(np.arange(edge) - edge / 2)
    falling = np.exp(-np.add.outer(away, away) / (edge / 8))[:, :, None]
    frames = random.random(shape) * (falling + 0.05)
    return (frames * math.sqrt((edge / 2) ** 2 / np.square(frames).sum(axis=(1, 2)).mean())).astype(np.float32)


@functools.cache
def oracle_network(gridsize: int, n_px: int, activation: str, probe_big: bool) -> Any:
    return oracle.create_network(gridsize, n_px, n_filters_scale=1, amp_activation=activation, probe_big=probe_big)


@functools.cache
def product_network(gridsize: int, n_px: int, activation: str, probe_big: bool) -> CNN:
    return CNN(n_px, gridsize**2, 1, activation, probe_big)


def set_both(theirs: Any, ours: CNN, weights: list[np.ndarray]) -> None:
    """The same weights for the oracle and the product."""
    theirs.set_weights(weights)
    ours.load_state_dict(state_dict_from_keras(weights, ours))


def list_weight_shapes(model: Any) -> list[tuple[int, ...]]:
    return [tuple(variable.shape) for variable in model.model.trainable_weights]


def gradients(network: CNN) -> list[np.ndarray]:
    """What is in `.grad`, as the oracle's list."""
    found: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return keras_from_state_dict(found, network)


def assert_gradients_agree(
    pairs: list[tuple[np.ndarray, np.ndarray]], operator: str, name: str = "oracle_operator"
) -> None:
    """All of several cases agree but for single units, and half of them and more within the named tolerance.

    One of 5e5 ReLUs that is open on one side only, or one maximum of a pool taken from another pixel, changes a
    gradient by a thousandth or a hundredth, and in some cases there is one.
    """
    for found, expected in pairs:
        assert_agree(found, expected, f"{operator}.gradient", "oracle_gates")
    if len(pairs) > 1:
        errors = [relative_l2(torch.from_numpy(found), torch.from_numpy(expected)) for found, expected in pairs]
        found, expected = pairs[int(np.argsort(errors)[len(pairs) // 2])]
        assert_agree(found, expected, f"{operator}.gradient (median)", name)


def read_weights(network: CNN) -> list[np.ndarray]:
    return keras_from_state_dict(network.state_dict(), network)


def concatenate_arrays(arrays: list[np.ndarray]) -> np.ndarray:
    """All numbers of a list in one array, so that one comparison weighs each as much as it counts."""
    return np.concatenate([array.ravel() for array in arrays])
