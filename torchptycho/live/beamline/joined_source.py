"""A detector and a source of positions as one source of frames."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path

import numpy as np

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.live.beamline.detector import Detector, DetectorFrame, DetectorHeader, SeriesEnd
from torchptycho.live.beamline.frame_processing import FrameProcessor, load_header, prepare_reading, store_header
from torchptycho.live.beamline.joining import JoinConfig, Joiner
from torchptycho.live.beamline.positions import PositionSource
from torchptycho.live.scan_header import Chunk, ScanLayout
from torchptycho.live.spool import LOST

__all__ = ["JoinedSource"]

_log = logging.getLogger(__name__)

# The frames by which codes of the detector are recognised, and how long they are waited for.
_FIRST_FRAMES, _FIRST_WAIT_S = 8, 1.0
_MAX_GAP = 1_000_000


class JoinedSource:
    """Source of the frames of one series, each with its position from elsewhere.

    Frames are handed over as they arrive, and positions when they are decided, in the order of the frames. Row i of the
    scan is frame i of the detector: a frame that was lost gets a row without counts, and is left out with the reason.

    Arguments:
        detector: not yet read.
        positions: not yet read.
        reading: what is done to each frame.
        join: how frames and positions are joined.
        unit: of the positions: px, or a unit of length.
        header_file: where the header of the series is kept for a watch that continues; None for nowhere.

    Raises:
        ConfigError: an option of reading needs all frames, or makes positions.
    """

    def __init__(
        self,
        detector: Detector,
        positions: PositionSource,
        reading: ReadConfig,
        join: JoinConfig,
        unit: str = "m",
        header_file: Path | None = None,
    ) -> None:
        self.name, self.idle_s, self.keeps_frames = detector.name, detector.idle_s, detector.keeps_frames
        self._detector, self._positions, self._unit = detector, positions, unit
        self._reading = prepare_reading(reading, detector.name)
        self._joiner = Joiner(join)
        self._header_file = header_file
        self._header: DetectorHeader | None = None
        self._processor: FrameProcessor | None = None
        self._pending: list[DetectorFrame] = []
        self._first_at_s = 0.0
        self._ended = False
        self._n_rows: int | None = None
        self.end_reason: str | None = None
        """Why the series ended, if that was not its regular end."""
        self.n_ignored = 0
        """Frames that belonged to no series whose header is known, or that came twice."""

    @property
    def unused_positions(self) -> int:
        """Positions that have found no frame so far."""
        return self._joiner.count_unused()

    def describe(self) -> ScanLayout | None:
        """Return the layout when the header and the first frames have arrived, else None.

        Raises:
            ScanError: they cannot be used.
        """
        self._read_detector(_FIRST_FRAMES)
        n = len(self._pending)
        waited = self._ended or time.monotonic() > self._first_at_s + _FIRST_WAIT_S
        if self._header is None or n < 2 or (n < _FIRST_FRAMES and not waited):
            return None
        first = np.stack([frame.image for frame in self._pending[:_FIRST_FRAMES]])
        self._processor = FrameProcessor(first, self._header, self._reading, self.name)
        return self._processor.layout

    def fetch(self, start: int, at_most: int) -> Chunk:
        """Return the frames that have arrived, and the positions that are decided.

        Raises:
            ScanError: a message cannot be used, or a frame has an impossible number.
        """
        assert self._processor is not None
        if self._n_rows is None:
            self._n_rows = start
            # Only now is it known that the folder belongs to this series.
            if self._header_file is not None:
                store_header(self._processor.header, self._header_file)
        if not self._ended and len(self._pending) < at_most:
            self._read_detector(at_most - len(self._pending))
        now_s = time.monotonic()
        self._joiner.add_rows(self._positions.read(), now_s)
        images = self._take_frames(at_most, now_s)
        return self._make_chunk(images, now_s, over=self._positions.ended)

    def settle(self) -> Chunk:
        """Decide the positions of all frames that wait for one, because no more will come."""
        now_s = time.monotonic()
        self._joiner.add_rows(self._positions.read(), now_s)
        return self._make_chunk([], now_s, over=True)

    def _make_chunk(self, images: list[np.ndarray], now_s: float, *, over: bool) -> Chunk:
        assert self._processor is not None
        assert self._n_rows is not None
        first_waiting = self._n_rows - self._joiner.n_waiting
        settled, reasons = self._joiner.settle(now_s, over=over)
        return Chunk(
            frames=self._processor.process(images),
            positions_px=self._processor.convert_positions(settled, self._unit),
            end=self._ended and not self._pending and not self._joiner.n_waiting,
            left_out={first_waiting + place: why for place, why in reasons.items()},
        )

    def explain_wait(self) -> str | None:
        """Explain why no frame comes, or why frames wait."""
        if self._joiner.n_waiting:
            return f"{self._joiner.n_waiting} frames wait for their positions from {self._positions.name}"
        if self._header is None and self.n_ignored:
            return (
                f"{self.n_ignored} frames came before the header of their series and cannot be used: arm the detector "
                "while this program waits"
            )
        return self._detector.explain_wait()

    def close(self, received: int) -> None:
        """Release both sources."""
        self._detector.close()
        self._positions.close()
        if self.n_ignored:
            _log.warning("%s: %d frames were ignored: of another series, or sent twice", self.name, self.n_ignored)
        if self.unused_positions:
            _log.warning("%s: %d positions have found no frame", self._positions.name, self.unused_positions)

    def _read_detector(self, at_most: int) -> None:
        for event in self._detector.read(at_most):
            if isinstance(event, DetectorHeader):
                self._begin_series(event)
            elif isinstance(event, SeriesEnd):
                if self._header is not None and event.series in (None, self._header.series):
                    self._ended, self.end_reason = True, event.reason
            else:
                self._add_frame(event)

    def _begin_series(self, header: DetectorHeader) -> None:
        if self._header is None:
            self._header = header
        elif header.series != self._header.series:
            self._ended = True
            self.end_reason = (
                f"series {header.series} has begun before the end of series {self._header.series}; arm the detector "
                "again for it"
            )

    def _add_frame(self, frame: DetectorFrame) -> None:
        if self._header is None and self._header_file is not None:
            kept = load_header(self._header_file)
            if kept is not None and kept.series == frame.series:
                self._header, self._reading = kept, dataclasses.replace(self._reading, mask_codes=False)
        if self._header is None or self._ended or frame.series not in (None, self._header.series):
            self.n_ignored += 1
            return
        if not self._pending:
            self._first_at_s = time.monotonic()
        self._pending.append(frame)

    def _take_frames(self, at_most: int, now_s: float) -> list[np.ndarray]:
        """Take the next rows from the frames that have arrived, with empty ones for those that were lost."""
        images: list[np.ndarray] = []
        assert self._n_rows is not None
        while self._pending and len(images) < at_most:
            frame = self._pending[0]
            self._check_number(frame)
            if frame.number < self._n_rows:
                self.n_ignored += 1
                self._pending.pop(0)
                continue
            if frame.number == self._n_rows:
                images.append(frame.image)
                self._joiner.add_frame(frame.number, frame.time_s, now_s)
                self._pending.pop(0)
            else:
                images.append(np.zeros_like(frame.image))
                self._joiner.add_frame(self._n_rows, None, now_s, fault=LOST)
            self._n_rows += 1
        return images

    def _check_number(self, frame: DetectorFrame) -> None:
        assert self._header is not None
        assert self._n_rows is not None
        total = self._header.total
        limit = self._n_rows + _MAX_GAP if total is None else total
        if frame.number >= limit:
            raise ScanError(
                self.name,
                "frame",
                expected=f"numbers below {limit}" + ("" if total is None else f", as the header announces {total}"),
                found=f"{frame.number}",
                remedy="Check the numbers of images and of triggers that the detector is set to.",
            )
