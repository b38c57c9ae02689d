"""What a model is trained on: the frames, coordinates and ground truth of groups, with two ways to hold them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorflow as tf

from tf_reference._arrays import stay_off_gpus
from tf_reference._channels import center_channels, combine_complex
from tf_reference._grouping import generate_grouped_data
from tf_reference._scaling import scale_nphotons

_DTYPES = {
    "X": np.float32,
    "Y_I": np.float32,
    "Y_phi": np.float32,
    "coords_nominal": np.float32,
    "coords_true": np.float32,
    "probe": np.complex64,
}


class _Groups:
    """B groups of C frames of N x N pixels, and one probe.

    `X`, `Y_I`, `Y_phi` and the complex `Y` of both are (B, N, N, C) tensors, `coords_nominal` (also `coords`) and
    `coords_true` (B, 1, 2, C), `probe` (N, N). The rest stays in NumPy: `norm_Y_I`, `YY_full`, `nn_indices`,
    `global_offsets`, `local_offsets`.
    """

    def __init__(
        self,
        X: np.ndarray,
        Y_I: np.ndarray,
        Y_phi: np.ndarray,
        norm_Y_I: np.ndarray | np.floating[Any] | float,
        YY_full: np.ndarray | None,
        coords_nominal: np.ndarray,
        coords_true: np.ndarray,
        nn_indices: np.ndarray,
        global_offsets: np.ndarray,
        local_offsets: np.ndarray,
        probeGuess: np.ndarray,
    ) -> None:
        """Keep float32 and complex64 arrays as they are, without a copy; others are converted.

        Arguments:
            X: amplitudes, as `normalize_data` scales them.
            Y_I, Y_phi: modulus and phase of the object's patches.
            norm_Y_I: factor from X to the root of photons.
            YY_full: object (H, W), or None.
            coords_nominal, coords_true: relative coordinates.
        """
        given = (X, Y_I, Y_phi, coords_nominal, coords_true, probeGuess)
        self._arrays: dict[str, np.ndarray] = {
            name: np.asarray(value, dtype) for (name, dtype), value in zip(_DTYPES.items(), given, strict=True)
        }
        self._length = len(X)
        self.norm_Y_I, self.YY_full, self.nn_indices = norm_Y_I, YY_full, nn_indices
        self.global_offsets, self.local_offsets = global_offsets, local_offsets

    @classmethod
    def from_raw_data_without_pc(
        cls,
        xcoords: np.ndarray,
        ycoords: np.ndarray,
        diff3d: np.ndarray,
        probeGuess: np.ndarray,
        N: int,
        gridsize: int,
        objectGuess: np.ndarray | None = None,
        nphotons: float = 1e9,
        **options: Any,
    ) -> Self:
        """Group frames and hold the groups. Arguments are those of `generate_grouped_data` and `load`."""
        data = generate_grouped_data(xcoords, ycoords, diff3d, N, gridsize, objectGuess, **options)
        return cls(**_contents(data, slice(None), nphotons), probeGuess=probeGuess)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        """Says what there is from shapes alone."""
        shapes = ", ".join(f"{name} {tuple(self._shapes()[name])}" for name in _DTYPES)
        return f"{type(self).__name__}({shapes})"

    def to_npz(self, path: str | Path) -> None:
        """Write all arrays, under the names of the constructor's arguments; `YY_full` only when there is one."""
        arrays = {name: self._numpy(name) for name in _DTYPES if name != "probe"}
        rest = {name: getattr(self, name) for name in ("norm_Y_I", "YY_full", "nn_indices")}
        offsets = {"global_offsets": self.global_offsets, "local_offsets": self.local_offsets}
        everything = {**arrays, "probeGuess": self._numpy("probe"), **rest, **offsets}
        given: dict[str, Any] = {name: np.asarray(value) for name, value in everything.items() if value is not None}
        np.savez(path, **given)

    def _shapes(self) -> dict[str, Any]:
        return {name: array.shape for name, array in self._arrays.items()}

    def _numpy(self, name: str) -> np.ndarray:
        return self._arrays[name]


class EagerPtychoDataContainer(_Groups):
    """Turns everything into tensors when it is built, and holds nothing else."""

    X: tf.Tensor
    Y_I: tf.Tensor
    Y_phi: tf.Tensor
    Y: tf.Tensor
    coords_nominal: tf.Tensor
    coords_true: tf.Tensor
    coords: tf.Tensor
    probe: tf.Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, array in self._arrays.items():
            setattr(self, name, _tensor(array))
        self.Y = combine_complex(self.Y_I, self.Y_phi)
        self.coords = self.coords_nominal
        self._arrays = {}

    def _shapes(self) -> dict[str, Any]:
        return {name: getattr(self, name).shape for name in _DTYPES}

    def _numpy(self, name: str) -> np.ndarray:
        return np.asarray(getattr(self, name).numpy())


