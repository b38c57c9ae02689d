"""Probes as programs write them: orders of axes, complex numbers in parts, files of their own, other pixels."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.io import read_probe, read_reconstruction, read_scan
from torchptycho.io.probe_fitting import resample_field
from torchptycho.io.reconstruction_files import write_reconstruction

N, M = 32, 12
ENERGY_EV, DISTANCE_M, DETECTOR_PIXEL_M = 8000.0, 2.0, 75e-6
LENGTHS = {"energy_eV": ENERGY_EV, "distance_m": DISTANCE_M, "detector_pixel_m": DETECTOR_PIXEL_M}


def pixel_m(n: int) -> float:
    return 1.239841984332002e-06 / ENERGY_EV * DISTANCE_M / (n * DETECTOR_PIXEL_M)


def wave(n: int = N, scale: float = 1.0) -> np.ndarray:
    """A probe without symmetry, on pixels 1 / scale as large as those of the scan."""
    y, x = np.meshgrid(*[(np.arange(n) - n // 2) / scale] * 2, indexing="ij")
    return np.exp(-(y**2) / 32 - (x - 1) ** 2 / 8 + 0.06j * y**2 + 0.02j * x**2 + 0.2j * x) / scale


PROBE = np.stack([wave(), 0.5 * np.roll(wave(), 2, 0), 0.3 * np.roll(wave(), -3, 1)]).astype(np.complex64)


def far_field(field: np.ndarray) -> np.ndarray:
    shifted = np.fft.ifftshift(field, axes=(-2, -1))
    return np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(-2, -1))


def make_scan_arrays(**more: object) -> dict[str, object]:
    """Frames of a weakly scattering object under the probe."""
    rng = np.random.default_rng(2)
    pattern = (np.abs(far_field(PROBE.astype(complex))) ** 2).sum(0)
    frames = rng.poisson(pattern / pattern.sum() * 1e5, (M, N, N)).astype(np.uint32)
    positions = np.arange(M) * 3.0
    return {"diffraction": frames, "xcoords": positions, "ycoords": positions[::-1] / 2, **more}


def save_scan(folder: Path, lengths: bool = True, **more: object) -> Path:
    path = folder / "scan.npz"
    metadata = {"_metadata": np.array(json.dumps(LENGTHS))} if lengths else {}
    np.savez(path, **make_scan_arrays(**metadata, **more))
    return path


def split(field: np.ndarray, axis: int) -> np.ndarray:
    return np.stack([field.real, field.imag], axis)


ARRAYS = {
    "modes first": PROBE,
    "modes last": np.moveaxis(PROBE, 0, -1),
    "one set of variable modes": PROBE[None],
    "variable modes": np.stack([PROBE, 0.1 * PROBE]),
    "variable modes last": np.stack([np.moveaxis(PROBE, 0, -1)] * 2, -1),
    "five axes": PROBE[None, None],
    "parts last": split(PROBE, -1),
    "parts first": split(PROBE, 0),
    "parts last, modes last": split(np.moveaxis(PROBE, 0, -1), -1),
    "complex128": PROBE.astype(np.complex128),
}


@pytest.mark.contract("files.probe.arrays")
@pytest.mark.parametrize("name", ARRAYS)
def test_one_probe_in_any_order_of_axes(tmp_path: Path, name: str) -> None:
    scan = read_scan(save_scan(tmp_path, probeGuess=ARRAYS[name]))
    np.testing.assert_allclose(scan.probe, PROBE, rtol=1e-6)
    assert any("variable modes" in note for note in scan.notes) == (name in ("variable modes", "variable modes last"))
    np.save(tmp_path / "probe.npy", ARRAYS[name])
    np.testing.assert_allclose(read_probe(tmp_path / "probe.npy", N), PROBE, rtol=1e-6)


@pytest.mark.contract("files.probe.arrays")
def test_a_single_mode_and_real_modes(tmp_path: Path) -> None:
    amplitudes = np.abs(PROBE[:2])
    cases = {
        "2d": (PROBE[0], PROBE[:1]),
        "amplitudes": (amplitudes, amplitudes),
        "parts": (split(PROBE[0], -1), PROBE[:1]),
    }
    for stored, expected in cases.values():
        np.save(tmp_path / "probe.npy", stored)
        np.testing.assert_allclose(read_probe(tmp_path / "probe.npy", N), expected, rtol=1e-6)


@pytest.mark.contract("files.probe.arrays")
def test_amplitude_and_phase_are_not_taken_for_parts(tmp_path: Path) -> None:
    np.save(tmp_path / "probe.npy", np.stack([np.abs(PROBE), np.angle(PROBE)], -1))
    with pytest.raises(ScanError, match="may be real and imaginary part, or amplitude and phase"):
        read_probe(tmp_path / "probe.npy", N)


def as_pairs(field: np.ndarray, names: tuple[str, str] = ("real", "imag")) -> np.ndarray:
    pairs = np.zeros(field.shape, [(name, "f8") for name in names])
    pairs[names[0]], pairs[names[1]] = field.real, field.imag
    return pairs


def write_matlab_73(path: Path, field: np.ndarray) -> None:
    """HDF5 behind the header of 512 bytes that MATLAB writes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file["probe"] = as_pairs(field)
        file["probe"].attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def write_hdf5(path: Path, name: str, field: np.ndarray, **attributes: float) -> None:
    with h5py.File(path, "w") as file:
        file[name] = field
        file[name].attrs.update(attributes)


