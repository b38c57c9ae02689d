"""What the oracle loads, and makes of it for training, is what the original did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import MISSING, assert_agree, assert_same_indices

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.load")

_SCALE = 123.5
_COMPARED = ("X", "Y_I", "Y_phi", "coords_nominal", "coords_true", "global_offsets", "local_offsets", "norm_Y_I")


def _dataset(vectors: dict[str, np.ndarray], truth: bool = True) -> dict[str, Any]:
    """The dictionary that was loaded: its frames are recorded, the draws that chose them are not."""
    index = vectors["load__nn_indices"]
    coords = np.stack([vectors["load__x"][index], vectors["load__y"][index]], axis=1)[:, None]
    offsets, relative = oracle.get_relative_coords(coords)
    frames = np.moveaxis(vectors["load__diff3d"][index], 1, -1)
    n_px = frames.shape[1]
    return {
        "X_full": oracle.normalize_data(frames, n_px),
        "Y": oracle.get_image_patches(vectors["load__obj"], offsets, relative, n_px, 2) if truth else None,
        "coords_offsets": offsets,
        "coords_relative": relative,
        "nn_indices": index,
        "objectGuess": vectors["load__obj"],
    }


def _assert_recorded(container: Any, vectors: dict[str, np.ndarray], prefix: str, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(container, name)
        found = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
        expected = vectors[f"{prefix}__{name}"]
        assert found.dtype == expected.dtype, name
        assert_agree(found, expected, "golden.load", "golden")


@pytest.mark.parametrize("kind", ["EagerPtychoDataContainer", "PtychoDataContainer"])
def test_loaded_groups(golden, kind):
    vectors = golden("g02_normalise")
    container = oracle.load(_dataset(vectors), vectors["load__probe"], container=getattr(oracle, kind))
    _assert_recorded(container, vectors, "load", _COMPARED)
    assert_same_indices(container.nn_indices, vectors["load__nn_indices"], "golden.load")
    np.testing.assert_array_equal(container.probe.numpy(), vectors["load__probe"])


def test_loaded_groups_without_an_object_have_a_truth_of_one(golden):
    vectors = golden("g02_normalise")
    container = oracle.load(_dataset(vectors, truth=False), vectors["load__probe"])
    _assert_recorded(container, vectors, "load_noY", ("Y_I", "Y_phi"))


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_split_is_of_the_groups_in_their_order(golden, part):
    vectors = golden("g02_normalise")
    container = oracle.load(_dataset(vectors), vectors["load__probe"], which=part, create_split=True, train_frac=0.7)
    _assert_recorded(container, vectors, f"load_split0.7_{part}", ("X", "Y_I", "coords_nominal"))


@pytest.mark.parametrize("kind", ["EagerPtychoDataContainer", "PtychoDataContainer"])
def test_inputs_and_outputs_of_training(golden, kind):
    vectors = golden("g02_normalise")
    container = oracle.load(_dataset(vectors), vectors["load__probe"], container=getattr(oracle, kind))
    prepared = {
        "inputs": oracle.prepare_inputs(container, _SCALE),
        "outputs": oracle.prepare_outputs(container, _SCALE),
    }
    for name, values in prepared.items():
        recorded = [key for key in vectors if key.startswith(f"load__prepare_{name}_")]
        assert len(recorded) == len(values)
        for place, value in enumerate(values):
            expected = vectors[f"load__prepare_{name}_{place}"]
            assert_agree(value, expected, f"golden.prepare_{name}", "golden")
