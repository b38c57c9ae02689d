"""A connection over ZeroMQ that takes no more than it was made for, and that knows when ZeroMQ has given it up."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Any, Literal

__all__ = ["Connection", "Standing"]

Standing = Literal["nobody", "there", "foreign", "cut"]
"""Nobody listens; somebody does; what listens does not speak as a source; a source sent what is not taken."""

# What ZeroMQ connects to again it says at once.
_SAID_S = 0.3
# Messages of which two wait to be read, one arrives, and parts of others lie with the kernel.
_UNREAD = 8
# Of Linux' tcp_info: bytes that have come.
_TCP_INFO_BYTES, _RECEIVED_AT = 256, 128


class Connection:
    """A socket that asks at an address, and what is known about the other side.

    A part that is too large has ZeroMQ close the connection: it says nothing of it, and does not connect again. The
    number of parts is not limited by ZeroMQ, which keeps all of a message until its last one is there; where the kernel
    counts what comes (TCP on Linux), `unread_bytes` tells how much that is.

    Arguments:
        zmq: the module.
        largest_part: bytes of a part that is taken.
        waiting: messages that wait here to be read; the others wait where they come from.

    Raises:
        zmq.ZMQError: the address does not work.
    """

    def __init__(self, zmq: Any, address: str, *, largest_part: int, waiting: int) -> None:
        self._zmq, self._address, self._waiting = zmq, address, waiting
        self._context = zmq.Context()
        self._strange = False
        try:
            self._open(largest_part)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise

    def _open(self, largest_part: int) -> None:
        zmq = self._zmq
        self.largest_part = largest_part
        self.socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 500),
            (zmq.MAXMSGSIZE, largest_part),
            (zmq.RCVHWM, self._waiting),
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
        self._spoke = False
        self._lost_at: float | None = None
        self._read_bytes = 0
        self.socket.connect(self._address)

    def renew(self, largest_part: int | None = None) -> None:
        """Connect again, as another reader to the other side; what was on its way is lost."""
        self._shut(linger_ms=0)
        self._open(largest_part or self.largest_part)

    def close(self) -> None:
        """What was sent goes out, if it does within a moment."""
        self._shut(linger_ms=None)
        self._context.term()

    def standing(self) -> Standing:
        """How the other side stands to this one now."""
        from zmq.utils.monitor import parse_monitor_message

        zmq = self._zmq
        while self._events.poll(0):
            told = parse_monitor_message(self._events.recv_multipart())
            if told["event"] == zmq.EVENT_CONNECTED:
                self._handle, self._spoke, self._lost_at, self._read_bytes = told["value"], False, None, 0
            elif told["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._spoke, self._strange = True, False
            elif told["event"] == zmq.EVENT_DISCONNECTED:
                self._handle, self._lost_at, self._strange = None, time.monotonic(), not self._spoke
            elif told["event"] == zmq.EVENT_CLOSED:
                self._strange = False
            else:
                self._lost_at = None
        if self._lost_at is not None and time.monotonic() > self._lost_at + _SAID_S:
            if self._spoke:
                return "cut"
            # A source may take its place.
            self.renew()
        if self._strange:
            return "foreign"
        return "nobody" if self._handle is None else "there"

    def was_read(self) -> None:
        """A whole message has been."""
        self._read_bytes = self._received()

    def unread_bytes(self) -> int:
        """What has come since the last whole message was read; 0 where nobody counts it."""
        return self._received() - self._read_bytes

    @property
    def most_unread_bytes(self) -> int:
        """Beyond this a message is larger than any that was asked for."""
        return _UNREAD * self.largest_part

    def _received(self) -> int:
        if self._handle is None or not self._address.startswith("tcp:"):
            return 0
        # It belongs to ZeroMQ, which may have closed it meanwhile.
        with contextlib.suppress(OSError, AttributeError, struct.error):
            borrowed = socket.socket(fileno=self._handle)
            try:
                told = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            finally:
                borrowed.detach()
            return int(struct.unpack_from("=Q", told, _RECEIVED_AT)[0])
        return self._read_bytes

    def _shut(self, linger_ms: int | None) -> None:
        self.socket.disable_monitor()
        self._events.close()
        self.socket.close(linger_ms)
