"""A scan that comes over ZeroMQ."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

from torchptycho.errors import ConfigError, ScanError
from torchptycho.live.layout import Chunk, Description, Layout
from torchptycho.live.messages import (
    LARGEST_PART_BYTES,
    MOST_PARTS,
    ask_for_frames,
    ask_for_scan,
    frames_in,
    scan_in,
)

__all__ = ["StreamSource", "is_address", "zmq_module"]

T = TypeVar("T")

_MOMENT_S, _AGAIN_S = 0.1, 2.0
# A source that is known to answer late is asked again later, up to so many times.
_MOST_PATIENCE = 32
# Answers that wait here to be read: the one that was asked for, and one to what was asked twice.
_ANSWERS = 2
# Half of what a part may hold, so that an answer of a whole chunk is always taken.
_CHUNK_BYTES = LARGEST_PART_BYTES // 2


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
    sends unasked two messages wait here, and the others with it. ZeroMQ takes a message as a whole, however many parts
    it has, before any can be read and refused: a source is trusted not to send one without an end.
    """

    idle_s: float | None = None

    def __init__(self, address: str) -> None:
        zmq = zmq_module()
        self.name = address
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_PART_BYTES)
        self._socket.setsockopt(zmq.RCVHWM, _ANSWERS)
        # Nothing is queued for a source that is not there.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._zmq = zmq
        self._told: tuple[Description, Layout] | None = None
        self._pending: bytes | None = None
        self._asked_for = (-1, 0)
        self._asked_at = 0.0
        self._patience = 1
        self._heard_at = time.monotonic()
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigError(
                f"{address}: expected an address such as tcp://127.0.0.1:5555; found one that does not work ({error})."
            ) from None

    def describe(self) -> Layout | None:
        self._told = self._answer(ask_for_scan(), lambda parts: scan_in(parts, self.name))
        return None if self._told is None else self._told[1]

    def fetch(self, start: int, at_most: int) -> Chunk:
        assert self._told is not None
        told, layout = self._told
        # What is on its way already is waited for, though more might be asked for now.
        if self._asked_for[0] != start:
            self._asked_for = (start, max(1, min(at_most, _CHUNK_BYTES // layout.frame_bytes)))
        asked = self._asked_for
        chunk = self._answer(ask_for_frames(*asked), lambda parts: frames_in(parts, told, layout, *asked, self.name))
        if chunk is None:
            return Chunk.empty(layout)
        if not len(chunk.frames):
            self._asked_for = (-1, 0)
        return chunk

    def waits_for(self) -> str | None:
        quiet_s = time.monotonic() - self._heard_at
        return f"nobody answers at {self.name}" if quiet_s > _AGAIN_S else None

    def close(self, received: int) -> None:
        with contextlib.suppress(self._zmq.ZMQError):
            # That all are safe; the answer is not waited for.
            self._socket.send(ask_for_frames(received, 0), self._zmq.DONTWAIT)
        self._socket.close()
        self._context.term()

    def _answer(self, request: bytes, read: Callable[[list[bytes]], T | None]) -> T | None:
        """The answer to what is asked, or None when it has not come within a moment; to ask the same again waits on.

        Arguments:
            read: an answer; None where it is one to something else.
        """
        now = time.monotonic()
        if request != self._pending or now > self._asked_at + self._patience * _AGAIN_S:
            try:
                self._socket.send(request, self._zmq.DONTWAIT)
            except self._zmq.Again:
                self._pending = None
                time.sleep(_MOMENT_S / 2)
                return None
            self._pending, self._asked_at = request, now
        if not self._socket.poll(int(_MOMENT_S * 1000)):
            return None
        found = read(self._parts())
        self._heard_at = time.monotonic()
        if found is None:
            # A late answer to what was asked twice: the source is slow, and what is asked now is on its way.
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        else:
            self._pending = None
        return found

    def _parts(self) -> list[bytes]:
        parts: list[bytes] = [self._socket.recv(self._zmq.DONTWAIT)]
        while self._socket.getsockopt(self._zmq.RCVMORE):
            if len(parts) == MOST_PARTS:
                raise ScanError(self.name, None, expected=f"an answer of at most {MOST_PARTS} parts", found="more",
                                remedy="The format is described in docs/live.md.")  # fmt: skip
            parts.append(self._socket.recv(self._zmq.DONTWAIT))
        return parts
