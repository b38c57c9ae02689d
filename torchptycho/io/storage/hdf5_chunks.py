"""Compressed pieces of HDF5 datasets, judged before a filter sees them.

Several filters take the size of what they unpack from the first bytes of a piece and believe it: a flipped bit there
is a crash, or gigabytes. The layouts: bitshuffle and LZ4 begin with the size as a big-endian 64-bit number; Blosc has
it as a little-endian 32-bit number at byte 4 and the packed size at byte 12; Zstandard leaves it out or has it in its
header.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

__all__ = ["find_chunk_fault"]

_BITSHUFFLE, _LZ4, _BLOSC, _BLOSC2, _ZSTD = 32008, 32004, 32001, 32026, 32015
_HEADER_BYTES = 18
_ZSTD_MAGIC = 0xFD2FB528


def find_chunk_fault(dataset: Any, path: Path, chunk_bytes: int) -> str | None:
    """Return what is wrong with the first chunk that is not plausible; None when all are.

    Arguments:
        dataset: chunked.
        path: the file that stores it.
        chunk_bytes: size of a piece when it is unpacked.
    """
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(i) for i in range(settings.get_nfilters())]
    last = filters[-1] if filters else (0, 0, (), b"")
    faults: list[str] = []
    size = path.stat().st_size
    descriptor = os.open(path, os.O_RDONLY)
    try:

        def judge(piece: Any) -> bool | None:
            if piece.byte_offset + piece.size > size:
                faults.append(f"a piece that ends at byte {piece.byte_offset + piece.size} of {size}")
            elif piece.filter_mask == 0 and last[0] in _SIZE_READERS:
                head = os.pread(descriptor, _HEADER_BYTES, piece.byte_offset)
                claimed = _SIZE_READERS[last[0]](head, last[2], piece.size)
                if claimed is not None and claimed != chunk_bytes:
                    faults.append(f"a piece that claims to unpack to {claimed} bytes, not {chunk_bytes}")
            return True if faults else None

        dataset.id.chunk_iter(judge)
    finally:
        os.close(descriptor)
    return faults[0] if faults else None


def _read_lz4_size(head: bytes, _: tuple[int, ...], size: int) -> int | None:
    return int(struct.unpack(">Q", head[:8])[0]) if min(len(head), size) >= 12 else -1


def _read_bitshuffle_size(head: bytes, options: tuple[int, ...], size: int) -> int | None:
    # Without a compression (option 4) bitshuffle stores the values alone.
    return _read_lz4_size(head, options, size) if len(options) > 4 and options[4] else None


def _read_blosc_size(head: bytes, _: tuple[int, ...], size: int) -> int | None:
    if min(len(head), size) < 16:
        return -1
    unpacked, _block, packed = struct.unpack("<III", head[4:16])
    return int(unpacked) if packed <= size else -1


def _read_zstd_size(head: bytes, _: tuple[int, ...], size: int) -> int | None:
    """Read the content size of a Zstandard frame, where it states one (RFC 8878, section 3.1.1)."""
    if min(len(head), size) < 6 or struct.unpack("<I", head[:4])[0] != _ZSTD_MAGIC:
        return -1
    descriptor = head[4]
    flag, single = descriptor >> 6, descriptor >> 5 & 1
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    length = (1 if single else 0, 2, 4, 8)[flag]
    if not length:
        return None
    field = head[at : at + length]
    return int.from_bytes(field, "little") + (256 if length == 2 else 0) if len(field) == length else -1


_SIZE_READERS = {
    _BITSHUFFLE: _read_bitshuffle_size,
    _LZ4: _read_lz4_size,
    _BLOSC: _read_blosc_size,
    _BLOSC2: _read_blosc_size,
    _ZSTD: _read_zstd_size,
}
