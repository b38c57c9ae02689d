"""The whole chain, from frames to the likelihood's gradients, and on through ten steps: `PtychoPINN` and the oracle.

They are compared where they are meant to be equal: single frames, which neither merges (object_big False there); groups
of 2 x 2 whose patches are 0 outside the centre, with the oracle's 0.001 in the product's denominator.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from agreement import MISSING, assert_agree
from hypothesis import given
from hypothesis import strategies as st
from strategies import centred_offsets, make_asymmetric_probe, seeds
from torch import Tensor

oracle = pytest.importorskip("tf_reference", reason=MISSING)

import keras  # noqa: E402 (comes with the oracle)
import tensorflow as tf  # noqa: E402
from networks import (  # noqa: E402 (imports the oracle)
    assert_gradients_agree,
    concatenate_arrays,
    draw_amplitudes,
    draw_weights,
    gradients,
    list_weight_shapes,
    set_both,
)

import torchptycho.models.lightning_module  # noqa: E402
import torchptycho.models.network  # noqa: E402
from torchptycho.core.config import GroupConfig, LossConfig, ModelConfig, RunConfig, to_dict  # noqa: E402
from torchptycho.data.batch import GroupBatch  # noqa: E402
from torchptycho.interop.original_layouts import channels_first, channels_last, relative_from_offsets  # noqa: E402
from torchptycho.models.lightning_module import PtychoPINN  # noqa: E402
from torchptycho.physics.noise import poisson_nll  # noqa: E402
from torchptycho.physics.patches import extract, locate_corner, place  # noqa: E402

N = 64
EPSILON = 1e-3
OFFSETS_PX = torch.tensor([[-1.5, 2.25], [1.5, -2.25], [-3.0, -0.5], [3.0, 0.5]], dtype=torch.float64)[None]
"""Of one group of 2 x 2."""


def merge_with_epsilon(patches: Tensor, offset_px: Tensor, weight: Tensor, canvas_px: int) -> Tensor:
    """`torchptycho.physics.overlap.merge` with what the oracle adds to the denominator."""
    corner_px = locate_corner(offset_px, N, (-(canvas_px // 2),) * 2)
    shape = (canvas_px, canvas_px)
    covered = place(weight.expand(patches.shape).contiguous(), corner_px, shape)
    return extract(place(patches * weight, corner_px, shape) / (covered + EPSILON), corner_px, N)


@dataclasses.dataclass
class Pair:
    """The same experiment, network and frames on both sides.

    Arguments:
        counts: (B, N, N, C), the oracle's layout.
        offset_px: [B, C, 2], the product's.
    """

    ours: PtychoPINN
    theirs: Any
    counts: np.ndarray
    offset_px: Tensor

    @property
    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """The oracle's."""
        return np.sqrt(self.counts), relative_from_offsets(self.offset_px.numpy()).astype(np.float32)

    @property
    def batch(self) -> GroupBatch:
        """The product's."""
        frames = torch.from_numpy(channels_first(self.counts))
        groups, members = frames.shape[:2]
        return GroupBatch(
            frames=frames,
            offset_px=self.offset_px.float(),
            center_px=torch.zeros(groups, 2, dtype=torch.float64),
            scan=torch.zeros(groups, dtype=torch.int64),
            members=torch.arange(groups * members).reshape(groups, members),
            is_first=torch.ones(groups, members, dtype=torch.bool),
            batch_size=[groups],
        )

    def expected(self) -> Tensor:
        with patch.object(torchptycho.models.network, "merge", merge_with_epsilon):
            return self.ours.compute_expected_counts(self.ours(self.batch), self.batch)

    def likelihood(self) -> Tensor:
        return poisson_nll(self.expected(), self.batch.frames)


def module(gridsize: int, probe_big: bool, photons: float, **model: Any) -> PtychoPINN:
    config = RunConfig(
        group=GroupConfig(gridsize=gridsize),
        model=ModelConfig(generator="cnn", n_filters_scale=1, probe_big=probe_big, merge_weight="central", **model),
        loss=LossConfig(),
    )
    built = PtychoPINN(to_dict(config), n_px=N, max_offset_px=6.0)
    built.probe_parts.data[0] = torch.view_as_real(make_asymmetric_probe(N, photons=photons, dtype=torch.complex64))
    built.photons_per_frame[:] = photons
    built.input_scale[:] = N / 2 / math.sqrt(photons)
    return built


