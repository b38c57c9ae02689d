"""A connection over ZeroMQ that takes no more than it was made for, and that knows when ZeroMQ has given it up."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Any, Literal

__all__ = ["Connection", "ConnectionState"]

ConnectionState = Literal["absent", "connected", "foreign", "rejected"]
"""Nobody listens; somebody does; what listens does not speak as a source; a source sent what is not taken."""

# What ZeroMQ connects to again it says at once.
_RECONNECT_S = 0.3
# Messages of which two wait to be read, one arrives, and parts of others lie with the kernel.
_MAX_UNREAD_PARTS = 8
# Of Linux' tcp_info: bytes that have come.
_TCP_INFO_BYTES, _BYTES_RECEIVED_OFFSET = 256, 128


class Connection:
    """A socket that asks at an address, and what is known about the other side.

    A part that is too large has ZeroMQ close the connection: it says nothing of it, and does not connect again. The
    number of parts is not limited by ZeroMQ, which keeps all of a message until its last one is there; where the kernel
    counts what comes (TCP on Linux), `unread_bytes` tells how much that is.

    Arguments:
        zmq: the module.
        max_part_bytes: bytes of a part that is taken.
        max_waiting: messages that wait here to be read; the others wait where they come from.

    Raises:
        zmq.ZMQError: the address does not work.
    """

    def __init__(self, zmq: Any, address: str, *, max_part_bytes: int, max_waiting: int) -> None:
        self._zmq, self._address, self._max_waiting = zmq, address, max_waiting
        self._context = zmq.Context()
        self._is_foreign = False
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
            # Nothing is queued for a source that is not there.
            (zmq.IMMEDIATE, 1),
        ):
            self.socket.setsockopt(option, value)
        self._events = self.socket.get_monitor_socket(
            zmq.EVENT_CONNECTED
            | zmq.EVENT_HANDSHAKE_SUCCEEDED
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
        """Connect again, as another reader to the other side; what was on its way is lost."""
        self._close_socket(linger_ms=0)
        self._open(max_part_bytes or self.max_part_bytes)

    def close(self) -> None:
        """What was sent goes out, if it does within a moment."""
        self._close_socket(linger_ms=None)
        self._context.term()

    def poll_state(self) -> ConnectionState:
        """How the other side stands to this one now."""
        from zmq.utils.monitor import parse_monitor_message

        zmq = self._zmq
        while self._events.poll(0):
            told = parse_monitor_message(self._events.recv_multipart())
            if told["event"] == zmq.EVENT_CONNECTED:
                self._handle, self._handshake_done, self._disconnected_at, self._read_bytes = (
                    told["value"],
                    False,
                    None,
                    0,
                )
            elif told["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._handshake_done, self._is_foreign = True, False
            elif told["event"] == zmq.EVENT_DISCONNECTED:
                self._handle, self._disconnected_at, self._is_foreign = None, time.monotonic(), not self._handshake_done
            elif told["event"] == zmq.EVENT_CLOSED:
                self._is_foreign = False
            else:
                self._disconnected_at = None
        if self._disconnected_at is not None and time.monotonic() > self._disconnected_at + _RECONNECT_S:
            if self._handshake_done:
                return "rejected"
            # A source may take its place.
            self.reconnect()
        if self._is_foreign:
            return "foreign"
        return "absent" if self._handle is None else "connected"

    def mark_read(self) -> None:
        """A whole message has been."""
        self._read_bytes = self._count_received_bytes()

    def count_unread_bytes(self) -> int:
        """What has come since the last whole message was read; 0 where nobody counts it."""
        return self._count_received_bytes() - self._read_bytes

    @property
    def max_unread_bytes(self) -> int:
        """Beyond this a message is larger than any that was asked for."""
        return _MAX_UNREAD_PARTS * self.max_part_bytes

    def _count_received_bytes(self) -> int:
        if self._handle is None or not self._address.startswith("tcp:"):
            return 0
        # It belongs to ZeroMQ, which may have closed it meanwhile.
        with contextlib.suppress(OSError, AttributeError, struct.error):
            borrowed = socket.socket(fileno=self._handle)
            try:
                told = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            finally:
                borrowed.detach()
            return int(struct.unpack_from("=Q", told, _BYTES_RECEIVED_OFFSET)[0])
        return self._read_bytes

    def _close_socket(self, linger_ms: int | None) -> None:
        self.socket.disable_monitor()
        self._events.close()
        self.socket.close(linger_ms)
