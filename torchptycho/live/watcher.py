"""Reconstruction of a scan while it is recorded: `watch`."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from torchptycho.core.config import ReadConfig
from torchptycho.core.devices import find_devices
from torchptycho.core.errors import ConfigError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.text import format_error
from torchptycho.io.storage.outputs import check_output_folder
from torchptycho.live.receiver import Receiver
from torchptycho.live.scan_header import FrameSource
from torchptycho.live.sources import BeamlineConfig, open_source
from torchptycho.live.spool import exclusive_receiver
from torchptycho.live.status import WatchStatus
from torchptycho.live.status_reporter import StatusReporter
from torchptycho.live.stream_keys import ReaderKeys
from torchptycho.live.watch_session import SPOOL_FOLDER, WatchSession, explain_resume
from torchptycho.models.checkpoints import load_network
from torchptycho.models.network import PtychoNetwork

__all__ = ["WatchResult", "watch"]

_HEADER_FILE = "series.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchResult:
    """How a watch ended.

    Arguments:
        status: the last content of status.json.
        image: the final one; None for a watch that was stopped.
    """

    status: WatchStatus
    image: Reconstruction | None


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
    trust_generator: bool | str = False,
    input_scale: Literal["training", "scan"] | None = None,
    keys: ReaderKeys | None = None,
    beamline: BeamlineConfig | None = None,
) -> WatchResult:
    """Reconstruct a scan while it is recorded.

    A separate thread receives frames into a folder on the disk, `out`/spool. The network reconstructs them as they
    come, and every `refresh_s` seconds the image of the frames so far is drawn. When the scan is over, `reconstruct`
    makes the final image of all frames, identical to that of the finished scan: `out`/reconstruction.npz and .png.
    `out`/status.json reports the progress (see `WatchStatus`); amplitude.png, phase.png and coverage.png next to it are
    the latest images.

    A watch that was stopped or killed continues after the frames in its spool when it is called again.

    Arguments:
        source: an HDF5 file that grows (`GrowingFile`), the address of a stream (`StreamSource`) or of a detector, a
            folder that fills with files, or a `FrameSource`; see `open_source`.
        model: a trained network or its file.
        out: folder; created if it does not exist.
        frames: number of frames after which the scan is over; None follows the source.
        idle_s: seconds without a new frame after which the scan is also over; None: 30 for a file, never for a stream.
        spool_frames: the most frames that may wait in the spool to be reconstructed; the source keeps the others.
        refresh_s: seconds between two live images.
        accelerator: device to compute on: auto, cpu, gpu.
        reading: how a file is read, for a file only; None reads it as the network's training scans were read.
        drop_spool: remove the spool after the final image is written.
        stop: set it to end the watch; the image of the frames so far is drawn, and the spool is kept even with
            `drop_spool`. If the final image is already complete, its files are written first.
        progress: show a progress bar.
        trust_generator: whether a generator that the network's file names may be imported, see `load_checkpoint`.
        input_scale: scale the network's input as in training, or from this scan; None as trained. A dose that differs
            from that of training is reported in the status while frames come.
        keys: of an encrypted stream, which the address of another machine needs; see `load_reader_keys`.
        beamline: how a detector is read that knows no positions.

    Raises:
        TorchptychoError: the source cannot be used or does not fit the network, the disk is full, or the spool belongs
            to another scan or another process. Frames that were received are kept.
    """
    _check_limits(frames, idle_s, spool_frames, refresh_s)
    device = find_devices(accelerator, 1)[0]
    network = model if isinstance(model, PtychoNetwork) else load_network(model, trust_generator=trust_generator)
    network.require_statistics()
    config = network.config.reconstruct
    if input_scale is not None:
        config = dataclasses.replace(config, input_scale=input_scale)
    _check_spool_size(spool_frames, network.gridsize**2)
    out = Path(out)
    check_output_folder(out)
    if isinstance(source, str | Path):
        beamline = beamline or BeamlineConfig()
        beamline = dataclasses.replace(beamline, header_file=beamline.header_file or out / _HEADER_FILE)
        source = open_source(source, network, reading, keys, beamline)
    _create_folder(out)
    status = WatchStatus(
        source=source.name, model=str(network.checkpoint or "a network in memory"), refresh_s=refresh_s
    )
    with exclusive_receiver(out):
        receiver = Receiver(
            source, out / SPOOL_FOLDER, spool_frames, frames, source.idle_s if idle_s is None else idle_s
        )
        reporter = StatusReporter(status, out, receiver)
        session = WatchSession(network, device, out, receiver, reporter, refresh_s, stop or threading.Event(), config)
        with _write_failure(status, out):
            image = session.run(accelerator, progress)
        # After a stop the user may want to continue with other options, so the spool stays.
        if image is not None and drop_spool and not session.stopped:
            assert receiver.spool is not None
            receiver.spool.drop()
    return WatchResult(status=status, image=image)


def _check_limits(frames: int | None, idle_s: float | None, spool_frames: int, refresh_s: float) -> None:
    for name, value, least in (("frames", frames, 2), ("idle_s", idle_s, 0), ("spool_frames", spool_frames, 16)):
        if value is not None and not value >= least:
            raise ConfigError(f"{name}: expected at least {least}; found {value}.")
    if not 0.05 <= refresh_s <= 3600:
        raise ConfigError(f"refresh_s: expected 0.05 to 3600 seconds; found {refresh_s}.")


def _check_spool_size(spool_frames: int, group_size: int) -> None:
    if spool_frames < 4 * group_size:
        raise ConfigError(f"spool_frames: expected at least four groups of {group_size} frames; found {spool_frames}.")


def _create_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"out: expected a folder that can be created; found {out} ({error.strerror}). Name another one."
        ) from None


@contextlib.contextmanager
def _write_failure(status: WatchStatus, out: Path) -> Iterator[None]:
    """Write the reason into status.json when the block ends by an exception."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            status.state, status.message = "stopped", explain_resume(status.received, out)
        else:
            status.state, status.message = "failed", format_error(error) or type(error).__name__
        with contextlib.suppress(OSError):
            status.write(out)
        raise
