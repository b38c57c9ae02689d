"""The loop of a watch: wait for the first frames, reconstruct the frames that come, make the final image."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Complex64

from torchptycho.core.config import ReconstructConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.io import write_reconstruction
from torchptycho.io.near_field import refuse_near_field
from torchptycho.live.preview import LivePreview, require_frames
from torchptycho.live.receiver import Receiver
from torchptycho.live.spool import Spool
from torchptycho.live.status import WatchStatus
from torchptycho.live.status_reporter import StatusReporter
from torchptycho.models.network import PtychoNetwork
from torchptycho.reconstructors.network_reconstruction import reconstruct

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from torchptycho.data.inference_dataset import InferenceBatch

__all__ = ["SPOOL_FOLDER", "WatchSession", "explain_resume"]

_log = logging.getLogger(__name__)

SPOOL_FOLDER = "spool"
"""Name of the spool's folder inside the folder of the watch."""
_POLL_S = 0.05
# While frames come, an incomplete group waits this long for its missing frames.
_GROUP_TIMEOUT_S = 0.5
# As many frames show whether they are near-field images.
_MIN_SHOWING_FRAMES = 64
# The most frames in one pass through the network, and the most bytes of their patches.
_MAX_CHUNK_FRAMES, _MAX_PATCH_BYTES = 2048, 64 << 20


class _StopRequested(Exception):
    """The watch was stopped before its final image was complete."""


