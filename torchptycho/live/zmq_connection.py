"""A ZeroMQ connection with bounded memory that detects when ZeroMQ has closed it for good."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Any, Literal

from torchptycho.live.stream_keys import ReaderKeys

__all__ = ["Connection", "ConnectionState"]

ConnectionState = Literal["absent", "connected", "foreign", "refused", "rejected"]
"""State of the other side: "absent", nothing listens at the address; "connected", a ZeroMQ peer is connected;
"foreign", what listens does not complete the handshake; "refused", the source does not admit the key of this reader;
"rejected", ZeroMQ has closed the connection because of a part that is too large or unreadable."""

# If ZeroMQ reconnects after a disconnection, it says so within this time.
_RECONNECT_S = 0.3
# Two messages wait to be read, one arrives, and parts of others are in the kernel's buffers.
_MAX_UNREAD_PARTS = 8
# Size of Linux' struct tcp_info that is read, and the offset of tcpi_bytes_received in it.
_TCP_INFO_BYTES, _BYTES_RECEIVED_OFFSET = 256, 128


class Connection:
    """A requesting socket at an address, and the state of the other side.

    When a part is too large, ZeroMQ closes the connection without an error and does not reconnect. ZeroMQ does not
    limit the number of parts and keeps a message in memory until its last part has arrived; `count_unread_bytes`
    returns how much that is, where the kernel counts received bytes (TCP on Linux).

    Arguments:
        zmq: the module.
        max_part_bytes: largest part that is accepted.
        max_waiting: messages that are queued here; the others wait at their sender.
        keys: of an encrypted connection; None for a plain one.

    Raises:
        zmq.ZMQError: the address does not work.
    """

    def __init__(
        self, zmq: Any, address: str, *, max_part_bytes: int, max_waiting: int, keys: ReaderKeys | None = None
    ) -> None:
        self._zmq, self._address, self._max_waiting, self._keys = zmq, address, max_waiting, keys
        self._context = zmq.Context()
        self._is_foreign = self._is_refused = False
        try:
            self._open(max_part_bytes)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise

    def _open(self, max_part_bytes: int) -> None:
        zmq = self._zmq
        self.max_part_bytes = max_part_bytes
        self.socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 500),
            (zmq.MAXMSGSIZE, max_part_bytes),
            (zmq.RCVHWM, self._max_waiting),
            # Nothing is queued for a source that is not connected.
            (zmq.IMMEDIATE, 1),
        ):
            self.socket.setsockopt(option, value)
        if self._keys is not None:
            self.socket.curve_serverkey = self._keys.source
            self.socket.curve_publickey, self.socket.curve_secretkey = self._keys.public, self._keys.secret
        self._events = self.socket.get_monitor_socket(
            zmq.EVENT_CONNECTED
            | zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_CONNECT_RETRIED
            | zmq.EVENT_CLOSED
        )
        self._handle: int | None = None
        self._handshake_done = False
        self._disconnected_at: float | None = None
        self._read_bytes = 0
        self.socket.connect(self._address)

    def reconnect(self, max_part_bytes: int | None = None) -> None:
        """Connect again, under a new identity for the other side; messages on their way are lost."""
        self._close_socket(linger_ms=0)
        self._open(max_part_bytes or self.max_part_bytes)

    def close(self) -> None:
        """Close the connection; messages that were sent get 0.5 s to go out."""
        self._close_socket(linger_ms=None)
        self._context.term()

    def poll_state(self) -> ConnectionState:
        """Process the events of the connection and return the state of the other side."""
        from zmq.utils.monitor import parse_monitor_message

        zmq = self._zmq
        while self._events.poll(0):
            message = parse_monitor_message(self._events.recv_multipart())
            event = message["event"]
            if event == zmq.EVENT_CONNECTED:
                self._handle, self._handshake_done = message["value"], False
                self._disconnected_at, self._read_bytes = None, 0
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._handshake_done, self._is_foreign = True, False
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._is_refused = True
            elif event == zmq.EVENT_DISCONNECTED:
                self._handle, self._disconnected_at, self._is_foreign = None, time.monotonic(), not self._handshake_done
            elif event == zmq.EVENT_CLOSED:
                self._is_foreign = False
            else:
                self._disconnected_at = None
        if self._is_refused:
            return "refused"
        if self._disconnected_at is not None and time.monotonic() > self._disconnected_at + _RECONNECT_S:
            if self._handshake_done:
                return "rejected"
            # A source may listen there later.
            self.reconnect()
        if self._is_foreign:
            return "foreign"
        return "absent" if self._handle is None else "connected"

    def mark_read(self) -> None:
        """Record that a whole message has been read."""
        self._read_bytes = self._count_received_bytes()

    def count_unread_bytes(self) -> int:
        """Return the bytes received since the last whole message was read; 0 where the kernel does not count them."""
        return self._count_received_bytes() - self._read_bytes

    @property
    def max_unread_bytes(self) -> int:
        """Limit of the unread bytes; above it a message is larger than any that was requested."""
        return _MAX_UNREAD_PARTS * self.max_part_bytes

    def _count_received_bytes(self) -> int:
        if self._handle is None or not self._address.startswith("tcp:"):
            return 0
        # The handle belongs to ZeroMQ, which may have closed it in the meantime.
        with contextlib.suppress(OSError, AttributeError, struct.error):
            borrowed = socket.socket(fileno=self._handle)
            try:
                info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            finally:
                borrowed.detach()
            return int(struct.unpack_from("=Q", info, _BYTES_RECEIVED_OFFSET)[0])
        return self._read_bytes

    def _close_socket(self, linger_ms: int | None) -> None:
        self.socket.disable_monitor()
        self._events.close()
        self.socket.close(linger_ms)
