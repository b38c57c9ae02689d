"""A scan that comes over ZeroMQ."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from torchptycho.errors import ConfigError
from torchptycho.live.layout import Chunk, Description, Layout
from torchptycho.live.messages import LARGEST_PART_BYTES, ask_for_frames, ask_for_scan, frames_in, scan_in

__all__ = ["StreamSource", "is_address", "zmq_module"]

_MOMENT_S, _AGAIN_S = 0.1, 2.0
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

    The source may start later than its reader, end and start again: what was asked for is asked for again.
    """

    idle_s: float | None = None

    def __init__(self, address: str) -> None:
        zmq = zmq_module()
        self.name = address
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_PART_BYTES)
        # Nothing is queued for a source that is not there.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._zmq = zmq
        self._told: tuple[Description, Layout] | None = None
        self._pending: bytes | None = None
        self._asked_for = (-1, 0)
        self._asked_at = 0.0
        self._heard_at = time.monotonic()
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigError(
                f"{address}: expected an address such as tcp://127.0.0.1:5555; found one that does not work ({error})."
            ) from None

    def describe(self) -> Layout | None:
        parts = self._answer(ask_for_scan())
        self._told = None if parts is None else scan_in(parts, self.name)
        return None if self._told is None else self._told[1]

    def fetch(self, start: int, at_most: int) -> Chunk:
        assert self._told is not None
        told, layout = self._told
        # What is on its way already is waited for, though more might be asked for now.
        if self._asked_for[0] != start:
            self._asked_for = (start, max(1, min(at_most, _CHUNK_BYTES // layout.frame_bytes)))
        parts = self._answer(ask_for_frames(*self._asked_for))
        chunk = None if parts is None else frames_in(parts, told, layout, *self._asked_for, self.name)
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

    def _answer(self, request: bytes) -> list[bytes] | None:
        """The answer to what is asked, or None when it has not come within a moment; to ask the same again waits on."""
        now = time.monotonic()
        if request != self._pending or now > self._asked_at + _AGAIN_S:
            try:
                self._socket.send(request, self._zmq.DONTWAIT)
            except self._zmq.Again:
                self._pending = None
                time.sleep(_MOMENT_S / 2)
                return None
            self._pending, self._asked_at = request, now
        if not self._socket.poll(int(_MOMENT_S * 1000)):
            return None
        parts: list[bytes] = self._socket.recv_multipart(self._zmq.DONTWAIT)
        self._pending, self._heard_at = None, time.monotonic()
        return parts
