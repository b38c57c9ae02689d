"""Frames and positions from two sources, joined by number or time. What finds no partner is listed, never guessed."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float64
from pydantic import Field

from torchptycho.core.config.base import Positive, validated_dataclass
from torchptycho.core.errors import ConfigError

__all__ = ["JoinConfig", "Joiner", "PositionRow"]


@validated_dataclass
class JoinConfig:
    """How frames find their positions in a source of its own."""

    by: Literal["index", "time"] = "index"
    """Key of the positions: the number of the frame (or of its trigger), or a time."""
    first_index: Annotated[int, Field(ge=0)] = 0
    """Number that this source gives to the first frame: 0, or 1 for most trigger counters."""
    tolerance_s: Positive | None = None
    """Longest time between a frame and its position, or between a frame and the positions on either side of it; needed
    for `by` = time."""
    offset_s: float = 0.0
    """Clock of the positions minus that of the detector."""
    interpolate: bool = False
    """Take the position at the middle of the exposure from those before and after it, instead of the nearest."""
    wait_s: Annotated[float, Field(ge=0)] = 10.0
    """How long a frame waits for its position after it, or after the last position, has arrived."""

    def __post_init__(self) -> None:
        if self.by == "time" and self.tolerance_s is None:
            raise ConfigError("positions tolerance_s: expected a longest time, to join by time; found none.")
        if self.by == "index" and (self.tolerance_s is not None or self.interpolate or self.offset_s):
            raise ConfigError(
                "positions tolerance_s, interpolate, offset_s: expected them to join by time; found by 'index'."
            )


@dataclasses.dataclass(frozen=True, slots=True)
class PositionRow:
    """A position (y, x) in the unit of its source, and its key: a number or a time in seconds."""

    key: float
    y: float
    x: float


@dataclasses.dataclass(frozen=True, slots=True)
class _WaitingFrame:
    number: int
    time_s: float | None
    arrived_s: float
    fault: str | None


class Joiner:
    """Finds the positions of frames in the order of the frames.

    Frames that wait, and positions that have found no frame, are kept in memory; neither holds an image.
    """

    def __init__(self, config: JoinConfig) -> None:
        self._config = config
        self._waiting: list[_WaitingFrame] = []
        self._by_index: dict[int, PositionRow] = {}
        self._ambiguous: set[int] = set()
        self._times: list[float] = []
        self._rows: list[PositionRow] = []
        self._taken: dict[int, int] = {}
        self._n_used = 0
        self._n_rows = 0
        self._last_row_s = float("-inf")

    @property
    def n_waiting(self) -> int:
        """Frames that wait for their position."""
        return len(self._waiting)

    def count_unused(self) -> int:
        """Count the positions that have found no frame."""
        used = len(self._taken) if self._config.by == "time" else self._n_used
        return 0 if self._config.interpolate else self._n_rows - used

    def add_frame(self, number: int, time_s: float | None, now_s: float, fault: str | None = None) -> None:
        """Add the next frame; `fault` is why it has no image, and needs no position."""
        self._waiting.append(_WaitingFrame(number, time_s, now_s, fault))

    def add_rows(self, rows: list[PositionRow], now_s: float) -> None:
        """Add positions that have arrived."""
        if rows:
            self._last_row_s = now_s
            self._n_rows += len(rows)
        for row in rows:
            if self._config.by == "index":
                self._add_by_index(row)
            elif not self._times or row.key >= self._times[-1]:
                self._times.append(row.key)
                self._rows.append(row)
            else:
                place = bisect_left(self._times, row.key)
                self._times.insert(place, row.key)
                self._rows.insert(place, row)
                self._taken = {at + (at >= place): number for at, number in self._taken.items()}

    def _add_by_index(self, row: PositionRow) -> None:
        index = int(row.key)
        if index != row.key:
            # Between two frames: it belongs to none.
            return
        known = self._by_index.get(index)
        if known is not None and (known.y, known.x) != (row.y, row.x):
            self._ambiguous.add(index)
        self._by_index[index] = row

    def settle(self, now_s: float, *, over: bool) -> tuple[Float64[np.ndarray, "m 2"], dict[int, str]]:
        """Return the positions (y, x) of the next frames, as far as they are decided, and why some are NaN.

        Arguments:
            over: no more positions will come, so that nothing is waited for.

        Returns:
            positions in the unit of their source, and the reasons by the frames' places among them.
        """
        found: list[tuple[float, float]] = []
        reasons: dict[int, str] = {}
        for frame in self._waiting:
            waited = over or now_s - max(frame.arrived_s, self._last_row_s) >= self._config.wait_s
            decision = (float("nan"), frame.fault) if frame.fault else self._decide(frame, waited)
            if decision is None:
                break
            if isinstance(decision, PositionRow):
                found.append((decision.y, decision.x))
            else:
                reasons[len(found)] = str(decision[1])
                found.append((np.nan, np.nan))
        del self._waiting[: len(found)]
        return np.array(found, np.float64).reshape(-1, 2), reasons

    def _decide(self, frame: _WaitingFrame, waited: bool) -> PositionRow | tuple[float, str] | None:
        if self._config.by == "index":
            return self._decide_by_index(frame, waited)
        if frame.time_s is None:
            return (np.nan, "no position: the detector gives this frame no time")
        at_s = frame.time_s + self._config.offset_s
        tolerance_s = self._config.tolerance_s
        assert tolerance_s is not None
        # Positions come in the order of time: a later one shows that no closer one follows.
        complete = bool(self._times) and self._times[-1] >= at_s + (0 if self._config.interpolate else tolerance_s)
        if not complete and not waited:
            return None
        return self._interpolate(at_s) if self._config.interpolate else self._take_nearest(frame, at_s)

    def _decide_by_index(self, frame: _WaitingFrame, waited: bool) -> PositionRow | tuple[float, str] | None:
        index = frame.number + self._config.first_index
        if index in self._ambiguous:
            return (np.nan, f"no position: there are different ones for index {index}")
        row = self._by_index.get(index)
        if row is not None:
            self._n_used += 1
            return row
        return (np.nan, f"no position for index {index}") if waited else None

    def _take_nearest(self, frame: _WaitingFrame, at_s: float) -> PositionRow | tuple[float, str]:
        place = bisect_left(self._times, at_s)
        near = [at for at in (place - 1, place) if 0 <= at < len(self._times)]
        best = min(near, key=lambda at: abs(self._times[at] - at_s), default=None)
        tolerance_s = self._config.tolerance_s or 0.0
        if best is None or abs(self._times[best] - at_s) > tolerance_s:
            return (np.nan, f"no position within {tolerance_s:g} s")
        if best in self._taken:
            return (np.nan, f"no position of its own: the nearest one is that of frame {self._taken[best]}")
        self._taken[best] = frame.number
        return self._rows[best]

    def _interpolate(self, at_s: float) -> PositionRow | tuple[float, str]:
        place = bisect_left(self._times, at_s)
        tolerance_s = self._config.tolerance_s or 0.0
        if place < len(self._times) and self._times[place] == at_s:
            return self._rows[place]
        if not 0 < place < len(self._times):
            return (np.nan, "no position before and after it")
        before, after = self._rows[place - 1], self._rows[place]
        if at_s - before.key > tolerance_s or after.key - at_s > tolerance_s:
            return (np.nan, f"no positions within {tolerance_s:g} s before and after it")
        part = (at_s - before.key) / (after.key - before.key)
        return PositionRow(key=at_s, y=before.y + part * (after.y - before.y), x=before.x + part * (after.x - before.x))
