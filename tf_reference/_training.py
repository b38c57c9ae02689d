"""The training model: diffraction in, through object patches that agree within a group, to predicted intensity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from tf_reference._channels import flat_to_channel
from tf_reference._coordinates import get_padded_size
from tf_reference._extraction import extract_patches_position
from tf_reference._losses import mean_absolute_error, negloglik, realspace_loss
from tf_reference._merging import reassemble_patches
from tf_reference._network import Network, Weights, create_network
from tf_reference._optics import pad_and_diffract, probe_illumination
from tf_reference._padding import pad_reconstruction, trim_reconstruction

ONE_CANVAS_FROM = 64
"""Patches in a batch from which on the original's model sums all groups into one canvas."""

Forward = Callable[[Any, Any], dict[str, tf.Tensor]]
Batch = tuple[tuple[Any, Any], tuple[Any, Any, Any]]
"""((inputs, positions), (objects, amplitudes, intensities)), as `as_tf_dataset` gives them."""


class Prediction(NamedTuple):
    """What the model gives for a batch.

    Arguments:
        trimmed_obj: (B, N, N, 1) complex, the merged object of each group.
        amplitude: (B, N, N, C) predicted diffraction amplitude, in the scale of the inputs.
        intensity: its square.
    """

    trimmed_obj: np.ndarray
    amplitude: np.ndarray
    intensity: np.ndarray


class LossWeights(NamedTuple):
    """Weights of the losses, and of the two terms inside the real-space loss."""

    realspace: float
    mae: float
    nll: float
    tv: float
    realspace_mae: float


class Container(Protocol):
    """What `CompiledModel.fit_container` needs to know of a data container."""

    def __len__(self) -> int: ...

    def as_tf_dataset(
        self, batch_size: int, shuffle: bool = True, intensity_scale: float | None = None
    ) -> tf.data.Dataset: ...


