"""How many frames per second this computer can receive and reconstruct, measured before a scan."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from torchptycho.core.config import ReadConfig
from torchptycho.core.devices import find_devices
from torchptycho.core.errors import ConfigError
from torchptycho.live.beamline.chunk_decoder import ChunkDecoder
from torchptycho.live.beamline.detector import DetectorHeader
from torchptycho.live.beamline.frame_processing import FrameProcessor, prepare_reading
from torchptycho.live.preview import LivePreview
from torchptycho.live.scan_header import Chunk, ScanLayout
from torchptycho.live.spool import Spool
from torchptycho.models.network import PtychoNetwork
from torchptycho.reconstructors.network_reconstruction import make_read_config

__all__ = ["WatchRates", "measure_rates"]

_MEASURED_S = 1.0
_N_DIFFERENT, _CHUNK_FRAMES = 16, 64
# Files of images and of status.json need room, too.
_SPARE_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchRates:
    """Rates of this computer in frames per second.

    Arguments:
        received: decompressed, processed and written to the disk.
        reconstructed: through the network to the live image; frames that come faster wait in the spool.
        room: frames that the disk has room for.
        frame_bytes: of a processed frame.
    """

    received: float
    reconstructed: float
    room: int
    frame_bytes: int


def measure_rates(
    network: PtychoNetwork,
    out: Path,
    *,
    recorded_shape: tuple[int, int] | None = None,
    reading: ReadConfig | None = None,
    accelerator: str = "auto",
) -> WatchRates:
    """Measure how fast frames can be received into a folder and reconstructed, in about two seconds.

    Arguments:
        out: folder of the watch; temporary files in it are removed.
        recorded_shape: rows and columns of frames as a detector compresses and sends them; None for frames that arrive
            as the network takes them.
        reading: how recorded frames are processed; None as the network's training scans.
        accelerator: device to compute on.

    Raises:
        ConfigError: the folder cannot be written to, or the processed frames do not have the network's size.
        StoreError: the disk is full.
    """
    shape = recorded_shape or (network.n_px, network.n_px)
    frames = np.random.default_rng(0).poisson(2.0, (_N_DIFFERENT, *shape)).astype(np.uint32)
    decoder = ChunkDecoder(shape, frames.dtype, "check")
    options = prepare_reading(reading or make_read_config(network.config.prepare), "check")
    processor = None
    if recorded_shape is not None:
        processor = FrameProcessor(frames, DetectorHeader(series="check"), options, "check")
        if processor.layout.n_px != network.n_px:
            raise ConfigError(
                f"--check-frame: expected frames that become {network.n_px} px, as those of training; found "
                f"{processor.layout.n_px} px. Set crop_px and binning in the section prepare of a --config file."
            )
    layout = processor.layout if processor else _make_layout(network)
    blobs = [decoder.encode(frame) for frame in frames]

    def receive(spool: Spool) -> None:
        images = [decoder.decode(blobs[i % _N_DIFFERENT], "bslz4") for i in range(_CHUNK_FRAMES)] if processor else []
        stack = processor.process(images) if processor else np.resize(frames, (_CHUNK_FRAMES, *shape))
        spool.append(Chunk(frames=stack, positions_px=np.zeros((_CHUNK_FRAMES, 2)), end=False))

    try:
        with tempfile.TemporaryDirectory(prefix=".check-", dir=out) as folder:
            received = _measure_receiving(Path(folder) / "spool", layout, receive)
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(f"out: expected a folder that can be written to; found {out} ({error.strerror}).") from None
    finally:
        decoder.close()
    ready = processor.process(list(frames)) if processor else frames
    return WatchRates(
        received=received,
        reconstructed=_measure_network(network, layout, ready, accelerator),
        room=max(0, free - _SPARE_BYTES) // (layout.frame_bytes + 16),
        frame_bytes=layout.frame_bytes,
    )


def _make_layout(network: PtychoNetwork) -> ScanLayout:
    n_px = network.n_px
    return ScanLayout(
        scan="check", n_px=n_px, dtype=np.dtype(np.uint32), domain="counts", mask=np.ones((n_px, n_px), bool)
    )


def _measure_receiving(folder: Path, layout: ScanLayout, receive: Callable[[Spool], None]) -> float:
    """Measure frames per second until they are on the disk and not only in the memory of the system."""
    spool = Spool.create(folder, layout, "check")
    try:
        began_s = time.perf_counter()
        while time.perf_counter() < began_s + _MEASURED_S:
            receive(spool)
        descriptor = os.open(folder / "frames.raw", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return spool.count / (time.perf_counter() - began_s)
    finally:
        spool.close()


def _measure_network(
    network: PtychoNetwork, layout: ScanLayout, frames: Shaped[np.ndarray, "k n n"], accelerator: str
) -> float:
    """Measure frames per second to the live image, after one chunk that is not counted."""
    n = max(_CHUNK_FRAMES, 4 * network.gridsize**2)
    stack = np.resize(frames, (n, *frames.shape[1:]))
    edge = int(np.ceil(np.sqrt(n)))
    places = np.stack(np.divmod(np.arange(n), edge), axis=1) * (layout.n_px / 8)
    count = 0
    with LivePreview(network, network.config.reconstruct, layout, "check", find_devices(accelerator, 1)[0]) as preview:
        preview.add(stack, places, 0)
        began_s = time.perf_counter()
        while time.perf_counter() < began_s + _MEASURED_S:
            count += n
            preview.add(stack, places, count)
        preview.make_image()
        return count / (time.perf_counter() - began_s)