def pair(
    gridsize: int,
    probe_big: bool,
    seed: int,
    photons: float = 1e5,
    offset_px: Tensor | None = None,
    activation: str = "sigmoid",
    **options: Any,
) -> Pair:
    ours = module(gridsize, probe_big, photons, amplitude_activation=activation)
    scale = math.sqrt(photons) / (N / 2)
    defaults = {"object_big": gridsize > 1}
    theirs = oracle.create_compiled_model(
        gridsize,
        N,
        probe=ours.probe.detach().numpy()[0, 0] / np.float32(scale),
        intensity_scale=scale,
        n_filters_scale=1,
        probe_big=probe_big,
        amp_activation=activation,
        **(defaults | options),
    )
    set_both(theirs, ours.generator, draw_weights(list_weight_shapes(theirs), seed, 0.8))
    if offset_px is None:
        offset_px = torch.zeros(1, gridsize**2, 2, dtype=torch.float64)
    frames = draw_amplitudes((len(offset_px), N, N, gridsize**2), seed + 1)
    return Pair(ours, theirs, np.square(frames * np.float32(scale)), offset_px)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    gridsize, groups, seed = draw(st.sampled_from([1, 2])), draw(st.integers(1, 2)), draw(seeds)
    probe_big = gridsize == 1 and draw(st.booleans())
    offset_px = draw(centred_offsets(groups, gridsize**2, 5.0))
    activation = draw(st.sampled_from(["sigmoid", "swish", "softplus"]))
    return pair(gridsize, probe_big, seed, 10 ** draw(st.floats(2, 7)), offset_px, activation)


