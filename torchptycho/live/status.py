"""The status of a watch, which status.json holds while it runs."""

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
    """The live image in the folder: its version and size, and whether it is provisional, without all frames."""

    version: int
    height_px: int
    width_px: int
    object_pixel_m: float | None
    provisional: bool


@dataclasses.dataclass(kw_only=True)
class WatchStatus:
    """Progress of a watch; `write` puts it into status.json.

    Arguments:
        state: "waiting" for the first frame, "receiving", "finishing" while the final image is made, then "done",
            "stopped" or "failed".
        source, model: names of the source and of the network.
        received, reconstructed: frames in the spool, and frames that the network has processed.
        expected: number of frames of the whole scan, if known.
        backlog, largest_backlog: frames that are received and not yet reconstructed, now and at most.
        paused_s: seconds during which nothing was received because the spool was full.
        latest_wait_s, longest_wait_s: seconds from the arrival of a frame until it was in the image.
        received_per_s, reconstructed_per_s: frames per second during the last seconds.
        left_out: numbers of the frames that are not in the image, and the reasons.
        lost: frames that a source which cannot wait has sent and that never arrived.
        unused_positions: positions that have found no frame.
        refresh_s: seconds between two live images, and between two updates of the status.
        started, updated: times in UTC.
        image: the live image next to it; None before the first.
        message: further information for the user.
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
    lost: int = 0
    unused_positions: int = 0
    refresh_s: float = 2.0
    started: str = dataclasses.field(default_factory=lambda: _format_now())
    updated: str = ""
    image: ImageStatus | None = None
    message: str | None = None

    def write(self, folder: Path) -> None:
        """Replace status.json atomically.

        Raises:
            OSError: the folder cannot be written to.
        """
        self.updated = _format_now()
        # Without fsync: the file need not survive a loss of power.
        temporary = folder / ".status.json.tmp"
        temporary.write_text(json.dumps(dataclasses.asdict(self), allow_nan=False), encoding="utf-8")
        os.replace(temporary, folder / "status.json")


class FrameRates:
    """Frames per second during the last 5 s, from two counters."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()

    def update(self, now_s: float, received: int, reconstructed: int) -> tuple[float, float]:
        """Add a sample of both counters; return the rates of received and reconstructed frames per second."""
        self._samples.append((now_s, received, reconstructed))
        while len(self._samples) > 2 and now_s - self._samples[1][0] >= _WINDOW_S:
            self._samples.popleft()
        first_s, first_received, first_reconstructed = self._samples[0]
        elapsed_s = max(now_s - first_s, 1e-9)
        if len(self._samples) == 1:
            return 0.0, 0.0
        return (received - first_received) / elapsed_s, (reconstructed - first_reconstructed) / elapsed_s


def _format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
