"""Bad files: each gives one error that names file, key, expected, found and remedy, and nothing else happens."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchptycho.core.errors import ScanError
from torchptycho.io import iter_checked_chunks, read_probe, read_reconstruction, read_scan, write_scan

M, N = 6, 8
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 500, (M, N, N)).astype(np.uint16)
PROBE = (RNG.normal(size=(N, N)) + 1j).astype(np.complex64)
GOOD: dict[str, Any] = {
    "diffraction": FRAMES,
    "xcoords": np.arange(M) * 2.25,
    "ycoords": np.arange(M) * 1.5,
    "probeGuess": PROBE,
}


def without(*keys: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (GOOD | changes).items() if key not in keys}


def changed(frames: np.ndarray, dtype: str, where: Any, value: float) -> np.ndarray:
    frames = frames.astype(dtype)
    frames[where] = value
    return frames


def metres(**metadata: float) -> dict[str, Any]:
    return without(xcoords=np.arange(M) * 6.4e-7, ycoords=np.arange(M) * 2e-7, _metadata=np.array(json.dumps(metadata)))


def metadata(text: str) -> dict[str, Any]:
    return without(_metadata=np.array(text))


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.complex64)


def not_finite(array: np.ndarray, value: float = np.nan) -> np.ndarray:
    return changed(array, "c8" if array.dtype.kind == "c" else "f8", array.ndim * (2,), value)


# What is in the file; the key at fault; words of what was found and of the remedy.
CASES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "missing frames": (without("diffraction"), "diffraction", ["no such key", "xcoords", "Add it"]),
    "misspelt frames": (without("diffraction", difraction=FRAMES), "diffraction", ["Did you mean 'difraction'?"]),
    "missing positions": (without("xcoords", xcoord=np.arange(M)), "xcoords", ["Did you mean 'xcoord'?"]),
    "missing probe": (without("probeGuess"), "probeGuess", ["(8, 8)", "--probe FILE"]),
    "one nominal coordinate": (without(xcoords_start=np.arange(M)), "ycoords_start", ["Did you mean 'xcoords_start'?"]),
    "frames of two axes": (without(diffraction=FRAMES[0]), "diffraction", ["(M, N, N)", "(8, 8)", "Reshape"]),
    "frames of four axes": (without(diffraction=FRAMES[..., None]), "diffraction", ["(6, 8, 8, 1)", "Reshape"]),
    "frames not square": (without(diffraction=FRAMES[:, 1:]), "diffraction", ["7x8", "rows crop to 0:6", "columns"]),
    "frames odd": (without(diffraction=FRAMES[:, 1:, 1:]), "diffraction", ["even", "7x7", "rows crop to 0:6"]),
    "frames complex": (without(diffraction=FRAMES * 1j), "diffraction", ["complex128", "|F|^2"]),
    "frames boolean": (without(diffraction=FRAMES > 9), "diffraction", ["bool", "Save the counts"]),
    "frames text": (without(diffraction=FRAMES.astype(str)), "diffraction", ["text", "numeric"]),
    "frames empty": (without(diffraction=FRAMES[:0]), "diffraction", ["empty", "(0, 8, 8)", "Export"]),
    "one frame": (
        without(diffraction=FRAMES[:1], xcoords=[1.0], ycoords=[1.0]),
        "diffraction",
        ["at least 2", "1 of 1", "record more"],
    ),
    "one position too few": (
        without(xcoords=np.arange(M - 1), ycoords=np.arange(M - 1)),
        "xcoords', 'ycoords",
        ["6 entries", "5 entries", "Which 1 frame(s) have none?", "--drop-frames"],
    ),
    "positions too few": (without(ycoords=np.arange(3)), "ycoords", ["Which 3 frame(s)", "--drop-frames"]),
    "positions too many": (without(ycoords=np.arange(9)), "ycoords", ["9 entries", "Remove the 3 entries"]),
    "positions two-dimensional": (without(xcoords=np.ones((M, 2))), "xcoords", ["(6, 2)", "vector"]),
    "positions complex": (without(xcoords=np.ones(M) * 1j), "xcoords", ["complex128", "vector"]),
    "positions NaN": (without(ycoords=not_finite(GOOD["ycoords"])), "ycoords", ["1 frame: 2", "--drop-frames 2"]),
    "positions infinite": (without(xcoords=not_finite(GOOD["xcoords"], np.inf)), "xcoords", ["1 frame: 2", "--drop"]),
    "positions all equal": (
        without(xcoords=np.full(M, 3.5), ycoords=np.full(M, 2)),
        "xcoords', 'ycoords",
        ["all 6 frames at (y, x) = (2, 3.5)", "probe that moves"],
    ),
    "positions in metres": (
        metres(), "xcoords', 'ycoords", ["3.2e-06 px, read in px", "look like lengths", "--positions-unit"],
    ),
    "positions in metres, pixel known": (
        metres(object_pixel_m=2e-7),
        "xcoords', 'ycoords",
        ["3.2e-06 px, read in px", "--positions-unit m."],
    ),
    "probe not square": (without(probeGuess=ones(8, 10)), "probeGuess", ["8x8", "(8, 10)", "Cut it to a square"]),
    "probe a vector": (without(probeGuess=ones(8)), "probeGuess", ["(8,)", "modes (P, N, N) or (N, N, P)"]),
    "probe amplitude and phase": (
        without(probeGuess=np.stack([np.ones((N, N)), np.eye(N) - 0.5])), "probeGuess", ["amplitude and phase"],
    ),
    "probe integer": (without(probeGuess=np.ones((N, N), int)), "probeGuess", ["int64", "complex wave"]),
    "probe dark": (without(probeGuess=0 * PROBE), "probeGuess", ["zeros only", "--probe FILE"]),
    "probe NaN": (without(probeGuess=not_finite(PROBE)), "probeGuess", ["NaN", "1 pixels", "--probe FILE"]),
    "scan_index too short": (without(scan_index=np.zeros(4, int)), "scan_index", ["4 entries", "Which 2 frame(s)"]),
    "scan_index real": (without(scan_index=np.zeros(M)), "scan_index", ["float64", "int64"]),
    "mask of another size": (without(mask=np.ones((4, 4), bool)), "mask", ["(8, 8)", "(4, 4)", "size of the frames"]),
    "mask of numbers": (without(mask=np.full((N, N), 7)), "mask", ["other values", "boolean"]),
    "mask without a good pixel": (without(mask=np.zeros((N, N), bool)), "mask", ["none", "inverted"]),
    "all pixels bad": (without(bad_pixels=np.ones((N, N), bool)), "bad_pixels", ["none", "inverted"]),
    "truth real": (without(objectGuess=np.ones((9, 9))), "objectGuess", ["float64", "exp(1j"]),
    "truth NaN": (without(objectGuess=not_finite(ones(9, 9))), "objectGuess", ["NaN", "Leave it out"]),
    "patches of another size": (without(Y=ones(M, 4, 4)), "Y", ["(6, 4, 4)", "Leave it out"]),
    "metadata not JSON": (metadata("{nphotons: 1"), "_metadata", ["not JSON", "json.dumps"]),
    "metadata a list": (metadata("[1]"), "_metadata", ["list", "json.dumps"]),
    "metadata a number": (without(_metadata=np.array(3.0)), "_metadata", ["float64", "json.dumps"]),
    "metadata nested too deep": (metadata("[" * 100_000), "_metadata", ["not JSON"]),
    "unknown domain": (metadata('{"domain": "intensity"}'), "_metadata", ["'intensity'", "--domain"]),
    "negative energy": (metadata('{"energy_eV": -1}'), "_metadata", ["energy_eV", "eV", "-1", "leave it out"]),
    "photons as text": (metadata('{"nphotons": "many"}'), "_metadata", ["nphotons", "'many'", "leave it out"]),
    "newer version": (
        metadata('{"format": "torchptycho-scan", "format_version": 99}'),
        "_metadata",
        ["version 99", "Update torchptycho"],
    ),
    # Found while the frames stream by.
    "counts NaN": (
        without(diffraction=not_finite(FRAMES)), "diffraction", ["finite", "NaN", "1 frame: 2", "bad_pixels"],
    ),
    "counts infinite": (
        without(diffraction=changed(FRAMES, "f8", (5, 0, 0), 1e300)), "diffraction", ["infinity", "1 frame: 5"],
    ),
    "counts negative": (
        without(diffraction=changed(FRAMES, "i4", ([1, 4], 0, 0), -2)),
        "diffraction",
        ["counts of at least 0", "negative", "2 frames: 1, 4", "Drop"],
    ),
    "floats negative": (
        without(diffraction=changed(FRAMES, "f4", (slice(None), 0, 0), -0.5)),
        "diffraction",
        ["counts of at least 0", "6 frames: 0, 1, 2, 3, 4 and 1 more"],
    ),
    "frames all zero": (without(diffraction=0 * FRAMES), "diffraction", ["6 frames", "all zero", "shutter"]),
    "frames all equal": (without(diffraction=0 * FRAMES + FRAMES[0]), "diffraction", ["6 frames", "all equal"]),
}  # fmt: skip


def read_whole(path: Path, **options: Any) -> None:
    for _ in iter_checked_chunks(read_scan(path, **options), 4):
        pass


@pytest.mark.contract("files.refuse.facts")
@pytest.mark.parametrize("case", CASES)
def test_bad_array_gives_one_error_with_all_facts(tmp_path: Path, case: str) -> None:
    arrays, key, words = CASES[case]
    path = tmp_path / "scan_0042.npz"
    np.savez_compressed(path, **arrays)
    with pytest.raises(ScanError) as caught:
        read_whole(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: '{key}': expected ")
    assert "; found " in message
    assert "\n" not in message
    for word in words:
        assert word in message
    assert os.listdir(tmp_path) == ["scan_0042.npz"]


def test_the_good_file_that_all_bad_ones_are_made_from_is_good(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", **GOOD)
    read_whole(tmp_path / "good.npz")


def npz_bytes(compressed: bool = True, **arrays: Any) -> bytes:
    target = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(target, **(GOOD | arrays))
    return target.getvalue()


def zip_bytes(**members: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


@pytest.mark.contract("files.refuse.facts")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", ["empty file", "0 bytes", "again"], id="empty"),
        pytest.param(npz_bytes()[:-40], ["damaged or truncated", "again"], id="truncated at the end"),
        pytest.param(npz_bytes()[:300], ["damaged or truncated", "again"], id="truncated early"),
        pytest.param(b"\x89HDF\r\n\x1a\n" + bytes(99), ["intact HDF5", "again"], id="damaged HDF5"),
        pytest.param(b"\x93NUMPY\x01\x00" + bytes(99), [".npy"], id="npy"),
        pytest.param(pickle.dumps([1]), ["pickle", "never opened"], id="pickle"),
        pytest.param(b"x,y\n1,2\n", ["other content", "b'x,y", "Export"], id="text"),
        pytest.param(zip_bytes(), ["empty zip archive", "savez_compressed"], id="empty zip"),
        pytest.param(zip_bytes(readme=b"hello"), ["1 other file", "savez_compressed"], id="zip of other things"),
    ],
)
def test_bad_file_gives_one_error_with_a_way_out(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "scan_0042.npz"
    path.write_bytes(content)
    readers: list[Callable[[], Any]] = [
        lambda: read_scan(path),
        lambda: read_probe(path, N),
        lambda: read_reconstruction(path),
    ]
    for read in readers:
        with pytest.raises(ScanError) as caught:
            read()
        for word in ["scan_0042.npz", "expected", "found", *words]:
            assert word in str(caught.value)


@pytest.mark.contract("files.refuse.facts")
def test_folder_and_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="found a folder"):
        read_scan(tmp_path)
    with pytest.raises(ScanError, match="nothing of that name"):
        read_scan(tmp_path / "absent.npz")
    with pytest.raises(ScanError, match="no folder"):
        read_scan(tmp_path / "absent" / "absent.npz")


@pytest.mark.contract("files.refuse.facts")
def test_measured_cxi_and_file_without_frames_say_what_to_do(measured_data: Path) -> None:
    with pytest.raises(ScanError, match="expected a probe; found none in the file"):
        read_scan(measured_data / "petra-p25-near-field.cxi")
    with pytest.raises(ScanError, match="'diffraction': expected the frames"):
        read_scan(measured_data / "run1084-probe-object.npz")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.contract("files.refuse.pickle")
@pytest.mark.parametrize("key", ["diffraction", "xcoords", "probeGuess", "_metadata", "objectGuess", "mask", "object"])
def test_pickled_array_is_refused_and_not_executed(tmp_path: Path, key: str) -> None:
    trace = tmp_path / "executed"
    payload = np.empty(M, object)
    payload[0] = Payload(trace)
    path = tmp_path / "scan_0042.npz"
    np.savez(path, **(GOOD | {key: payload}))
    with pytest.raises(ScanError, match=f"'{key}'.*object array.*not opened.*numeric array"):
        read_reconstruction(path) if key == "object" else read_whole(path)
    assert not trace.exists()


def forged(shape: str, content: bytes = b"", dtype: str = "<u2") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.contract("files.refuse.bomb")
@pytest.mark.parametrize(
    "npy",
    [
        forged("(1000000000, 4096, 4096)", bytes(64)),
        forged("(6, 8, 8)", bytes(64)),
        forged("(-6, 8, -8)", bytes(768)),
        forged("(6, 8, 8)", bytes(6 * 8 * 8 * 2 + 1)),
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"not an array",
        b"",
    ],
)
def test_header_that_lies_is_refused_before_allocation(tmp_path: Path, npy: bytes) -> None:
    path = tmp_path / "scan_0042.npz"
    np.savez(path, **without("diffraction"))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "a", method) as archive:
            archive.writestr(f"{'diffraction' if method else 'diff3d'}.npy", npy)
        with pytest.raises(ScanError, match=r"scan_0042\.npz: 'diff"):
            read_scan(path)


@pytest.mark.contract("files.refuse.bomb")
def test_claim_beyond_what_deflate_can_hold_is_refused(tmp_path: Path) -> None:
    frames = 10**6 * N * N * 2
    npy = forged("(1000000, 8, 8)")
    content = bytearray(zip_bytes(**{"diffraction.npy": npy, "xcoords.npy": forged("(2,)", bytes(4))}))
    # The sizes stand in the local header at byte 22 and in the central directory, 24 bytes after its signature.
    directory = content.index(b"PK\x01\x02")
    for place in (22, directory + 24):
        content[place : place + 4] = struct.pack("<I", len(npy) + frames)
    path = tmp_path / "scan_0042.npz"
    path.write_bytes(content)
    with pytest.raises(ScanError, match=r"'diffraction': expected at most .* bytes.*a claim of 128000"):
        read_scan(path)


@pytest.mark.contract("files.refuse.damage")
@pytest.mark.parametrize("compressed", [True, False], ids=["zipped", "stored"])
def test_flipped_byte_in_the_frames_is_found_in_the_first_pass(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "scan_0042.npz"
    # Larger than the piece that is read along with the header.
    frames, m = np.random.default_rng(0).integers(0, 2**16, (40, 32, 32)).astype(np.uint16), np.arange(40)
    content = bytearray(npz_bytes(compressed, diffraction=frames, xcoords=m, ycoords=m, probeGuess=ones(32, 32)))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info = archive.getinfo("diffraction.npy")
    content[info.header_offset + info.compress_size - 30] ^= 0x10
    path.write_bytes(content)
    scan = read_scan(path)
    with pytest.raises(ScanError, match=r"scan_0042\.npz: 'diffraction'.*again"):
        list(iter_checked_chunks(scan, 2))
    with pytest.raises(ScanError, match="again"):
        write_scan(scan, tmp_path / "copy.npz")
    assert os.listdir(tmp_path) == ["scan_0042.npz"]


@pytest.mark.contract("files.refuse.damage")
@given(seed=st.integers(0, 2**32 - 1), compressed=st.booleans(), cut=st.booleans())
def test_damaged_file_is_read_or_refused_but_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, seed: int, compressed: bool, cut: bool
) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(npz_bytes(compressed, mask=np.ones((N, N), bool), _metadata=np.array('{"nphotons": 1000}')))
    for place in rng.integers(0, len(content), 3):
        content[place] = rng.integers(0, 256)
    # Half of the hits go to the directory at the end, where they hurt most.
    content[-rng.integers(1, 600)] ^= 1 << rng.integers(0, 8)
    path = tmp_path_factory.mktemp("damaged") / "scan.npz"
    path.write_bytes(content[: rng.integers(1, len(content))] if cut else content)
    # Anything but a ScanError fails the test; a hit in a byte that does not matter leaves the file readable.
    with contextlib.suppress(ScanError):
        read_whole(path)


@pytest.mark.contract("files.refuse.values")
@pytest.mark.parametrize("compressed", [True, False], ids=["zipped", "stored"])
def test_frames_at_fault_are_named_as_the_file_counts_them(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "scan.npz"
    (np.savez_compressed if compressed else np.savez)(path, **(GOOD | {"diffraction": not_finite(FRAMES, -np.inf)}))
    with pytest.raises(ScanError, match="1 frame: 2 "):
        read_whole(path, frames=slice(1, None))
    read_whole(path, frames=slice(3, None))


@pytest.mark.contract("files.refuse.values")
@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_values_under_the_mask_are_not_judged_and_become_zero(tmp_path: Path, value: float) -> None:
    bad = np.zeros((N, N), bool)
    bad[3, 5] = True
    frames = changed(FRAMES, "f4", (slice(None), 3, 5), value)
    np.savez(tmp_path / "scan.npz", **(GOOD | {"diffraction": frames, "bad_pixels": bad}))
    scan = read_scan(tmp_path / "scan.npz", domain="counts")
    seen = np.concatenate(list(iter_checked_chunks(scan, 4)))
    np.testing.assert_array_equal(seen, np.where(bad, 0, frames))


@pytest.mark.contract("files.refuse.facts")
@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (slice(0, 1), ["at least 2", "1 of 6"]),
        (slice(7, 9), ["at least 2", "0 of 6", "--frames 7:9"]),
        (slice(None, None, -1), ["step of -1", "positive"]),
        (slice(0, 4, 0), ["step of 0", "positive"]),
    ],
)
def test_slice_that_leaves_no_scan_is_refused(tmp_path: Path, frames: slice, words: list[str]) -> None:
    np.savez(tmp_path / "scan.npz", **GOOD)
    with pytest.raises(ScanError) as caught:
        read_scan(tmp_path / "scan.npz", frames=frames)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.contract("files.refuse.facts")
@pytest.mark.parametrize(
    ("arrays", "key", "words"),
    [
        ({"x": np.ones(3)}, "object", ["no such key", "Add it"]),
        ({"object": np.ones((3, 3))}, "object", ["float64", "exp(1j"]),
        ({"object": ones(2, 3, 3, 3)}, "object", ["(2, 3, 3, 3)", "slices (S, H, W)"]),
        ({"object": not_finite(ones(3, 3))}, "object", ["1 that are not", "'valid'"]),
        ({"object": ones(3, 3), "coverage": np.ones((2, 3))}, "coverage", ["(2, 3)", "(3, 3)", "leave it out"]),
        ({"object": ones(3, 3), "valid": np.ones((3, 3))}, "valid", ["float64", "boolean", "leave it out"]),
        ({"object": ones(3, 3), "origin_px": np.ones(3, int)}, "origin_px", ["(3,)", "(y, x)"]),
        ({"object": ones(3, 3), "object_pixel_m": np.array(-1.0)}, "object_pixel_m", ["positive", "leave it out"]),
    ],
)
def test_bad_reconstruction_gives_one_error_with_all_facts(
    tmp_path: Path, arrays: dict[str, Any], key: str, words: list[str]
) -> None:
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(ScanError, match=f"r.npz: '{key}': expected ") as caught:
        read_reconstruction(tmp_path / "r.npz")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.contract("files.refuse.facts")
def test_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", **GOOD)
    scan = read_scan(tmp_path / "scan.npz")
    for place in (tmp_path / "absent" / "out.npz", tmp_path):
        with pytest.raises(ScanError, match="folder"):
            write_scan(scan, place)
