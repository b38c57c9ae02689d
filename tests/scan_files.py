"""Small scan files of every format, and what is done to them: bytes changed, cut, moved, arrays replaced."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from torchptycho.core.config import MappingConfig, ReadConfig
from torchptycho.core.errors import TorchptychoError
from torchptycho.io import iter_checked_chunks, read_probe, read_reconstruction, read_scan

M, N = 6, 8
_RNG = np.random.default_rng(3)
FRAMES = _RNG.poisson(20, (M, N, N)).astype(np.uint16)
POSITIONS_M = np.array([(y, x) for y in range(2) for x in range(3)]) * 4e-8
PROBE = (_RNG.normal(size=(2, N, N)) + 1j).astype(np.complex64)
OBJECT = np.ones((20, 24), np.complex64)
LENGTHS = {"energy_eV": 8000.0, "distance_m": 1.0, "detector_pixel_m": 5e-5}


@dataclasses.dataclass(frozen=True)
class ScanFileCase:
    """Files of one scan by name, the first of which is opened with these options."""

    name: str
    files: dict[str, bytes]
    config: ReadConfig

    @property
    def main(self) -> str:
        return next(iter(self.files))


def _hdf5_bytes(fill: Callable[[Any], None], libver: str = "earliest") -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w", libver=libver) as file:
        fill(file)
    return stream.getvalue()


def _npz_bytes(arrays: dict[str, Any], *, compressed: bool) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def make_npz_arrays() -> dict[str, Any]:
    return {
        "diffraction": FRAMES,
        "ycoords": POSITIONS_M[:, 0] * 2e7,
        "xcoords": POSITIONS_M[:, 1] * 2e7,
        "probeGuess": PROBE,
        "objectGuess": OBJECT,
        "scan_index": np.zeros(M, int),
        "bad_pixels": np.eye(N, dtype=bool),
        "_metadata": np.array(json.dumps({"nphotons": 1e5, **LENGTHS})),
    }


def fill_cxi(file: Any, frames: Any = None) -> None:
    file["cxi_version"] = 160
    detector = file.create_group("entry_1/instrument_1/detector_1")
    if frames is None:
        detector.create_dataset("data", data=FRAMES, chunks=(2, N, N), **hdf5plugin.Bitshuffle(cname="lz4"))
    else:
        frames(detector)
    detector["distance"], detector["x_pixel_size"], detector["y_pixel_size"] = 1.0, 5e-5, 5e-5
    detector["basis_vectors"] = np.array([[0, -5e-5], [-5e-5, 0], [0, 0]])
    detector["mask"] = np.eye(N, dtype=np.uint32)
    file["entry_1/instrument_1/source_1/energy"] = 8000 * 1.602176634e-19
    file["entry_1/sample_1/geometry_1/translation"] = np.pad(POSITIONS_M[:, ::-1], ((0, 0), (0, 1)))
    file["entry_1/data_1/translation"] = h5py.SoftLink("/entry_1/sample_1/geometry_1/translation")
    file["entry_1/image_1/data"], file["entry_1/image_2/data"] = PROBE, OBJECT


def _add_virtual_dataset(detector: Any) -> None:
    layout = h5py.VirtualLayout((M, N, N), FRAMES.dtype)
    layout[:4] = h5py.VirtualSource("part.h5", "data", (4, N, N))
    layout[4:] = h5py.VirtualSource("part.h5", "rest", (2, N, N))
    detector.create_virtual_dataset("data", layout)


def _fill_parts(file: Any) -> None:
    file["data"], file["rest"] = FRAMES[:4], FRAMES[4:]


def fill_product(file: Any) -> None:
    file.attrs.update({"photon_energy_eV": 8000.0, "detector_object_distance_m": 1.0, "name": "x", "far_field": True})
    pixel = {"pixel_width_m": 2e-8, "pixel_height_m": 2e-8}
    file["probe"], file["object"] = PROBE[None], OBJECT[None]
    file["probe"].attrs.update(pixel)
    file["object"].attrs.update(pixel | {"center_x_m": 0.0, "center_y_m": 0.0})
    file["probe_position_indexes"] = np.arange(1, M + 1)
    file["probe_position_y_m"], file["probe_position_x_m"] = POSITIONS_M.T
    file["loss_values"], file["loss_epochs"] = [2.0, 1.0], [0, 1]


def fill_patterns(file: Any) -> None:
    file.create_dataset("patterns", data=FRAMES, chunks=(3, N, N), compression="gzip")
    file["patterns"].attrs.update({"detector_pixel_width_m": 5e-5, "detector_pixel_height_m": 5e-5})
    file["indexes"], file["bad_pixels"] = np.arange(M), np.eye(N, dtype=bool)


def make_product_arrays() -> dict[str, Any]:
    return {
        "photon_energy_eV": 8000.0,
        "detector_object_distance_m": 1.0,
        "probe": PROBE,
        "object": OBJECT,
        "object_pixel_width_m": 2e-8,
        "object_pixel_height_m": 2e-8,
        "object_center_x_m": 0.0,
        "object_center_y_m": 0.0,
        "probe_position_indexes": np.arange(M),
        "probe_position_y_m": POSITIONS_M[:, 0],
        "probe_position_x_m": POSITIONS_M[:, 1],
        "costs": np.ones(3),
    }


def fill_ptyd(file: Any) -> None:
    for number, rows in enumerate((slice(0, 4), slice(4, M))):
        chunk = file.create_group(f"chunks/{number}")
        chunk["data"], chunk["positions"] = FRAMES[rows], POSITIONS_M[rows]
        chunk["weights"] = np.ones((rows.stop - rows.start, N, N), np.uint8)
    file["meta/energy"], file["meta/distance"], file["meta/psize"] = 8.0, 1.0, [5e-5, 5e-5]
    file["info/propagation"] = "farfield"


def fill_ptychi_parameters(file: Any) -> None:
    file["object"], file["probe"] = OBJECT[None], PROBE[None]
    file["object"].attrs["pixel_height_m"] = 2e-8
    file["probe_position_y_m"], file["probe_position_x_m"] = POSITIONS_M.T


def _fill_dp(file: Any) -> None:
    file["dp"] = FRAMES.astype(np.float32)


def _fill_mapped(file: Any) -> None:
    file["raw/frames"], file["raw/xy"] = FRAMES.reshape(2, 3, N, N), POSITIONS_M * 1e6
    file["raw/energy"], file["raw/probe"], file["raw/mask"] = 8.0, PROBE, np.ones((N, N))


def _npy_bytes() -> bytes:
    stream = io.BytesIO()
    np.save(stream, FRAMES)
    return stream.getvalue()


def make_cases() -> list[ScanFileCase]:
    """One of each format, with its companions."""
    guess = ReadConfig(guess_probe=True)
    csv = "x_um,y_um\n" + "\n".join(f"{x * 1e6},{y * 1e6}" for y, x in POSITIONS_M)
    given: dict[str, Any] = {"distance_m": 1.0, "detector_pixel_m": 5e-5}
    mapping = MappingConfig(
        frames="raw/frames",
        positions_y="raw/xy[0]",
        positions_x="raw/xy[1]",
        positions_unit="um",
        probe="raw/probe",
        mask="raw/mask",
        energy="raw/energy",
        energy_unit="keV",
    )
    beside = MappingConfig(
        frames="{stem}.npy", positions_y="{stem}.csv:y_um", positions_x="{stem}.csv:0", positions_unit="um"
    )
    pattern_file = {"diffraction.h5": _hdf5_bytes(fill_patterns)}
    return [
        ScanFileCase("npz", {"scan.npz": _npz_bytes(make_npz_arrays(), compressed=True)}, ReadConfig()),
        ScanFileCase(
            "npz stored", {"scan.npz": _npz_bytes(make_npz_arrays(), compressed=False)}, ReadConfig(crop_px=4)
        ),
        ScanFileCase("cxi", {"scan.cxi": _hdf5_bytes(fill_cxi)}, ReadConfig()),
        ScanFileCase(
            "cxi of HDF5 1.10",
            {"scan.cxi": _hdf5_bytes(fill_cxi, "latest")},
            ReadConfig(binning=2, find_bad_pixels=True),
        ),
        ScanFileCase(
            "cxi, virtual",
            {"scan.cxi": _hdf5_bytes(lambda f: fill_cxi(f, _add_virtual_dataset)), "part.h5": _hdf5_bytes(_fill_parts)},
            guess,
        ),
        ScanFileCase("product", {"product.h5": _hdf5_bytes(fill_product), **pattern_file}, guess),
        ScanFileCase(
            "product NPZ", {"product.npz": _npz_bytes(make_product_arrays(), compressed=True), **pattern_file}, guess
        ),
        ScanFileCase("ptyd", {"scan.ptyd": _hdf5_bytes(fill_ptyd)}, guess),
        ScanFileCase(
            "pty-chi", {"s_dp.hdf5": _hdf5_bytes(_fill_dp), "s_para.hdf5": _hdf5_bytes(fill_ptychi_parameters)}, guess
        ),
        ScanFileCase("mapping", {"raw.h5": _hdf5_bytes(_fill_mapped)}, ReadConfig(mapping=mapping, **given)),
        ScanFileCase(
            "mapping, NPY and CSV",
            {"raw.npy": _npy_bytes(), "raw.csv": csv.encode()},
            ReadConfig(mapping=beside, guess_probe=True, energy_eV=8000.0, **given),
        ),
    ]


def mutate(case: ScanFileCase, draw: random.Random) -> dict[str, bytes]:
    """The files of a case, one of them changed."""
    files = dict(case.files)
    name = draw.choice(sorted(files))
    replace = draw.random() < 0.4
    if replace and name.endswith(".npz"):
        files[name] = _mutate_array(files[name], draw)
    elif replace and not name.endswith((".csv", ".npy")):
        files[name] = _mutate_dataset(files[name], draw)
    else:
        files[name] = _mutate_bytes(files[name], draw)
    return files


def _mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at = draw.randrange(len(changed)) if changed else 0
        kind = draw.randrange(6)
        length = draw.choice((1, 1, 2, 4, 8, 64))
        if kind <= 1:
            changed[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 2:
            changed[at : at + length] = draw.choice((b"\xff", b"\x00", b"\x80")) * length
        elif kind == 3:
            changed[at : at + length] = draw.randbytes(length)
        elif kind == 4:
            del changed[at : at + draw.choice((1, 8, 512, len(changed)))]
        else:
            start = draw.randrange(len(changed)) if changed else 0
            changed[at:at] = changed[start : start + length]
    return bytes(changed)


def _draw_value(draw: random.Random) -> Any:
    shape = draw.choice(((), (0,), (1,), (M,), (M, 2), (2, 3), (N, N), (M, N, N), (N, N, M), (1, 1, N, N), (M, 4, N)))
    dtype = draw.choice(("u1", "u2", ">i4", "i8", "f4", ">f8", "f2", "c8", "c16", "?", "S4"))
    values = np.random.default_rng(draw.randrange(2**32)).normal(0, draw.choice((1e-9, 1, 1e30)), shape)
    with np.errstate(all="ignore"):
        array = np.asarray(values).astype("f8").astype(dtype)
        if array.dtype.kind in "fc" and array.size and draw.random() < 0.4:
            array.reshape(-1)[draw.randrange(array.size)] = draw.choice((np.nan, np.inf, -1, 0))
    return array


def _mutate_array(content: bytes, draw: random.Random) -> bytes:
    with np.load(io.BytesIO(content)) as archive:
        arrays: dict[str, Any] = {key: archive[key] for key in archive.files}
    key = draw.choice(sorted(arrays))
    if draw.random() < 0.3:
        del arrays[key]
    else:
        arrays[key] = _draw_value(draw)
    return _npz_bytes(arrays, compressed=draw.random() < 0.5)


def _mutate_dataset(content: bytes, draw: random.Random) -> bytes:
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = draw.choice(names)
        kind = draw.randrange(5)
        if kind == 0 and len(file[name].attrs):
            file[name].attrs[draw.choice(sorted(file[name].attrs))] = _draw_value(draw)
            return _close_and_read(file, stream)
        del file[name]
        if kind == 1:
            file[name] = draw.choice((h5py.SoftLink("/nowhere"), h5py.ExternalLink("absent.h5", "/data")))
        elif kind == 2:
            file.create_dataset(
                name, draw.choice(((10**6, 10**6), (10**9, 8, 8), (6, 10**5, 10**5))), "f4", chunks=True
            )
        elif kind == 3:
            file[name] = _draw_value(draw)
        return _close_and_read(file, stream)


def _close_and_read(file: Any, stream: io.BytesIO) -> bytes:
    file.close()
    return stream.getvalue()


@contextlib.contextmanager
def write_files(files: dict[str, bytes], folder: Path) -> Iterator[None]:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    try:
        yield
    finally:
        for name in files:
            (folder / name).unlink()


def read_all(case: ScanFileCase, folder: Path) -> None:
    """Everything that can be done with a scan file; faults of the file are swallowed, all others pass."""
    main = folder / case.main
    for read in (
        lambda: _read_frames(main, case.config),
        lambda: read_probe(main, N),
        lambda: read_reconstruction(main),
    ):
        with contextlib.suppress(TorchptychoError):
            read()


def _read_frames(path: Path, config: ReadConfig) -> None:
    scan = read_scan(path, config)
    assert scan.n_frames * scan.n_px**2 < 10**6
    for chunk in iter_checked_chunks(scan):
        assert chunk.shape[1:] == (scan.n_px, scan.n_px)
    assert scan.frames[np.array([scan.n_frames - 1, 0])].shape[0] == 2