def compare_counts(case: Pair, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Expected counts; and the gradients of both with respect to all weights, in a random direction of the counts."""
    expected = case.expected()
    found = channels_last(expected.detach().numpy())
    cotangent = np.random.default_rng(seed).standard_normal(found.shape).astype(np.float32)
    with tf.GradientTape() as tape:
        intensity = case.theirs.forward(*case.inputs)["pred_intensity"]
        along = tf.reduce_sum(cotangent * intensity)
    assert_agree(found, intensity.numpy(), "parity.model", "oracle_operator")

    case.ours.generator.zero_grad()
    expected.backward(torch.from_numpy(channels_first(cotangent)))
    theirs = [gradient.numpy() for gradient in case.theirs.gradients_of(along, tape)]
    return concatenate_arrays(gradients(case.ours.generator)), concatenate_arrays(theirs)


def compare_likelihoods(case: Pair) -> tuple[np.ndarray, np.ndarray]:
    """The likelihood; and its gradients of both with respect to all weights."""
    expected, likelihood = case.expected(), case.likelihood()
    # Its two terms may cancel: against their size.
    size = (expected + case.batch.frames * expected.log().abs()).mean().item()
    values = [np.array([value, size]) for value in (likelihood.item(), case.theirs.evaluate(*case.inputs)["loss"])]
    assert_agree(*values, "parity.model.likelihood", "likelihood")

    case.ours.generator.zero_grad()
    likelihood.backward()
    return concatenate_arrays(gradients(case.ours.generator)), concatenate_arrays(case.theirs.gradients(*case.inputs))


@pytest.mark.contract("parity.model")
@given(case=pairs(), seed=seeds)
def test_expected_counts_and_their_gradients(case, seed):
    assert_gradients_agree([compare_counts(case, seed)], "parity.model")


@pytest.mark.contract("parity.model.likelihood")
@pytest.mark.parametrize(("gridsize", "probe_big"), [(1, True), (2, False)])
def test_likelihood_and_gradients_to_the_last_digits(gridsize, probe_big):
    # The dose that the oracle supposes. At 1e5 photons the darkest pixels are below the product's floor.
    cases = [pair(gridsize, probe_big, seed, 1e9, OFFSETS_PX if gridsize > 1 else None) for seed in range(3)]
    likelihoods = [compare_likelihoods(case) for case in cases]
    assert_gradients_agree(likelihoods, "parity.model.likelihood", "likelihood_gradient")
    assert_gradients_agree([compare_counts(case, 1) for case in cases], "parity.model")


@pytest.mark.contract("parity.training")
@pytest.mark.parametrize(("gridsize", "probe_big", "seed"), [(1, True, 1), (2, False, 3)])
def test_ten_steps_of_adam_on_the_same_batches(gridsize, probe_big, seed):
    """At a learning rate of 1e-4: at 1e-3 losses within one package part by 1e-2 when weights differ by 1e-7."""
    offset_px = OFFSETS_PX if gridsize > 1 else None
    case = pair(gridsize, probe_big, seed, 1e9, offset_px, learning_rate=1e-4)
    first = case.theirs.get_weights()
    batches = []
    for other in range(3):  # What the same experiment would see of other objects.
        case.theirs.set_weights(draw_weights(list_weight_shapes(case.theirs), seed + 77 + other))
        batches.append(case.theirs.predict(*case.inputs).intensity)
    case.theirs.set_weights(first)

    optimizer = torch.optim.Adam(case.ours.generator.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-7)
    ours, theirs = [], []
    for step in range(10):
        case.counts = batches[step % 3]
        theirs.append(case.theirs.train_on_batch(*case.inputs)["loss"])
        optimizer.zero_grad()
        likelihood = case.likelihood()
        likelihood.backward()
        optimizer.step()
        ours.append(likelihood.item())
    assert_agree(np.array(ours), np.array(theirs), "parity.training", "oracle_steps")
    # The same batch, nine steps apart.
    assert abs(theirs[9] - theirs[0]) > 3e-3 * abs(theirs[0])
    moved = np.abs(concatenate_arrays(case.theirs.get_weights()) - concatenate_arrays(first))
    assert moved.max() > 3e-4


@pytest.mark.contract("deviation.adam-epsilon")
def test_the_oracle_s_epsilon_is_thirty_times_the_product_s_at_the_first_step():
    case = pair(1, False, 3, nll_weight=1e-7, learning_rate=1e-3)
    before, gradient = (
        concatenate_arrays(case.theirs.get_weights()),
        concatenate_arrays(case.theirs.gradients(*case.inputs)),
    )
    assert np.median(np.abs(gradient)) < 1e-5
    case.theirs.train_on_batch(*case.inputs)
    moved = concatenate_arrays(case.theirs.get_weights()) - before

    def torch_step(epsilon: float) -> np.ndarray:
        weights = torch.from_numpy(before.copy()).requires_grad_()
        weights.grad = torch.from_numpy(gradient)
        torch.optim.Adam([weights], lr=1e-3, betas=(0.9, 0.999), eps=epsilon).step()
        return weights.detach().numpy() - before

    # Keras adds it to the root of the second moment before the correction for its start at zero, torch after.
    # Both are differences of weights of 0.1 in float32.
    np.testing.assert_allclose(moved, torch_step(1e-7 / math.sqrt(1 - 0.999)), atol=2e-7)
    ratio = np.linalg.norm(torch_step(1e-7)) / np.linalg.norm(moved)
    assert ratio > 1.5


@pytest.mark.contract("deviation.dark-batch")
def test_where_no_light_is_predicted_the_oracle_s_loss_is_not_finite_and_the_product_s_is():
    case = pair(1, False, 3, activation="relu")
    weights = case.theirs.get_weights()
    # Of the amplitude's head: nothing gets through its ReLU.
    names = case.theirs.weight_names
    weights[names.index("conv2d_6/kernel")][:] = 0
    weights[names.index("conv2d_6/bias")][:] = -1
    set_both(case.theirs, case.ours.generator, weights)
    assert not case.theirs.predict(*case.inputs).intensity.any()
    assert not math.isfinite(case.theirs.train_on_batch(*case.inputs)["loss"])

    for value in (case.ours._evaluate_loss(case.batch)["loss"], case.likelihood()):
        assert bool(value.isfinite())
        case.ours.generator.zero_grad()
        value.backward()
        assert all(np.isfinite(array).all() for array in gradients(case.ours.generator))


@pytest.mark.contract("deviation.scale-not-learned")
def test_the_intensity_scale_is_no_weight_of_the_oracle_and_the_beam_s_power_can_be_one_here():
    case = pair(1, True, 3)
    assert all("conv2d" in name for name in case.theirs.weight_names)
    before = case.theirs.predict(*case.inputs).amplitude
    weights = case.theirs.get_weights()
    case.theirs.train_on_batch(*case.inputs)
    case.theirs.set_weights(weights)
    np.testing.assert_array_equal(case.theirs.predict(*case.inputs).amplitude, before)

    trainable = module(1, True, 1e5, probe_trainable=True)
    trainable._evaluate_loss(case.batch)["loss"].backward()
    assert trainable.probe_parts.grad is not None
    assert bool((trainable.probe_parts.grad * trainable.probe_parts.detach()).sum() != 0)


@pytest.mark.contract("deviation.real-space-real-part")
def test_the_oracle_s_real_space_loss_is_blind_to_the_imaginary_part():
    case = pair(1, False, 4, realspace_weight=1.0, realspace_mae_weight=1.0, nll_weight=0.0)
    objects = draw_amplitudes((1, N, N, 1), 9)
    merged = case.theirs.predict(*case.inputs).trimmed_obj
    assert np.abs(merged.imag).max() > 0.01
    center = np.zeros((1, N, N, 1), np.float32)
    center[:, N // 4 : -N // 4, N // 4 : -N // 4] = 1
    expected = np.abs(objects - merged.real * center).mean()
    found = case.theirs.evaluate(*case.inputs, objects)["trimmed_obj_loss"]
    assert found == pytest.approx(expected, rel=1e-5)

    class Seen(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return abs(y_pred)

    # Why: Keras casts what a loss compares to float32.
    assert float(Seen()(np.zeros((1, 1)), np.array([[3 + 4j]], np.complex64))) == 3

    def ours(patches: np.ndarray) -> float:
        loss = torchptycho.models.lightning_module.Loss(LossConfig(nll_weight=0, realspace_mae_weight=1))
        comparison = torchptycho.models.lightning_module.LossInputs(
            expected=torch.ones(1, 1, N, N),
            counts=torch.ones(1, 1, N, N),
            mean_count=torch.ones(1),
            mask=torch.ones(1, 1, N, N, dtype=torch.bool),
            patches=torch.from_numpy(channels_first(patches)),
            truth=torch.from_numpy(channels_first(merged)),
            truth_weight=torch.ones(N, N),
        )
        return float(loss(comparison)["realspace_mae"])

    assert ours(merged) == 0
    assert ours(merged.real + 0j) == pytest.approx(np.abs(merged.imag).mean(), rel=1e-5)


@pytest.mark.contract("deviation.batch-of-one-object")
def test_from_64_patches_on_the_oracle_predicts_one_group_for_the_whole_batch_and_the_loss_does_not_mind():
    """The original's own batch of 16 groups of 2 x 2 is such a batch."""
    offset_px = torch.zeros(16, 4, 2, dtype=torch.float64)
    case = pair(2, False, 3, offset_px=offset_px)
    prediction = case.theirs.predict(*case.inputs)
    assert prediction.intensity.shape == (1, N, N, 4)
    assert math.isfinite(case.theirs.evaluate(*case.inputs)["loss"])
    fewer = Pair(case.ours, case.theirs, case.counts[:15], offset_px[:15])
    assert case.theirs.predict(*fewer.inputs).intensity.shape == (15, N, N, 4)
    with torch.no_grad():
        every, some = case.expected(), fewer.expected()
    assert_agree(every[:15], some, "deviation.batch-of-one-object", "oracle_operator")


class _Groups:
    """The least that `fit_container` takes."""

    def __init__(self, inputs: np.ndarray, positions: np.ndarray) -> None:
        self.inputs, self.positions = inputs, positions

    def __len__(self) -> int:
        return len(self.inputs)

    def as_tf_dataset(self, batch_size: int, shuffle: bool = True, intensity_scale: float | None = None) -> Any:
        objects = np.zeros((*self.inputs.shape[:3], 1), np.float32)
        parts = (self.inputs, self.positions), (objects, self.inputs, self.inputs**2)
        return tf.data.Dataset.from_tensor_slices(parts).batch(batch_size)


@pytest.mark.contract("parity.training")
def test_the_oracle_trains_on_arrays_and_on_batches_alike():
    case = pair(1, False, 3, offset_px=torch.zeros(3, 1, 2, dtype=torch.float64))
    weights = case.theirs.get_weights()
    histories = []
    for above in (2, 3):
        model = pair(1, False, 3).theirs
        model.set_weights(weights)
        histories.append(model.fit_container(_Groups(*case.inputs), epochs=2, batch_size=2, dataset_above=above))
    assert (
        histories[0].keys()
        == histories[1].keys()
        == {
            "loss",
            "trimmed_obj_loss",
            "intensity_scaler_inv_loss",
            "pred_intensity_loss",
        }
    )
    for name, losses in histories[0].items():
        assert len(losses) == 2
        np.testing.assert_allclose(losses, histories[1][name], rtol=1e-6)
    assert histories[0]["loss"][1] < histories[0]["loss"][0]
