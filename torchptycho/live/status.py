"""What a watch tells of itself while it runs, in a file that others read."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

__all__ = ["FrameRates", "ImageStatus", "WatchState", "WatchStatus"]

WatchState = Literal["waiting", "receiving", "finishing", "done", "stopped", "failed"]

_WINDOW_S = 5.0


@dataclasses.dataclass(kw_only=True)
class ImageStatus:
    """The picture in the folder: which version of it, its size, and whether frames are still missing in it."""

    version: int
    height_px: int
    width_px: int
    object_pixel_m: float | None
    provisional: bool


@dataclasses.dataclass(kw_only=True)
class WatchStatus:
    """How far a watch is; `write` puts it into status.json.

    Arguments:
        state: waiting for the first frame, receiving, making the final image, and how it ended.
        source, model: as they were given.
        received, reconstructed: frames on the disk, and those that have been through the network.
        expected: frames that there will be, where that is known.
        backlog, largest_backlog: frames that are received and not reconstructed, now and at most.
        paused_s: seconds for which nothing was received because the spool was full.
        latest_wait_s, longest_wait_s: seconds from a frame's arrival until it was in the image.
        received_per_s, reconstructed_per_s: frames in the last seconds.
        left_out: frames that are not in the image, and why.
        refresh_s: seconds between two pictures, and between two words of this.
        started, updated: in UTC.
        image: the picture beside it; None before the first.
        message: what else there is to say.
    """

    source: str
    model: str
    state: WatchState = "waiting"
    received: int = 0
    reconstructed: int = 0
    expected: int | None = None
    backlog: int = 0
    largest_backlog: int = 0
    paused_s: float = 0.0
    latest_wait_s: float = 0.0
    longest_wait_s: float = 0.0
    received_per_s: float = 0.0
    reconstructed_per_s: float = 0.0
    left_out: dict[int, str] = dataclasses.field(default_factory=dict)
    refresh_s: float = 2.0
    started: str = dataclasses.field(default_factory=lambda: _format_now())
    updated: str = ""
    image: ImageStatus | None = None
    message: str | None = None

    def write(self, folder: Path) -> None:
        """Replace status.json, whole at any moment.

        Raises:
            OSError: the folder cannot be written to.
        """
        self.updated = _format_now()
        # Not brought to the disk each time, which the file need not survive.
        temporary = folder / ".status.json.tmp"
        temporary.write_text(json.dumps(dataclasses.asdict(self), allow_nan=False), encoding="utf-8")
        os.replace(temporary, folder / "status.json")


class FrameRates:
    """Frames per second over the last seconds, of numbers that only grow."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()

    def update(self, now_s: float, received: int, reconstructed: int) -> tuple[float, float]:
        self._samples.append((now_s, received, reconstructed))
        while len(self._samples) > 2 and now_s - self._samples[1][0] >= _WINDOW_S:
            self._samples.popleft()
        then_s, first, second = self._samples[0]
        passed_s = max(now_s - then_s, 1e-9)
        if len(self._samples) == 1:
            return 0.0, 0.0
        return (received - first) / passed_s, (reconstructed - second) / passed_s


def _format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
