"""NPZ archives, read with suspicion: every header is judged before memory is allocated, and nothing is unpickled."""

from __future__ import annotations

import dataclasses
import difflib
import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.errors import ScanError
from torchptycho.io.storage.file_access import make_format_error, read_head

__all__ = [
    "Member",
    "NpzArchive",
    "convert_zip_errors",
    "fill",
    "is_zip",
    "read_array_header",
    "write_array",
    "write_header",
]

# Deflate cannot do better than 1032:1 (zlib documentation, "Maximum Compression Factor"); the constant is for tiny
# members, whose headers weigh more than their content.
_MAX_DEFLATE_RATIO = 1032
_DEFLATE_SLACK_BYTES = 4096
# Exceptions of zipfile and zlib, and of numpy when it parses the header of an array.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    SyntaxError,
    tokenize.TokenError,
    MemoryError,
)


def is_zip(head: bytes) -> bool:
    """Return whether a file that begins like this is a zip archive (an empty one included)."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


@contextmanager
def convert_zip_errors(path: Path, key: str | None, kind: str = "NPZ") -> Iterator[None]:
    """Turn whatever zipfile and zlib raise on damaged data into one ScanError; `kind` names the file."""
    try:
        yield
    except ScanError:
        raise
    except _DAMAGE as error:
        raise ScanError(
            path,
            key,
            expected=f"an intact {kind} member" if key else f"an intact {kind} file",
            found=f"damaged or truncated data ({error})",
            remedy="Copy or export the file again.",
        ) from None


@dataclasses.dataclass(frozen=True)
class Member:
    """One array of an archive, as its header describes it.

    Arguments:
        data_offset: bytes of the .npy header in front of the values, inside the member.
        file_offset: place of the values in the file itself; None when they are compressed.
        crc: checksum of the whole member; header_crc: of its first `data_offset` bytes.
    """

    path: Path
    key: str
    filename: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    data_offset: int
    file_offset: int | None
    crc: int
    header_crc: int

    @contextmanager
    def open_values(self) -> Iterator[io.BufferedIOBase]:
        """Open the member's uncompressed bytes, past the .npy header."""
        with (
            convert_zip_errors(self.path, self.key),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self.filename) as stream,
        ):
            # The annotation in typeshed is narrower than zipfile's behaviour.
            assert isinstance(stream, io.BufferedIOBase)
            stream.read(self.data_offset)
            yield stream


