"""Messages of the DECTRIS stream of version 2 (SIMPLON API 1.8, `cbor` format).

Each message is one CBOR map (RFC 8949) whose `type` is start, image or end. Arrays are tagged as in RFC 8746: tag 40
for dimensions and elements in row-major order, tags 64 to 87 for typed elements. Tag 56500 is a compressed byte
string: its algorithm, the size of its elements, its bytes. Reference: DECTRIS, Stream V2
(github.com/dectris/documentation).
"""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.text import format_first
from torchptycho.live.beamline.chunk_decoder import ChunkDecoder, Compression
from torchptycho.live.beamline.detector import (
    DetectorEvent,
    DetectorFrame,
    DetectorHeader,
    SeriesEnd,
    make_geometry,
)

__all__ = ["MessagesV2"]

_MULTI_DIMENSIONAL, _COMPRESSED = 40, 56500
# Unsigned integers and floats of RFC 8746, big-endian and little-endian.
_DTYPES = {
    64: "u1", 65: ">u2", 66: ">u4", 67: ">u8", 68: "u1", 69: "<u2", 70: "<u4", 71: "<u8",
    72: "i1", 73: ">i2", 74: ">i4", 75: ">i8", 77: "<i2", 78: "<i4", 79: "<i8",
    81: ">f4", 82: ">f8", 85: "<f4", 86: "<f8",
}  # fmt: skip
_MAX_EDGE = 1 << 16


