"""Messages between a source of frames and its reader over ZeroMQ: JSON headers and raw arrays.

The source binds a ROUTER socket; the reader connects a DEALER or REQ socket. The reader requests
`{"torchptycho": 1, "ask": "scan"}`, and the source answers with a `StreamHeader`. Then the reader requests frames,

    {"torchptycho": 1, "from": 512, "at_most": 256}

which also acknowledges that all earlier frames are stored. The source answers in three parts: a header,

    {"torchptycho": 1, "from": 512, "count": 200, "end": false}

the frames, `count` times N * N numbers of the dtype in the `StreamHeader`, row by row; and the positions (y, x),
`count` times two float64, little-endian. If there are no new frames the source answers immediately with `count` 0, and
the reader asks again. `end` is true when no frame follows these. A source that continues with another scan adds
`"scan"`, as in its `StreamHeader`, so that frames of two scans are not mixed. The answer to a request that cannot be
answered is `{"torchptycho": 1, "error": "reason"}`.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from torchptycho.core.config.base import validated_dataclass
from torchptycho.core.errors import ScanError
from torchptycho.live.scan_header import (
    Chunk,
    ScanLayout,
    StreamHeader,
    add_object_pixel,
    convert_to_pixels,
    parse_json,
)

__all__ = [
    "MAX_FRAME_BYTES",
    "MAX_PARTS",
    "MAX_REQUESTED_BYTES",
    "StreamRequest",
    "make_frames_answer",
    "make_frames_request",
    "make_scan_request",
    "parse_frames_answer",
    "parse_scan_answer",
]

MAX_FRAME_BYTES = 64 << 20
"""The largest frame that is accepted."""
MAX_REQUESTED_BYTES = 8 << 20
"""The largest part of a message that is accepted, unless a single frame is larger; requests and headers stay below."""
MAX_PARTS = 3
"""Parts of an answer: header, frames, positions."""
_FrameNumber = Annotated[int, Field(ge=0, lt=1 << 53)]


@validated_dataclass
class StreamRequest:
    """A request of a reader: for the scan, or for frames."""

    torchptycho: Literal[1]
    ask: Literal["scan", "frames"] = "frames"
    start: Annotated[_FrameNumber, Field(alias="from")] = 0
    at_most: _FrameNumber = 0


@validated_dataclass
class _FramesHeader:
    torchptycho: Literal[1]
    start: Annotated[_FrameNumber, Field(alias="from")]
    count: _FrameNumber
    end: bool
    scan: str | None = None


@validated_dataclass
class _ErrorAnswer:
    torchptycho: Literal[1]
    error: Annotated[str, Field(max_length=2000)]


def make_scan_request() -> bytes:
    """Write the request for the scan's `StreamHeader`."""
    return json.dumps({"torchptycho": 1, "ask": "scan"}).encode()


def make_frames_request(start: int, at_most: int) -> bytes:
    """Write the request for frames from number `start` on, which acknowledges the frames before it."""
    return json.dumps({"torchptycho": 1, "from": start, "at_most": at_most}).encode()


def make_frames_answer(start: int, chunk: Chunk, scan: str) -> list[bytes]:
    """Write the three parts of an answer: header, frames, positions."""
    header = {"torchptycho": 1, "from": start, "count": len(chunk.frames), "end": chunk.end, "scan": scan}
    frames = np.ascontiguousarray(chunk.frames, chunk.frames.dtype.newbyteorder("<"))
    positions = np.ascontiguousarray(chunk.positions_px, "<f8")
    return [json.dumps(header).encode(), frames.tobytes(), positions.tobytes()]


def parse_scan_answer(parts: list[bytes], source: str) -> tuple[StreamHeader, ScanLayout] | None:
    """Parse the header and layout of the scan in an answer; return None for an answer to another request.

    Raises:
        ScanError: the answer is invalid, or the source reports an error.
    """
    if len(parts) == MAX_PARTS:
        return None
    _parse_single_part(parts, source)
    header: StreamHeader = parse_json(StreamHeader, parts[0], source, "a description of a scan")
    layout = ScanLayout.from_header(header, source)
    if layout.frame_bytes > MAX_FRAME_BYTES:
        raise ScanError(
            source,
            "n_px",
            expected=f"frames of at most {MAX_FRAME_BYTES} bytes",
            found=f"{layout.frame_bytes}",
            remedy="Crop or bin them before they are sent.",
        )
    convert_to_pixels(np.zeros((0, 2)), header.positions_unit, layout.geometry, layout.n_px, source)
    return header, dataclasses.replace(layout, geometry=add_object_pixel(layout.geometry, layout.n_px, source))


def parse_frames_answer(
    parts: list[bytes], scan_header: StreamHeader, layout: ScanLayout, start: int, at_most: int, source: str
) -> Chunk | None:
    """Parse the frames in an answer; return None for an answer to another request.

    Raises:
        ScanError: sizes do not match (the frames are named), or the source reports an error.
    """
    if len(parts) != MAX_PARTS:
        if "scan" in _parse_single_part(parts, source):
            return None
        raise ScanError(
            source,
            None,
            expected="an answer of three parts: header, frames, positions",
            found=f"{len(parts)}",
            remedy="The format is described in docs/live.md.",
        )
    header: _FramesHeader = parse_json(_FramesHeader, parts[0], source, "the header of an answer")
    if header.start != start:
        return None
    if header.scan not in (None, layout.scan):
        raise ScanError(
            source,
            "scan",
            expected=f"frames of '{layout.scan}'",
            found=f"those of '{header.scan}'",
            remedy="Another scan has begun: watch it in a folder of its own.",
        )
    count = header.count
    frame_range = f"frames {start} to {start + count - 1}" if count else f"no frames at {start}"
    if count > at_most:
        raise ScanError(
            source,
            "count",
            expected=f"at most {at_most} frames, as asked for",
            found=f"{count}",
            remedy="Answer with fewer.",
        )
    for name, part, size in (("frames", parts[1], layout.frame_bytes), ("positions", parts[2], 16)):
        if len(part) != count * size:
            raise ScanError(
                source,
                name,
                expected=f"{count * size} bytes for {frame_range}",
                found=f"{len(part)}",
                remedy=f"Send N * N numbers {layout.dtype.str} for each frame, and two float64 (y, x).",
            )
    frames = np.frombuffer(parts[1], layout.dtype).reshape(count, layout.n_px, layout.n_px)
    positions = np.frombuffer(parts[2], "<f8").reshape(count, 2).astype(np.float64)
    positions_px = convert_to_pixels(positions, scan_header.positions_unit, layout.geometry, layout.n_px, source)
    return Chunk(frames=frames, positions_px=positions_px, end=header.end)


def _parse_single_part(parts: list[bytes], source: str) -> dict[str, object]:
    """Parse an answer of one part.

    Raises:
        ScanError: the answer is not one JSON object, or the source reports an error.
    """
    if len(parts) != 1:
        raise ScanError(
            source,
            None,
            expected="an answer of one part",
            found=f"{len(parts)}",
            remedy="The format is described in docs/live.md.",
        )
    answer: dict[str, object] = parse_json(dict, parts[0], source, "an answer in JSON")
    if "error" in answer:
        refusal: _ErrorAnswer = parse_json(_ErrorAnswer, parts[0], source, "an error message")
        raise ScanError(
            source, None, expected="frames", found=f"a refusal: {refusal.error}", remedy="Check the source."
        )
    return answer
