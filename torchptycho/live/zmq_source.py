"""A scan that comes over ZeroMQ."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.live.protocol import ASKED_BYTES, MOST_PARTS, ask_for_frames, ask_for_scan, frames_in, scan_in
from torchptycho.live.scan_header import Chunk, Description, Layout
from torchptycho.live.zmq_connection import Connection, Standing

__all__ = ["StreamSource", "is_address", "zmq_module"]

T = TypeVar("T")

_MOMENT_S, _AGAIN_S = 0.1, 2.0
# A source that is known to answer late is asked again later, up to so many times.
_MOST_PATIENCE = 32
# Answers that wait here to be read: the one that was asked for, and one to what was asked twice.
_ANSWERS = 2
# Bytes of a position, which may be more than those of its frame.
_POSITION_BYTES = 16


def is_address(text: str) -> bool:
    """Whether a text is a ZeroMQ address and not a file."""
    return text.startswith(("tcp://", "ipc://"))


def zmq_module() -> Any:
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
        zmq = zmq_module()
        port = address.rpartition(":")[2]
        # ZeroMQ takes it, and never connects.
        if address.startswith("tcp:") and port.isdecimal() and not 0 < int(port) < 1 << 16:
            raise ConfigError(f"{address}: expected a port from 1 to 65535; found {port}.")
        self.name = address
        self._zmq = zmq
        self._told: tuple[Description, Layout] | None = None
        self._pending: bytes | None = None
        self._asked_for = (-1, 0)
        self._asked_at = 0.0
        self._patience = 1
        self._heard_at = time.monotonic()
        self._standing: Standing = "nobody"
        try:
            self._line = Connection(zmq, address, largest_part=ASKED_BYTES, waiting=_ANSWERS)
        except zmq.ZMQError as error:
            raise ConfigError(
                f"{address}: expected an address such as tcp://127.0.0.1:5555; found one that does not work ({error})."
            ) from None

    def describe(self) -> Layout | None:
        self._told = self._answer(ask_for_scan(), lambda parts: scan_in(parts, self.name))
        if self._told is None:
            return None
        layout = self._told[1]
        if layout.frame_bytes > self._line.largest_part:
            self._line.renew(layout.frame_bytes)
        return layout

    def fetch(self, start: int, at_most: int) -> Chunk:
        assert self._told is not None
        told, layout = self._told
        # What is on its way already is waited for, though more might be asked for now.
        if self._asked_for[0] != start:
            most = ASKED_BYTES // max(layout.frame_bytes, _POSITION_BYTES)
            self._asked_for = (start, max(1, min(at_most, most)))
        asked = self._asked_for
        chunk = self._answer(ask_for_frames(*asked), lambda parts: frames_in(parts, told, layout, *asked, self.name))
        if chunk is None:
            return Chunk.empty(layout)
        if not len(chunk.frames):
            self._asked_for = (-1, 0)
        return chunk

    def waits_for(self) -> str | None:
        quiet_s = time.monotonic() - self._heard_at
        if quiet_s <= _AGAIN_S:
            return None
        if self._standing == "foreign":
            return f"what listens at {self.name} is no source of frames: look at the address, and at what is there"
        if self._standing == "there":
            return f"what listens at {self.name} has not answered for {quiet_s:.0f} s"
        return f"nobody answers at {self.name}"

    def close(self, received: int) -> None:
        with contextlib.suppress(self._zmq.ZMQError):
            # That all are safe; the answer is not waited for.
            self._line.socket.send(ask_for_frames(received, 0), self._zmq.DONTWAIT)
        self._line.close()

    def _answer(self, request: bytes, read: Callable[[list[bytes]], T | None]) -> T | None:
        """The answer to what is asked, or None when it has not come within a moment; to ask the same again waits on.

        Arguments:
            read: an answer; None where it is one to something else.
        """
        now = time.monotonic()
        self._look()
        if request != self._pending or now > self._asked_at + self._patience * _AGAIN_S:
            try:
                self._line.socket.send(request, self._zmq.DONTWAIT)
            except self._zmq.Again:
                self._pending = None
                time.sleep(_MOMENT_S / 2)
                return None
            self._pending, self._asked_at = request, now
        if not self._line.socket.poll(int(_MOMENT_S * 1000)):
            return None
        parts = self._parts()
        self._line.was_read()
        found = read(parts)
        self._heard_at = time.monotonic()
        if found is None:
            # A late answer to what was asked twice: the source is slow, and what is asked now is on its way.
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        else:
            self._pending = None
        return found

    def _look(self) -> None:
        """Take notice of a connection that ZeroMQ has given up, and of a message that does not end."""
        line = self._line
        self._standing = line.standing()
        if self._standing == "cut":
            raise ScanError(
                self.name,
                None,
                expected=f"parts of at most {line.largest_part} bytes, which hold what was asked for",
                found="a larger one, or one that ZeroMQ cannot read, so that it closed the connection",
                remedy="Answer with at most as many frames as are asked for ('at_most').",
            )
        if line.unread_bytes() > line.most_unread_bytes:
            raise ScanError(
                self.name,
                None,
                expected=f"answers of {MOST_PARTS} parts of at most {line.largest_part} bytes",
                found=f"{line.unread_bytes()} bytes without the end of one",
                remedy="Look at what is bound there; the format is described in docs/live.md.",
            )

    def _parts(self) -> list[bytes]:
        parts: list[bytes] = [self._line.socket.recv(self._zmq.DONTWAIT)]
        while self._line.socket.getsockopt(self._zmq.RCVMORE):
            if len(parts) == MOST_PARTS:
                raise ScanError(
                    self.name,
                    None,
                    expected=f"an answer of at most {MOST_PARTS} parts",
                    found="more",
                    remedy="The format is described in docs/live.md.",
                )
            parts.append(self._line.socket.recv(self._zmq.DONTWAIT))
        return parts
