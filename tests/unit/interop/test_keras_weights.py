"""Weights of the original's Keras network: their order, their layout, and what does not fit. Needs no TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from torchptycho.core.errors import ConfigError
from torchptycho.interop.keras_weights import keras_from_state_dict, list_keras_entries, state_dict_from_keras
from torchptycho.models.generators.cnn import CNN

# Shapes of the original's weight lists, n_filters_scale 1 and gridsize 2: filters in, filters out of each convolution.
_ENCODERS = {
    64: [(4, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)],
    128: [(4, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)],
}
_DECODERS = {
    64: [(128, 64), (64, 64), (64, 32), (32, 32)],
    128: [(128, 128), (128, 128), (128, 64), (64, 64), (64, 32), (32, 32)],
}


def network(n_px: int = 64, channels: int = 4, n_filters_scale: int = 1, probe_big: bool = True) -> CNN:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CNN(n_px, channels, n_filters_scale, "sigmoid", probe_big)


def keras_shapes(n_px: int, probe_big: bool) -> list[tuple[int, ...]]:
    first = _ENCODERS[n_px][0][1]
    border = [(4, first), (first, first), (first, 4)] if probe_big else []
    twice = [pair for pair in [*_DECODERS[n_px], *border, (28, 4)] for _ in ("amplitude", "phase")]
    return [shape for i, o in _ENCODERS[n_px] + twice for shape in ((3, 3, i, o), (o,))]


def numbered(n_px: int, probe_big: bool) -> list[np.ndarray]:
    """Weights that are all different, within the list and within each."""
    random = np.random.default_rng(1)
    return [random.standard_normal(shape).astype(np.float32) for shape in keras_shapes(n_px, probe_big)]


class TestOrder:
    @pytest.mark.contract("interop.keras.order")
    @pytest.mark.parametrize("n_px", [64, 128])
    @pytest.mark.parametrize("probe_big", [True, False])
    def test_shapes_come_in_the_order_of_the_original_s_list(self, n_px: int, probe_big: bool) -> None:
        weights = keras_from_state_dict(network(n_px, probe_big=probe_big).state_dict(), network(n_px, 4, 1, probe_big))
        assert [array.shape for array in weights] == keras_shapes(n_px, probe_big)

    @pytest.mark.contract("interop.keras.order")
    def test_amplitude_and_phase_take_turns_and_the_border_s_last_layer_comes_before_the_centre(self) -> None:
        names = [name.removesuffix(".weight") for name in list_keras_entries(network())[::2]]
        assert names[5:8] == ["encoder.12", "amplitude.stages.0", "phase.stages.0"]
        assert names[-4:] == ["amplitude.border.5", "phase.border.5", "amplitude.central", "phase.central"]
        assert set(list_keras_entries(network())) == set(network().state_dict())


class TestConversion:
    @pytest.mark.contract("interop.keras.round-trip")
    @pytest.mark.parametrize("probe_big", [True, False])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_there_and_back_not_one_bit_changes(self, probe_big: bool, dtype: type) -> None:
        weights = [array.astype(dtype) for array in numbered(64, probe_big)]
        model = network(probe_big=probe_big)
        state = state_dict_from_keras(weights, model)
        model.load_state_dict(state)
        back = keras_from_state_dict(state, model)
        assert len(back) == len(weights)
        for found, expected in zip(back, weights, strict=True):
            assert found.dtype == expected.dtype
            assert found.flags.c_contiguous
            np.testing.assert_array_equal(found, expected)

    @pytest.mark.contract("interop.keras.round-trip")
    def test_what_comes_out_shares_no_memory(self) -> None:
        weights, model = numbered(64, True), network()
        state = state_dict_from_keras(weights, model)
        kept = {name: tensor.clone() for name, tensor in state.items()}
        for array in [*weights, *keras_from_state_dict(state, model)]:
            array[...] = 0
        for name, tensor in state.items():
            assert torch.equal(tensor, kept[name])

    @pytest.mark.contract("interop.keras.layout")
    def test_the_kernel_s_row_column_input_and_output_arrive_where_they_belong(self) -> None:
        weights, model = numbered(64, True), network()
        state = state_dict_from_keras(weights, model)
        row, column, channel, output = 0, 2, 3, 17
        assert state["encoder.0.weight"][output, channel, row, column] == weights[0][row, column, channel, output]
        # A correlation written out, at the corner, where the padding shows.
        image = np.random.default_rng(2).standard_normal((8, 8, 4))
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        expected = np.einsum("yxi,yxio->o", padded[0:3, 5:8], weights[0].astype(np.float64)) + weights[1]
        planes = torch.from_numpy(np.moveaxis(image, -1, 0))[None]
        layer = model.encoder[0]
        assert isinstance(layer, nn.Conv2d)
        found = functional.conv2d(
            planes, state["encoder.0.weight"].double(), state["encoder.0.bias"].double(), padding=layer.padding
        )
        np.testing.assert_allclose(found[0, :, 0, 5].numpy(), expected, rtol=1e-12)

    @pytest.mark.contract("interop.keras.extras")
    def test_the_intensity_scale_and_the_beam_are_passed_over_wherever_they_stand(self) -> None:
        weights, model = numbered(64, True), network()
        scale, beam = np.float32(3.9) * np.ones(()), np.ones((64, 64, 1), np.complex64)
        expected = state_dict_from_keras(weights, model)
        found = state_dict_from_keras([scale, *weights[:7], beam, *weights[7:], scale], model)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


class TestWhatDoesNotFit:
    @pytest.mark.contract("interop.keras.errors")
    def test_a_wider_network_is_told_the_entry_and_both_shapes(self) -> None:
        with pytest.raises(ConfigError, match=r"weights\[0\].*\(3, 3, 4, 64\).*'encoder.0.weight'.*\(3, 3, 4, 32\)"):
            state_dict_from_keras(numbered(64, True), network(n_filters_scale=2))

    @pytest.mark.contract("interop.keras.errors")
    def test_another_order_is_noticed(self) -> None:
        weights = numbered(64, True)
        weights[36:40], weights[40:44] = weights[40:44], weights[36:40]
        with pytest.raises(ConfigError, match=r"weights\[36\].*amplitude.border.5.weight.*trainable_weights"):
            state_dict_from_keras(weights, network())

    @pytest.mark.contract("interop.keras.errors")
    @pytest.mark.parametrize(("n_px", "probe_big", "count"), [(64, True, 40), (64, True, 45), (64, False, 0)])
    def test_too_few_and_too_many(self, n_px: int, probe_big: bool, count: int) -> None:
        weights = [*numbered(n_px, probe_big), np.zeros(3, np.float32)][:count]
        expected = len(keras_shapes(n_px, probe_big))
        with pytest.raises(ConfigError, match=rf"expected {expected} kernels and biases; found {count}\."):
            state_dict_from_keras(weights, network(n_px, probe_big=probe_big))

    @pytest.mark.contract("interop.keras.errors")
    def test_weights_with_a_border_do_not_go_into_a_network_without(self) -> None:
        with pytest.raises(ConfigError, match="probe_big"):
            state_dict_from_keras(numbered(64, True), network(probe_big=False))

    @pytest.mark.contract("interop.keras.errors")
    def test_integers_are_no_weights(self) -> None:
        weights = [array.astype(np.int32) for array in numbered(64, True)]
        with pytest.raises(ConfigError, match=r"expected floats.*found int32"):
            state_dict_from_keras(weights, network())

    @pytest.mark.contract("interop.keras.errors")
    def test_a_state_dict_that_lacks_an_entry_has_a_foreign_one_or_another_shape(self) -> None:
        state = network().state_dict()
        without = {name: tensor for name, tensor in state.items() if name != "phase.central.bias"}
        with pytest.raises(ConfigError, match=r"'phase.central.bias'; it is missing"):
            keras_from_state_dict(without, network())
        with pytest.raises(ConfigError, match=r"found 'generator.amplitude.border.0.bias'"):
            keras_from_state_dict(state | {f"generator.{name}": tensor for name, tensor in state.items()}, network())
        with pytest.raises(ConfigError, match=r"'encoder.0.weight': expected shape \(32, 4, 3, 3\); found \(64, 4, 3"):
            keras_from_state_dict(network(n_filters_scale=2).state_dict(), network())
