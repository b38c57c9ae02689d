"""The oracle's two containers: one content, and what becomes a tensor when. The memory benchmark relies on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import MISSING, assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

oracle = pytest.importorskip("tf_reference", reason=MISSING)

# Nothing here is an operator of the product, and TensorFlow takes a fifth of a second for each set of batches.
few = settings(max_examples=min(50, settings().max_examples))

TENSORS = ("X", "Y", "Y_I", "Y_phi", "coords", "coords_nominal", "coords_true", "probe")
ARRAYS = ("norm_Y_I", "YY_full", "nn_indices", "global_offsets", "local_offsets")


def raw(seed: int, gridsize: int, m: int = 12, n_px: int = 8) -> dict[str, Any]:
    """Arguments of `from_raw_data_without_pc`."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(8, 24, (2, m))
    return {
        "xcoords": x,
        "ycoords": y,
        "diff3d": rng.uniform(0, 9, (m, n_px, n_px)).astype(np.float32),
        "probeGuess": (rng.normal(size=(n_px, n_px)) + 1j).astype(np.complex64),
        "N": n_px,
        "gridsize": gridsize,
        "objectGuess": (rng.normal(size=(32, 32)) + 1j * rng.normal(size=(32, 32))).astype(np.complex64),
        "K": 9,
        "nsamples": m,
        "seed": seed,
    }


def both(seed: int, gridsize: int) -> tuple[Any, Any]:
    given_data = raw(seed, gridsize)
    kinds = (oracle.EagerPtychoDataContainer, oracle.PtychoDataContainer)
    eager, lazy = (kind.from_raw_data_without_pc(**given_data) for kind in kinds)
    return eager, lazy


@pytest.mark.contract("golden.container.same")
@few
@given(seeds, st.integers(1, 3))
def test_both_containers_hold_the_same(seed: int, gridsize: int) -> None:
    eager, lazy = both(seed, gridsize)
    assert len(eager) == len(lazy) == 12
    for name in TENSORS:
        one, other = getattr(eager, name), getattr(lazy, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(eager, name), getattr(lazy, name))
    np.testing.assert_allclose(lazy.Y.numpy(), lazy.Y_I.numpy() * np.exp(1j * lazy.Y_phi.numpy()), rtol=1e-5)


@pytest.mark.contract("golden.container.same")
def test_raw_data_become_what_grouping_and_loading_make_of_them() -> None:
    given_data = raw(3, 2)
    probe = given_data.pop("probeGuess")
    expected = oracle.load(oracle.generate_grouped_data(**given_data), probe, nphotons=1e5)
    found = oracle.PtychoDataContainer.from_raw_data_without_pc(**given_data, probeGuess=probe, nphotons=1e5)
    for name in TENSORS:
        np.testing.assert_array_equal(getattr(found, name).numpy(), getattr(expected, name).numpy())
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.contract("golden.container.lazy")
@pytest.mark.parametrize(
    ("name", "converted"),
    [(name, {name}) for name in TENSORS if name not in ("Y", "coords")]
    + [("Y", {"Y", "Y_I", "Y_phi"}), ("coords", {"coords_nominal"})],
)
def test_a_tensor_is_made_when_it_is_asked_for_and_once(name: str, converted: set[str]) -> None:
    _, lazy = both(0, 2)
    assert lazy.converted == frozenset()
    first = getattr(lazy, name)
    assert lazy.converted == converted
    assert getattr(lazy, name) is first


@pytest.mark.contract("golden.container.lazy")
def test_looking_writing_and_batches_convert_nothing(tmp_path: Path) -> None:
    eager, lazy = both(1, 2)
    assert repr(lazy) == repr(eager).removeprefix("Eager")
    assert "X (12, 8, 8, 4)" in repr(lazy)
    for _ in lazy.as_tf_dataset(batch_size=5, shuffle=True):
        pass
    contents = {}
    for name, container in (("eager", eager), ("lazy", lazy)):
        container.to_npz(tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as file:
            contents[name] = dict(file)
        for array in ARRAYS:
            assert isinstance(getattr(container, array), (np.ndarray, np.floating))
    assert lazy.converted == frozenset()
    assert (
        contents["eager"].keys()
        == contents["lazy"].keys()
        == {
            "X",
            "Y_I",
            "Y_phi",
            "coords_nominal",
            "coords_true",
            "probeGuess",
            *ARRAYS,
        }
    )
    for name, array in contents["lazy"].items():
        np.testing.assert_array_equal(array, contents["eager"][name])
    again = oracle.PtychoDataContainer(**contents["lazy"])
    for name in TENSORS:
        np.testing.assert_array_equal(getattr(again, name).numpy(), getattr(lazy, name).numpy())


@pytest.mark.contract("golden.container.lazy")
def test_the_eager_container_keeps_no_second_copy() -> None:
    eager, _ = both(2, 2)
    kept = [name for name, value in vars(eager).items() if isinstance(value, np.ndarray)]
    assert set(kept) <= set(ARRAYS)
    assert eager._arrays == {}


@pytest.mark.contract("golden.container.batches")
@few
@given(seeds, st.integers(1, 2), st.integers(1, 15), st.booleans(), st.floats(0.1, 1e3))
def test_batches_are_what_is_prepared_from_the_whole(
    seed: int, gridsize: int, batch_size: int, shuffle: bool, scale: float
) -> None:
    _, lazy = both(seed, gridsize)
    batches = list(lazy.as_tf_dataset(batch_size, shuffle, intensity_scale=scale, seed=seed))
    sizes = [len(inputs[0]) for inputs, _ in batches]
    assert sizes == [min(batch_size, 12 - start) for start in range(0, 12, batch_size)]
    assert lazy.converted == frozenset()
    order = np.random.default_rng(seed).permutation(12) if shuffle else np.arange(12)
    prepared = (oracle.prepare_inputs(lazy, scale), oracle.prepare_outputs(lazy, scale))
    for side, expected in enumerate(prepared):
        for place, whole in enumerate(expected):
            found = np.concatenate([batch[side][place].numpy() for batch in batches])
            assert found.dtype == whole.dtype
            assert_agree(found, whole[order], "golden.container.batches", "oracle_physics")


@pytest.mark.contract("golden.container.batches")
def test_each_pass_is_in_another_order_and_scaled_by_the_container() -> None:
    _, lazy = both(4, 1)
    batches = lazy.as_tf_dataset(12, shuffle=True, seed=0)
    first, second = (next(iter(batches))[0][0].numpy() for _ in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.sort(first.sum(axis=(1, 2, 3))), np.sort(second.sum(axis=(1, 2, 3))))
    in_order = next(iter(lazy.as_tf_dataset(12, shuffle=False)))[0][0].numpy()
    assert_agree(in_order, (lazy.X * lazy.norm_Y_I).numpy(), "golden.container.batches", "oracle_physics")
