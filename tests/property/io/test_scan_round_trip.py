"""A scan that is written and read again is the same scan."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.io import read_scan, write_scan


@st.composite
def scans(draw: st.DrawFn) -> Scan:
    """Valid scans: any dtype, masks, modes, negative and sub-pixel positions, optional arrays or none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    m, n, p = draw(st.integers(2, 9)), 2 * draw(st.integers(1, 5)), draw(st.integers(1, 3))
    dtype = np.dtype(draw(st.sampled_from(["u1", "u2", "u4", "i4", "f4"])))

    def wave(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)

    if dtype.kind == "f":
        frames = rng.random((m, n, n), np.float32) * 100
    else:
        frames = rng.integers(0, np.iinfo(dtype).max, (m, n, n), dtype, endpoint=True)
    frames[0, 0, 0], frames[1, 0, 0] = 1, 2
    mask = np.ones((n, n), bool)
    if draw(st.booleans()):
        mask = rng.random((n, n)) > 0.3
        mask[0, 0] = True
        if dtype.kind != "u":
            # What the mask covers may be anything, and is not changed.
            frames[:, ~mask] = -1
    lengths = st.none() | st.floats(1e-12, 1e5)
    return Scan(
        frames=ArrayFrames(frames),
        domain=draw(st.sampled_from(["counts", "amplitude"])),
        positions_px=rng.uniform(-1e3, 1e3, (m, 2)),
        probe=wave(p, n, n),
        mask=mask,
        scan_id=rng.integers(0, 3, m),
        geometry=Geometry(
            energy_eV=draw(lengths),
            distance_m=draw(lengths),
            detector_pixel_m=draw(lengths),
            object_pixel_m=draw(lengths),
        ),
        truth=wave(5, 7) if draw(st.booleans()) else None,
        truth_patches=wave(m, n, n) if draw(st.booleans()) else None,
        nominal_positions_px=rng.uniform(-10, 10, (m, 2)) if draw(st.booleans()) else None,
        metadata=draw(st.dictionaries(st.sampled_from(["nphotons", "seed"]), st.integers(1, 10**9))) | {"µ": "Å"},
        probe_is_calibrated=draw(st.booleans()),
    )


@pytest.mark.contract("files.write.round-trip")
@given(scan=scans(), compressed=st.booleans())
def test_written_scan_is_read_back_unchanged(scan: Scan, compressed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.npz"
        write_scan(scan, path, compressed=compressed)
        assert [entry.name for entry in Path(folder).iterdir()] == ["scan.npz"]
        again = read_scan(path)
        np.testing.assert_array_equal(np.concatenate(list(again.frames.chunks(2))), scan.frames[:])
        assert again.frames.dtype == scan.frames.dtype
        for name in ("positions_px", "probe", "mask", "scan_id", "truth", "truth_patches", "nominal_positions_px"):
            before, after = getattr(scan, name), getattr(again, name)
            assert (before is None) == (after is None), name
            if before is not None:
                np.testing.assert_array_equal(after, before, err_msg=name)
                assert after.dtype == before.dtype, name
        for name in ("domain", "geometry", "metadata", "probe_is_calibrated"):
            assert getattr(again, name) == getattr(scan, name), name
        assert again.source == str(path)
