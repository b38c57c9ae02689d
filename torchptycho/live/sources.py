"""Frame sources by address or file name."""

from __future__ import annotations

import logging
from pathlib import Path

from torchptycho.core.config import ReadConfig, extract_read_config
from torchptycho.core.errors import ConfigError
from torchptycho.live.hdf5_source import GrowingFile
from torchptycho.live.scan_header import FrameSource
from torchptycho.live.stream_keys import ReaderKeys
from torchptycho.live.zmq_source import StreamSource, is_stream_address
from torchptycho.models.network import PtychoNetwork
from torchptycho.reconstructors.network_reconstruction import make_read_config

__all__ = ["open_source"]

_log = logging.getLogger(__name__)


def open_source(
    text: str | Path, network: PtychoNetwork, reading: ReadConfig | None, keys: ReaderKeys | None = None
) -> FrameSource:
    """Open a stream for `tcp://...` and `ipc://...`, and a growing file for every other text.

    Arguments:
        reading: how a file is read; None reads it as the network's training scans were read.
        keys: of an encrypted stream; an address of another machine needs them.

    Raises:
        ConfigError: the address does not work, options of reading are given for a stream, or pyzmq is not installed.
    """
    if is_stream_address(str(text)):
        return _open_stream(str(text), network, reading, keys)
    if keys is not None:
        raise ConfigError(f"{text}: expected a stream, which --key and --source-key are for; found a file.")
    if "://" in str(text) or str(text).startswith(("tcp:", "ipc:")):
        raise ConfigError(f"{text}: expected an HDF5 file, or an address that begins with tcp:// or ipc://.")
    return _open_growing_file(Path(text), reading or make_read_config(network.config.prepare))


def _open_stream(
    address: str, network: PtychoNetwork, reading: ReadConfig | None, keys: ReaderKeys | None
) -> StreamSource:
    if reading is not None:
        raise ConfigError(
            f"config: expected none for {address}, because it describes how a file is read, and a stream sends frames "
            "that are already processed. Leave it out."
        )
    changes = _list_changed_options(network.config.prepare)
    if changes:
        _log.warning(
            "%s: the network's training scans were read with %s; these options are not applied to a stream, which has "
            "to send processed frames, positions and mask",
            address,
            ", ".join(changes),
        )
    return StreamSource(address, keys)


def _open_growing_file(path: Path, reading: ReadConfig) -> GrowingFile:
    for name in ("frames", "drop_frames"):
        if getattr(reading, name):
            _log.warning("%s: %s is ignored while the scan grows: all frames are used", path, name)
    if reading.replaces_positions:
        raise ConfigError(
            f"{path}: expected the positions of the file while it grows; found an option that replaces them. Leave out "
            "positions and raster_step_px or raster_step_m, or reconstruct the complete scan."
        )
    return GrowingFile(path, extract_read_config(reading))


def _list_changed_options(reading: ReadConfig) -> list[str]:
    """List the options by which the frames or positions of a scan differ from those in its file."""
    default = ReadConfig()
    names = (
        "swap_xy", "flip_y", "flip_x", "positions_rotation_deg", "fftshift", "beam_center_px", "crop_px", "binning",
        "dark", "flat", "clip_negative", "mask", "find_bad_pixels",
    )  # fmt: skip
    return [name for name in names if getattr(reading, name) != getattr(default, name)]
