"""The thread that receives frames from a source and writes them to the spool, up to a maximum backlog."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torchptycho.live.scan_header import Chunk, FrameSource, ScanLayout, WaitingSource
from torchptycho.live.spool import Spool

__all__ = ["Receiver"]

_CHUNK_BYTES = 8 << 20
_POLL_S = 0.02
# How long a source has to confirm that the frames of an existing spool are its own.
_SOURCE_TIMEOUT_S = 3.0


class Receiver:
    """A context in which frames are received.

    Arguments:
        source: used and closed by the receiving thread alone.
        folder: of the spool; an existing spool is continued.
        max_backlog: largest number of frames in the spool that are not yet reconstructed; above it no more frames are
            requested.
        expected: frames after which the scan is over; None follows the source.
        idle_s: seconds without a new frame after which the scan is also over; None for never.

    `changed` is notified after every change; hold it to read several attributes consistently. `source_checked`: frames
    of an earlier watch may be used, because the source has confirmed them or does not answer. `source_skipped`: the
    scan was complete in the spool, and the source did not answer.
    """

    def __init__(
        self, source: FrameSource, folder: Path, max_backlog: int, expected: int | None, idle_s: float | None
    ) -> None:
        self._source, self._folder, self._max_backlog, self._idle_s = source, folder, max_backlog, idle_s
        self.changed = threading.Condition()
        self.spool = Spool.open_existing(folder)
        self.expected = expected or (None if self.spool is None else self.spool.layout.total)
        # A source that cannot keep frames is read at any time: they would be lost.
        self._may_pause = bool(getattr(source, "keeps_frames", True))
        self.ended = False
        self.source_checked = False
        self.source_skipped = False
        self.paused = False
        self.largest_backlog = 0
        self.paused_s = 0.0
        self._n_reconstructed = 0
        self._arrivals: deque[tuple[int, float]] = deque()
        self._stopped = threading.Event()
        self._thread = ThreadPoolExecutor(1, "receiver")
        self._receiving: Future[None] | None = None

    def __enter__(self) -> Receiver:
        self._receiving = self._thread.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with self.changed:
            self.changed.notify_all()
        self._thread.shutdown()
        if self.spool is not None:
            self.spool.close()

    def raise_if_failed(self) -> None:
        """Raise the error that has ended the thread, if there was one."""
        if self._receiving is not None and self.ended:
            self._receiving.result()

    @property
    def unused_positions(self) -> int:
        """Positions that have found no frame, in a source that joins both."""
        return int(getattr(self._source, "unused_positions", 0))

    @property
    def end_reason(self) -> str | None:
        """Why the scan ended, if that was not its regular end."""
        return getattr(self._source, "end_reason", None)

    @property
    def wait_reason(self) -> str | None:
        """Why no frames come, if the source knows."""
        return self._source.explain_wait()

    def mark_reconstructed(self, count: int) -> float | None:
        """Record that `count` frames are in the image; return the longest wait of the new ones in seconds, if any."""
        now, wait_s = time.monotonic(), None
        with self.changed:
            self._n_reconstructed = count
            while self._arrivals and self._arrivals[0][0] <= count:
                wait_s = max(wait_s or 0.0, now - self._arrivals.popleft()[1])
            self.changed.notify_all()
        return wait_s

    def _run(self) -> None:
        try:
            self._receive()
        finally:
            self._source.close(0 if self.spool is None else self.spool.count)
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def _receive(self) -> None:
        layout = self._await_layout()
        if layout is None:
            return
        spool = self._open_spool(layout)
        quiet_since = time.monotonic()
        while not self._stopped.is_set():
            if self._is_over():
                return
            room = self._wait_for_room(spool) if self._may_pause else self._max_backlog
            if self.paused:
                quiet_since = time.monotonic()
                continue
            most = room if self.expected is None else min(room, self.expected - spool.n_stored)
            chunk = self._source.fetch(spool.n_stored, max(1, min(most, _CHUNK_BYTES // layout.frame_bytes)))
            if len(chunk.frames) or len(chunk.positions_px):
                self._append_chunk(spool, chunk)
                quiet_since = time.monotonic()
            if chunk.end:
                spool.record_end()
                return
            if not len(chunk.frames) and not len(chunk.positions_px):
                if self._is_idle(quiet_since):
                    if isinstance(self._source, WaitingSource) and spool.count < spool.n_stored:
                        self._append_chunk(spool, self._source.settle())
                    spool.give_up_positions("no position before the scan was over")
                    return
                self._stopped.wait(_POLL_S)

    def _await_layout(self) -> ScanLayout | None:
        """Wait for the layout of the source's scan; return None when the spool suffices without it."""
        began = time.monotonic()
        timeout_s = _SOURCE_TIMEOUT_S if self._idle_s is None else min(_SOURCE_TIMEOUT_S, self._idle_s)
        while not self._stopped.is_set():
            timed_out = time.monotonic() > began + timeout_s
            layout = self._source.describe()
            if layout is not None:
                return layout
            if self.spool is not None and self.spool.count and timed_out:
                self.source_skipped = self._is_over()
                if self.source_skipped or self._is_idle(began):
                    self.spool.require_same_scan(None, self._source.name)
                    return None
                if self.spool.source == self._source.name and not self.source_checked:
                    self._publish_spool(self.spool)
            self._stopped.wait(_POLL_S)
        return None

    def _wait_for_room(self, spool: Spool) -> int:
        """Return how many frames the spool has room for; if it is full, set `paused` and wait for a moment."""
        began = time.monotonic()
        with self.changed:
            room = self._max_backlog - (spool.count - self._n_reconstructed)
            self.paused = room <= 0
            if self.paused:
                self.changed.wait(_POLL_S)
        if self.paused:
            self.paused_s += time.monotonic() - began
        return room

    def _append_chunk(self, spool: Spool, chunk: Chunk) -> None:
        arrived = time.monotonic()
        spool.append(chunk)
        with self.changed:
            self._arrivals.append((spool.count, arrived))
            self.largest_backlog = max(self.largest_backlog, spool.count - self._n_reconstructed)
            self.changed.notify_all()

    def _open_spool(self, layout: ScanLayout) -> Spool:
        """Open the spool of this scan, or create it."""
        if self.spool is not None:
            self.spool.require_same_scan(layout, self._source.name)
        spool = self.spool or Spool.create(self._folder, layout, self._source.name)
        self.expected = self.expected or layout.total
        self._publish_spool(spool)
        return spool

    def _publish_spool(self, spool: Spool) -> None:
        with self.changed:
            self.spool, self.source_checked = spool, True
            self.changed.notify_all()

    def _is_over(self) -> bool:
        if self.spool is None:
            return False
        return self.spool.ended or (self.expected is not None and self.spool.count >= self.expected)

    def _is_idle(self, since: float) -> bool:
        has_frames = self.spool is not None and self.spool.count > 0
        return has_frames and self._idle_s is not None and time.monotonic() > since + self._idle_s
