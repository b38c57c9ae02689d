"""Products of Ptychodus that are written here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from torchptycho.core.config import SimulateConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import read_scan, write_scan
from torchptycho.io.write import choose_format

N = 32
PLAIN = simulate(SimulateConfig(n_px=N, object_px=80, n_frames=20, photons_per_frame=1e4, probe_modes=2))
BAD = np.zeros((N, N), bool)
BAD[3, 5] = True
SCAN = dataclasses.replace(
    PLAIN,
    mask=~BAD,
    metadata={"name": "sample 7", "exposure_time_s": 0.5, "loss_values": [2.0, 1.0]},
    geometry=Geometry(energy_eV=8000.0, distance_m=1.5, detector_pixel_m=5e-5).with_object_pixel(N),
)


@pytest.mark.contract("files.product.write")
@pytest.mark.parametrize("name", ["p.h5", "p.npz"])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_product_reads_back_equal(tmp_path: Path, name: str, compressed: bool) -> None:
    kind = "ptychodus-npz" if name.endswith("npz") else None
    write_scan(SCAN, tmp_path / name, format=kind, compressed=compressed)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p-diffraction.h5", name]
    again = read_scan(tmp_path / name)
    np.testing.assert_array_equal(again.frames[:], SCAN.frames[:])
    np.testing.assert_allclose(again.positions_px, SCAN.positions_px, atol=1e-9)
    np.testing.assert_array_equal(again.probe, SCAN.probe)
    np.testing.assert_array_equal(again.mask, SCAN.mask)
    assert again.truth is not None
    np.testing.assert_array_equal(again.truth, SCAN.truth)
    assert again.geometry == SCAN.geometry
    assert again.metadata["exposure_time_s"] == 0.5
    assert again.metadata["loss_values"] == [2.0, 1.0]


@pytest.mark.contract("files.product.batch")
@pytest.mark.parametrize("name", ["product.h5", "product.npz"])
def test_product_has_its_frames_where_the_batch_mode_of_ptychodus_looks(tmp_path: Path, name: str) -> None:
    # A file of another product, or of an older one, is not taken for them.
    (tmp_path / "product-diffraction.h5").write_text("old")
    kind = "ptychodus-npz" if name.endswith("npz") else None
    write_scan(SCAN, tmp_path / name, format=kind)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["diffraction.h5", "product-diffraction.h5", name]
    np.testing.assert_array_equal(read_scan(tmp_path / name).frames[:], SCAN.frames[:])


@pytest.mark.contract("files.product.write")
def test_a_product_without_an_object_has_a_transparent_one_that_holds_the_field(tmp_path: Path) -> None:
    write_scan(dataclasses.replace(SCAN, truth=None), tmp_path / "p.h5")
    again = read_scan(tmp_path / "p.h5")
    assert again.truth is not None
    corners = again.positions_px - N // 2
    assert corners.min() >= 0
    assert (corners.max(axis=0) + N <= again.truth.shape).all()
    np.testing.assert_allclose(np.diff(again.positions_px, axis=0), np.diff(SCAN.positions_px, axis=0), atol=1e-9)


@pytest.mark.contract("files.product.write")
def test_amplitudes_are_written_as_counts(tmp_path: Path) -> None:
    amplitude = ArrayFrames(np.sqrt(SCAN.frames[:]).astype(np.float32))
    write_scan(dataclasses.replace(SCAN, frames=amplitude, domain="amplitude"), tmp_path / "p.h5")
    np.testing.assert_allclose(read_scan(tmp_path / "p.h5").frames[:], SCAN.frames[:], rtol=1e-5)


def nothing_left(tmp_path: Path, scan: Scan) -> str:
    with pytest.raises(ScanError) as caught:
        write_scan(scan, tmp_path / "p.h5")
    assert not list(tmp_path.iterdir())
    return str(caught.value)


@pytest.mark.contract("files.product.atomic")
def test_a_product_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    geometry = Geometry(object_pixel_m=1e-8)
    assert "--energy-eV --distance-m --detector-pixel-m" in nothing_left(
        tmp_path, dataclasses.replace(SCAN, geometry=geometry)
    )
    frames = SCAN.frames[:].astype(np.float32)
    frames[7, 1, 1] = np.nan
    assert "1 frame: 7" in nothing_left(tmp_path, dataclasses.replace(SCAN, frames=ArrayFrames(frames)))


@pytest.mark.contract("files.write.format")
def test_the_name_says_the_format(tmp_path: Path) -> None:
    assert choose_format(Path("a.npz")) == "npz"
    assert choose_format(Path("a.HDF5")) == "ptychodus-h5"
    assert choose_format(Path("a.npz"), "ptychodus-npz") == "ptychodus-npz"
    for path, asked in (("a.cxi", None), ("a.npz", "ptychodus-h5"), ("a.h5", "npz")):
        with pytest.raises(ConfigError, match="expected a name that ends in"):
            choose_format(Path(path), asked)  # type: ignore[arg-type]
    write_scan(SCAN, tmp_path / "p.h5")
    with h5py.File(tmp_path / "p.h5") as file:
        assert file.attrs["name"] == "sample 7"
        assert file["object"].shape == (1, 80, 80)
        assert file["probe"].shape == (1, 2, N, N)
