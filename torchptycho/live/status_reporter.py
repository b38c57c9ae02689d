"""Published state of a watch: status.json, the live images, and a progress bar."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from rich.progress import Progress

from torchptycho.core.errors import ScanError
from torchptycho.core.progress import create_progress_bar
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.live.live_images import write_live_images
from torchptycho.live.receiver import Receiver
from torchptycho.live.status import FrameRates, ImageStatus, WatchState, WatchStatus

__all__ = ["StatusReporter"]

_log = logging.getLogger(__name__)


class StatusReporter:
    """Writes the status and the live images of a watch into its folder.

    A file that cannot be written is a warning, once for each file, and is written at the next report.

    Arguments:
        status: the status to write; `report` updates its numbers.
        folder: of the watch.
        receiver: whose frames are counted.
    """

    def __init__(self, status: WatchStatus, folder: Path, receiver: Receiver) -> None:
        self.status = status
        self._folder, self._receiver = folder, receiver
        self._rates = FrameRates()
        self._image_version = 0
        self._files_with_warning: set[Path] = set()
        self._bar: Progress | None = None

    def show_progress(self) -> Progress:
        """Create a progress bar that follows the reports; the caller starts and stops it as a context."""
        self._bar = create_progress_bar()
        self._bar.add_task("watching", total=None, note="")
        return self._bar

    def report(self, state: WatchState, n_reconstructed: int) -> None:
        """Write status.json and update the progress bar."""
        status, receiver = self.status, self._receiver
        with receiver.changed:
            status.received = 0 if receiver.spool is None else receiver.spool.count
            status.expected = receiver.expected
            status.lost = 0 if receiver.spool is None else receiver.spool.n_lost
            status.unused_positions = receiver.unused_positions
            status.largest_backlog, status.paused_s = receiver.largest_backlog, receiver.paused_s
        status.state, status.reconstructed = state, n_reconstructed
        status.backlog = status.received - n_reconstructed
        status.received_per_s, status.reconstructed_per_s = self._rates.update(
            time.monotonic(), status.received, n_reconstructed
        )
        try:
            status.write(self._folder)
        except OSError as error:
            self._warn_once(self._folder / "status.json", error)
        if self._bar is not None:
            note = status.message or f"{status.reconstructed_per_s:.0f} frames/s, {status.backlog} waiting"
            self._bar.update(self._bar.task_ids[0], completed=n_reconstructed, total=status.expected, note=note)

    def draw_image(self, image: Reconstruction, *, provisional: bool) -> bool:
        """Write the live images; return False when the folder cannot be written to."""
        try:
            write_live_images(image.object, image.coverage, image.object_pixel_m, self._folder)
        except (OSError, ScanError) as error:
            self._warn_once(self._folder / "amplitude.png", error)
            return False
        height_px, width_px = image.object.shape[-2:]
        self._image_version += 1
        self.status.image = ImageStatus(
            version=self._image_version,
            height_px=height_px,
            width_px=width_px,
            object_pixel_m=image.object_pixel_m,
            provisional=provisional,
        )
        return True

    def record_wait(self, wait_s: float) -> None:
        """Record the seconds between a frame's arrival and its appearance in the image."""
        self.status.latest_wait_s = wait_s
        self.status.longest_wait_s = max(self.status.longest_wait_s, wait_s)

    def _warn_once(self, path: Path, error: Exception) -> None:
        if path not in self._files_with_warning:
            self._files_with_warning.add(path)
            _log.warning("%s: cannot be written now (%s); frames are still received", path, error)
