"""The network of torchptycho with the oracle's weights is the oracle's network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agreement import MISSING, assert_agree
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from torch import nn

oracle = pytest.importorskip("tf_reference", reason=MISSING)

from networks import (  # noqa: E402 (imports the oracle)
    assert_gradients_agree,
    concatenate_arrays,
    draw_amplitudes,
    draw_weights,
    gradients,
    list_weight_shapes,
    make_group_input,
    oracle_network,
    product_network,
    read_weights,
    set_both,
)

from torchptycho.core.config import ModelConfig  # noqa: E402
from torchptycho.core.errors import ConfigError  # noqa: E402
from torchptycho.interop.keras_weights import state_dict_from_keras  # noqa: E402
from torchptycho.interop.original_layouts import channels_first, channels_last  # noqa: E402
from torchptycho.models.generators import build_generator  # noqa: E402
from torchptycho.models.generators.cnn import CNN  # noqa: E402
from torchptycho.models.generators.pie_unet import PieUNet  # noqa: E402

ACTIVATIONS = ["sigmoid", "swish", "softplus", "relu"]


def compare(gridsize, n_px, activation, probe_big, batch, seed, gain):
    """Patches; and the gradients of both with respect to all weights, for a random direction."""
    theirs = oracle_network(gridsize, n_px, activation, probe_big)
    ours = product_network(gridsize, n_px, activation, probe_big)
    set_both(theirs, ours, draw_weights(list_weight_shapes(theirs), seed, gain))
    frames = draw_amplitudes((batch, n_px, n_px, gridsize**2), seed + 1)
    ours.zero_grad()
    patches = ours(make_group_input(torch.from_numpy(channels_first(frames))))
    assert_agree(channels_last(patches.detach().numpy()), theirs.predict(frames), "parity.network", "oracle_operator")

    random = np.random.default_rng(seed + 2)
    cotangent = (random.standard_normal(frames.shape) + 1j * random.standard_normal(frames.shape)).astype(np.complex64)
    patches.backward(torch.from_numpy(channels_first(cotangent)))
    return concatenate_arrays(gradients(ours)), concatenate_arrays(theirs.gradients(frames, cotangent))


@pytest.mark.contract("parity.network")
@given(
    gridsize=st.sampled_from([1, 2, 3]),
    activation=st.sampled_from(ACTIVATIONS),
    probe_big=st.booleans(),
    batch=st.integers(1, 2),
    seed=seeds,
    gain=st.floats(0.5, 1.0),
)
def test_patches_and_gradients_of_all_weights(gridsize, activation, probe_big, batch, seed, gain):
    assert_gradients_agree([compare(gridsize, 64, activation, probe_big, batch, seed, gain)], "parity.network")


@pytest.mark.contract("parity.network")
@pytest.mark.parametrize(("n_px", "gridsize", "probe_big"), [(64, 2, True), (128, 2, True), (256, 1, False)])
def test_gradients_to_the_last_digits_and_larger_frames(n_px, gridsize, probe_big):
    cases = [compare(gridsize, n_px, "sigmoid", probe_big, 1, seed, 0.8) for seed in range(3)]
    assert_gradients_agree(cases, "parity.network")


@pytest.mark.contract("parity.network.weights")
@pytest.mark.parametrize("n_px", [64, 128, 256])
@pytest.mark.parametrize("probe_big", [True, False])
def test_weights_make_the_round_trip_through_both_packages(n_px, probe_big):
    theirs, ours = (make(2, n_px, "sigmoid", probe_big) for make in (oracle_network, product_network))
    weights = draw_weights(list_weight_shapes(theirs), 11)
    set_both(theirs, ours, weights)
    for found, expected in zip(read_weights(ours), theirs.get_weights(), strict=True):
        assert_agree(found, expected, "parity.network.weights", "copied")


@pytest.mark.contract("deviation.network-variants")
@pytest.mark.parametrize("option", ["object_big", "pad_object"])
def test_networks_without_a_counterpart_are_refused(option):
    theirs = oracle.create_network(2, 64, n_filters_scale=1, **{option: False})
    frames = draw_amplitudes((1, 64, 64, 4), 1)
    # One patch for the whole group; or one head for the whole patch, which has no border of its own.
    assert theirs.predict(frames).shape == (1, 64, 64, 1 if option == "object_big" else 4)
    with pytest.raises(ConfigError, match=r"weights\[\d+\]: expected floats of shape .*; found"):
        state_dict_from_keras(theirs.get_weights(), product_network(2, 64, "sigmoid", True))


@pytest.mark.contract("deviation.initial-weights")
def test_the_oracle_begins_with_biases_of_zero_and_glorot_kernels_and_the_product_with_torch_s_own():
    theirs = oracle.create_network(1, 64, n_filters_scale=1, seed=3).get_weights()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        ours = CNN(64, 1, 1, "sigmoid", True)
    kernels = [array for array in theirs if array.ndim == 4]
    for kernel in kernels:
        limit = np.sqrt(6 / (9 * (kernel.shape[2] + kernel.shape[3])))
        assert 0.9 * limit < np.abs(kernel).max() <= limit
    assert not any(array.any() for array in theirs if array.ndim == 1)
    for layer in ours.modules():
        if isinstance(layer, nn.Conv2d):
            limit = 1 / np.sqrt(9 * layer.in_channels)
            assert 0.9 * limit < layer.weight.abs().max() <= limit
            assert layer.bias is not None
            assert layer.bias.abs().max() > 0
    # Most kernels begin smaller here: the patch of an untrained network is flatter.
    ratio = [mine.std() / kernel.std() for mine, kernel in zip(read_weights(ours)[::2], kernels, strict=True)]
    assert 0.5 < np.median(ratio) < 0.8


@pytest.mark.contract("deviation.network-range")
@pytest.mark.parametrize(("seed", "gain"), [(1, 1.0), (2, 3.0)])
def test_the_oracle_bounds_the_amplitude_by_1_inside_and_lets_it_be_negative_outside(seed, gain):
    theirs = oracle_network(1, 64, "sigmoid", True)
    theirs.set_weights(draw_weights(list_weight_shapes(theirs), seed, gain))
    frames = draw_amplitudes((1, 64, 64, 1), seed)
    heads = theirs.model(frames)
    assert float(heads["amp"].numpy().max()) <= 1
    inside = np.abs(theirs.predict(frames))[:, 16:48, 16:48]
    assert inside.max() <= 1 + 1e-6
    # A border head that says -1.28 everywhere: swish turns it into an amplitude of -0.278, whatever the frame.
    weights = theirs.get_weights()
    head = theirs.weight_names.index("conv2d_7/kernel")
    weights[head][:], weights[head + 1][:] = 0, -1.2785
    phase_head = theirs.weight_names.index("conv2d_15/kernel")
    weights[phase_head][:], weights[phase_head + 1][:] = 0, 0
    theirs.set_weights(weights)
    border = theirs.predict(frames)[0, 0]
    np.testing.assert_allclose(border, -0.27846, atol=1e-5)
    # The product's network of this shape does the same; the one it trains by default has neither bound.
    assert build_generator(ModelConfig(), 64, 1).__class__ is PieUNet
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        default = PieUNet(64, (8, 8, 8), finish_projections=0)
        assert default.head.bias is not None
        default.head.bias[: default.head.bias.shape[0] // 2] = 2.5
        patch = default(make_group_input(torch.zeros(1, 1, 64, 64)))
    assert patch.abs().min() > 1
