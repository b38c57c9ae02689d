"""The stream of a DECTRIS detector: a PULL socket that reads its messages."""

from __future__ import annotations

import time

from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.live.beamline.dectris_v1 import MessagesV1
from torchptycho.live.beamline.dectris_v2 import MessagesV2
from torchptycho.live.beamline.detector import DetectorEvent, DetectorFrame
from torchptycho.live.zmq_source import import_zmq

__all__ = ["DECTRIS_SCHEMES", "DectrisStream"]

DECTRIS_SCHEMES = {"dectris-v1": 9999, "dectris-v2": 31001}
"""Versions of the stream, and the port on which a detector sends it."""

_POLL_S = 0.1
_QUIET_S = 2.0
# The largest detectors have 16 million pixels of 4 bytes; their messages are compressed.
_MAX_PART_BYTES = 128 << 20
# Messages that are queued here until they are read; a detector that finds this queue full keeps them in its own.
_MAX_WAITING = 200


class DectrisStream:
    """Frames that a DECTRIS detector pushes.

    A detector does not wait: when its own buffer is full, frames are lost. Each message goes to one reader alone, so
    that no other program may read the same stream.

    Arguments:
        address: dectris-v1://host[:port] or dectris-v2://host[:port].
        channel: the threshold to take from a stream of version 2.

    Raises:
        ConfigError: the address does not work, or pyzmq or cbor2 is not installed.
    """

    keeps_frames = False
    idle_s: float | None = None

    def __init__(self, address: str, channel: str | None = None) -> None:
        self.name = address
        scheme, _, place = address.partition("://")
        if channel is not None and scheme == "dectris-v1":
            raise ConfigError(f"{address}: a stream of version 1 has one channel; found --channel {channel}.")
        self._messages = MessagesV1(address) if scheme == "dectris-v1" else MessagesV2(address, channel)
        host, port = _split_port(address, place, DECTRIS_SCHEMES[scheme])
        zmq = self._zmq = import_zmq()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        for option, value in ((zmq.LINGER, 0), (zmq.MAXMSGSIZE, _MAX_PART_BYTES), (zmq.RCVHWM, _MAX_WAITING)):
            self._socket.setsockopt(option, value)
        try:
            self._socket.connect(f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"{address}: expected an address such as {scheme}://10.0.0.1:{DECTRIS_SCHEMES[scheme]}; found one that "
                f"does not work ({error})."
            ) from None
        self._last_message_at = time.monotonic()

    def read(self, at_most: int) -> list[DetectorEvent]:
        """Return the events that have arrived, up to `at_most` frames; wait at most 0.1 s for the first.

        Raises:
            ScanError: a message is none of this version of the stream.
        """
        events: list[DetectorEvent] = []
        n_frames, timeout_s = 0, _POLL_S
        while n_frames < max(1, at_most) and self._socket.poll(int(timeout_s * 1000)):
            event = self._messages.parse(self._receive_parts())
            events.append(event)
            n_frames += isinstance(event, DetectorFrame)
            timeout_s = 0.0
        if events:
            self._last_message_at = time.monotonic()
        return events

    def explain_wait(self) -> str | None:
        """Explain that nothing has come for 2 s."""
        quiet_s = time.monotonic() - self._last_message_at
        if quiet_s <= _QUIET_S:
            return None
        return f"no message from {self.name} for {quiet_s:.0f} s; the detector sends when it is armed"

    def close(self) -> None:
        """Close the socket; what has not been read stays with the detector or is lost."""
        self._socket.close(0)
        self._context.term()
        self._messages.close()

    def _receive_parts(self) -> list[bytes]:
        parts: list[bytes] = [self._socket.recv(self._zmq.DONTWAIT)]
        while self._socket.getsockopt(self._zmq.RCVMORE):
            if len(parts) == self._messages.max_parts:
                raise ScanError(
                    self.name,
                    None,
                    expected=f"messages of at most {self._messages.max_parts} parts",
                    found="more",
                    remedy="Check the version of the stream: dectris-v1:// or dectris-v2://.",
                )
            parts.append(self._socket.recv(self._zmq.DONTWAIT))
        return parts


def _split_port(address: str, place: str, default: int) -> tuple[str, int]:
    host, colon, port = place.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = place, str(default)
    if not host or "/" in place or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{address}: expected a host, and perhaps a port from 1 to 65535; found '{place}'.")
    return host, int(port)
