"""A scan that comes over ZeroMQ."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.live.protocol import (
    MAX_PARTS,
    MAX_REQUESTED_BYTES,
    make_frames_request,
    make_scan_request,
    parse_frames_answer,
    parse_scan_answer,
)
from torchptycho.live.scan_header import Chunk, ScanLayout, StreamHeader
from torchptycho.live.zmq_connection import Connection, ConnectionState

__all__ = ["StreamSource", "import_zmq", "is_stream_address"]

T = TypeVar("T")

_POLL_S, _RETRY_S = 0.1, 2.0
# A source that is known to answer late is asked again later, up to so many times.
_MAX_RETRY_FACTOR = 32
# Answers that wait here to be read: the one that was asked for, and one to what was asked twice.
_MAX_WAITING_ANSWERS = 2
# Bytes of a position, which may be more than those of its frame.
_POSITION_BYTES = 16


def is_stream_address(text: str) -> bool:
    """Whether a text is a ZeroMQ address and not a file."""
    return text.startswith(("tcp://", "ipc://"))


def import_zmq() -> Any:
    """pyzmq.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import zmq
    except ImportError:
        raise ConfigError("streams need pyzmq, which is not installed: pip install 'torchptycho[live]'.") from None
    return zmq


class StreamSource:
    """Frames from the address to which a source is bound; see `messages`.

    The source may start later than its reader, end and start again: what was asked for is asked for again. Of what it
    sends unasked two messages wait here, and the others with it. A part that is larger than what was asked for, or over
    TCP a message that has no end, is an error. (A file's address, ipc://, is one of this machine's; over it the parts
    of a message are not counted.)
    """

    idle_s: float | None = None

    def __init__(self, address: str) -> None:
        zmq = import_zmq()
        port = address.rpartition(":")[2]
        # ZeroMQ takes it, and never connects.
        if address.startswith("tcp:") and port.isdecimal() and not 0 < int(port) < 1 << 16:
            raise ConfigError(f"{address}: expected a port from 1 to 65535; found {port}.")
        self.name = address
        self._zmq = zmq
        self._header_and_layout: tuple[StreamHeader, ScanLayout] | None = None
        self._pending_request: bytes | None = None
        self._requested_range = (-1, 0)
        self._requested_at = 0.0
        self._retry_factor = 1
        self._last_answer_at = time.monotonic()
        self._state: ConnectionState = "absent"
        try:
            self._connection = Connection(
                zmq, address, max_part_bytes=MAX_REQUESTED_BYTES, max_waiting=_MAX_WAITING_ANSWERS
            )
        except zmq.ZMQError as error:
            raise ConfigError(
                f"{address}: expected an address such as tcp://127.0.0.1:5555; found one that does not work ({error})."
            ) from None

    def describe(self) -> ScanLayout | None:
        self._header_and_layout = self._request_answer(
            make_scan_request(), lambda parts: parse_scan_answer(parts, self.name)
        )
        if self._header_and_layout is None:
            return None
        layout = self._header_and_layout[1]
        if layout.frame_bytes > self._connection.max_part_bytes:
            self._connection.reconnect(layout.frame_bytes)
        return layout

    def fetch(self, start: int, at_most: int) -> Chunk:
        assert self._header_and_layout is not None
        told, layout = self._header_and_layout
        # What is on its way already is waited for, though more might be asked for now.
        if self._requested_range[0] != start:
            most = MAX_REQUESTED_BYTES // max(layout.frame_bytes, _POSITION_BYTES)
            self._requested_range = (start, max(1, min(at_most, most)))
        asked = self._requested_range
        chunk = self._request_answer(
            make_frames_request(*asked), lambda parts: parse_frames_answer(parts, told, layout, *asked, self.name)
        )
        if chunk is None:
            return Chunk.empty(layout)
        if not len(chunk.frames):
            self._requested_range = (-1, 0)
        return chunk

    def explain_wait(self) -> str | None:
        quiet_s = time.monotonic() - self._last_answer_at
        if quiet_s <= _RETRY_S:
            return None
        if self._state == "foreign":
            return f"what listens at {self.name} is no source of frames: look at the address, and at what is there"
        if self._state == "connected":
            return f"what listens at {self.name} has not answered for {quiet_s:.0f} s"
        return f"nobody answers at {self.name}"

    def close(self, received: int) -> None:
        with contextlib.suppress(self._zmq.ZMQError):
            # That all are safe; the answer is not waited for.
            self._connection.socket.send(make_frames_request(received, 0), self._zmq.DONTWAIT)
        self._connection.close()

    def _request_answer(self, request: bytes, read: Callable[[list[bytes]], T | None]) -> T | None:
        """The answer to what is asked, or None when it has not come within a moment; to ask the same again waits on.

        Arguments:
            read: an answer; None where it is one to something else.
        """
        now = time.monotonic()
        self._check_connection()
        if request != self._pending_request or now > self._requested_at + self._retry_factor * _RETRY_S:
            try:
                self._connection.socket.send(request, self._zmq.DONTWAIT)
            except self._zmq.Again:
                self._pending_request = None
                time.sleep(_POLL_S / 2)
                return None
            self._pending_request, self._requested_at = request, now
        if not self._connection.socket.poll(int(_POLL_S * 1000)):
            return None
        parts = self._receive_parts()
        self._connection.mark_read()
        found = read(parts)
        self._last_answer_at = time.monotonic()
        if found is None:
            # A late answer to what was asked twice: the source is slow, and what is asked now is on its way.
            self._retry_factor = min(2 * self._retry_factor, _MAX_RETRY_FACTOR)
        else:
            self._pending_request = None
        return found

    def _check_connection(self) -> None:
        """Take notice of a connection that ZeroMQ has given up, and of a message that does not end."""
        line = self._connection
        self._state = line.poll_state()
        if self._state == "rejected":
            raise ScanError(
                self.name,
                None,
                expected=f"parts of at most {line.max_part_bytes} bytes, which hold what was asked for",
                found="a larger one, or one that ZeroMQ cannot read, so that it closed the connection",
                remedy="Answer with at most as many frames as are asked for ('at_most').",
            )
        if line.count_unread_bytes() > line.max_unread_bytes:
            raise ScanError(
                self.name,
                None,
                expected=f"answers of {MAX_PARTS} parts of at most {line.max_part_bytes} bytes",
                found=f"{line.count_unread_bytes()} bytes without the end of one",
                remedy="Look at what is bound there; the format is described in docs/live.md.",
            )

    def _receive_parts(self) -> list[bytes]:
        parts: list[bytes] = [self._connection.socket.recv(self._zmq.DONTWAIT)]
        while self._connection.socket.getsockopt(self._zmq.RCVMORE):
            if len(parts) == MAX_PARTS:
                raise ScanError(
                    self.name,
                    None,
                    expected=f"an answer of at most {MAX_PARTS} parts",
                    found="more",
                    remedy="The format is described in docs/live.md.",
                )
            parts.append(self._connection.socket.recv(self._zmq.DONTWAIT))
        return parts
