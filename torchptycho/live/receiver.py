"""The thread that takes frames from a source and puts them onto the disk, no faster than they can wait there."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torchptycho.live.scan_header import Chunk, FrameSource, ScanLayout
from torchptycho.live.spool import Spool

__all__ = ["Receiver"]

_CHUNK_BYTES = 8 << 20
_POLL_S = 0.02
# A source that has its say about frames that are here already has it within this.
_SOURCE_TIMEOUT_S = 3.0


class Receiver:
    """A context; inside it frames are received.

    Arguments:
        source: used by this thread alone, and closed by it.
        folder: of the spool; one that is there is gone on with.
        room: frames that may be on the disk and not reconstructed; beyond it the source is not asked for more.
        expected: frames after which the scan is over; None follows the source.
        idle_s: seconds without a new frame after which it is over, too; None for never.

    `changed` is notified when something happens; hold it to look at several of the others at once. `compared` says
    that frames of an earlier watch may be used: the source has been asked whether they are its own, or does not answer.
    `unasked` says that it ended so.
    """

    def __init__(
        self, source: FrameSource, folder: Path, max_backlog: int, expected: int | None, idle_s: float | None
    ) -> None:
        self._source, self._folder, self._max_backlog, self._idle_s = source, folder, max_backlog, idle_s
        self.changed = threading.Condition()
        self.spool = Spool.open_existing(folder)
        self.expected = expected or (None if self.spool is None else self.spool.layout.total)
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
        """Raise what has ended the thread, when it has ended by an error."""
        if self._receiving is not None and self.ended:
            self._receiving.result()

    @property
    def wait_reason(self) -> str | None:
        return self._source.explain_wait()

    def mark_reconstructed(self, count: int) -> float | None:
        """Tell that so many frames are in the image; the longest that one of the new ones has waited for it, if any."""
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
            room = self._wait_for_room(spool)
            if self.paused:
                quiet_since = time.monotonic()
                continue
            left = room if self.expected is None else min(room, self.expected - spool.count)
            chunk = self._source.fetch(spool.count, max(1, min(left, _CHUNK_BYTES // layout.frame_bytes)))
            if len(chunk.frames):
                self._append_chunk(spool, chunk)
                quiet_since = time.monotonic()
            if chunk.end:
                spool.record_end()
                return
            if not len(chunk.frames):
                if self._is_idle(quiet_since):
                    return
                self._stopped.wait(_POLL_S)

    def _await_layout(self) -> ScanLayout | None:
        """What the source tells of its scan; None when there is enough without it."""
        began = time.monotonic()
        while not self._stopped.is_set():
            asked = time.monotonic() > began + (
                _SOURCE_TIMEOUT_S if self._idle_s is None else min(_SOURCE_TIMEOUT_S, self._idle_s)
            )
            layout = self._source.describe()
            if layout is not None:
                return layout
            if self.spool is not None and self.spool.count and asked:
                self.source_skipped = self._is_over()
                if self.source_skipped or self._is_idle(began):
                    self.spool.require_same_scan(None, self._source.name)
                    return None
                if self.spool.source == self._source.name and not self.source_checked:
                    self._publish_spool(self.spool)
            self._stopped.wait(_POLL_S)
        return None

    def _wait_for_room(self, spool: Spool) -> int:
        """Frames that may come; 0, and `paused`, when there was no room for a moment."""
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
        """The spool of this scan, which may be new."""
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
        some = self.spool is not None and self.spool.count > 0
        return some and self._idle_s is not None and time.monotonic() > since + self._idle_s
