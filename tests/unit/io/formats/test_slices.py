"""Slices of a thick object in files of scans: NPZ and Ptychodus products."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from torchptycho.core.config import SimulateConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan
from torchptycho.io.formats.npz_writer import write_npz
from torchptycho.io.formats.ptychodus_writer import write_product


@pytest.fixture(scope="module")
def thick() -> Scan:
    return simulate(SimulateConfig(n_px=32, object_px=80, n_frames=8, n_slices=2, slice_spacing_m=3e-6))


@pytest.mark.contract("files.slices.scan")
@pytest.mark.parametrize("name", ["scan.npz", "product.h5", "product.npz"])
def test_slices_of_a_scan_are_read_back(thick: Scan, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "scan.npz":
        write_npz(thick, path)
    else:
        write_product(thick, path, as_npz=name.endswith("npz"))
    found = read_scan(path)
    assert found.truth_slices is not None
    assert thick.truth_slices is not None
    np.testing.assert_array_equal(found.truth_slices, thick.truth_slices)
    np.testing.assert_array_equal(found.truth, thick.truth)
    assert found.metadata["slice_spacing_m"] == pytest.approx(3e-6)


@pytest.mark.contract("files.slices.scan")
def test_product_needs_the_distance_of_slices(thick: Scan, tmp_path: Path) -> None:
    metadata = {key: value for key, value in thick.metadata.items() if key != "slice_spacing_m"}
    with pytest.raises(ScanError, match="slice_spacing_m"):
        write_product(dataclasses.replace(thick, metadata=metadata), tmp_path / "product.h5", as_npz=False)
