"""Reconstructing while the scan grows."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import Progress, TaskID

from torchptycho.bars import new_bar
from torchptycho.checkpoints import find_checkpoint, load_network
from torchptycho.config import ReadConfig, reading_of
from torchptycho.errors import ConfigError
from torchptycho.io import write_reconstruction
from torchptycho.live.growing_file import GrowingFile
from torchptycho.live.layout import Source
from torchptycho.live.pictures import draw
from torchptycho.live.provisional import Provisional, require_frames
from torchptycho.live.receiver import Receiver
from torchptycho.live.spool import Spool, claimed
from torchptycho.live.status import ImageStatus, Rates, State, Status
from torchptycho.live.stream import StreamSource, is_address
from torchptycho.network import PtychoNetwork
from torchptycho.predicting import devices_of
from torchptycho.reconstructing import reading_for_prediction, reconstruct
from torchptycho.reconstruction import Reconstruction

if TYPE_CHECKING:
    import torch

__all__ = ["SPOOL", "Watched", "source_of", "watch"]


SPOOL = "spool"
"""Folder of the spool, in that of the watch."""
_MOMENT_S = 0.05
# A group that lacks frames waits for them so long, while frames come.
_QUIET_S = 0.5
# Frames that go through the network together, at most, and how many bytes their patches may take.
_LARGEST_CHUNK, _PATCH_BYTES = 2048, 64 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """How a watch ended.

    Arguments:
        status: as status.json has it.
        image: the final one; None for a watch that was stopped.
    """

    status: Status
    image: Reconstruction | None


def source_of(text: str | Path, reading: ReadConfig) -> Source:
    """A stream for `tcp://...` and `ipc://...`, else a file that grows.

    Raises:
        ConfigError: an address that does not work, or pyzmq is not installed.
    """
    if is_address(str(text)):
        return StreamSource(str(text))
    if "://" in str(text):
        raise ConfigError(f"{text}: expected an HDF5 file, or an address that begins with tcp:// or ipc://.")
    return GrowingFile(Path(text), reading)


def watch(
    source: str | Path | Source,
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
) -> Watched:
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
        reading: how a file is read; None as the network's training scans were.
        drop_spool: remove the spool when the final image is written.
        stop: set it to end the watch; the image of what is there is drawn, and the spool is kept.
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
    device = devices_of(accelerator, 1)[0]
    path = None if isinstance(model, PtychoNetwork) else find_checkpoint(model)
    network = model if isinstance(model, PtychoNetwork) else load_network(find_checkpoint(model))
    network.require_statistics()
    if spool_frames < 4 * network.gridsize**2:
        raise ConfigError(f"spool_frames: expected at least four groups of {network.gridsize**2} frames; found "
                          f"{spool_frames}.")  # fmt: skip
    if isinstance(source, str | Path):
        guessed = reading_for_prediction(network.config.prepare)
        source = source_of(source, guessed if reading is None else reading_of(reading))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    status = Status(source=source.name, model=str(path or network.checkpoint or "a network in memory"))
    with claimed(out):
        receiver = Receiver(source, out / SPOOL, spool_frames, frames, source.idle_s if idle_s is None else idle_s)
        work = _Watch(network, device, out, receiver, status, refresh_s, stop or threading.Event())
        try:
            image = work.run(accelerator, progress)
        except BaseException as error:
            status.state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            status.message = " ".join(str(error).split()) or type(error).__name__
            with contextlib.suppress(OSError):
                status.write(out)
            raise
        if image is not None and drop_spool:
            assert receiver.spool is not None
            receiver.spool.drop()
    return Watched(status=status, image=image)


class _Watch:
    """One call of `watch`."""

    def __init__(
        self, network: PtychoNetwork, device: torch.device, out: Path, receiver: Receiver, status: Status,
        refresh_s: float, stop: threading.Event,
    ) -> None:  # fmt: skip
        self._network, self._device, self._out, self._receiver = network, device, out, receiver
        self._status, self._refresh_s, self._stop = status, refresh_s, stop
        self._config = network.config.reconstruct
        self._done = 0
        self._drawn = 0
        self._rates = Rates()
        self._speed = 0.0

    def run(self, accelerator: str, progress: bool) -> Reconstruction | None:
        """Until the scan is over or it is told to stop."""
        self._tell("waiting")
        bar = new_bar() if progress else None
        left_out: dict[int, str] = {}
        with self._receiver as receiver:
            with bar or contextlib.nullcontext():
                told = bar.add_task("watching", total=None, note="") if bar else None
                spool = self._first_frames(bar, told)
                if spool is not None:
                    with Provisional(
                        self._network, self._config, spool.layout, self._status.source, self._device
                    ) as image:
                        image.left_out = self._status.left_out
                        self._follow(spool, image, bar, told)
                    left_out = dict(self._status.left_out)
            if self._stop.is_set() or spool is None:
                self._status.message = _how_to_go_on(0 if spool is None else spool.count, self._out)
                self._tell("stopped")
                return None
            self._tell("finishing")
            require_frames(self._status.source, spool.count - len(left_out), self._network.gridsize)
            probe = self._network.probe[self._config.training_scan].detach().cpu().numpy().astype(np.complex64)
            scan = spool.scan(probe, left_out)
            final = reconstruct(
                self._network, scan, self._config, accelerator=accelerator, progress=progress, scratch=self._out
            )
            write_reconstruction(final, self._out / "reconstruction.npz")
            from torchptycho.plot import plot_reconstruction

            plot_reconstruction(final, self._out / "reconstruction.png")
            self._draw(final, provisional=False)
            self._status.left_out = {int(frame): why for frame, why in final.provenance["left_out"].items()}
            receiver.reconstructed(spool.count)
        self._tell("done")
        return final

    def _first_frames(self, bar: Progress | None, told: TaskID | None) -> Spool | None:
        """The spool when it has frames; None when there will be none."""
        receiver, next_s = self._receiver, 0.0
        while not self._stop.is_set():
            with receiver.changed:
                spool, ended = receiver.spool, receiver.ended
                if spool is not None and spool.count:
                    return spool
                if not ended:
                    receiver.changed.wait(_MOMENT_S)
            if ended:
                receiver.require_well()
                require_frames(self._status.source, 0, self._network.gridsize)
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + self._refresh_s
                self._status.message = receiver.waits_for
                self._tell("waiting", bar, told)
        return None

    def _follow(self, spool: Spool, image: Provisional, bar: Progress | None, told: TaskID | None) -> None:
        """Reconstruct frames as they come, until none comes any more."""
        receiver, size = self._receiver, self._network.gridsize**2
        next_s, quiet_since, drawn_at = 0.0, time.monotonic(), -1
        self._status.message = None
        self._tell("receiving", bar, told)
        while not self._stop.is_set():
            with receiver.changed:
                waiting, over = spool.count - self._done, receiver.ended
                take = min(waiting, self._at_once(spool))
                quiet = over or time.monotonic() > quiet_since + _QUIET_S
                # Of fewer than make one group nothing can be made yet.
                if take < size and not (quiet and waiting and (over or spool.count >= size)):
                    if over and not waiting:
                        break
                    receiver.changed.wait(_MOMENT_S)
                    take = 0
            if take:
                self._reconstruct(spool, image, take - take % size if take >= size else take)
                quiet_since = time.monotonic()
            if time.monotonic() >= next_s:
                found = image.image() if drawn_at != self._done else None
                if found is not None:
                    self._draw(found, provisional=True)
                    drawn_at = self._done
                self._status.message = receiver.waits_for if not take else None
                self._tell("receiving", bar, told)
                next_s = time.monotonic() + self._refresh_s
        receiver.require_well()
        found = image.image() if drawn_at != self._done else None
        if found is not None:
            self._draw(found, provisional=True)

    def _reconstruct(self, spool: Spool, image: Provisional, take: int) -> None:
        began = time.monotonic()
        size = self._network.gridsize**2
        stop = self._done + take
        # Frames that are there already fill a group that lacks some.
        start = min(self._done, max(0, stop - size))
        frames, positions_px = spool.rows(start, stop)
        image.add(frames, positions_px, start, self._done - start)
        self._done = stop
        wait_s = self._receiver.reconstructed(stop)
        speed = take / max(time.monotonic() - began, 1e-6)
        self._speed = speed if not self._speed else 0.5 * (self._speed + speed)
        if wait_s is not None:
            self._status.latest_wait_s = wait_s
            self._status.longest_wait_s = max(self._status.longest_wait_s, wait_s)

    def _at_once(self, spool: Spool) -> int:
        """Frames that take no longer than half of the time between two pictures."""
        room = min(_LARGEST_CHUNK, max(64, _PATCH_BYTES // (8 * spool.layout.n_px**2)))
        size = self._network.gridsize**2
        return max(4 * size, min(room, int(self._speed * self._refresh_s / 2) if self._speed else 64))

    def _draw(self, image: Reconstruction, *, provisional: bool) -> None:
        draw(image.object, image.coverage, image.object_pixel_m, self._out)
        height_px, width_px = image.object.shape
        self._drawn += 1
        self._status.image = ImageStatus(
            version=self._drawn, height_px=height_px, width_px=width_px, object_pixel_m=image.object_pixel_m,
            provisional=provisional,
        )  # fmt: skip

    def _tell(self, state: State, bar: Progress | None = None, told: TaskID | None = None) -> None:
        status, receiver = self._status, self._receiver
        with receiver.changed:
            status.received = 0 if receiver.spool is None else receiver.spool.count
            status.expected = receiver.expected
            status.largest_backlog, status.paused_s = receiver.largest_backlog, receiver.paused_s
        status.state, status.reconstructed = state, self._done
        status.backlog = status.received - self._done
        status.received_per_s, status.reconstructed_per_s = self._rates.of(
            time.monotonic(), status.received, self._done
        )
        status.write(self._out)
        if bar is not None and told is not None:
            note = status.message or f"{status.reconstructed_per_s:.0f} frames/s, {status.backlog} waiting"
            bar.update(told, completed=self._done, total=status.expected, note=note)


def _how_to_go_on(count: int, out: Path) -> str:
    if not count:
        return "stopped before the first frame came"
    return (
        f"stopped with {count} frames in {out / SPOOL}: the same command goes on after them, and with --idle-s 1 it "
        "makes the image of those that are there"
    )
