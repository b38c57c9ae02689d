"""What a stream and the one who reads it say to each other, over ZeroMQ: JSON and raw numbers.

The source is bound (ROUTER), its reader connects (DEALER, or REQ). The reader asks `{"torchptycho": 1, "ask": "scan"}`,
and the source answers with a `layout.Description`. Then the reader asks for frames,

    {"torchptycho": 1, "from": 512, "at_most": 256}

which also says that all frames before these are safe on its side. The source answers in three parts:

    {"torchptycho": 1, "from": 512, "count": 200, "end": false}

the frames, `count` times N * N numbers of the dtype in the description, row by row; and the positions (y, x), `count`
times two float64, little-endian. Without new frames `count` is 0, at once, and the reader asks again. `end` says that
no frame comes after these. A source that goes on to another scan adds `"scan"`, as in its description, so that frames
of two scans are not mixed. What cannot be answered is answered by `{"torchptycho": 1, "error": "why"}`.
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
"""Of a frame that is taken."""
MAX_REQUESTED_BYTES = 8 << 20
"""Of a part that is taken, unless a single frame has more: no more is asked for, and no description has as many."""
MAX_PARTS = 3
"""Of an answer: header, frames, positions."""
_FrameNumber = Annotated[int, Field(ge=0, lt=1 << 53)]


@validated_dataclass
class StreamRequest:
    """What a reader asks for: the scan, or frames."""

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
    return json.dumps({"torchptycho": 1, "ask": "scan"}).encode()


def make_frames_request(start: int, at_most: int) -> bytes:
    return json.dumps({"torchptycho": 1, "from": start, "at_most": at_most}).encode()


def make_frames_answer(start: int, chunk: Chunk, scan: str) -> list[bytes]:
    """The three parts."""
    header = {"torchptycho": 1, "from": start, "count": len(chunk.frames), "end": chunk.end, "scan": scan}
    frames = np.ascontiguousarray(chunk.frames, chunk.frames.dtype.newbyteorder("<"))
    positions = np.ascontiguousarray(chunk.positions_px, "<f8")
    return [json.dumps(header).encode(), frames.tobytes(), positions.tobytes()]


def parse_scan_answer(parts: list[bytes], source: str) -> tuple[StreamHeader, ScanLayout] | None:
    """The description in an answer; None for an answer to something else.

    Raises:
        ScanError: it is not one, or the source refuses.
    """
    if len(parts) == MAX_PARTS:
        return None
    _parse_single_part(parts, source)
    told: StreamHeader = parse_json(StreamHeader, parts[0], source, "a description of a scan")
    layout = ScanLayout.from_header(told, source)
    if layout.frame_bytes > MAX_FRAME_BYTES:
        raise ScanError(
            source,
            "n_px",
            expected=f"frames of at most {MAX_FRAME_BYTES} bytes",
            found=f"{layout.frame_bytes}",
            remedy="Cut or bin them before they are sent.",
        )
    convert_to_pixels(np.zeros((0, 2)), told.positions_unit, layout.geometry, layout.n_px, source)
    return told, dataclasses.replace(layout, geometry=add_object_pixel(layout.geometry, layout.n_px, source))


def parse_frames_answer(
    parts: list[bytes], told: StreamHeader, layout: ScanLayout, start: int, at_most: int, source: str
) -> Chunk | None:
    """The frames in an answer; None for an answer to something else.

    Raises:
        ScanError: sizes do not fit, or the source refuses; the frames at fault are named.
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
    which = f"frames {start} to {start + count - 1}" if count else f"no frames at {start}"
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
                expected=f"{count * size} bytes for {which}",
                found=f"{len(part)}",
                remedy=f"Send N * N numbers {layout.dtype.str} for each frame, and two float64 (y, x).",
            )
    frames = np.frombuffer(parts[1], layout.dtype).reshape(count, layout.n_px, layout.n_px)
    positions = np.frombuffer(parts[2], "<f8").reshape(count, 2).astype(np.float64)
    placed = convert_to_pixels(positions, told.positions_unit, layout.geometry, layout.n_px, source)
    return Chunk(frames=frames, positions_px=placed, end=header.end)


def _parse_single_part(parts: list[bytes], source: str) -> dict[str, object]:
    """Raise what a source answers that refuses, or an answer that is none; what it says otherwise."""
    if len(parts) != 1:
        raise ScanError(
            source,
            None,
            expected="an answer of one part",
            found=f"{len(parts)}",
            remedy="The format is described in docs/live.md.",
        )
    said: dict[str, object] = parse_json(dict, parts[0], source, "an answer in JSON")
    if "error" in said:
        refusal: _ErrorAnswer = parse_json(_ErrorAnswer, parts[0], source, "why something is refused")
        raise ScanError(
            source, None, expected="frames", found=f"a refusal: {refusal.error}", remedy="Look at the source."
        )
    return said
