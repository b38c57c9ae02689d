"""Good scan files, in all the forms that the contract allows."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.reconstruction import MIN_COVERAGE, Reconstruction
from torchptycho.io import (
    iter_checked_chunks,
    read_probe,
    read_reconstruction,
    read_scan,
    write_reconstruction,
    write_scan,
)
from torchptycho.reconstructors.canvas import Canvas

M, N = 6, 8


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    """A small valid scan; `key=None` leaves a key out."""
    rng = np.random.default_rng(0)
    base: dict[str, Any] = {
        "diffraction": rng.integers(0, 500, (M, N, N)).astype(np.uint16),
        "xcoords": np.arange(M) * 2.25 - 3,
        "ycoords": np.arange(M) * 1.5 + 40,
        "probeGuess": (rng.normal(size=(N, N)) + 1j * rng.normal(size=(N, N))).astype(np.complex64),
    } | changes
    return {key: value for key, value in base.items() if value is not None}


def saved(path: Path, *, compressed: bool = True, **changes: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays(**changes))
    return path


def json_array(**values: Any) -> np.ndarray:
    return np.array(json.dumps(values))


def all_frames(scan: Any, k: int = 4) -> np.ndarray:
    return np.concatenate(list(scan.frames.chunks(k)))


@pytest.mark.contract("files.read.canonical")
@pytest.mark.parametrize("compressed", [True, False])
def test_canonical_file_becomes_scan_in_y_x_order(tmp_path: Path, compressed: bool) -> None:
    truth = (np.arange(48 * 40).reshape(48, 40) * (1 + 2j)).astype(np.complex128)
    path = saved(
        tmp_path / "scan.npz",
        compressed=compressed,
        objectGuess=truth,
        scan_index=np.array([0, 0, 1, 1, 2, 2], "i4"),
        xcoords_start=np.arange(M),
        ycoords_start=np.arange(M) * 2,
        Y=np.full((M, N, N), 1j),
        _metadata=json_array(energy_eV=8000, distance_m=2.0, nphotons=1e6, probe_is_calibrated=True),
    )
    scan = read_scan(path)
    given = arrays()
    np.testing.assert_array_equal(all_frames(scan), given["diffraction"])
    np.testing.assert_array_equal(scan.positions_px, np.stack([given["ycoords"], given["xcoords"]], axis=1))
    assert scan.positions_px.dtype == np.float64
    assert (scan.n_frames, scan.n_px, scan.domain, scan.frames.dtype) == (M, N, "counts", np.uint16)
    assert (scan.probe.shape, scan.probe.dtype) == ((1, N, N), np.complex64)
    assert scan.truth is not None
    assert (scan.truth.dtype, scan.truth.shape) == (np.complex64, (48, 40))
    assert scan.truth_patches is not None
    assert scan.truth_patches.dtype == np.complex64
    assert scan.nominal_positions_px is not None
    np.testing.assert_array_equal(scan.nominal_positions_px[3], [6, 3])
    assert (scan.scan_id.dtype, scan.scan_id.tolist()) == (np.int64, [0, 0, 1, 1, 2, 2])
    assert scan.mask.all()
    assert scan.mask.shape == (N, N)
    assert scan.geometry == Geometry(energy_eV=8000.0, distance_m=2.0)
    assert scan.metadata == {"nphotons": 1e6}
    assert scan.photons_per_frame == 1e6
    assert scan.probe_is_calibrated
    assert scan.source == str(path)


@pytest.mark.contract("files.read.legacy-name")
def test_diff3d_counts_only_where_diffraction_is_absent(tmp_path: Path) -> None:
    old = arrays()["diffraction"][::-1].copy()
    both = read_scan(saved(tmp_path / "both.npz", diff3d=old))
    np.testing.assert_array_equal(both.frames[0:1], arrays()["diffraction"][:1])
    alone = read_scan(saved(tmp_path / "alone.npz", diffraction=None, diff3d=old))
    np.testing.assert_array_equal(alone.frames[0:1], old[:1])


@pytest.mark.contract("files.read.legacy-order")
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("order", ["C", "F"])
def test_legacy_axis_order_gives_the_same_frames(tmp_path: Path, compressed: bool, order: str) -> None:
    frames = arrays()["diffraction"]
    for key in ("diffraction", "diff3d"):
        legacy = np.array(np.moveaxis(frames, 0, 2), order=order)
        path = saved(tmp_path / f"{key}.npz", compressed=compressed, **({"diffraction": None} | {key: legacy}))
        scan = read_scan(path)
        np.testing.assert_array_equal(all_frames(scan), frames)
        np.testing.assert_array_equal(scan.frames[np.array([4, 1])], frames[[4, 1]])


@pytest.mark.contract("files.read.legacy-order")
@pytest.mark.parametrize("compressed", [True, False])
def test_fortran_ordered_stack_gives_the_same_frames(tmp_path: Path, compressed: bool) -> None:
    frames = arrays()["diffraction"]
    scan = read_scan(saved(tmp_path / "f.npz", compressed=compressed, diffraction=np.asfortranarray(frames)))
    np.testing.assert_array_equal(all_frames(scan), frames)


@pytest.mark.contract("files.read.nominal-only")
def test_positions_as_they_were_asked_for_stand_in_for_absent_ones(tmp_path: Path) -> None:
    given = arrays()
    nominal = {"xcoords_start": given["xcoords"], "ycoords_start": given["ycoords"], "xcoords": None, "ycoords": None}
    frames = np.moveaxis(given["diffraction"], 0, 2)
    scan = read_scan(saved(tmp_path / "lcls.npz", diffraction=frames, **nominal))
    np.testing.assert_array_equal(scan.positions_px, np.stack([given["ycoords"], given["xcoords"]], axis=1))
    np.testing.assert_array_equal(all_frames(scan), given["diffraction"])
    assert "positions in ycoords_start, xcoords_start, in object pixels" in scan.notes


@pytest.mark.contract("files.read.ambiguous-order")
def test_as_many_frames_as_pixels_needs_a_word_from_the_metadata(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).integers(0, 9, (N, N, N)).astype(np.uint8)
    same = {"xcoords": np.arange(N), "ycoords": np.arange(N)}
    with pytest.raises(ScanError, match="frames_axis"):
        read_scan(saved(tmp_path / "a.npz", diffraction=frames, **same))
    for axis in (0, 2):
        path = saved(tmp_path / "b.npz", diffraction=frames, _metadata=json_array(frames_axis=axis), **same)
        np.testing.assert_array_equal(all_frames(read_scan(path)), np.moveaxis(frames, axis, 0))


@pytest.mark.contract("files.read.content")
def test_format_is_told_from_content_not_from_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.npz").rename(tmp_path / "scan.h5")
    assert read_scan(path).n_frames == M


@pytest.mark.contract("files.read.lazy")
def test_stored_frames_are_read_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = read_scan(saved(tmp_path / "scan.npz", compressed=False))
    expected = scan.frames[:]
    monkeypatch.setattr(zipfile, "ZipFile", None)
    for index in (slice(2, 5), [4, 1, 1], np.array([[0, 1], [3, 2]]), -1, slice(0, 0), slice(None, None, 2)):
        np.testing.assert_array_equal(scan.frames[index], expected[index])
    (chunk,) = scan.frames.chunks(M)
    np.testing.assert_array_equal(chunk, expected)


@pytest.mark.contract("files.read.lazy")
def test_opening_and_streaming_need_a_fraction_of_the_memory_of_the_frames(tmp_path: Path) -> None:
    m, n = 300, 256  # 38 MiB of uint16
    frames = np.zeros((m, n, n), np.uint16)
    frames[:, 0, 0] = np.arange(m)
    path = saved(
        tmp_path / "big.npz",
        diffraction=frames,
        probeGuess=np.ones((n, n), "c8"),
        xcoords=np.arange(m),
        ycoords=np.arange(m),
    )
    # tracemalloc sees NumPy's allocations and only those of this process. The first time loads the readers' code.
    code = (
        "import sys, tracemalloc; from torchptycho.io import read_scan, iter_checked_chunks; read_scan(sys.argv[1]);"
        "tracemalloc.start();"
        "scan = read_scan(sys.argv[1]); opened = tracemalloc.get_traced_memory()[1];"
        "n = sum(len(c) for c in iter_checked_chunks(scan, 16)); print(n, opened, tracemalloc.get_traced_memory()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    read, opened, streamed = map(int, done.stdout.split())
    assert read == m
    assert opened < frames.nbytes / 10
    assert streamed < frames.nbytes / 4


@pytest.mark.contract("files.read.random-access")
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("cut", [None, slice(1, 6, 2)])
def test_frames_by_slice_and_by_indices(tmp_path: Path, compressed: bool, cut: slice | None) -> None:
    frames = arrays()["diffraction"]
    scan = read_scan(saved(tmp_path / "scan.npz", compressed=compressed), frames=cut)
    expected = frames if cut is None else frames[cut]
    for index in (
        slice(None),
        slice(1, 3),
        slice(0, 0),
        np.array([2, 0, 2]),
        [-1, 1],
        np.array([], int),
        np.array([[0], [2]]),
    ):
        np.testing.assert_array_equal(scan.frames[index], expected[index])
    for k in (1, 2, 4, 100):
        np.testing.assert_array_equal(all_frames(scan, k), expected)
        assert max(len(chunk) for chunk in scan.frames.chunks(k)) <= k
    with pytest.raises(IndexError):
        scan.frames[[M]]


@pytest.mark.contract("files.read.domain")
@pytest.mark.parametrize(
    ("dtype", "stated", "asked", "domain"),
    [
        ("u2", None, None, "counts"),
        ("f4", None, None, "counts"),
        ("f4", "counts", None, "counts"),
        ("u2", "amplitude", None, "amplitude"),
        ("f4", "amplitude", "counts", "counts"),
    ],
)
def test_domain_by_argument_then_metadata_then_values(
    tmp_path: Path, dtype: str, stated: str | None, asked: Any, domain: str
) -> None:
    frames = arrays()["diffraction"].astype(dtype)
    path = saved(tmp_path / "scan.npz", diffraction=frames, _metadata=json_array(domain=stated) if stated else None)
    assert read_scan(path, domain=asked).domain == domain


@pytest.mark.contract("files.read.canonical")
@pytest.mark.parametrize(
    ("stored", "read"), [("f8", "f4"), ("f2", "f4"), (">f4", "f4"), (">u2", "u2"), ("i4", "i4"), ("u1", "u1")]
)
def test_frames_keep_their_integers_and_become_float32(tmp_path: Path, stored: str, read: str) -> None:
    values = arrays()["diffraction"] % 200
    scan = read_scan(saved(tmp_path / "scan.npz", diffraction=values.astype(stored)))
    assert scan.frames.dtype == np.dtype(read)
    assert scan.frames.dtype.isnative
    np.testing.assert_array_equal(all_frames(scan), values)
    assert all(chunk.dtype == np.dtype(read) for chunk in iter_checked_chunks(scan))


@pytest.mark.contract("files.read.mask")
def test_pixel_is_good_where_mask_says_so_and_bad_pixels_does_not(tmp_path: Path) -> None:
    mask, bad = np.ones((N, N), np.uint8), np.zeros((N, N), bool)
    mask[0], bad[:, 1] = 0, True
    scan = read_scan(saved(tmp_path / "scan.npz", mask=mask, bad_pixels=bad))
    np.testing.assert_array_equal(scan.mask, (mask == 1) & ~bad)


@pytest.mark.contract("files.read.probe-modes")
def test_probe_modes_along_the_last_axis_are_recognised(tmp_path: Path) -> None:
    modes = np.arange(3 * N * N).reshape(3, N, N) * 1j
    for stored in (modes, np.moveaxis(modes, 0, 2), modes[None, :, None]):
        scan = read_scan(saved(tmp_path / "scan.npz", probeGuess=stored))
        np.testing.assert_array_equal(scan.probe, modes.astype(np.complex64))


@pytest.mark.contract("files.read.probe-replaced")
def test_replaced_probe_is_not_calibrated(tmp_path: Path) -> None:
    np.savez(tmp_path / "probe.npz", probe=np.full((N, N), 2.0))
    path = saved(tmp_path / "scan.npz", probeGuess=None, _metadata=json_array(probe_is_calibrated=True))
    scan = read_scan(path, probe=tmp_path / "probe.npz")
    np.testing.assert_array_equal(scan.probe, np.full((1, N, N), 2, np.complex64))
    assert not scan.probe_is_calibrated
    assert read_probe(saved(tmp_path / "other.npz"), N).shape == (1, N, N)


@pytest.mark.contract("files.read.frames-slice")
def test_slice_rescues_a_file_whose_last_frame_has_no_position(tmp_path: Path) -> None:
    short = {"xcoords": np.arange(M - 1) * 2.0, "ycoords": np.arange(M - 1) * 3.0}
    patches = np.arange(M * N * N).reshape(M, N, N) * 1j
    path = saved(tmp_path / "scan.npz", Y=patches, scan_index=np.arange(M), **short)
    with pytest.raises(ScanError, match="Which 1 frame"):
        read_scan(path)
    scan = read_scan(path, frames=slice(1, M - 1, 2))
    np.testing.assert_array_equal(all_frames(scan), arrays()["diffraction"][[1, 3]])
    np.testing.assert_array_equal(scan.positions_px, [[3, 2], [9, 6]])
    np.testing.assert_array_equal(scan.scan_id, [1, 3])
    np.testing.assert_array_equal(scan.truth_patches, patches[[1, 3]].astype(np.complex64))


@pytest.mark.contract("files.read.frames-slice")
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("order", [0, 2])
def test_stop_cuts_every_array_that_counts_frames(tmp_path: Path, compressed: bool, order: int) -> None:
    short = M - 1
    patches = np.arange(short * N * N).reshape(short, N, N) * 1j
    vectors = ("xcoords", "ycoords", "xcoords_start", "ycoords_start")
    path = saved(
        tmp_path / "scan.npz",
        compressed=compressed,
        Y=np.moveaxis(patches, 0, order),
        scan_index=np.arange(short),
        **{key: 10 * i + np.arange(short) for i, key in enumerate(vectors)},
    )
    for stop in (short, short - 2):
        scan = read_scan(path, frames=slice(None, stop))
        np.testing.assert_array_equal(all_frames(scan), arrays()["diffraction"][:stop])
        assert scan.frames.shape == (stop, N, N)
        np.testing.assert_array_equal(scan.positions_px, [(10 + i, i) for i in range(stop)])
        np.testing.assert_array_equal(scan.nominal_positions_px, scan.positions_px + 20)
        np.testing.assert_array_equal(scan.scan_id, np.arange(stop))
        np.testing.assert_array_equal(scan.truth_patches, patches[:stop].astype(np.complex64))
    with pytest.raises(ScanError, match="complex object patches"):
        read_scan(saved(tmp_path / "few.npz", compressed=compressed, Y=patches[:3]), frames=slice(None, 4))


@pytest.mark.contract("files.write.atomic")
def test_bad_frames_leave_no_file_and_an_older_one_untouched(tmp_path: Path) -> None:
    frames = np.sqrt(arrays()["diffraction"].astype(np.float32))
    frames[4, 2, 2] = np.nan
    bad = read_scan(saved(tmp_path / "bad.npz", diffraction=frames))
    (tmp_path / "out").mkdir()
    older = tmp_path / "out" / "older.npz"
    older.write_bytes(b"older")
    for path in (older, tmp_path / "out" / "new.npz"):
        with pytest.raises(ScanError, match="NaN"):
            write_scan(bad, path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["older.npz"]
    assert older.read_bytes() == b"older"


@pytest.mark.contract("files.write.atomic")
def test_scan_can_be_written_over_its_own_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.npz", compressed=False)
    write_scan(read_scan(path), path)
    np.testing.assert_array_equal(all_frames(read_scan(path)), arrays()["diffraction"])


def reconstruction(**changes: Any) -> Reconstruction:
    values = (np.arange(12).reshape(3, 4) * (1 - 1j)).astype(np.complex64)
    coverage = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    fields = {"object": values, "coverage": coverage, "valid": coverage > 0.5, "origin_px": (-3, 7)} | changes
    return Reconstruction(**fields)


@pytest.mark.contract("files.reconstruction.round-trip")
@pytest.mark.parametrize("pixel_m", [None, 1.25e-8])
def test_reconstruction_survives_its_file(tmp_path: Path, pixel_m: float | None) -> None:
    before = reconstruction(object_pixel_m=pixel_m, provenance={"steps": 3, "loss": [1.5, np.float32(0.25)]})
    write_reconstruction(before, tmp_path / "r.npz")
    after = read_reconstruction(tmp_path / "r.npz")
    for name in ("object", "coverage", "valid"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        assert getattr(after, name).dtype == getattr(before, name).dtype
    assert (after.origin_px, after.object_pixel_m) == ((-3, 7), pixel_m)
    assert after.provenance == {"steps": 3, "loss": [1.5, 0.25]}
    assert [path.name for path in tmp_path.iterdir()] == ["r.npz"]


@pytest.mark.contract("files.reconstruction.foreign")
def test_scan_with_truth_can_be_the_truth_file(tmp_path: Path) -> None:
    truth = np.full((20, 30), 1 + 1j)
    read = read_reconstruction(saved(tmp_path / "scan.npz", objectGuess=truth))
    np.testing.assert_array_equal(read.object, truth.astype(np.complex64))
    assert read.origin_px == (0, 0)
    assert read.valid.all()
    assert (read.coverage == 1).all()


@pytest.mark.contract("files.reconstruction.foreign")
def test_without_valid_the_coverage_decides_as_it_does_for_a_stitched_image(tmp_path: Path) -> None:
    coverage = np.array([[1, MIN_COVERAGE, 0.99 * MIN_COVERAGE, 0]], np.float32)
    np.savez(tmp_path / "foreign.npz", object=np.ones((1, 4), np.complex64), coverage=coverage)
    read = read_reconstruction(tmp_path / "foreign.npz")
    canvas = Canvas((1, 4), (0, 0))
    canvas.weight.copy_(torch.from_numpy(coverage))
    assert read.valid.tolist() == canvas.finish().valid.tolist() == [[True, True, False, False]]


@pytest.mark.contract("files.reconstruction.foreign")
@pytest.mark.contract("files.read.canonical")
def test_measured_star_and_its_reference_are_read(measured_data: Path) -> None:
    scan = read_scan(measured_data / "siemens-star-128.npz")
    assert (scan.n_frames, scan.n_px, scan.domain, scan.frames.dtype) == (516, 128, "counts", np.uint16)
    photons = sum(int(chunk.sum(dtype=np.int64)) for chunk in iter_checked_chunks(scan)) / scan.n_frames
    assert photons == pytest.approx(scan.photons_per_frame, rel=1e-12)
    reference = read_reconstruction(measured_data / "siemens-star-128-reference.npz")
    assert reference.object.shape == (471, 471)
    assert reference.coverage.min() < reference.coverage.max()
    assert read_probe(measured_data / "siemens-star-128-reference.npz", 128).shape == (1, 128, 128)
