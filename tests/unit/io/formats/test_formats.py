"""One scan in every format, written by h5py and NumPy after the published layouts, or by the format's own library."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from scan_files import (
    FRAMES,
    LENGTHS,
    OBJECT,
    POSITIONS_M,
    PROBE,
    M,
    N,
    fill_cxi,
    fill_product,
    make_cases,
    write_files,
)

from torchptycho.core.config import MappingConfig, ReadConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.io import RawScan, Reader, iter_checked_chunks, read_probe, read_reconstruction, read_scan
from torchptycho.io.fingerprint import fingerprint_scan
from torchptycho.io.formats import registry
from torchptycho.io.formats.registry import list_readers, recognise
from torchptycho.io.frames.hdf5_frames import Hdf5Frames

CASES = {case.name: case for case in make_cases()}
GUESS = ReadConfig(guess_probe=True)
RNG = np.random.default_rng(5)


def write_hdf5(path: Path, fill: Any, **changes: Any) -> Path:
    """A file as `fill` makes it, with datasets replaced, or left out where the change is None."""
    with h5py.File(path, "w") as file:
        fill(file)
        for name, value in changes.items():
            key = name.replace("__", "/")
            if key in file:
                del file[key]
            if value is not None:
                file[key] = value
    return path


def write_cxi(path: Path, frames: np.ndarray | None = FRAMES, **changes: Any) -> Path:
    def fill(file: Any) -> None:
        fill_cxi(file, None if frames is FRAMES else lambda detector: detector.create_dataset("data", data=frames))

    return write_hdf5(path, fill, **{f"entry_1__{name}": value for name, value in changes.items()})


def refusal(path: Path, config: ReadConfig = GUESS) -> str:
    with pytest.raises(ScanError) as caught:
        for _ in iter_checked_chunks(read_scan(path, config)):
            pass
    return str(caught.value)


# --- what every format has in common -----------------------------------------------------------------------------


RECOGNISED = {
    "npz": "NPZ: a zip archive with diffraction, xcoords, ycoords, probeGuess",
    "cxi": "CXI / NXcxi_ptycho: HDF5 with cxi_version and entry_1",
    "product": "Ptychodus product: HDF5 with probe_position_indexes",
    "product NPZ": "Ptychodus product: a zip archive with probe_position_indexes",
    "ptyd": "PtyPy .ptyd: HDF5 with chunks and meta",
    "pty-chi": "pty-chi: HDF5 with dp",
    "mapping": "a mapping: the configuration says",
}


@pytest.mark.contract("files.formats.recognised")
@pytest.mark.parametrize("name", RECOGNISED)
def test_each_format_is_recognised_by_content_and_says_why(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    with write_files(case.files, tmp_path):
        assert read_scan(tmp_path / case.main, case.config).notes[0].startswith(f"recognised as {RECOGNISED[name]}")


@pytest.mark.contract("files.formats.same")
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("npz stored", "cxi of HDF5 1.10")])
def test_one_scan_is_the_same_in_every_format(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    with write_files(case.files, tmp_path):
        scan = read_scan(tmp_path / case.main, case.config)
        frames = np.concatenate(list(iter_checked_chunks(scan, 4)))
        last = slice(1, M) if name == "product" else slice(M)
    masked = FRAMES[last].copy()
    masked[:, ~scan.mask] = 0
    np.testing.assert_array_equal(frames, masked)
    assert (scan.mask == ~np.eye(N, dtype=bool)).all() or scan.mask.all()
    if not name.startswith(("ptyd", "pty-chi", "mapping")):
        assert not scan.mask.all()
    pixel_m = {"npz": 5e-8, "product": 2e-8, "product NPZ": 2e-8, "pty-chi": 2e-8}.get(name)
    if pixel_m is None:
        pixel_m = Geometry(**LENGTHS).with_object_pixel(N).object_pixel_m
        assert scan.geometry.object_pixel_m == pytest.approx(pixel_m)
    steps = np.diff(POSITIONS_M[: scan.n_frames], axis=0) / pixel_m
    np.testing.assert_allclose(np.diff(scan.positions_px, axis=0), steps, atol=1e-5)
    assert scan.domain == "counts"
    if name not in ("ptyd", "mapping, NPY and CSV"):
        np.testing.assert_array_equal(scan.probe, PROBE)


@pytest.mark.contract("files.hdf5.lazy")
@pytest.mark.parametrize("name", ["cxi", "cxi, virtual", "ptyd", "product", "mapping"])
def test_frames_stay_in_their_file_and_come_in_any_order(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    with write_files(case.files, tmp_path):
        scan = read_scan(tmp_path / case.main, case.config)
        whole = np.concatenate(list(scan.frames.chunks(M)))
        for size in (1, 2, 3, 5):
            chunks = list(scan.frames.chunks(size))
            assert max(map(len, chunks)) <= size
            np.testing.assert_array_equal(np.concatenate(chunks), whole)
        for index in (slice(1, 4), np.array([3, 0, 3]), 2, slice(None, None, 2), np.array([[0, 4], [2, 1]])):
            np.testing.assert_array_equal(scan.frames[index], whole[index])


@pytest.mark.contract("files.hdf5.aligned")
def test_frames_are_read_along_the_chunks_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = RNG.poisson(9, (20, N, N)).astype(np.uint16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=frames, chunks=(4, N, N), compression="gzip")
    reads: list[tuple[int, int]] = []
    plain = Hdf5Frames._read
    monkeypatch.setattr(Hdf5Frames, "_read", lambda self, d, a, b: reads.append((a, b)) or plain(self, d, a, b))
    stack = Hdf5Frames(tmp_path / "a.h5", "data", (20, N, N), frames.dtype, (0, 1, 2), 4, (tmp_path / "a.h5",))
    np.testing.assert_array_equal(np.concatenate(list(stack.chunks(10))), frames)
    assert reads == [(0, 8), (8, 16), (16, 20)]
    reads.clear()
    np.testing.assert_array_equal(np.concatenate(list(stack.chunks(3))), frames)
    assert reads == [(n, n + 4) for n in range(0, 20, 4)]
    reads.clear()
    np.testing.assert_array_equal(stack[[0, 19, 1, 17]], frames[[0, 19, 1, 17]])
    assert reads == [(0, 2), (17, 20)]


@pytest.mark.contract("files.hdf5.compressed")
@pytest.mark.parametrize("filters", [hdf5plugin.Bitshuffle(cname="lz4"), hdf5plugin.LZ4(), hdf5plugin.Blosc()])
def test_detector_compressions_are_read(tmp_path: Path, filters: Any) -> None:
    def compressed(detector: Any) -> None:
        detector.create_dataset("data", data=FRAMES, chunks=(1, N, N), **filters)

    path = write_hdf5(tmp_path / "scan.cxi", lambda file: fill_cxi(file, compressed))
    np.testing.assert_array_equal(read_scan(path).frames[:], FRAMES)


@pytest.mark.contract("files.fingerprint.sources")
def test_fingerprint_follows_every_file_that_frames_come_from(tmp_path: Path) -> None:
    case = CASES["cxi, virtual"]
    with write_files(case.files, tmp_path):
        before = fingerprint_scan(read_scan(tmp_path / case.main, case.config))
        assert fingerprint_scan(read_scan(tmp_path / case.main, case.config)) == before
        (tmp_path / "part.h5").write_bytes(case.files["part.h5"] + b" ")
        assert fingerprint_scan(read_scan(tmp_path / case.main, case.config)) != before


@pytest.mark.contract("files.formats.entry-point")
def test_readers_of_other_packages_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path, config: ReadConfig) -> RawScan:
        from torchptycho.core.scan import ArrayFrames

        return RawScan(
            path=path,
            format="mine",
            frames=ArrayFrames(FRAMES),
            rows=range(M),
            positions=POSITIONS_M * 1e8,
            unit="px",
            position_keys=("y", "x"),
            probe=PROBE,
        )

    mine = Reader(name="mine", sniff=lambda path, head: "begins with MINE" if head[:4] == b"MINE" else None, read=read)
    (tmp_path / "scan.dat").write_bytes(b"MINE")
    points = [importlib.metadata.EntryPoint("mine", "nowhere:mine", registry.ENTRY_POINTS)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    for loaded in (mine, "not a reader"):
        monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda point, loaded=loaded: loaded)
        list_readers.cache_clear()
        try:
            if loaded is mine:
                assert recognise(tmp_path / "scan.dat")[1] == "begins with MINE"
                assert read_scan(tmp_path / "scan.dat").notes[0] == "recognised as mine: begins with MINE"
            else:
                with pytest.raises(ConfigError, match=r"expected a torchptycho\.io\.Reader"):
                    list_readers()
        finally:
            list_readers.cache_clear()


@pytest.mark.contract("files.formats.recognised")
def test_unknown_hdf5_names_the_formats_and_the_mapping(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "other.h5", lambda file: file.create_dataset("data", data=FRAMES))
    for words in ("CXI / NXcxi_ptycho", "PtyPy .ptyd", "HDF5 file of another layout", "'mapping'"):
        assert words in refusal(path)


# --- CXI ---------------------------------------------------------------------------------------------------------


@pytest.mark.contract("files.cxi.energy")
@pytest.mark.parametrize(
    ("changes", "energy_eV"),
    [
        ({}, 8000.0),
        ({"instrument_1__source_1__energy": 9000.0}, 9000.0),
        ({"instrument_1__beam_1__energy": 7000.0, "instrument_1__source_1__energy": 6e9}, 7000.0),
        ({"instrument_1__source_1__wavelength": 1e-10, "instrument_1__source_1__energy": 6e9}, 12398.41984),
    ],
)
def test_energy_is_the_photons_and_not_the_machines(tmp_path: Path, changes: Any, energy_eV: float) -> None:
    assert read_scan(write_cxi(tmp_path / "s.cxi", **changes)).geometry.energy_eV == pytest.approx(energy_eV)


@pytest.mark.contract("files.cxi.energy")
def test_energy_of_no_photon_shows_all_candidates(tmp_path: Path) -> None:
    path = write_cxi(tmp_path / "s.cxi", instrument_1__source_1__energy=6e9, instrument_1__beam_1__energy=-1.0)
    for words in ("source_1/energy = 6e+09", "beam_1/energy = -1", "--energy-eV"):
        assert words in refusal(path)
    assert read_scan(path, ReadConfig(energy_eV=8000.0)).geometry.energy_eV == 8000.0


@pytest.mark.contract("files.cxi.translation")
def test_translation_is_the_samples_along_the_axes_of_the_detector(tmp_path: Path) -> None:
    steps = np.diff(read_scan(write_cxi(tmp_path / "a.cxi")).positions_px, axis=0)
    other = read_scan(tmp_path / "a.cxi", ReadConfig(translation_sign=1))
    np.testing.assert_allclose(np.diff(other.positions_px, axis=0), -steps)
    up = np.array([[0, 5e-5], [5e-5, 0], [0, 0]])
    turned = read_scan(write_cxi(tmp_path / "b.cxi", instrument_1__detector_1__basis_vectors=up))
    np.testing.assert_allclose(np.diff(turned.positions_px, axis=0), -steps)
    exchanged = up[:, ::-1]
    swapped = read_scan(write_cxi(tmp_path / "c.cxi", instrument_1__detector_1__basis_vectors=exchanged.T))
    np.testing.assert_allclose(np.diff(swapped.positions_px, axis=0), -steps[:, ::-1])
    without = read_scan(write_cxi(tmp_path / "d.cxi", instrument_1__detector_1__basis_vectors=None))
    np.testing.assert_allclose(np.diff(without.positions_px, axis=0), steps)


@pytest.mark.contract("files.cxi.object")
def test_object_is_placed_by_the_middle_of_the_positions(tmp_path: Path) -> None:
    scan = read_scan(write_cxi(tmp_path / "a.cxi"))
    assert scan.truth is not None
    np.testing.assert_array_equal(scan.truth, OBJECT)
    middle = (scan.positions_px.min(axis=0) + scan.positions_px.max(axis=0)) / 2
    np.testing.assert_allclose(middle, np.array(OBJECT.shape) / 2)
    slices = read_scan(write_cxi(tmp_path / "b.cxi", image_2__data=np.stack([OBJECT, OBJECT])))
    assert slices.truth is None
    assert any("an object of several slices is left out" in note for note in slices.notes)


@pytest.mark.contract("files.cxi.mask")
def test_bits_that_mean_no_harm_leave_a_pixel_good(tmp_path: Path) -> None:
    mask = np.zeros((N, N), np.uint32)
    mask[0, :6] = [1, 2, 0x200, 0x1000, 0x800, 0x1001]
    scan = read_scan(write_cxi(tmp_path / "s.cxi", instrument_1__detector_1__mask=mask))
    assert scan.mask[0].tolist() == [False, False, False, True, True, False, True, True]
    stack = np.zeros((M, N, N), np.uint32)
    stack[4, 2, 2] = 1
    scan = read_scan(write_cxi(tmp_path / "s.cxi", instrument_1__detector_1__mask=stack))
    assert np.argwhere(~scan.mask).tolist() == [[2, 2]]
    inverted = write_cxi(tmp_path / "s.cxi", instrument_1__detector_1__mask=np.ones((N, N), np.uint32))
    assert "in CXI 0 is good" in refusal(inverted)


@pytest.mark.contract("files.cxi.pixel")
def test_oblong_pixels_are_refused_and_one_size_is_enough(tmp_path: Path) -> None:
    assert "5e-05 m x 6e-05 m" in refusal(write_cxi(tmp_path / "s.cxi", instrument_1__detector_1__x_pixel_size=6e-5))
    path = write_cxi(
        tmp_path / "s.cxi", instrument_1__detector_1__x_pixel_size=None, instrument_1__detector_1__basis_vectors=None
    )
    assert read_scan(path).geometry.detector_pixel_m == 5e-5


@pytest.mark.contract("files.cxi.raster")
def test_a_raster_of_frames_is_taken_in_the_order_of_the_file(tmp_path: Path) -> None:
    scan = read_scan(write_cxi(tmp_path / "s.cxi", FRAMES.reshape(2, 3, N, N)))
    np.testing.assert_array_equal(scan.frames[:], FRAMES)
    np.testing.assert_array_equal(scan.frames[[4, 1]], FRAMES[[4, 1]])
    assert len(list(scan.frames.chunks(4))) == 2


@pytest.mark.contract("files.hdf5.links")
def test_missing_source_of_a_virtual_or_linked_dataset_is_named(tmp_path: Path) -> None:
    case = CASES["cxi, virtual"]
    (tmp_path / case.main).write_bytes(case.files[case.main])
    message = refusal(tmp_path / case.main)
    assert "part.h5" in message
    assert "zeros in its place" in message
    path = write_cxi(tmp_path / "s.cxi", instrument_1__detector_1__data=h5py.ExternalLink("data_1.h5", "/entry/data"))
    assert "a link to '/entry/data' in data_1.h5, which is not there. Put data_1.h5 next to s.cxi" in refusal(path)
    with h5py.File(tmp_path / "data_1.h5", "w") as file:
        file["entry/data"] = FRAMES
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.frames[:], FRAMES)
    before = fingerprint_scan(scan)
    for name in ("data_1.h5", "s.cxi"):
        os.utime(tmp_path / name, ns=(1, 1))
        changed = fingerprint_scan(read_scan(path))
        assert changed != before
        before = changed


# --- other formats -----------------------------------------------------------------------------------------------


def diffraction(folder: Path, indexes: np.ndarray) -> None:
    with h5py.File(folder / "diffraction.h5", "w") as file:
        file["patterns"], file["indexes"] = RNG.poisson(9, (len(indexes), N, N)).astype(np.uint16), indexes


@pytest.mark.contract("files.product.pairing")
@pytest.mark.contract("files.left-out")
def test_patterns_and_positions_pair_by_index(tmp_path: Path) -> None:
    places = np.array([[0, 0], [4, 6], [2, 8], [8, 8], [12, 0.0]]) * 1e-8
    path = write_hdf5(
        tmp_path / "p.h5",
        fill_product,
        probe_position_indexes=[7, 2, 7, 9, 11],
        probe_position_y_m=places[:, 0],
        probe_position_x_m=places[:, 1],
    )
    diffraction(tmp_path, np.array([9, 5, 2, 7]))
    scan = read_scan(path)
    assert scan.left_out == {1: "no position has its index"}
    np.testing.assert_allclose(scan.positions_px, np.array([[14, 16], [12, 15], [10.5, 14]]))
    assert "1 index(es) with several positions: averaged" in scan.notes
    assert "1 position(s) without a frame left out: indexes 11" in scan.notes
    diffraction(tmp_path, np.array([100, 101]))
    assert "0 of 2 frames with a position" in refusal(path)
    (tmp_path / "diffraction.h5").rename(tmp_path / "elsewhere.h5")
    assert "--diffraction FILE" in refusal(path)
    diffraction(tmp_path, np.array([2, 7]))
    (tmp_path / "diffraction.h5").rename(tmp_path / "elsewhere.h5")
    assert read_scan(path, ReadConfig(diffraction=str(tmp_path / "elsewhere.h5"))).n_frames == 2


@pytest.mark.contract("files.product.old-names")
def test_older_names_and_raw_data_of_products(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "p.h5", fill_product, raw_data__diffraction=FRAMES)
    with h5py.File(path, "r+") as file:
        del file.attrs["photon_energy_eV"]
        file.attrs["probe_energy_eV"], file.attrs["unheard_of"] = 7000.0, [1, 2]
        del file["loss_values"]
        file["costs"] = [5.0, 4.0]
    scan = read_scan(path)
    assert scan.geometry.energy_eV == 7000.0
    assert scan.metadata["loss_values"] == [5.0, 4.0]
    np.testing.assert_array_equal(scan.frames[:], FRAMES)


@pytest.mark.contract("files.near-field.said")
def test_files_that_say_near_field_are_read_as_such(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "p.h5", fill_product, raw_data__diffraction=FRAMES)
    far = read_scan(path)
    assert far.geometry.object_pixel_m is not None
    with h5py.File(path, "r+") as file:
        file.attrs["far_field"] = False
    near = read_scan(path, ReadConfig(detector_pixel_m=5 * far.geometry.object_pixel_m))
    assert near.geometry.propagation == "near"
    # The object pixel is the file's, and the magnification follows from both pixels.
    assert near.geometry.object_pixel_m == pytest.approx(far.geometry.object_pixel_m)
    assert near.geometry.magnification == pytest.approx(5)
    np.testing.assert_allclose(near.positions_px, far.positions_px)
    case = CASES["ptyd"]
    (tmp_path / case.main).write_bytes(case.files[case.main])
    with h5py.File(tmp_path / case.main, "r+") as file:
        del file["info/propagation"]
        file["info/propagation"] = "nearfield"
    assert "--focus-distance-m" in refusal(tmp_path / case.main)
    cone = read_scan(tmp_path / case.main, dataclasses.replace(GUESS, focus_distance_m=1e-3))
    assert cone.geometry.distance_m is not None
    assert cone.geometry.magnification == pytest.approx(1 + cone.geometry.distance_m / 1e-3)


@pytest.mark.contract("files.pair.other-half")
def test_either_half_of_a_pair_opens_both(tmp_path: Path) -> None:
    case = CASES["pty-chi"]
    with write_files(case.files, tmp_path):
        np.testing.assert_array_equal(read_scan(tmp_path / "s_para.hdf5").frames[:], FRAMES)
    (tmp_path / "s_dp.hdf5").write_bytes(case.files["s_dp.hdf5"])
    assert "the other half of the pair, s_para.hdf5" in refusal(tmp_path / "s_dp.hdf5")


@pytest.mark.contract("files.mapping")
def test_mapping_reads_any_order_of_axes_and_any_unit(tmp_path: Path) -> None:
    np.savez(tmp_path / "raw.npz", images=np.transpose(FRAMES, (2, 1, 0)), places=POSITIONS_M * 1e9, probe=PROBE)
    base = MappingConfig(
        frames="images",
        frames_axes="xym",
        positions_y="places[0]",
        positions_x="places[1]",
        positions_unit="nm",
        probe="probe",
    )
    scan = read_scan(tmp_path / "raw.npz", ReadConfig(mapping=base, **LENGTHS))
    np.testing.assert_array_equal(scan.frames[:], FRAMES)
    pixel_m = Geometry(**LENGTHS).with_object_pixel(N).object_pixel_m
    assert pixel_m is not None
    np.testing.assert_allclose(scan.positions_px, POSITIONS_M / pixel_m)
    part = dataclasses.replace(base, frames="images[0]")
    assert "expected a whole stack of frames" in refusal(tmp_path / "raw.npz", ReadConfig(mapping=part, **LENGTHS))
    assert "found no energy-eV, no distance-m, no detector-pixel-m" in refusal(
        tmp_path / "raw.npz", ReadConfig(mapping=base)
    )


@pytest.mark.contract("files.mapping")
@pytest.mark.parametrize(
    ("table", "column", "words"),
    [
        ("x,y\n1,2\n3\n", "y", "'line 3': expected 2 cell(s), a number in column 1"),
        ("x,y\n1,2\n", "z", "columns x, y"),
        ("1 2\n3 4\n", "z", "2 columns without names"),
        ("", "y", "empty file"),
    ],
)
def test_a_table_that_does_not_fit_says_where(tmp_path: Path, table: str, column: str, words: str) -> None:
    np.save(tmp_path / "s.npy", FRAMES)
    (tmp_path / "s.csv").write_text(table)
    mapping = MappingConfig(frames="{stem}.npy", positions_y=f"{{stem}}.csv:{column}", positions_x="{stem}.csv:0")
    assert words in refusal(tmp_path / "s.npy", ReadConfig(mapping=mapping, guess_probe=True))


@pytest.mark.contract("files.probe.any-file")
def test_probe_and_object_are_found_in_files_of_any_format(tmp_path: Path) -> None:
    for name in ("npz", "cxi", "product", "product NPZ"):
        case = CASES[name]
        with write_files(case.files, tmp_path):
            np.testing.assert_array_equal(read_probe(tmp_path / case.main, N), PROBE)
            np.testing.assert_array_equal(read_reconstruction(tmp_path / case.main).object, OBJECT)


# --- files of other programs' own libraries ----------------------------------------------------------------------


@pytest.mark.contract("files.formats.independent")
def test_product_that_ptychodus_wrote(tmp_path: Path) -> None:
    pytest.importorskip("ptychodus", reason="ptychodus is not installed")
    from ptychodus.api.assemble import AssembledDiffractionData
    from ptychodus.api.geometry import PixelGeometry
    from ptychodus.api.io import save_diffraction_data, save_product
    from ptychodus.api.object import Object, ObjectCenter
    from ptychodus.api.probe import ProbeSequence
    from ptychodus.api.probe_positions import ProbePosition, ProbePositionSequence
    from ptychodus.api.product import Product, ProductMetadata

    metadata = ProductMetadata(
        name="n",
        comments="",
        detector_distance_m=1.0,
        photon_energy_eV=8000.0,
        probe_photon_count=1e5,
        exposure_time_s=0.1,
        mass_attenuation_m2_per_kg=0.0,
        tomography_angle_deg=0.0,
        focus_object_distance_m=0.0,
        tilt_angle_deg=0.0,
        polarization=None,
        far_field=True,
    )
    pixel = PixelGeometry(2e-8, 2e-8)
    there = Object(array=OBJECT[None], pixel_geometry=pixel, center=ObjectCenter(x_m=0, y_m=0), layer_spacing_m=[])
    places = ProbePositionSequence([ProbePosition(i, x, y) for i, (y, x) in enumerate(POSITIONS_M)])
    probe = ProbeSequence(array=PROBE[None], opr_weights=None, pixel_geometry=pixel)
    save_product(
        tmp_path / "p.h5", Product(metadata=metadata, probe_positions=places, probes=probe, object_=there, losses=[])
    )
    bad = np.eye(N, dtype=bool)
    save_diffraction_data(
        tmp_path / "diffraction.h5", AssembledDiffractionData(np.arange(M), FRAMES, PixelGeometry(5e-5, 5e-5), bad)
    )
    scan = read_scan(tmp_path / "p.h5")
    np.testing.assert_array_equal(scan.frames[:], FRAMES)
    np.testing.assert_array_equal(scan.mask, ~bad)
    geometry = there.get_geometry()
    theirs = [geometry.map_coordinates_probe_to_object(place) for place in places]
    # Their patch has its centre between pixels, ours on pixel N/2.
    expected = np.array([(place.y_px, place.x_px) for place in theirs]) + 0.5
    np.testing.assert_allclose(scan.positions_px, expected, atol=1e-9)


@pytest.mark.contract("files.formats.independent")
def test_cxi_that_cdtools_wrote(tmp_path: Path) -> None:
    data = pytest.importorskip("cdtools.tools.data", reason="cdtools is not installed")
    moved = RNG.uniform(-1e-6, 1e-6, (M, 3)) * [1, 1, 0]
    with data.create_cxi(tmp_path / "s.cxi") as file:
        data.add_source(file, 1.5e-10)
        data.add_detector(file, 0.8, np.array([[0, -3e-5, 0], [-3e-5, 0, 0]]).T)
        data.add_mask(file, ~np.eye(N, dtype=bool))
        data.add_data(file, FRAMES.astype(np.float32))
        data.add_ptycho_translations(file, moved)
    scan = read_scan(tmp_path / "s.cxi", GUESS)
    pixel_m = 1.5e-10 * 0.8 / (N * 3e-5)
    # Their translations are the beam's; rows run along -y and columns along -x.
    np.testing.assert_allclose(scan.positions_px, -moved[:, 1::-1] / pixel_m, rtol=1e-6)
    np.testing.assert_array_equal(scan.mask, ~np.eye(N, dtype=bool))
    np.testing.assert_array_equal(scan.frames[:], FRAMES)


@pytest.mark.contract("files.formats.measured")
def test_measured_cxi_file(measured_data: Path) -> None:
    scan = read_scan(measured_data / "petra-p25-near-field.cxi", GUESS)
    assert (scan.n_frames, scan.n_px, scan.domain) == (200, 100, "counts")
    assert scan.geometry.energy_eV == pytest.approx(12658, rel=1e-4)
    assert scan.geometry.object_pixel_m == pytest.approx(1.9946e-8, rel=1e-4)
    assert int((~scan.mask).sum()) == 5
