"""Messages of the DECTRIS stream of version 1 (SIMPLON API, `legacy` format): JSON and blobs in multipart messages.

A series is a header, images and an end, each one message of several parts:

- `dheader-1.0`: `series`, `header_detail`; with detail `basic` a second part with the configuration; with `all` flat
  field, pixel mask and count-rate table follow, each as a part of JSON and a blob. A last part may hold an appendix.
- `dimage-1.0`: `series`, `frame`; then `dimage_d-1.0`: `shape` (width, height), `type`, `encoding`, `size`; then the
  blob; then `dconfig-1.0`: `start_time`, `stop_time`, `real_time` in nanoseconds; then perhaps an appendix.
- `dseries_end-1.0`: `series`.

The encoding is `[bs<bits>-][lz4]<`: bitshuffle with LZ4 has the header of the HDF5 filter, LZ4 alone is one bare block.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from torchptycho.core.errors import ScanError
from torchptycho.live.beamline.chunk_decoder import ChunkDecoder, Compression
from torchptycho.live.beamline.detector import (
    DetectorEvent,
    DetectorFrame,
    DetectorHeader,
    SeriesEnd,
    make_geometry,
)
from torchptycho.live.scan_header import parse_json

__all__ = ["MessagesV1"]

_MAX_PARTS = 16
_Edge = Annotated[int, Field(ge=1, le=1 << 16)]
# The detector sends more keys than are used here.
_part = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
_ENCODING = re.compile(r"(?:bs(8|16|32)-)?(lz4)?<")


@_part
class _Head:
    htype: str
    series: int
    header_detail: Literal["all", "basic", "none"] = "none"
    frame: Annotated[int, Field(ge=0, lt=1 << 53)] = 0


@_part
class _ImagePart:
    htype: Literal["dimage_d-1.0"]
    shape: tuple[_Edge, _Edge]
    type: Literal["uint8", "uint16", "uint32"]
    encoding: str
    size: Annotated[int, Field(ge=0)]


@_part
class _TimesPart:
    start_time: float | None = None
    stop_time: float | None = None


@_part
class _MaskPart:
    htype: str
    shape: tuple[_Edge, _Edge]
    type: Literal["uint32"]


@_part
class _Configuration:
    """The keys of a detector's configuration that are used here; lengths in metres."""

    nimages: Annotated[int, Field(ge=1)] | None = None
    ntrigger: Annotated[int, Field(ge=1)] = 1
    photon_energy: float | None = None
    wavelength: float | None = None
    detector_distance: float | None = None
    x_pixel_size: float | None = None