class CompiledModel(Weights):
    """The training model with its losses and optimiser; built by `create_compiled_model`.

    Everywhere:
        inputs: (B, N, N, C) normalised amplitudes times intensity_scale.
        positions: (B, 1, 2, C) coords_relative.
        objects: (B, N, N, 1) what trimmed_obj is held against; None for zeros, where its weights are 0.

    Targets of amplitude and intensity are the inputs and their squares.
    """

    def __init__(
        self,
        network: Network,
        forward: Forward,
        intensity_scale: float,
        loss_weights: LossWeights,
        probe_big: bool,
        learning_rate: float,
    ) -> None:
        super().__init__(network.model)
        self.forward, self.intensity_scale = forward, intensity_scale
        self.loss_weights, self.probe_big = loss_weights, probe_big
        self.optimizer = keras.optimizers.Adam(learning_rate)

    def intermediate(self, inputs: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of all layers that have a name in the original, in one batch."""
        return {name: output.numpy() for name, output in self.forward(inputs, positions).items()}

    def predict(self, inputs: np.ndarray, positions: np.ndarray, batch_size: int = 32) -> Prediction:
        """Predict in batches; what a group gets depends on the others in its batch, see `reassemble_patches`."""
        found = [
            self.intermediate(inputs[start : start + batch_size], positions[start : start + batch_size])
            for start in range(0, len(inputs), batch_size)
        ]
        names = ("trimmed_obj", "intensity_scaler_inv", "pred_intensity")
        return Prediction(*(np.concatenate([outputs[name] for outputs in found]) for name in names))

    def evaluate(
        self, inputs: np.ndarray, positions: np.ndarray, objects: np.ndarray | None = None, batch_size: int = 32
    ) -> dict[str, float]:
        """The losses by the names of their outputs, and their weighted sum as "loss"."""
        batches = _batches(inputs, positions, objects, batch_size, np.arange(len(inputs)))
        return _average((len(batch[0][0]), self._losses(batch)) for batch in batches)

    def gradients(
        self, inputs: np.ndarray, positions: np.ndarray, objects: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Of the weighted sum of the losses, with respect to each weight."""
        return [gradient.numpy() for gradient in self._differentiate(_batch(inputs, positions, objects))[1]]

    def train_on_batch(
        self, inputs: np.ndarray, positions: np.ndarray, objects: np.ndarray | None = None
    ) -> dict[str, float]:
        """One step of Adam. Returns the losses before it."""
        return _average([(1, self._step(_batch(inputs, positions, objects)))])

    def fit(
        self,
        inputs: np.ndarray,
        positions: np.ndarray,
        objects: np.ndarray | None = None,
        *,
        epochs: int = 1,
        batch_size: int = 16,
        shuffle: bool = False,
        seed: int | None = None,
    ) -> dict[str, list[float]]:
        """Train on arrays. Returns the losses of each epoch, averaged over its groups as they were trained on.

        Arguments:
            seed: of the order of the groups where they are shuffled; None for any.
        """
        rng = np.random.default_rng(seed)

        def epoch() -> Iterator[Batch]:
            order = rng.permutation(len(inputs)) if shuffle else np.arange(len(inputs))
            return _batches(inputs, positions, objects, batch_size, order)

        return self._fit(epoch, epochs)

    def fit_container(
        self,
        container: Container,
        *,
        epochs: int = 1,
        batch_size: int = 16,
        shuffle: bool = False,
        dataset_above: int = 10_000,
    ) -> dict[str, list[float]]:
        """Train on a container: on its batches where it has more than `dataset_above` groups, else on arrays."""
        if len(container) > dataset_above:
            dataset = container.as_tf_dataset(batch_size, shuffle, self.intensity_scale)
            return self._fit(lambda: iter(dataset), epochs)
        whole = container.as_tf_dataset(len(container), False, self.intensity_scale)
        (inputs, positions), (objects, *_) = next(iter(whole.as_numpy_iterator()))
        return self.fit(inputs, positions, objects, epochs=epochs, batch_size=batch_size, shuffle=shuffle)

    def _fit(self, epoch: Callable[[], Iterator[Batch]], epochs: int) -> dict[str, list[float]]:
        history = [_average((len(batch[0][0]), self._step(batch)) for batch in epoch()) for _ in range(epochs)]
        return {name: [losses[name] for losses in history] for name in history[0]}

    def _step(self, batch: Batch) -> dict[str, tf.Tensor]:
        losses, gradients = self._differentiate(batch)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_weights, strict=True))
        return losses

    def _differentiate(self, batch: Batch) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            losses = self._losses(batch)
        return losses, self.gradients_of(losses["loss"], tape)

    def _losses(self, batch: Batch) -> dict[str, tf.Tensor]:
        (inputs, positions), (objects, amplitudes, intensities) = batch
        outputs, weights = self.forward(inputs, positions), self.loss_weights
        # Keras casts what a loss is given to float32: of a complex object only the real part arrives.
        object_loss = realspace_loss(
            tf.math.real(objects),
            tf.math.real(outputs["trimmed_obj"]),
            tv_weight=weights.tv,
            realspace_mae_weight=weights.realspace_mae,
            probe_big=self.probe_big,
        )
        realspace = tf.reduce_mean(object_loss)
        mae = mean_absolute_error(amplitudes, outputs["intensity_scaler_inv"])
        nll = tf.reduce_mean(negloglik(intensities, outputs["pred_intensity"]))
        return {
            "loss": weights.realspace * realspace + weights.mae * mae + weights.nll * nll,
            "trimmed_obj_loss": realspace,
            "intensity_scaler_inv_loss": mae,
            "pred_intensity_loss": nll,
        }


