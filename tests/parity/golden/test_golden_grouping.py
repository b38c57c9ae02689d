"""The oracle's groups are those of the original: the same random draws, the same dictionary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import MISSING, assert_agree, assert_same_indices

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.grouping")


# The object's patches take a second for a thousand groups; above this only those that are recorded are cut.
_MANY = 1000


def _cases(folder: Path, refused: bool) -> dict[str, dict[str, Any]]:
    cases = json.loads((folder / "g01_grouping.json").read_text(encoding="utf-8"))
    return {name: case for name, case in cases.items() if (case.get("type") == "ValueError") == refused}


def _grouped(vectors: dict[str, np.ndarray], case: dict[str, Any]) -> dict[str, np.ndarray]:
    options = {name: value for name, value in case.items() if name != "dtypes"}
    given = [vectors[name] for name in ("xcoords", "ycoords", "diff3d", "objectGuess")]
    grouped: dict[str, np.ndarray] = oracle.generate_grouped_data(
        *given[:3], N=given[2].shape[-1], objectGuess=given[3], **options
    )
    return grouped


def test_each_recorded_call_draws_the_same_groups(golden, golden_folder):
    vectors = golden("g01_grouping")
    for name, case in _cases(golden_folder, refused=False).items():
        options = {key: value for key, value in case.items() if key != "dtypes"}
        found = oracle.group_indices(vectors["xcoords"], vectors["ycoords"], **options)
        assert_same_indices(found, vectors[f"{name}__nn_indices"], "golden.grouping")


def test_each_recorded_call_gives_the_same_dictionary(golden, golden_folder):
    vectors = golden("g01_grouping")
    compared = set()
    for name, case in _cases(golden_folder, refused=False).items():
        many = case["nsamples"] > _MANY
        grouped = _grouped({**vectors, "objectGuess": None} if many else vectors, case)
        if many:
            offsets, relative = grouped["coords_offsets"], grouped["coords_relative"]
            first = oracle.get_image_patches(vectors["objectGuess"], offsets[:4], relative[:4], 16, case["gridsize"])
            grouped |= {"objectGuess": vectors["objectGuess"], "Y": np.resize(first, grouped["X_full"].shape)}
        described = {key: f"{value.dtype}{value.shape}" for key, value in grouped.items()}
        assert described == case["dtypes"], name
        for key, expected in vectors.items():
            if not key.startswith(f"{name}__"):
                continue
            compared.add(key)
            found = grouped[key.removeprefix(f"{name}__").removesuffix("_first4")][: len(expected)]
            if expected.dtype.kind == "i":
                assert_same_indices(found, expected, "golden.grouping")
            else:
                assert found.dtype == expected.dtype
                assert_agree(found, expected, f"golden.grouping.{key.split('__')[1]}", "golden")
    assert compared == {key for key in vectors if "__" in key}


def test_each_recorded_refusal_is_refused(golden, golden_folder):
    vectors = golden("g01_grouping")
    refused = _cases(golden_folder, refused=True)
    assert refused
    for case in refused.values():
        with pytest.raises(ValueError, match=r"nsamples|neighbours"):
            _grouped(vectors, case["args"])


def test_the_neighbours_are_the_recorded_ones_with_the_frame_itself_first(golden):
    vectors = golden("g01_grouping")
    recorded = [key for key in vectors if key.startswith("get_neighbor_indices_K")]
    assert recorded
    for key in recorded:
        found = oracle.get_neighbor_indices(vectors["xcoords"], vectors["ycoords"], int(key.rpartition("K")[2]))
        assert_same_indices(found, vectors[key], "golden.grouping")
        np.testing.assert_array_equal(found[:, 0], np.arange(len(found)))