class MessagesV1:
    """Parser of the messages of one stream.

    Arguments:
        source: named in errors.
    """

    max_parts = _MAX_PARTS

    def __init__(self, source: str) -> None:
        self._source = source
        self._decoder: ChunkDecoder | None = None

    def close(self) -> None:
        """Release the memory of the decoder."""
        if self._decoder is not None:
            self._decoder.close()

    def parse(self, parts: list[bytes]) -> DetectorEvent:
        """Parse the parts of a message.

        Raises:
            ScanError: they are no message of this version.
        """
        head: _Head = self._parse(_Head, parts, 0, "a message of a DECTRIS stream of version 1")
        kind = head.htype.partition("-")[0]
        if kind == "dheader":
            return self._parse_header(head, parts)
        if kind == "dimage":
            return self._parse_image(head, parts)
        if kind == "dseries_end":
            return SeriesEnd(series=str(head.series))
        raise ScanError(
            self._source,
            "htype",
            expected="dheader-1.0, dimage-1.0 or dseries_end-1.0",
            found=repr(head.htype[:80]),
            remedy="Check the port, and that the stream of the detector has the format 'legacy'.",
        )

    def _parse_header(self, head: _Head, parts: list[bytes]) -> DetectorHeader:
        configuration = _Configuration()
        bad = None
        if head.header_detail != "none":
            configuration = self._parse(_Configuration, parts, 1, "the configuration of the detector")
        if head.header_detail == "all":
            bad = self._find_bad_pixels(parts[2:])
        total = None if configuration.nimages is None else configuration.nimages * configuration.ntrigger
        geometry = make_geometry(
            energy_eV=configuration.photon_energy,
            wavelength_angstrom=configuration.wavelength,
            distance_m=configuration.detector_distance,
            detector_pixel_m=configuration.x_pixel_size,
        )
        return DetectorHeader(series=str(head.series), total=total, bad_pixels=bad, geometry=geometry)

    def _find_bad_pixels(self, parts: list[bytes]) -> Bool[np.ndarray, "h w"] | None:
        for place in range(0, len(parts) - 1, 2):
            text = parts[place]
            if b"dpixelmask" not in text[:200]:
                continue
            described: _MaskPart = self._parse(_MaskPart, parts, place, "the description of a pixel mask")
            width, height = described.shape
            if len(parts[place + 1]) != 4 * width * height:
                raise ScanError(
                    self._source,
                    "pixel_mask",
                    expected=f"{4 * width * height} bytes",
                    found=f"{len(parts[place + 1])}",
                    remedy="Set header_detail to 'basic', and name a mask file in the section prepare.",
                )
            # Every bit of the mask means that the pixel is not to be used.
            return np.asarray(np.frombuffer(parts[place + 1], "<u4").reshape(height, width) != 0)
        return None

    def _parse_image(self, head: _Head, parts: list[bytes]) -> DetectorFrame:
        described: _ImagePart = self._parse(_ImagePart, parts, 1, "the description of an image (dimage_d-1.0)")
        dtype = np.dtype(described.type).newbyteorder("<")
        if len(parts) < 3 or len(parts[2]) != described.size:
            raise ScanError(
                self._source,
                f"image {head.frame}",
                expected=f"{described.size} bytes in the third part",
                found="none" if len(parts) < 3 else f"{len(parts[2])}",
                remedy="Check the program that sends this stream.",
            )
        compression = self._read_encoding(described, dtype)
        width, height = described.shape
        image = self._get_decoder((height, width), dtype).decode(parts[2], compression)
        times = _TimesPart()
        if len(parts) > 3 and parts[3]:
            times = self._parse(_TimesPart, parts, 3, "the times of an image (dconfig-1.0)")
        time_s = None
        if times.start_time is not None and times.stop_time is not None:
            time_s = (times.start_time + times.stop_time) / 2e9
        return DetectorFrame(number=head.frame, image=image, time_s=time_s, series=str(head.series))

    def _read_encoding(self, described: _ImagePart, dtype: np.dtype[Any]) -> Compression:
        found = _ENCODING.fullmatch(described.encoding)
        shuffled_bits, compressed = found.groups() if found else (None, None)
        if found is None or (shuffled_bits and (not compressed or int(shuffled_bits) != 8 * dtype.itemsize)):
            raise ScanError(
                self._source,
                "encoding",
                expected=f"'<', 'lz4<' or 'bs{8 * dtype.itemsize}-lz4<' for {described.type}",
                found=repr(described.encoding[:40]),
                remedy="Set the detector's compression to bslz4 or lz4.",
            )
        return "bslz4" if shuffled_bits else "lz4-block" if compressed else "none"

    def _get_decoder(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> ChunkDecoder:
        if self._decoder is None or (self._decoder.shape, self._decoder.dtype) != (shape, dtype):
            self.close()
            self._decoder = ChunkDecoder(shape, dtype, self._source)
        return self._decoder

    def _parse(self, kind: type, parts: list[bytes], place: int, what: str) -> Any:
        if len(parts) <= place:
            raise ScanError(
                self._source,
                None,
                expected=f"{what} in part {place}",
                found=f"{len(parts)} parts",
                remedy="Check the program that sends this stream.",
            )
        return parse_json(kind, parts[place], self._source, what)