def create_compiled_model(
    gridsize: int,
    N: int,
    *,
    probe: np.ndarray,
    intensity_scale: float,
    n_filters_scale: int = 2,
    amp_activation: str = "sigmoid",
    probe_big: bool = True,
    object_big: bool = True,
    pad_object: bool = True,
    offset: int = 4,
    max_position_jitter: int = 10,
    probe_mask: bool = False,
    gaussian_smoothing_sigma: float = 0.0,
    nll_weight: float = 1.0,
    mae_weight: float = 0.0,
    realspace_weight: float = 0.0,
    realspace_mae_weight: float = 0.0,
    tv_weight: float = 0.0,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> CompiledModel:
    """The original's training model.

    Arguments:
        gridsize: groups hold C = gridsize^2 frames.
        N: frame edge: 64, 128 or 256.
        probe: (N, N) or (N, N, 1) complex, as `set_probe` scales it.
        intensity_scale: what the inputs were multiplied with. The network sees them divided by it, and the predicted
            amplitudes are multiplied by it. It is no weight of the model.
        n_filters_scale, amp_activation, probe_big, object_big, pad_object, seed: see `create_network`.
        offset, max_position_jitter: size the canvas that a group is merged on.
        probe_mask, gaussian_smoothing_sigma: see `probe_illumination`.
        realspace_weight: multiplies both real-space terms, which have weights of their own.
        learning_rate: of Adam with Keras' other values (beta 0.9 and 0.999, epsilon 1e-7).
    """
    network = create_network(
        gridsize,
        N,
        n_filters_scale=n_filters_scale,
        amp_activation=amp_activation,
        probe_big=probe_big,
        object_big=object_big,
        pad_object=pad_object,
        seed=seed,
    )
    padded_size = get_padded_size(N, gridsize, offset, max_position_jitter)
    log_scale = tf.math.log(tf.constant(intensity_scale, tf.float32))
    beam = tf.constant(probe.reshape(N, N, 1), tf.complex64)

    def forward(inputs: Any, positions: Any) -> dict[str, tf.Tensor]:
        outputs: dict[str, tf.Tensor] = network.model(tf.convert_to_tensor(inputs) / tf.exp(log_scale))
        positions = tf.convert_to_tensor(positions)
        if object_big:
            merged = reassemble_patches(outputs["obj"], positions, padded_size, ONE_CANVAS_FROM)
        else:
            merged = pad_reconstruction(outputs["obj"], padded_size)
        patches = extract_patches_position(merged, positions, N, gridsize)
        exit_waves, _ = probe_illumination(patches, beam, probe_mask, gaussian_smoothing_sigma)
        _, flat = pad_and_diffract(exit_waves, N, N, pad=False)
        amplitude = flat_to_channel(flat, gridsize) * tf.exp(log_scale)
        return outputs | {
            "padded_obj_2": merged,
            "trimmed_obj": trim_reconstruction(merged, N),
            "padded_objs_with_offsets": patches,
            "intensity_scaler_inv": amplitude,
            "pred_intensity": amplitude**2,
        }

    weights = LossWeights(realspace_weight, mae_weight, nll_weight, tv_weight, realspace_mae_weight)
    return CompiledModel(network, forward, intensity_scale, weights, probe_big, learning_rate)


def _batches(
    inputs: np.ndarray, positions: np.ndarray, objects: np.ndarray | None, batch_size: int, order: np.ndarray
) -> Iterator[Batch]:
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield _batch(inputs[rows], positions[rows], None if objects is None else objects[rows])


def _batch(inputs: np.ndarray, positions: np.ndarray, objects: np.ndarray | None) -> Batch:
    if objects is None:
        objects = np.zeros((*inputs.shape[:3], 1), inputs.dtype)
    return (inputs, positions), (objects, inputs, inputs**2)


def _average(batches: Iterable[tuple[int, dict[str, tf.Tensor]]]) -> dict[str, float]:
    """Losses of batches of different numbers of groups, averaged over the groups."""
    counted = [(count, {name: float(loss) for name, loss in losses.items()}) for count, losses in batches]
    total = sum(count for count, _ in counted)
    return {name: sum(count * losses[name] for count, losses in counted) / total for name in counted[0][1]}