class NpzArchive:
    """The arrays of an NPZ file by name.

    Raises:
        ScanError: not an NPZ file, or a damaged one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        head = read_head(self.path)
        if not is_zip(head):
            raise make_format_error(self.path, head)
        with convert_zip_errors(self.path, None), zipfile.ZipFile(self.path) as archive:
            infos = archive.infolist()
        self._infos = {info.filename.removesuffix(".npy"): info for info in infos if info.filename.endswith(".npy")}
        if not self._infos:
            raise ScanError(
                self.path,
                None,
                expected="an NPZ file with arrays",
                found=f"a zip archive with {len(infos)} other file(s)" if infos else "an empty zip archive",
                remedy="Save the arrays with numpy.savez_compressed.",
            )

    @property
    def keys(self) -> list[str]:
        return list(self._infos)

    def __contains__(self, key: str) -> bool:
        return key in self._infos

    def make_missing_error(self, key: str, expected: str, remedy: str = "", part: str | None = None) -> ScanError:
        """Make the error for an array that is not there; it names the most similar key."""
        near = difflib.get_close_matches(key, self._infos, n=1, cutoff=0.6)
        hint = f"Did you mean '{near[0]}'? Rename it." if near else "Add it to the file."
        found = f"no such key among: {', '.join(self._infos)}"
        return ScanError(self.path, key, expected=expected, found=found, remedy=f"{hint} {remedy}".strip(), part=part)

    def is_empty(self, key: str) -> bool:
        """Return whether an array has no values at all, as lists of nothing have."""
        with (
            convert_zip_errors(self.path, key),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self._infos[key]) as stream,
        ):
            return 0 in read_array_header(stream)[0]

    def inspect_member(self, key: str) -> Member:
        """Read the header of an array and check it against what the archive can hold.

        Raises:
            ScanError: an object (pickled), structured or text array, an empty one, or a header that lies.
        """
        info = self._infos[key]
        with convert_zip_errors(self.path, key):
            self._refuse_implausible(info, key)
            with zipfile.ZipFile(self.path) as archive, archive.open(info) as stream:
                shape, fortran_order, dtype = read_array_header(stream)
                data_offset = stream.tell()
            with zipfile.ZipFile(self.path) as archive, archive.open(info) as stream:
                header_crc = zlib.crc32(stream.read(data_offset))
            file_offset = self._locate_values(info) + data_offset if info.compress_type == zipfile.ZIP_STORED else None
        self._refuse_unreadable_dtype(key, dtype)
        if min(shape, default=1) <= 0:
            raise ScanError(
                self.path, key, expected="values", found=f"an empty array of shape {shape}", remedy="Export it again."
            )
        claimed = math.prod(shape) * dtype.itemsize + data_offset
        if claimed != info.file_size:
            raise ScanError(
                self.path,
                key,
                expected=f"{claimed} bytes for {dtype} {shape}",
                found=f"a member of {info.file_size} bytes",
                remedy="The header and the data disagree; copy or export the file again.",
            )
        return Member(
            self.path,
            key,
            info.filename,
            shape,
            dtype,
            bool(fortran_order),
            data_offset,
            file_offset,
            info.CRC,
            header_crc,
        )

    def load(self, key: str) -> np.ndarray:
        """Load a whole array, C-ordered and in native byte order."""
        member = self.inspect_member(key)
        shape = member.shape[::-1] if member.fortran_order else member.shape
        values = np.empty(shape, member.dtype)
        with member.open_values() as stream:
            fill(stream, values)
        values = values.T if member.fortran_order else values
        return np.ascontiguousarray(values, dtype=member.dtype.newbyteorder("=")).reshape(member.shape)

    def load_metadata(self) -> dict[str, Any]:
        """Load the JSON object in `_metadata`, or return an empty dict.

        Raises:
            ScanError: `_metadata` is not one string, or not a JSON object.
        """
        key = "_metadata"
        if key not in self:
            return {}
        expected, remedy = "one string holding a JSON object", "Save it as numpy.array(json.dumps(metadata))."
        member = self.inspect_member(key)
        if member.dtype.kind not in "US" or math.prod(member.shape) != 1:
            found = f"{member.dtype} {member.shape}"
            raise ScanError(self.path, key, expected=expected, found=found, remedy=remedy)
        value = self.load(key).reshape(-1)[0]
        try:
            parsed = json.loads(value.decode("utf-8") if isinstance(value, bytes) else str(value))
        except (ValueError, RecursionError) as error:
            found = f"text that is not JSON ({error})"
            raise ScanError(self.path, key, expected=expected, found=found, remedy=remedy) from None
        if not isinstance(parsed, dict):
            found = f"JSON of another kind ({type(parsed).__name__})"
            raise ScanError(self.path, key, expected=expected, found=found, remedy=remedy)
        return parsed

    def _refuse_implausible(self, info: zipfile.ZipInfo, key: str) -> None:
        on_disk = self.path.stat().st_size
        ceiling = {
            zipfile.ZIP_STORED: info.compress_size,
            zipfile.ZIP_DEFLATED: info.compress_size * _MAX_DEFLATE_RATIO + _DEFLATE_SLACK_BYTES,
        }.get(info.compress_type)
        if ceiling is None:
            found = f"zip compression method {info.compress_type}"
            remedy = "Save it again with numpy.savez or numpy.savez_compressed."
            raise ScanError(self.path, key, expected="stored or deflated data", found=found, remedy=remedy)
        if info.file_size > ceiling or info.header_offset + info.compress_size > on_disk:
            raise ScanError(
                self.path,
                key,
                expected=f"at most {ceiling} bytes of data in {info.compress_size} bytes of a file of {on_disk}",
                found=f"a claim of {info.file_size} bytes",
                remedy="The archive is damaged or forged; copy or export it again.",
            )

    def _refuse_unreadable_dtype(self, key: str, dtype: np.dtype[Any]) -> None:
        if dtype.hasobject:
            raise ScanError(
                self.path,
                key,
                expected="an array of numbers",
                found="an object array (a Python pickle, which can run code; it was not opened)",
                remedy="Save it again as a numeric array.",
            )
        if dtype.kind not in "biufc" and not (key == "_metadata" and dtype.kind in "US"):
            what = "text" if dtype.kind in "US" else f"'{dtype}'"
            raise ScanError(
                self.path,
                key,
                expected="an array of numbers",
                found=f"an array of {what}",
                remedy="Save it again as a numeric array.",
            )

    def _locate_values(self, info: zipfile.ZipInfo) -> int:
        # The local header repeats the name and may carry another extra field than the central directory.
        with self.path.open("rb") as stream:
            stream.seek(info.header_offset)
            name_bytes, extra_bytes = struct.unpack("<26xHH", stream.read(30))
        start: int = info.header_offset + 30 + name_bytes + extra_bytes
        if start + info.file_size > self.path.stat().st_size:
            raise EOFError("the member reaches beyond the end of the file")
        return start


def read_array_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, Fortran order and dtype of a .npy stream; ValueError for a newer version."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        return shape, fortran_order, dtype
    if version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
        return shape, fortran_order, dtype
    raise ValueError(f".npy format version {version} is not read")


def fill(stream: io.BufferedIOBase | io.RawIOBase, out: np.ndarray) -> None:
    """Read into a C-contiguous array until it is full.

    Raises:
        EOFError: the stream ended before.
    """
    view = memoryview(out.reshape(-1).view(np.uint8).data)
    done = 0
    while done < view.nbytes:
        got = stream.readinto(view[done:])
        if not got:
            raise EOFError(f"the data ended after {done} of {view.nbytes} bytes")
        done += got


def write_header(stream: io.BufferedIOBase, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Write the .npy header of a C-ordered array, so that its values can follow in pieces."""
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)


def write_array(archive: zipfile.ZipFile, key: str, array: np.ndarray) -> None:
    """Add an array to an archive; equal arrays give equal bytes, as no time is recorded."""
    info = zipfile.ZipInfo(f"{key}.npy")
    info.compress_type = archive.compression
    with archive.open(info, "w", force_zip64=True) as stream:
        # asanyarray(order="C"), because ascontiguousarray would turn a scalar into a vector.
        np.lib.format.write_array(stream, np.asanyarray(array, order="C"), allow_pickle=False)
