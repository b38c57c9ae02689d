"""Reconstructing while the scan grows."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import Progress, TaskID

from torchptycho.core.config import ReadConfig, extract_read_config
from torchptycho.core.devices import find_devices
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.progress import create_progress_bar
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.text import format_error
from torchptycho.io import write_reconstruction
from torchptycho.live.hdf5_source import GrowingFile
from torchptycho.live.live_images import write_live_images
from torchptycho.live.preview import LivePreview, require_frames
from torchptycho.live.receiver import Receiver
from torchptycho.live.scan_header import FrameSource
from torchptycho.live.spool import Spool, exclusive_receiver
from torchptycho.live.status import FrameRates, ImageStatus, WatchState, WatchStatus
from torchptycho.live.zmq_source import StreamSource, is_stream_address
from torchptycho.models.checkpoints import load_network
from torchptycho.models.network import PtychoNetwork
from torchptycho.reconstructors.network_reconstruction import make_read_config, reconstruct

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from torchptycho.data.inference_dataset import InferenceBatch

__all__ = ["SPOOL_FOLDER", "WatchResult", "open_source", "watch"]


_log = logging.getLogger(__name__)

SPOOL_FOLDER = "spool"
"""Folder of the spool, in that of the watch."""
_POLL_S = 0.05
# A group that lacks frames waits for them so long, while frames come.
_GROUP_TIMEOUT_S = 0.5
# Frames that go through the network together, at most, and how many bytes their patches may take.
_MAX_CHUNK_FRAMES, _MAX_PATCH_BYTES = 2048, 64 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchResult:
    """How a watch ended.

    Arguments:
        status: as status.json has it.
        image: the final one; None for a watch that was stopped.
    """

    status: WatchStatus
    image: Reconstruction | None


class _StopRequested(Exception):
    """The watch was told to stop while its final image was made."""


def open_source(text: str | Path, network: PtychoNetwork, reading: ReadConfig | None) -> FrameSource:
    """A stream for `tcp://...` and `ipc://...`, else a file that grows.

    Arguments:
        reading: how a file is read; None as the network's training scans were.

    Raises:
        ConfigError: an address that does not work or that shall be read in some way, or pyzmq is not installed.
    """
    if is_stream_address(str(text)):
        if reading is not None:
            raise ConfigError(
                f"config: expected none for {text}, as it says how a file is read, and a stream sends frames that are "
                "ready. Leave it out."
            )
        changes = _list_changed_options(network.config.prepare)
        if changes:
            _log.warning(
                "%s: the network's training scans were read with %s; a stream has to send frames, positions and mask "
                "that are ready, and they are taken as they come",
                text,
                ", ".join(changes),
            )
        return StreamSource(str(text))
    if "://" in str(text) or str(text).startswith(("tcp:", "ipc:")):
        raise ConfigError(f"{text}: expected an HDF5 file, or an address that begins with tcp:// or ipc://.")
    if reading is None:
        reading = make_read_config(network.config.prepare)
    for name in ("frames", "drop_frames"):
        if getattr(reading, name):
            _log.warning("%s: %s is not followed while the scan grows: all its frames are taken", text, name)
    return GrowingFile(Path(text), extract_read_config(reading))


def _list_changed_options(reading: ReadConfig) -> list[str]:
    """Options by which the frames or positions of a scan are not those of its file."""
    default = ReadConfig()
    names = (
        "swap_xy", "flip_y", "flip_x", "fftshift", "beam_center_px", "crop_px", "binning", "dark", "flat",
        "clip_negative", "mask", "find_bad_pixels",
    )  # fmt: skip
    return [name for name in names if getattr(reading, name) != getattr(default, name)]


def watch(
    source: str | Path | FrameSource,
    model: str | Path | PtychoNetwork,
    out: str | Path,
    *,
    frames: int | None = None,
    idle_s: float | None = None,
    spool_frames: int = 20_000,
    refresh_s: float = 2.0,
    accelerator: str = "auto",
    reading: ReadConfig | None = None,
    drop_spool: bool = False,
    stop: threading.Event | None = None,
    progress: bool = True,
) -> WatchResult:
    """Reconstruct a scan while it is recorded.

    Frames are received onto the disk, `out`/spool, by a thread of its own, and go through the network as they come;
    every `refresh_s` the image of those that are there is drawn. When the scan is over, `reconstruct` makes the final
    image of all of them, the same as that of the finished scan: `out`/reconstruction.npz and .png. `out`/status.json
    tells how far it is (see `Status`), and amplitude.png, phase.png and coverage.png beside it are the latest pictures.

    A watch that was stopped or killed goes on after the frames in its spool when it is called again.

    Arguments:
        source: an HDF5 file that grows (`GrowingFile`), the address of a stream (`messages`), or a `Source`.
        model: a trained network or its file.
        out: folder; made when it is not there.
        frames: number of frames after which the scan is over; None follows the source.
        idle_s: seconds without a new frame after which it is over, too; None: 30 for a file, never for a stream.
        spool_frames: frames that may wait on the disk to be reconstructed; beyond it the source has to keep them.
        refresh_s: seconds between two pictures.
        accelerator: where to compute: auto, cpu, gpu.
        reading: how a file is read, for a file only; None as the network's training scans were.
        drop_spool: remove the spool when the final image is written.
        stop: set it to end the watch; the image of what is there is drawn, and the spool is kept, `drop_spool` or not.
            When the final image is there already, its files are written first.
        progress: show a bar.

    Raises:
        TorchptychoError: the source cannot be used or does not fit the network, the disk is full, the spool is that of
            another scan or of another process. What was received is kept.
    """
    for name, value, least in (("frames", frames, 2), ("idle_s", idle_s, 0), ("spool_frames", spool_frames, 16)):
        if value is not None and not value >= least:
            raise ConfigError(f"{name}: expected at least {least}; found {value}.")
    if not 0.05 <= refresh_s <= 3600:
        raise ConfigError(f"refresh_s: expected 0.05 to 3600 seconds; found {refresh_s}.")
    device = find_devices(accelerator, 1)[0]
    network = model if isinstance(model, PtychoNetwork) else load_network(model)
    network.require_statistics()
    if spool_frames < 4 * network.gridsize**2:
        raise ConfigError(
            f"spool_frames: expected at least four groups of {network.gridsize**2} frames; found {spool_frames}."
        )
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out: expected a folder, or a name that is free; found {out}, a file. Name another one.")
    if isinstance(source, str | Path):
        source = open_source(source, network, reading)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"out: expected a folder that can be made; found {out} ({error.strerror}). Name another one."
        ) from None
    status = WatchStatus(
        source=source.name, model=str(network.checkpoint or "a network in memory"), refresh_s=refresh_s
    )
    with exclusive_receiver(out):
        receiver = Receiver(
            source, out / SPOOL_FOLDER, spool_frames, frames, source.idle_s if idle_s is None else idle_s
        )
        work = _WatchSession(network, device, out, receiver, status, refresh_s, stop or threading.Event())
        try:
            image = work.run(accelerator, progress)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                status.state, status.message = "stopped", _explain_resume(status.received, out)
            else:
                status.state, status.message = "failed", format_error(error) or type(error).__name__
            with contextlib.suppress(OSError):
                status.write(out)
            raise
        # Who stops it may want to go on in another way.
        if image is not None and drop_spool and not work.stopped:
            assert receiver.spool is not None
            receiver.spool.drop()
    return WatchResult(status=status, image=image)


class _WatchSession:
    """One call of `watch`."""

    def __init__(
        self,
        network: PtychoNetwork,
        device: torch.device,
        out: Path,
        receiver: Receiver,
        status: WatchStatus,
        refresh_s: float,
        stop: threading.Event,
    ) -> None:
        self._network, self._device, self._out, self._receiver = network, device, out, receiver
        self._status, self._refresh_s, self._stop = status, refresh_s, stop
        self._config = network.config.reconstruct
        self._n_reconstructed = 0
        self._image_version = 0
        self._rates = FrameRates()
        self._frames_per_s = 0.0
        self._unfit: dict[int, str] = {}
        self._warned: set[Path] = set()
        self.stopped = False
        """Told to stop when the final image was there already, of which all files are written then."""

    def run(self, accelerator: str, progress: bool) -> Reconstruction | None:
        """Until the scan is over or it is told to stop."""
        self._report_status("waiting")
        bar = create_progress_bar() if progress else None
        with self._receiver as receiver:
            with bar or contextlib.nullcontext():
                told = bar.add_task("watching", total=None, note="") if bar else None
                spool = self._await_first_frames(bar, told)
                if spool is not None:
                    with LivePreview(
                        self._network, self._config, spool.layout, self._status.source, self._device
                    ) as image:
                        self._reconstruct_incoming(spool, image, bar, told)
            try:
                if spool is None:
                    raise _StopRequested
                final = self._finish(spool, accelerator, progress)
            except _StopRequested:
                count = 0 if receiver.spool is None else receiver.spool.count
                self._status.message = _explain_resume(count, self._out, receiver.wait_reason)
                self._report_status("stopped")
                return None
            receiver.mark_reconstructed(spool.count)
        self.stopped = self._stop.is_set()
        self._status.message = _describe_missing_frames(spool.count, receiver, stopped=self.stopped)
        self._report_status("done")
        return final

    def _finish(self, spool: Spool, accelerator: str, progress: bool) -> Reconstruction:
        """The final image, of all frames."""
        self._raise_if_stopped()
        self._status.message = None
        self._report_status("finishing")
        # What had no place in an image that did not know all frames may have one in this.
        self._require_frames(spool, spool.count - len(self._unfit))
        probe = self._network.probe[self._config.training_scan].detach().cpu().numpy().astype(np.complex64)
        scan = spool.make_scan(probe, self._unfit)
        final = reconstruct(
            self._network,
            scan,
            self._config,
            accelerator=accelerator,
            progress=progress,
            scratch=self._out,
            on_batch=self._raise_if_stopped,
        )
        # From here on it takes a moment, and a stop comes after the files, which belong together.
        self._raise_if_stopped()
        write_reconstruction(final, self._out / "reconstruction.npz")
        from torchptycho.visualization.plot import plot_reconstruction

        plot_reconstruction(final, self._out / "reconstruction.png")
        self._draw_image(final, provisional=False)
        self._status.left_out = {int(frame): why for frame, why in final.provenance["left_out"].items()}
        return final

    def _raise_if_stopped(self, batch: InferenceBatch | None = None, patches: Tensor | None = None) -> None:
        if self._stop.is_set():
            raise _StopRequested

    def _require_frames(self, spool: Spool | None, n: int) -> None:
        try:
            require_frames(self._status.source, n, self._network.gridsize)
        except ScanError:
            # Whatever the source has said, the next watch asks it for more.
            if spool is not None and spool.ended:
                spool.record_end(ended=False)
            raise

    def _await_first_frames(self, bar: Progress | None, told: TaskID | None) -> Spool | None:
        """The spool when it has frames; None when there will be none."""
        receiver, next_s = self._receiver, 0.0
        while not self._stop.is_set():
            with receiver.changed:
                spool, ended = receiver.spool, receiver.ended
                some = spool is not None and spool.count > 0
                if not ended and not (some and receiver.source_checked):
                    receiver.changed.wait(_POLL_S)
                    some = False
            receiver.raise_if_failed()
            if some:
                return spool
            if ended:
                self._require_frames(spool, 0)
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + self._refresh_s
                self._status.message = receiver.wait_reason
                self._report_status("waiting", bar, told)
        return None

    def _reconstruct_incoming(
        self, spool: Spool, image: LivePreview, bar: Progress | None, told: TaskID | None
    ) -> None:
        """Reconstruct frames as they come, until none comes any more."""
        receiver, size = self._receiver, self._network.gridsize**2
        next_s, quiet_since, drawn_at = 0.0, time.monotonic(), -1
        self._status.message = None
        self._report_status("receiving", bar, told)
        while not self._stop.is_set():
            with receiver.changed:
                waiting, over = spool.count - self._n_reconstructed, receiver.ended
                take = min(waiting, self._choose_chunk_size(spool))
                quiet = over or time.monotonic() > quiet_since + _GROUP_TIMEOUT_S
                # Of fewer than make one group nothing can be made yet.
                if take < size and not (quiet and waiting and (over or spool.count >= size)):
                    if over and not waiting:
                        break
                    receiver.changed.wait(_POLL_S)
                    take = 0
            receiver.raise_if_failed()
            if take:
                self._reconstruct(spool, image, take - take % size if take >= size else take)
                quiet_since = time.monotonic()
            if time.monotonic() >= next_s:
                found = image.make_image() if drawn_at != self._n_reconstructed else None
                if found is not None and self._draw_image(found, provisional=True):
                    drawn_at = self._n_reconstructed
                self._status.message = receiver.wait_reason if not take else None
                self._report_status("receiving", bar, told)
                next_s = time.monotonic() + self._refresh_s
        receiver.raise_if_failed()
        found = image.make_image() if drawn_at != self._n_reconstructed else None
        if found is not None:
            self._draw_image(found, provisional=True)

    def _reconstruct(self, spool: Spool, image: LivePreview, take: int) -> None:
        began = time.monotonic()
        size = self._network.gridsize**2
        stop = self._n_reconstructed + take
        # Frames that are there already fill a group that lacks some.
        start = min(self._n_reconstructed, max(0, stop - size))
        frames, positions_px = spool.read_rows(start, stop)
        image.add(frames, positions_px, start, self._n_reconstructed - start)
        self._unfit, self._status.left_out = image.unfit, image.unfit | image.unplaced
        self._n_reconstructed = stop
        wait_s = self._receiver.mark_reconstructed(stop)
        speed = take / max(time.monotonic() - began, 1e-6)
        self._frames_per_s = speed if not self._frames_per_s else 0.5 * (self._frames_per_s + speed)
        if wait_s is not None:
            self._status.latest_wait_s = wait_s
            self._status.longest_wait_s = max(self._status.longest_wait_s, wait_s)

    def _choose_chunk_size(self, spool: Spool) -> int:
        """Frames that take no longer than half of the time between two pictures."""
        room = min(_MAX_CHUNK_FRAMES, max(64, _MAX_PATCH_BYTES // (8 * spool.layout.n_px**2)))
        size = self._network.gridsize**2
        return max(4 * size, min(room, int(self._frames_per_s * self._refresh_s / 2) if self._frames_per_s else 64))

    def _draw_image(self, image: Reconstruction, *, provisional: bool) -> bool:
        """Draw it, if the folder can be written to; the next picture may be."""
        try:
            write_live_images(image.object, image.coverage, image.object_pixel_m, self._out)
        except (OSError, ScanError) as error:
            self._warn_once(self._out / "amplitude.png", error)
            return False
        height_px, width_px = image.object.shape
        self._image_version += 1
        self._status.image = ImageStatus(
            version=self._image_version,
            height_px=height_px,
            width_px=width_px,
            object_pixel_m=image.object_pixel_m,
            provisional=provisional,
        )
        return True

    def _warn_once(self, path: Path, error: Exception) -> None:
        if path not in self._warned:
            self._warned.add(path)
            _log.warning("%s: cannot be written now (%s); frames are received all the same", path, error)

    def _report_status(self, state: WatchState, bar: Progress | None = None, told: TaskID | None = None) -> None:
        status, receiver = self._status, self._receiver
        with receiver.changed:
            status.received = 0 if receiver.spool is None else receiver.spool.count
            status.expected = receiver.expected
            status.largest_backlog, status.paused_s = receiver.largest_backlog, receiver.paused_s
        status.state, status.reconstructed = state, self._n_reconstructed
        status.backlog = status.received - self._n_reconstructed
        status.received_per_s, status.reconstructed_per_s = self._rates.update(
            time.monotonic(), status.received, self._n_reconstructed
        )
        try:
            status.write(self._out)
        except OSError as error:
            self._warn_once(self._out / "status.json", error)
        if bar is not None and told is not None:
            note = status.message or f"{status.reconstructed_per_s:.0f} frames/s, {status.backlog} waiting"
            bar.update(told, completed=self._n_reconstructed, total=status.expected, note=note)


def _describe_missing_frames(count: int, receiver: Receiver, *, stopped: bool) -> str | None:
    """What a final image should be known to lack, or not to have been compared with, and how its watch ended."""
    said = []
    if stopped:
        said.append("told to stop when the image was there already: it is whole, and the spool is kept")
    if receiver.source_skipped:
        said.append(f"all {count} frames were here already; the source was not asked")
    if receiver.expected is not None and count < receiver.expected:
        said.append(f"{receiver.expected - count} of {receiver.expected} expected frames did not come")
    return "; ".join(said) or None


def _explain_resume(count: int, out: Path, waited_for: str | None = None) -> str:
    if not count:
        return "stopped before the first frame came" + (f": {waited_for}" if waited_for else "")
    return (
        f"stopped with {count} frames in {out / SPOOL_FOLDER}: the same command goes on after them, and with "
        "--idle-s 1 it "
        "makes the image of those that are there"
    )
