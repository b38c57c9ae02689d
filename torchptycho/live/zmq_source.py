"""Source of frames over ZeroMQ."""

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
from torchptycho.live.stream_keys import ReaderKeys, require_keys
from torchptycho.live.zmq_connection import Connection, ConnectionState

__all__ = ["StreamSource", "import_zmq", "is_stream_address"]

T = TypeVar("T")

_POLL_S, _RETRY_S = 0.1, 2.0
# The retry interval doubles for a source that answers late, up to this factor.
_MAX_RETRY_FACTOR = 32
# Answers that are queued here: the requested one, and one to a repeated request.
_MAX_WAITING_ANSWERS = 2
# Bytes of a position, which may be more than the bytes of its frame.
_POSITION_BYTES = 16


def is_stream_address(text: str) -> bool:
    """Check whether a text is a ZeroMQ address and not a file."""
    return text.startswith(("tcp://", "ipc://"))


def import_zmq() -> Any:
    """Import and return pyzmq.

    Raises:
        ConfigError: pyzmq is not installed.
    """
    try:
        import zmq
    except ImportError:
        raise ConfigError("streams need pyzmq, which is not installed: pip install 'torchptycho[live]'.") from None
    return zmq


class StreamSource:
    """Frames from an address that a source has bound; see `protocol`.

    The source may start later than its reader, and may end and start again: requests are repeated. At most two messages
    that were not requested are queued here; the others wait at the source. A part that is larger than what was
    requested is an error, and so is an endless message over TCP. (Over ipc://, which connects processes of one machine,
    the bytes of a message are not counted.)

    Arguments:
        keys: of an encrypted connection, which an address of another machine needs.

    Raises:
        ConfigError: the address does not work or needs keys, or pyzmq is not installed.
    """

    idle_s: float | None = None

    def __init__(self, address: str, keys: ReaderKeys | None = None) -> None:
        zmq = import_zmq()
        port = address.rpartition(":")[2]
        # ZeroMQ accepts such a port and never connects.
        if address.startswith("tcp:") and port.isdecimal() and not 0 < int(port) < 1 << 16:
            raise ConfigError(f"{address}: expected a port from 1 to 65535; found {port}.")
        require_keys(address, keys, "--key and --source-key")
        self.name = address
        self._zmq, self._keys = zmq, keys
        self._header_and_layout: tuple[StreamHeader, ScanLayout] | None = None
        self._pending_request: bytes | None = None
        self._requested_range = (-1, 0)
        self._requested_at = 0.0
        self._retry_factor = 1
        self._last_answer_at = time.monotonic()
        self._state: ConnectionState = "absent"
        try:
            self._connection = Connection(
                zmq, address, max_part_bytes=MAX_REQUESTED_BYTES, max_waiting=_MAX_WAITING_ANSWERS, keys=keys
            )
        except zmq.ZMQError as error:
            raise ConfigError(
                f"{address}: expected an address such as tcp://127.0.0.1:5555; found one that does not work ({error})."
            ) from None

    def describe(self) -> ScanLayout | None:
        """Request the layout of the scan; return None if the source has not answered within 0.1 s.

        Raises:
            ScanError: the answer is invalid, or the source reports an error.
        """
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
        """Request frames from number `start` on; return an empty chunk if the source has not answered within 0.1 s.

        Raises:
            ScanError: the answer is invalid or belongs to another scan, or the source reports an error.
        """
        assert self._header_and_layout is not None
        header, layout = self._header_and_layout
        # A request that is on its way is not replaced, although a larger one may be possible now.
        if self._requested_range[0] != start:
            most = MAX_REQUESTED_BYTES // max(layout.frame_bytes, _POSITION_BYTES)
            self._requested_range = (start, max(1, min(at_most, most)))
        requested = self._requested_range
        chunk = self._request_answer(
            make_frames_request(*requested),
            lambda parts: parse_frames_answer(parts, header, layout, *requested, self.name),
        )
        if chunk is None:
            return Chunk.empty(layout)
        if not len(chunk.frames):
            self._requested_range = (-1, 0)
        return chunk

    def explain_wait(self) -> str | None:
        """Explain why no answer comes; None while answers come."""
        quiet_s = time.monotonic() - self._last_answer_at
        if quiet_s <= _RETRY_S:
            return None
        if self._state == "foreign":
            reason = "check the address and the program"
            if self._keys is not None:
                reason += ", and whether it has the key that --source-key names"
            return f"the program at {self.name} is not a frame source: {reason}"
        if self._state == "connected":
            return f"the program at {self.name} has not answered for {quiet_s:.0f} s"
        return f"no answer from {self.name}"

    def close(self, received: int) -> None:
        """Acknowledge the received frames and close the connection."""
        with contextlib.suppress(self._zmq.ZMQError):
            # A request for frames acknowledges the earlier ones; its answer is not awaited.
            self._connection.socket.send(make_frames_request(received, 0), self._zmq.DONTWAIT)
        self._connection.close()

    def _request_answer(self, request: bytes, parse: Callable[[list[bytes]], T | None]) -> T | None:
        """Send a request and return its answer, or None after 0.1 s; a call with the same request continues to wait.

        Arguments:
            parse: turns the parts of an answer into a value; None for an answer to another request.
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
        answer = parse(parts)
        self._last_answer_at = time.monotonic()
        if answer is None:
            # A late answer to a repeated request: the source is slow, and the present request is on its way.
            self._retry_factor = min(2 * self._retry_factor, _MAX_RETRY_FACTOR)
        else:
            self._pending_request = None
        return answer

    def _check_connection(self) -> None:
        """Raise an error if ZeroMQ has closed the connection for good, or if a message does not end."""
        connection = self._connection
        self._state = connection.poll_state()
        if self._state == "refused":
            raise ScanError(
                self.name,
                None,
                expected="a source that admits the key of this reader (--key)",
                found="that it refuses it",
                remedy="Copy the public key (.key) into the folder that the source names with --allow, and start it "
                "again.",
            )
        if self._state == "rejected":
            raise ScanError(
                self.name,
                None,
                expected=f"parts of at most {connection.max_part_bytes} bytes, which hold what was requested",
                found="a larger one, or one that ZeroMQ cannot read, so that it closed the connection",
                remedy="Answer with at most as many frames as are requested ('at_most').",
            )
        if connection.count_unread_bytes() > connection.max_unread_bytes:
            raise ScanError(
                self.name,
                None,
                expected=f"answers of {MAX_PARTS} parts of at most {connection.max_part_bytes} bytes",
                found=f"{connection.count_unread_bytes()} bytes without the end of one",
                remedy="Check the program at that address; the format is described in docs/live.md.",
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