def write_ptypy(path: Path, field: np.ndarray, size_m: float) -> None:
    with h5py.File(path, "w") as file:
        file["content/probe/Sscan00G00/data"] = field
        file["content/probe/Sscan00G00/_psize"] = np.full(2, size_m)
        file["content/obj/Sscan00G00/data"] = np.ones((1, 50, 50), complex)


FILES: dict[str, Callable[[Path], None]] = {
    "p.npz": lambda path: np.savez(path, PROBE),
    "named.npz": lambda path: np.savez(path, probes=PROBE, object=np.ones((40, 40), complex)),
    "p.npy": lambda path: np.save(path, PROBE),
    "pairs73.mat": lambda path: write_matlab_73(path, PROBE),
    "matlab5.mat": lambda path: scipy.io.savemat(path, {"probe": np.moveaxis(PROBE, 0, -1), "p": {"z": 1}}),
    "re_im.h5": lambda path: write_hdf5(path, "probe", as_pairs(PROBE, ("re", "im"))),
    "other_name.h5": lambda path: write_hdf5(path, "entry/result", PROBE),
    "run.ptyr": lambda path: write_ptypy(path, PROBE, pixel_m(N)),
}


@pytest.mark.contract("files.probe.any-file")
@pytest.mark.parametrize("name", FILES)
def test_one_probe_in_any_file(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name)
    scan = read_scan(save_scan(tmp_path), probe=tmp_path / name)
    np.testing.assert_allclose(scan.probe, PROBE, rtol=1e-6)
    assert [Path(file.path).name for file in scan.files] == ["scan.npz", name]


@pytest.mark.contract("files.probe.any-file")
def test_an_array_is_named_where_there_are_several(tmp_path: Path) -> None:
    path = tmp_path / "two.h5"
    with h5py.File(path, "w") as file:
        file["a"], file["group/b"] = np.ones((N, N), complex), PROBE
    with pytest.raises(ScanError, match=r"none of these among: a, group/b\. Name it, as --probe two\.h5:KEY"):
        read_probe(path, N)
    np.testing.assert_array_equal(read_probe(f"{path}:group/b", N), PROBE)
    np.testing.assert_array_equal(read_scan(save_scan(tmp_path), probe=f"{path}:/group/b").probe, PROBE)
    with pytest.raises(ScanError, match="'group/c': expected a dataset; found none of that name"):
        read_probe(f"{path}:group/c", N)
    with h5py.File(path, "w") as file:
        file["content/probe/S0/data"], file["content/probe/S1/data"] = PROBE, PROBE
    with pytest.raises(ScanError, match=r"the probe of one scan; found S0, S1\. Name one"):
        read_probe(path, N)


@pytest.mark.contract("files.probe.any-file")
def test_matlab_files_that_do_not_hold_it_say_what_they_hold(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "m.mat", {"a": PROBE, "b": PROBE})
    with pytest.raises(ScanError, match="none of these among: a, b"):
        read_probe(tmp_path / "m.mat", N)
    content = (tmp_path / "m.mat").read_bytes()
    (tmp_path / "m.mat").write_bytes(content[:-1000])
    with pytest.raises(ScanError, match=r"m\.mat"):
        read_probe(tmp_path / "m.mat", N)


@pytest.mark.contract("files.probe.matlab-axes")
def test_axes_that_matlab_turned_are_turned_back_where_the_frames_say_so(tmp_path: Path) -> None:
    write_matlab_73(tmp_path / "turned.mat", np.swapaxes(PROBE, -1, -2))
    scan = read_scan(save_scan(tmp_path), probe=tmp_path / "turned.mat")
    np.testing.assert_allclose(scan.probe, PROBE, rtol=1e-6)
    assert any("transposed" in note for note in scan.notes)


def agreement(probe: np.ndarray, expected: np.ndarray) -> float:
    return float(abs(np.vdot(probe, expected)) / np.linalg.norm(probe) / np.linalg.norm(expected))


def make_reconstruction(path: Path, probe: np.ndarray, size_m: float | None) -> Path:
    np.savez(path.with_suffix(".object.npz"), object=np.ones((40, 40), np.complex64))
    image = read_reconstruction(path.with_suffix(".object.npz"))
    write_reconstruction(dataclasses.replace(image, probe=probe, object_pixel_m=size_m), path)
    return path


