"""Positions that a program other than the detector reports: a CSV file that grows, or a ZeroMQ topic."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.live.beamline.joining import PositionRow
from torchptycho.live.stream_keys import is_local_address
from torchptycho.live.zmq_source import import_zmq

__all__ = ["GrowingCsv", "PositionSource", "PositionTopic", "open_positions"]

_KEYS = ("index", "frame", "trigger", "time")
_MAX_LINE_BYTES = 1 << 16
_MAX_READ_BYTES = 8 << 20
_MAX_WAITING = 100_000


@runtime_checkable
class PositionSource(Protocol):
    """A source of positions. All methods are called by one thread and return at once."""

    name: str
    ended: bool
    """Whether it has reported that no more will come."""

    def read(self) -> list[PositionRow]:
        """Return the positions that have arrived since the last call.

        Raises:
            ScanError: what has arrived is no position.
        """
        ...

    def close(self) -> Any:
        """Release the connection."""
        ...


def open_positions(text: str, columns: tuple[str, str, str] | None) -> PositionSource:
    """Open a topic for tcp://... and ipc://..., and a CSV file for every other text.

    Arguments:
        columns: names of the key, of y and of x; None for the first of index, frame, trigger and time, for y and for x.

    Raises:
        ConfigError: the address does not work, or pyzmq is not installed.
    """
    if text.startswith(("tcp://", "ipc://")):
        return PositionTopic(text, columns)
    return GrowingCsv(Path(text), columns)


class GrowingCsv:
    """A CSV file with a header line, to which a line is appended for each position.

    A line is read when it ends with a line feed. Without a column of keys, the lines are counted from 0.

    Arguments:
        path: the file; it may be created later.
    """

    ended = False

    def __init__(self, path: Path, columns: tuple[str, str, str] | None) -> None:
        self.name = str(path)
        self._path, self._columns = path, columns
        self._offset = 0
        self._places: tuple[int | None, int, int] | None = None
        self._n_lines = 0

    def read(self) -> list[PositionRow]:
        """Return the positions of the lines that have been completed since the last call.

        Raises:
            ScanError: the header lacks a column, a line is none of numbers, or the file has become shorter.
        """
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, io.SEEK_END)
                if size < self._offset:
                    raise self._make_error(None, "the lines that were there", "a shorter file")
                file.seek(self._offset)
                content = file.read(_MAX_READ_BYTES)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._make_error(None, "a readable file", error.strerror or str(error)) from None
        end = content.rfind(b"\n") + 1
        if not end and len(content) > _MAX_LINE_BYTES:
            raise self._make_error(None, "lines", f"{len(content)} bytes without the end of one")
        self._offset += end
        try:
            lines = list(csv.reader(io.StringIO(content[:end].decode("utf-8-sig"))))
        except (UnicodeDecodeError, csv.Error) as error:
            raise self._make_error(None, "a CSV file in UTF-8", str(error)[:80]) from None
        rows = []
        for line in lines:
            if not line or line[0].startswith("#"):
                continue
            if self._places is None:
                self._places = self._find_columns([name.strip() for name in line])
                continue
            rows.append(self._parse(line, self._places))
            self._n_lines += 1
        return rows

    def close(self) -> None:
        """Do nothing: the file is open only while it is read."""

    def _find_columns(self, header: list[str]) -> tuple[int | None, int, int]:
        if self._columns is not None:
            names: tuple[str | None, str, str] = self._columns
        else:
            names = (next((name for name in _KEYS if name in header), None), "y", "x")
        missing = [name for name in names if name is not None and name not in header]
        if missing:
            raise self._make_error(
                missing[0], "a column of this name", f"the columns {', '.join(header)[:200]}", "Name the columns."
            )
        key, y, x = names
        return (None if key is None else header.index(key), header.index(y), header.index(x))

    def _parse(self, line: list[str], places: tuple[int | None, int, int]) -> PositionRow:
        key, y, x = places
        try:
            values = [float(line[place]) for place in (y, x)]
            at = float(self._n_lines) if key is None else float(line[key])
        except (ValueError, IndexError):
            raise self._make_error(f"line {self._n_lines + 2}", "numbers", repr(",".join(line))[:80]) from None
        return _make_row(at, values[0], values[1])

    def _make_error(self, key: str | None, expected: str, found: str, remedy: str | None = None) -> ScanError:
        return ScanError(
            self.name, key, expected=expected, found=found, remedy=remedy or "Check the program that writes it."
        )


class PositionTopic:
    """Positions that a program publishes over ZeroMQ (PUB), one JSON object in each message.

    `{"index": 7, "y": 1e-6, "x": 2e-6}`, with the keys of `columns`; `{"end": true}` after the last. A message may
    begin with a part that holds its topic.

    Raises:
        ConfigError: the address does not work or is on another machine, or pyzmq is not installed.
    """

    def __init__(self, address: str, columns: tuple[str, str, str] | None) -> None:
        zmq = self._zmq = import_zmq()
        if not is_local_address(address):
            raise ConfigError(
                f"{address}: expected an address of this machine, because positions are sent without a key; found "
                "another one. Forward it by an SSH tunnel, such as ssh -L 5556:127.0.0.1:5556 beamline."
            )
        self.name, self.ended = address, False
        self._columns = columns
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        for option, value in (
            (zmq.LINGER, 0), (zmq.RCVHWM, _MAX_WAITING), (zmq.MAXMSGSIZE, _MAX_LINE_BYTES), (zmq.SUBSCRIBE, b""),
        ):  # fmt: skip
            self._socket.setsockopt(option, value)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"{address}: expected an address such as tcp://127.0.0.1:5556; found one that does not work ({error})."
            ) from None

    def read(self) -> list[PositionRow]:
        """Return the positions of the messages that have arrived since the last call.

        Raises:
            ScanError: a message holds no position.
        """
        rows: list[PositionRow] = []
        while self._socket.poll(0) and len(rows) < _MAX_WAITING:
            parts: list[bytes] = self._socket.recv_multipart()
            for line in parts[-1].splitlines():
                row = self._parse(line)
                if row is not None:
                    rows.append(row)
        return rows

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(0)
        self._context.term()

    def _parse(self, line: bytes) -> PositionRow | None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if isinstance(message, dict) and message.get("end") is True:
            self.ended = True
            return None
        if isinstance(message, dict):
            names = self._columns or (next((name for name in _KEYS if name in message), _KEYS[0]), "y", "x")
            values = [message.get(name) for name in names]
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                return _make_row(*(float(value) for value in values))  # type: ignore[arg-type]
        raise ScanError(
            self.name,
            None,
            expected='messages such as {"index": 7, "y": 1e-6, "x": 2e-6}',
            found=repr(line)[:80],
            remedy="Check the program that publishes them, and name its keys.",
        )


def _make_row(key: float, y: float, x: float) -> PositionRow:
    # A key that is no number belongs to no frame.
    return PositionRow(key=key if math.isfinite(key) else -1.0, y=y, x=x)