class MessagesV2:
    """Parser of the messages of one stream.

    Arguments:
        source: named in errors.
        channel: the threshold to take from a detector that records several; None for one that records one.

    Raises:
        ConfigError: cbor2 is not installed.
    """

    max_parts = 1

    def __init__(self, source: str, channel: str | None = None) -> None:
        try:
            import cbor2
        except ImportError:
            raise ConfigError(
                "a DECTRIS stream of version 2 needs cbor2, which is not installed: pip install "
                "'torchptycho[beamline]'."
            ) from None
        self._cbor2, self._source, self._channel = cbor2, source, channel
        self._decoder: ChunkDecoder | None = None

    def close(self) -> None:
        """Release the memory of the decoder."""
        if self._decoder is not None:
            self._decoder.close()

    def parse(self, parts: list[bytes]) -> DetectorEvent:
        """Parse a message.

        Raises:
            ScanError: it is no message of this version, or it holds several channels of which none is chosen.
        """
        try:
            message = self._cbor2.loads(parts[0])
        except (
            self._cbor2.CBORDecodeError,
            ValueError,
            OverflowError,
            RecursionError,
            MemoryError,
            TypeError,
        ) as error:
            raise self._make_error(None, "a map in CBOR", f"other bytes ({str(error)[:80]})") from None
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "start":
            return self._parse_start(message)
        if kind == "image":
            return self._parse_image(message)
        if kind == "end":
            return SeriesEnd(series=self._read_series(message))
        raise self._make_error("type", "'start', 'image' or 'end'", repr(kind)[:80])

    def _parse_start(self, message: dict[Any, Any]) -> DetectorHeader:
        channels = message.get("channels")
        masks = message.get("pixel_mask")
        bad = None
        if isinstance(masks, dict) and masks:
            known = channels if isinstance(channels, list) else list(masks)
            bad = self._decode_mask(masks.get(self._choose_channel(known)))
        elif isinstance(channels, list):
            # Refused before the first image.
            self._choose_channel(channels)
        total, translation = message.get("number_of_images"), message.get("detector_translation")
        geometry = make_geometry(
            energy_eV=_read_number(message.get("incident_energy")),
            wavelength_angstrom=_read_number(message.get("incident_wavelength")),
            # From the sample to the detector, downstream.
            distance_m=abs(_read_number(translation[2]) or 0)
            if isinstance(translation, list) and len(translation) == 3
            else None,
            detector_pixel_m=_read_number(message.get("pixel_size_x")),
        )
        return DetectorHeader(
            series=self._read_series(message),
            total=total if isinstance(total, int) and total > 0 else None,
            bad_pixels=bad,
            geometry=geometry,
        )

    def _parse_image(self, message: dict[Any, Any]) -> DetectorFrame:
        data, number = message.get("data"), message.get("image_id")
        if not isinstance(data, dict) or not data:
            raise self._make_error("data", "a map of the channels", type(data).__name__)
        if not isinstance(number, int) or not 0 <= number < 1 << 53:
            raise self._make_error("image_id", "the number of the image", repr(number)[:80])
        start_s, stop_s = (_read_rational(message.get(name)) for name in ("start_time", "stop_time"))
        time_s = None
        date = message.get("series_date")
        if start_s is not None and stop_s is not None:
            begin_s = date.timestamp() if isinstance(date, datetime.datetime) and date.tzinfo is not None else 0.0
            time_s = begin_s + (start_s + stop_s) / 2
        return DetectorFrame(
            number=number,
            image=self._decode_array(data[self._choose_channel(list(data))], f"image {number}"),
            time_s=time_s,
            series=self._read_series(message),
        )

    def _choose_channel(self, channels: list[Any]) -> str:
        names = [str(name) for name in channels]
        if self._channel is None and len(names) == 1:
            return names[0]
        if self._channel not in names:
            raise self._make_error(
                "channels",
                "one channel, or one that is chosen" if self._channel is None else f"a channel '{self._channel}'",
                format_first(names, 8) or "none",
                "Choose one of them with --channel.",
            )
        return self._channel

    def _decode_mask(self, value: Any) -> Bool[np.ndarray, "h w"] | None:
        if value is None:
            return None
        # Every bit of the mask means that the pixel is not to be used.
        return np.asarray(self._decode_array(value, "pixel_mask", keep_decoder=False) != 0)

    def _decode_array(self, value: Any, key: str, *, keep_decoder: bool = True) -> Shaped[np.ndarray, "h w"]:
        tag = self._cbor2.CBORTag
        if not (isinstance(value, tag) and value.tag == _MULTI_DIMENSIONAL and _is_pair(value.value)):
            raise self._make_error(key, "an array with tag 40 (RFC 8746)", type(value).__name__)
        edges, elements = value.value
        if not (_is_pair(edges) and all(isinstance(edge, int) and 1 <= edge <= _MAX_EDGE for edge in edges)):
            raise self._make_error(key, "two dimensions", repr(edges)[:80])
        if not isinstance(elements, tag) or elements.tag not in _DTYPES:
            raise self._make_error(key, "typed elements (RFC 8746)", repr(getattr(elements, "tag", elements))[:80])
        shape, dtype, content = (int(edges[0]), int(edges[1])), np.dtype(_DTYPES[elements.tag]), elements.value
        compression: Compression = "none"
        if isinstance(content, tag) and content.tag == _COMPRESSED:
            compression, content = self._read_compression(content.value, dtype, key)
        if not isinstance(content, bytes):
            raise self._make_error(key, "a byte string", type(content).__name__)
        if not keep_decoder:
            decoder = ChunkDecoder(shape, dtype, self._source)
            try:
                return decoder.decode(content, compression)
            finally:
                decoder.close()
        if self._decoder is None or (self._decoder.shape, self._decoder.dtype) != (shape, dtype):
            self.close()
            self._decoder = ChunkDecoder(shape, dtype, self._source)
        return self._decoder.decode(content, compression)

    def _read_compression(self, value: Any, dtype: np.dtype[Any], key: str) -> tuple[Compression, Any]:
        if not isinstance(value, list | tuple) or len(value) != 3 or value[0] not in ("bslz4", "lz4"):
            found = repr(value[0])[:40] if isinstance(value, list | tuple) and value else type(value).__name__
            raise self._make_error(key, "the compression 'bslz4' or 'lz4', or none", found)
        algorithm, element_bytes, content = value
        if algorithm == "bslz4" and element_bytes != dtype.itemsize:
            raise self._make_error(key, f"elements of {dtype.itemsize} bytes", repr(element_bytes)[:40])
        return algorithm, content

    def _read_series(self, message: dict[Any, Any]) -> str:
        series = message.get("series_unique_id", message.get("series_id"))
        if not isinstance(series, int | str):
            raise self._make_error("series_id", "the number of the series", repr(series)[:80])
        return str(series)[:200]

    def _make_error(self, key: str | None, expected: str, found: str, remedy: str | None = None) -> ScanError:
        return ScanError(
            self._source,
            key,
            expected=expected,
            found=found,
            remedy=remedy or "Check the port, and that the stream of the detector has the format 'cbor'.",
        )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _read_number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _read_rational(value: Any) -> float | None:
    """Read a number of seconds as [numerator, denominator]."""
    if not (_is_pair(value) and all(isinstance(part, int) for part in value)) or value[1] <= 0:
        return None
    return float(value[0] / value[1])
