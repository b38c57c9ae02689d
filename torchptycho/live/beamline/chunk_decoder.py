"""Images that a detector compresses as HDF5 filters do: bitshuffle with LZ4, and LZ4."""

from __future__ import annotations

import contextlib
import itertools
import struct
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from torchptycho.core.errors import ScanError

__all__ = ["ChunkDecoder", "Compression"]

Compression = Literal["none", "bslz4", "lz4", "lz4-block"]
"""The bytes themselves; the two HDF5 filters of these names, with their headers; one bare LZ4 block."""

_names = itertools.count()
# Bytes of the whole image, and of a block before compression; then each block after its compressed length.
_HEADER, _LENGTH = struct.Struct(">QI"), struct.Struct(">I")


class ChunkDecoder:
    """Decoder of images of one shape and dtype.

    The filters are those of hdf5plugin: each image is written as it came into a file in memory that has one chunk, and
    is read from there. Sizes that an image states are checked before.

    Arguments:
        source: named in errors.
    """

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any], source: str) -> None:
        self.shape, self.dtype, self._source = shape, dtype, source
        self.n_bytes = shape[0] * shape[1] * dtype.itemsize
        self._files = contextlib.ExitStack()
        self._datasets: dict[str, Any] = {}

    def close(self) -> None:
        """Release the memory."""
        self._files.close()
        self._datasets.clear()

    def decode(self, content: bytes | memoryview, compression: Compression) -> Shaped[np.ndarray, "h w"]:
        """Return the image in these bytes.

        Raises:
            ScanError: they hold no image of this shape and dtype.
        """
        if compression == "none":
            if len(content) != self.n_bytes:
                raise self._make_error(f"{len(content)} bytes")
            return np.frombuffer(content, self.dtype).reshape(self.shape)
        if compression == "lz4-block":
            if len(content) == self.n_bytes:
                # The filter would take a block that has not become smaller for a stored one.
                raise self._make_error(
                    "an LZ4 block of the same size, which cannot be distinguished from one stored as it is"
                )
            # The header of the filter: size of the image, of a block, and of the compressed block.
            content = _HEADER.pack(self.n_bytes, self.n_bytes) + _LENGTH.pack(len(content)) + bytes(content)
        if len(content) < _HEADER.size or _HEADER.unpack_from(content)[0] != self.n_bytes:
            raise self._make_error("another size in the header of the compressed image")
        # The filters trust these lengths: of a shorter image they would read what lies behind it in the memory.
        if not self._has_whole_blocks(content, compression):
            raise self._make_error("a compressed image whose blocks do not end where it ends")
        dataset = self._open("bslz4" if compression == "bslz4" else "lz4")
        image = np.empty(self.shape, self.dtype)
        try:
            dataset.id.write_direct_chunk((0, 0), bytes(content))
            dataset.read_direct(image)
        except (OSError, RuntimeError, ValueError) as error:
            raise self._make_error(f"bytes that cannot be decompressed ({error})") from None
        return image

    def encode(self, image: Shaped[np.ndarray, "h w"]) -> bytes:
        """Compress an image by bitshuffle and LZ4, as a detector does."""
        dataset = self._open("bslz4")
        dataset[...] = image
        return bytes(dataset.id.read_direct_chunk((0, 0))[1])

    def _has_whole_blocks(self, content: bytes | memoryview, compression: Compression) -> bool:
        """Check that the lengths of the compressed blocks, which precede them, add up to the length of the whole."""
        block_bytes = _HEADER.unpack_from(content)[1]
        rest = 0
        if compression == "bslz4":
            # Blocks of a multiple of 8 elements; the last few elements are stored as they are.
            size, n_elements = self.dtype.itemsize, self.shape[0] * self.shape[1]
            per_block = block_bytes // size
            if not per_block or per_block % 8 or block_bytes % size:
                return False
            n_blocks = n_elements // per_block + (n_elements % per_block >= 8)
            rest = n_elements % 8 * size
        else:
            if not block_bytes:
                return False
            n_blocks = -(-self.n_bytes // block_bytes)
        place = _HEADER.size
        for _ in range(n_blocks):
            if place + _LENGTH.size > len(content):
                return False
            place += _LENGTH.size + _LENGTH.unpack_from(content, place)[0]
        return place + rest == len(content)

    def _open(self, name: str) -> Any:
        if name not in self._datasets:
            import h5py
            import hdf5plugin

            chosen = hdf5plugin.Bitshuffle(cname="lz4") if name == "bslz4" else hdf5plugin.LZ4()
            # Without a cache of chunks the image is decompressed at each reading.
            file = self._files.enter_context(
                h5py.File(f"decoder-{next(_names)}", "w", driver="core", backing_store=False, rdcc_nbytes=0)
            )
            self._datasets[name] = file.create_dataset("image", self.shape, self.dtype, chunks=self.shape, **chosen)
        return self._datasets[name]

    def _make_error(self, found: str) -> ScanError:
        return ScanError(
            self._source,
            "image",
            expected=f"{self.shape[0]}x{self.shape[1]} numbers of type {self.dtype}, {self.n_bytes} bytes",
            found=found,
            remedy="Check the compression that the detector is set to: bslz4, lz4 or none.",
        )