@pytest.mark.contract("files.probe.resampled")
@pytest.mark.parametrize("edge", [16, 48, 64])
def test_a_probe_of_another_detector_area_is_resampled_by_its_pixel_size(tmp_path: Path, edge: int) -> None:
    coarse = np.stack([wave(edge, edge / N)]).astype(np.complex64)
    make_reconstruction(tmp_path / "r.npz", coarse, pixel_m(edge))
    write_hdf5(tmp_path / "product.h5", "probe", coarse, pixel_height_m=pixel_m(edge))
    write_ptypy(tmp_path / "run.ptyr", coarse, pixel_m(edge))
    for name in ("r.npz", "product.h5", "run.ptyr"):
        scan = read_scan(save_scan(tmp_path), probe=tmp_path / name)
        assert scan.probe.shape == (1, N, N)
        assert agreement(scan.probe, PROBE[:1]) > 0.99
        assert np.square(np.abs(scan.probe)).sum() == pytest.approx(np.square(np.abs(coarse)).sum(), rel=1e-5)
        assert f"probe of {edge}x{edge} px" in " ".join(scan.notes)
        np.testing.assert_array_equal(read_probe(tmp_path / name, N, pixel_m(N)), scan.probe)


@pytest.mark.contract("files.probe.resampled")
def test_a_probe_of_the_same_edge_and_another_pixel_is_resampled(tmp_path: Path) -> None:
    # Of another energy: the frames agree with its field, not with its pixels.
    make_reconstruction(tmp_path / "r.npz", wave(N, 0.7)[None].astype(np.complex64), pixel_m(N) / 0.7)
    assert agreement(read_scan(save_scan(tmp_path), probe=tmp_path / "r.npz").probe, PROBE[:1]) > 0.99
    # What was written with a wrong energy for these frames stays as it is, and that is said.
    make_reconstruction(tmp_path / "r.npz", PROBE, pixel_m(N) / 0.7)
    scan = read_scan(save_scan(tmp_path), probe=tmp_path / "r.npz")
    np.testing.assert_array_equal(scan.probe, PROBE)
    assert any("kept pixel by pixel" in note for note in scan.notes)


@pytest.mark.contract("files.probe.resampled")
def test_pixels_of_another_unit_are_refused(tmp_path: Path) -> None:
    make_reconstruction(tmp_path / "r.npz", PROBE, pixel_m(N) * 1e3)
    with pytest.raises(ScanError, match=r"found 1000 times\. Correct the unit"):
        read_scan(save_scan(tmp_path), probe=tmp_path / "r.npz")


def read_with_unknown_pixel(folder: Path, probe: np.ndarray, caplog: pytest.LogCaptureFixture) -> tuple[Scan, str]:
    np.save(folder / "probe.npy", probe)
    with caplog.at_level(logging.WARNING):
        scan = read_scan(save_scan(folder), probe=folder / "probe.npy")
    return scan, caplog.text


@pytest.mark.contract("files.probe.unknown-pixel")
def test_the_frames_decide_what_a_probe_of_unknown_pixel_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scan, text = read_with_unknown_pixel(tmp_path, wave(16, 0.5)[None], caplog)
    assert "taken for one of the same field, on other object pixels" in text
    assert agreement(scan.probe, PROBE[:1]) > 0.99
    caplog.clear()
    scan, text = read_with_unknown_pixel(tmp_path, wave(N)[None, 4:-4, 4:-4], caplog)
    assert "taken for one of the same object pixels, cut or padded" in text
    assert agreement(scan.probe, PROBE[:1]) > 0.99


@pytest.mark.contract("files.probe.unknown-pixel")
def test_the_probe_inside_of_a_scan_may_be_of_another_size(tmp_path: Path) -> None:
    scan = read_scan(save_scan(tmp_path, lengths=False, probeGuess=wave(16, 0.5)))
    assert agreement(scan.probe, PROBE[:1]) > 0.99
    assert any("pixel size is not known" in note for note in scan.notes)


@pytest.mark.contract("files.probe.unknown-pixel")
def test_without_frames_and_pixels_nothing_is_guessed(tmp_path: Path) -> None:
    np.save(tmp_path / "probe.npy", wave(16, 0.5))
    with pytest.raises(ScanError, match=r"one whose pixel size is known; found \(1, 16, 16\)"):
        read_probe(tmp_path / "probe.npy", N)


@pytest.mark.contract("files.probe.resampled")
def test_cropped_frames_take_the_probe_of_the_whole_ones(tmp_path: Path) -> None:
    config = ReadConfig(crop_px=16)
    path = save_scan(tmp_path, probeGuess=PROBE)
    make_reconstruction(tmp_path / "r.npz", PROBE, pixel_m(N))
    own, other = (read_scan(path, config, probe=probe).probe for probe in (None, tmp_path / "r.npz"))
    assert own.shape == other.shape == (3, 16, 16)
    assert agreement(own, other) > 0.999


@pytest.mark.contract("files.probe.resampled")
def test_resampling_there_and_back_is_the_identity() -> None:
    there = resample_field(PROBE, 2.0, 2 * N)
    np.testing.assert_allclose(resample_field(there, 0.5, N), PROBE, atol=2e-3 * float(np.abs(PROBE).max()))