class WatchSession:
    """One call of `watch`.

    Arguments:
        out: folder of the watch.
        receiver: not yet entered.
        reporter: of the same receiver and folder.
        refresh_s: seconds between two live images.
        stop: ends the watch when it is set.
        config: how patches are predicted and stitched.
    """

    def __init__(
        self,
        network: PtychoNetwork,
        device: torch.device,
        out: Path,
        receiver: Receiver,
        reporter: StatusReporter,
        refresh_s: float,
        stop: threading.Event,
        config: ReconstructConfig,
    ) -> None:
        self._network, self._device, self._out, self._receiver = network, device, out, receiver
        self._reporter, self._refresh_s, self._stop = reporter, refresh_s, stop
        self._config = config
        self._doubt: str | None = None
        self._looked_at_field = False
        self._n_reconstructed = 0
        self._n_drawn = -1
        self._frames_per_s = 0.0
        self._unfit: dict[int, str] = {}
        self.stopped = False
        """Whether the stop came when the final image was already complete; all of its files are written then."""

    @property
    def _status(self) -> WatchStatus:
        return self._reporter.status

    def run(self, accelerator: str, progress: bool) -> Reconstruction | None:
        """Reconstruct until the scan is over; return the final image, or None for a watch that was stopped."""
        self._reporter.report("waiting", 0)
        with self._receiver as receiver:
            with self._reporter.show_progress() if progress else contextlib.nullcontext():
                spool = self._await_first_frames()
                if spool is not None:
                    with LivePreview(
                        self._network, self._config, spool.layout, self._status.source, self._device
                    ) as preview:
                        self._reconstruct_incoming(spool, preview)
            try:
                if spool is None:
                    raise _StopRequested
                final = self._make_final_image(spool, accelerator, progress)
            except _StopRequested:
                count = 0 if receiver.spool is None else receiver.spool.count
                self._status.message = explain_resume(count, self._out, receiver.wait_reason)
                self._reporter.report("stopped", self._n_reconstructed)
                return None
            receiver.mark_reconstructed(spool.count)
        self.stopped = self._stop.is_set()
        self._status.message = self._join_messages(
            _describe_missing_frames(spool.count, receiver, stopped=self.stopped)
        )
        self._reporter.report("done", self._n_reconstructed)
        return final

    def _await_first_frames(self) -> Spool | None:
        """Wait until the spool has frames; return None when the watch is stopped before."""
        receiver, next_report_s = self._receiver, 0.0
        while not self._stop.is_set():
            with receiver.changed:
                spool, ended = receiver.spool, receiver.ended
                ready = spool is not None and spool.count > 0
                if not ended and not (ready and receiver.source_checked):
                    receiver.changed.wait(_POLL_S)
                    ready = False
            receiver.raise_if_failed()
            if ready:
                return spool
            if ended:
                self._require_frames(spool, 0)
            if time.monotonic() >= next_report_s:
                next_report_s = time.monotonic() + self._refresh_s
                self._status.message = receiver.wait_reason
                self._reporter.report("waiting", 0)
        return None

    def _reconstruct_incoming(self, spool: Spool, preview: LivePreview) -> None:
        """Reconstruct frames as they come, until the scan is over or the watch is stopped."""
        next_report_s, idle_since_s = 0.0, time.monotonic()
        self._status.message = None
        self._reporter.report("receiving", self._n_reconstructed)
        while not self._stop.is_set():
            n_frames = self._await_chunk(spool, idle_since_s)
            self._receiver.raise_if_failed()
            if n_frames is None:
                break
            if n_frames:
                self._reconstruct_chunk(spool, preview, n_frames)
                idle_since_s = time.monotonic()
            if time.monotonic() >= next_report_s:
                self._draw_preview(preview)
                self._status.message = self._join_messages(None if n_frames else self._receiver.wait_reason)
                self._reporter.report("receiving", self._n_reconstructed)
                next_report_s = time.monotonic() + self._refresh_s
        self._receiver.raise_if_failed()
        self._draw_preview(preview)

    def _await_chunk(self, spool: Spool, idle_since_s: float) -> int | None:
        """Return how many frames to reconstruct now: whole groups, 0 for none yet, None when the scan is over."""
        receiver, group_size = self._receiver, self._network.gridsize**2
        with receiver.changed:
            waiting, ended = spool.count - self._n_reconstructed, receiver.ended
            n_frames = min(waiting, self._choose_chunk_size(spool))
            if n_frames >= group_size:
                return n_frames - n_frames % group_size
            idle = ended or time.monotonic() > idle_since_s + _GROUP_TIMEOUT_S
            # Earlier frames complete a group that lacks some; a scan of less than one group has none.
            if idle and waiting and (ended or spool.count >= group_size):
                return n_frames
            if ended and not waiting:
                return None
            receiver.changed.wait(_POLL_S)
        return 0

    def _choose_chunk_size(self, spool: Spool) -> int:
        """Return the number of frames that take at most half of the time between two live images."""
        memory_limit = min(_MAX_CHUNK_FRAMES, max(64, _MAX_PATCH_BYTES // (8 * spool.layout.n_px**2)))
        time_limit = int(self._frames_per_s * self._refresh_s / 2) if self._frames_per_s else 64
        return max(4 * self._network.gridsize**2, min(memory_limit, time_limit))

    def _refuse_near_field(self, spool: Spool) -> None:
        """Refuse frames that no network is made for as soon as they show it."""
        if self._looked_at_field or self._n_reconstructed < _MIN_SHOWING_FRAMES:
            return
        self._looked_at_field = True
        later = range(self._n_reconstructed, spool.count)
        refuse_near_field(spool.make_scan(self._get_probe(), self._unfit | dict.fromkeys(later, "not looked at yet")))

    def _get_probe(self) -> Complex64[np.ndarray, "p n n"]:
        return self._network.probe[self._config.training_scan].detach().cpu().numpy().astype(np.complex64)

    def _reconstruct_chunk(self, spool: Spool, preview: LivePreview, n_frames: int) -> None:
        began_s = time.monotonic()
        stop = self._n_reconstructed + n_frames
        # Frames that were reconstructed before complete a group that lacks some.
        start = min(self._n_reconstructed, max(0, stop - self._network.gridsize**2))
        frames, positions_px = spool.read_rows(start, stop)
        preview.add(frames, positions_px, start, self._n_reconstructed - start)
        if preview.doubt is not None and self._doubt is None:
            _log.warning("%s: %s", self._status.source, preview.doubt)
        self._doubt = preview.doubt
        # The source knows more than the numbers show: why a frame has no position, or none of its own.
        preview.unfit |= {row: spool.left_out[row] for row in range(start, stop) if row in spool.left_out}
        self._unfit, self._status.left_out = preview.unfit, preview.unfit | preview.unplaced
        self._n_reconstructed = stop
        self._refuse_near_field(spool)
        wait_s = self._receiver.mark_reconstructed(stop)
        speed = n_frames / max(time.monotonic() - began_s, 1e-6)
        self._frames_per_s = speed if not self._frames_per_s else 0.5 * (self._frames_per_s + speed)
        if wait_s is not None:
            self._reporter.record_wait(wait_s)

    def _draw_preview(self, preview: LivePreview) -> None:
        """Draw the image of the frames so far, unless it has been drawn already."""
        if self._n_drawn == self._n_reconstructed:
            return
        image = preview.make_image()
        if image is not None and self._reporter.draw_image(image, provisional=True):
            self._n_drawn = self._n_reconstructed

    def _make_final_image(self, spool: Spool, accelerator: str, progress: bool) -> Reconstruction:
        """Reconstruct all frames and write the image and its files."""
        self._raise_if_stopped()
        self._status.message = self._join_messages()
        self._reporter.report("finishing", self._n_reconstructed)
        # Frames that had no place in the live image (`unplaced`) are included, because this image covers the whole
        # scan.
        self._require_frames(spool, spool.count - len(self._unfit))
        scan = spool.make_scan(self._get_probe(), self._unfit)
        final = reconstruct(
            self._network,
            scan,
            self._config,
            accelerator=accelerator,
            progress=progress,
            scratch=self._out,
            on_batch=self._raise_if_stopped,
        )
        # The files belong together and take only a moment: a stop from here on is handled after they are written.
        self._raise_if_stopped()
        write_reconstruction(final, self._out / "reconstruction.npz")
        from torchptycho.visualization.plot import plot_reconstruction

        plot_reconstruction(final, self._out / "reconstruction.png")
        self._reporter.draw_image(final, provisional=False)
        self._status.left_out = {int(frame): reason for frame, reason in final.provenance["left_out"].items()}
        return final

    def _join_messages(self, message: str | None = None) -> str | None:
        """Join what makes the image poor, as far as it is known, with another message."""
        return "; ".join(text for text in (self._doubt, message) if text) or None

    def _raise_if_stopped(self, batch: InferenceBatch | None = None, patches: Tensor | None = None) -> None:
        if self._stop.is_set():
            raise _StopRequested

    def _require_frames(self, spool: Spool | None, n: int) -> None:
        try:
            require_frames(self._status.source, n, self._network.gridsize)
        except ScanError:
            # The source may have reported its end; the next watch asks it again.
            if spool is not None and spool.ended:
                spool.record_end(ended=False)
            raise


def _describe_missing_frames(count: int, receiver: Receiver, *, stopped: bool) -> str | None:
    """Describe missing frames of a final image, a missing confirmation of the source, and a late stop."""
    parts = []
    if stopped:
        parts.append("stopped after the image was complete: it is written, and the spool is kept")
    if receiver.end_reason:
        parts.append(receiver.end_reason)
    if receiver.spool is not None and receiver.spool.n_lost:
        parts.append(f"{receiver.spool.n_lost} frames were lost on their way here")
    if receiver.unused_positions:
        parts.append(f"{receiver.unused_positions} positions have found no frame")
    if receiver.source_skipped:
        parts.append(f"all {count} frames were in the spool already; the source was not asked")
    if receiver.expected is not None and count < receiver.expected:
        parts.append(f"{receiver.expected - count} of {receiver.expected} expected frames did not arrive")
    return "; ".join(parts) or None


def explain_resume(count: int, out: Path, wait_reason: str | None = None) -> str:
    """Explain how to continue a watch that was stopped with `count` frames in its spool."""
    if not count:
        return "stopped before the first frame arrived" + (f": {wait_reason}" if wait_reason else "")
    return (
        f"stopped with {count} frames in {out / SPOOL_FOLDER}: the same command continues after them; with --idle-s 1 "
        "it makes the image of the frames received so far"
    )