class PtychoDataContainer(_Groups):
    """Holds NumPy arrays, and turns each into a tensor when it is first asked for; that tensor stays."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tensors: dict[str, tf.Tensor] = {}

    @property
    def X(self) -> tf.Tensor:
        return self._once("X")

    @property
    def Y_I(self) -> tf.Tensor:
        return self._once("Y_I")

    @property
    def Y_phi(self) -> tf.Tensor:
        return self._once("Y_phi")

    @property
    def Y(self) -> tf.Tensor:
        if "Y" not in self._tensors:
            self._tensors["Y"] = combine_complex(self.Y_I, self.Y_phi)
        return self._tensors["Y"]

    @property
    def coords(self) -> tf.Tensor:
        return self.coords_nominal

    @property
    def coords_nominal(self) -> tf.Tensor:
        return self._once("coords_nominal")

    @property
    def coords_true(self) -> tf.Tensor:
        return self._once("coords_true")

    @property
    def probe(self) -> tf.Tensor:
        return self._once("probe")

    @property
    def converted(self) -> frozenset[str]:
        """Names of the tensors that exist."""
        return frozenset(self._tensors)

    def as_tf_dataset(
        self, batch_size: int, shuffle: bool = True, intensity_scale: float | None = None, seed: int | None = None
    ) -> tf.data.Dataset:
        """Batches ((X s, coords), (centred Y_I, X s, (X s)^2)) for `fit`, converted one at a time.

        One pass; the last batch may be smaller. Each pass is shuffled anew.

        Arguments:
            intensity_scale: s; None for `norm_Y_I`.
            seed: of the order of the first pass; None for any.
        """
        stay_off_gpus()
        X, Y_I, coords = (self._arrays[name] for name in ("X", "Y_I", "coords_nominal"))
        s = np.float32(self.norm_Y_I if intensity_scale is None else intensity_scale)
        rng = np.random.default_rng(seed)

        def batches() -> Iterator[tuple[Any, Any]]:
            order = rng.permutation(len(X)) if shuffle else np.arange(len(X))
            for start in range(0, len(X), batch_size):
                rows = order[start : start + batch_size] if shuffle else slice(start, start + batch_size)
                yield _batch(X[rows], Y_I[rows], coords[rows], s)

        def spec(array: np.ndarray, channels: int) -> tf.TensorSpec:
            return tf.TensorSpec((None, *array.shape[1:3], channels), tf.float32)

        every = X.shape[3]
        inputs = (spec(X, every), spec(coords, every))
        return tf.data.Dataset.from_generator(
            batches, output_signature=(inputs, (spec(Y_I, 1), spec(X, every), spec(X, every)))
        )

    def _once(self, name: str) -> tf.Tensor:
        if name not in self._tensors:
            self._tensors[name] = _tensor(self._arrays[name])
        return self._tensors[name]


def load(
    dataset: dict[str, np.ndarray | None],
    probeGuess: np.ndarray,
    which: str = "train",
    create_split: bool = False,
    train_frac: float = 0.5,
    nphotons: float = 1e9,
    container: type[EagerPtychoDataContainer] | type[PtychoDataContainer] = PtychoDataContainer,
) -> EagerPtychoDataContainer | PtychoDataContainer:
    """Groups of `generate_grouped_data` in a container.

    All coordinates are the relative ones. X is normalised over all groups, whether these are for training or not.
    Without an object the ground truth is 1.

    Arguments:
        which: "train" for the first part, "test" for the rest, where there is a split.
        create_split: whether the groups are for both.
        train_frac: part of the groups that is for training.
    """
    edge = int(len(_required(dataset, "X_full")) * train_frac)
    rows = slice(None) if not create_split else slice(0, edge) if which == "train" else slice(edge, None)
    return container(**_contents(dataset, rows, nphotons), probeGuess=probeGuess)


def prepare_inputs(
    container: EagerPtychoDataContainer | PtychoDataContainer, intensity_scale: float
) -> list[tf.Tensor]:
    """What goes into the model: [s X, coords]."""
    return [container.X * intensity_scale, container.coords]


def prepare_outputs(
    container: EagerPtychoDataContainer | PtychoDataContainer, intensity_scale: float
) -> list[tf.Tensor]:
    """What should come out: [first channel of Y_I, centred (B, N, N, 1); s X; (s X)^2]."""
    scaled = container.X * intensity_scale
    return [_first_centred(container.Y_I, container.coords), scaled, scaled**2]


def _contents(dataset: dict[str, np.ndarray | None], rows: slice, nphotons: float) -> dict[str, Any]:
    """All but the probe of some of the groups, as the constructor takes it."""
    X, patches = _required(dataset, "X_full")[rows], dataset["Y"]
    coords = _required(dataset, "coords_relative")[rows].astype(np.float32)
    return {
        "X": X,
        "Y_I": np.ones_like(X) if patches is None else np.abs(patches[rows]),
        "Y_phi": np.zeros_like(X) if patches is None else np.angle(patches[rows]),
        "norm_Y_I": scale_nphotons(X, nphotons),
        "YY_full": dataset["objectGuess"],
        "coords_nominal": coords,
        "coords_true": coords,
        "nn_indices": _required(dataset, "nn_indices")[rows],
        "global_offsets": _required(dataset, "coords_offsets")[rows],
        "local_offsets": _required(dataset, "coords_relative")[rows],
    }


def _batch(X: np.ndarray, Y_I: np.ndarray, coords: np.ndarray, s: np.float32) -> tuple[Any, Any]:
    scaled = X * s
    return (scaled, coords), (_first_centred(_tensor(Y_I), _tensor(coords)), scaled, scaled**2)


def _first_centred(Y_I: tf.Tensor, coords: tf.Tensor) -> tf.Tensor:
    return center_channels(Y_I[..., :1], coords[..., :1])


def _tensor(array: np.ndarray) -> tf.Tensor:
    stay_off_gpus()
    return tf.constant(array)


def _required(dataset: dict[str, np.ndarray | None], name: str) -> np.ndarray:
    value = dataset[name]
    if value is None:
        raise ValueError(f"dataset: expected {name!r}; found None")
    return value
