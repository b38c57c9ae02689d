"""The oracle's scales are those of the original."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import MISSING, assert_agree

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.scaling")


@pytest.mark.parametrize("dtype", ["f32", "u16"])
def test_normalised_frames(golden, dtype):
    vectors = golden("g02_normalise")
    given = vectors[f"diffraction_{dtype}"]
    recorded = [key for key in vectors if key.endswith(f"normalize_data_{dtype}")]
    assert recorded
    for key in recorded:
        found = oracle.normalize_data(given, given.shape[1])
        assert found.dtype == vectors[key].dtype
        assert_agree(found, vectors[key], "golden.normalize_data", "golden")


def test_scale_and_number_of_photons(golden):
    vectors = golden("g02_normalise")
    frames = vectors["diffraction_f32"]
    found = {
        "diffsim.scale_nphotons_{}": lambda photons: oracle.scale_nphotons(frames, photons),
        "train_pinn.calculate_intensity_scale_{}_N16": lambda photons: oracle.calculate_intensity_scale(photons, 16),
    }
    for name, scale in found.items():
        for photons in ("100000", "1e+09"):
            expected = vectors[name.format(photons)]
            assert_agree(np.array(scale(float(photons))), expected, f"golden.{name.split('.')[1][:14]}", "golden")
    counted = oracle.count_photons(frames)
    assert counted.dtype == vectors["diffsim.count_photons"].dtype
    assert_agree(counted, vectors["diffsim.count_photons"], "golden.count_photons", "golden")
