"""Frame sources by address or file name."""

from __future__ import annotations

import dataclasses
import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from torchptycho.core.config import ReadConfig, extract_read_config
from torchptycho.core.errors import ConfigError
from torchptycho.live.beamline.dectris_stream import DECTRIS_SCHEMES, DectrisStream
from torchptycho.live.beamline.detector import Detector
from torchptycho.live.beamline.folder import FrameFolder, is_folder_pattern
from torchptycho.live.beamline.joined_source import JoinedSource
from torchptycho.live.beamline.joining import JoinConfig
from torchptycho.live.beamline.positions import open_positions
from torchptycho.live.hdf5_source import GrowingFile
from torchptycho.live.scan_header import FrameSource
from torchptycho.live.stream_keys import ReaderKeys
from torchptycho.live.zmq_source import StreamSource, is_stream_address
from torchptycho.models.network import PtychoNetwork
from torchptycho.reconstructors.network_reconstruction import make_read_config

__all__ = ["ENTRY_POINTS", "BeamlineConfig", "open_source"]

_log = logging.getLogger(__name__)

ENTRY_POINTS = "torchptycho.frame_sources"
"""Entry points of other packages: a scheme, and a function that makes a `FrameSource` or `Detector` of an address."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamlineConfig:
    """How a detector that knows no positions is read.

    Arguments:
        positions_from: CSV file or address of the positions.
        columns: names of the key, of y and of x there; None for index (frame, trigger, time), y and x.
        join: how frames find their positions.
        channel: threshold of a DECTRIS stream of version 2.
        header_file: where the header of the series is kept for a watch that continues.
    """

    positions_from: str | None = None
    columns: tuple[str, str, str] | None = None
    join: JoinConfig = dataclasses.field(default_factory=JoinConfig)
    channel: str | None = None
    header_file: Path | None = None


def open_source(
    text: str | Path,
    network: PtychoNetwork,
    reading: ReadConfig | None,
    keys: ReaderKeys | None = None,
    beamline: BeamlineConfig | None = None,
) -> FrameSource:
    """Open a stream, a detector, a folder of files, or a growing file.

    `tcp://...` and `ipc://...` are streams of frames with positions, `dectris-v1://...` and `dectris-v2://...` those of
    a detector, a name with * is a folder that fills with files, other schemes are those of entry points, and every
    other text is a growing HDF5 file.

    Arguments:
        reading: how recorded frames are read; None reads them as the network's training scans were read.
        keys: of an encrypted stream; an address of another machine needs them.
        beamline: how a detector is read, whose positions come from elsewhere.

    Raises:
        ConfigError: the address does not work, options do not belong to it, or a package is not installed.
    """
    beamline = beamline or BeamlineConfig()
    name = str(text)
    if keys is not None and not is_stream_address(name):
        raise ConfigError(
            f"{text}: expected a stream (tcp://), which --key and --source-key are for; found another source."
        )
    options = reading or make_read_config(network.config.prepare)
    detector = _open_detector(name, beamline)
    if detector is not None:
        if not isinstance(detector, FrameSource):
            return _join_positions(detector, options, beamline)
        _refuse_beamline_options(name, beamline)
        return detector
    _refuse_beamline_options(name, beamline)
    if is_stream_address(name):
        return _open_stream(name, network, reading, keys)
    if "://" in name or name.startswith(("tcp:", "ipc:")):
        known = ", ".join(["tcp", "ipc", *DECTRIS_SCHEMES, *(point.name for point in _find_entry_points())])
        raise ConfigError(
            f"{text}: expected an HDF5 file, or an address that begins with tcp:// or ipc:// (known: {known})."
        )
    return _open_growing_file(Path(text), options)


def _open_detector(name: str, beamline: BeamlineConfig) -> Detector | FrameSource | None:
    """Open a detector, or what an entry point makes of the address; None for another text."""
    scheme, separator, _ = name.partition("://")
    if separator and scheme in DECTRIS_SCHEMES:
        return DectrisStream(name, beamline.channel)
    if beamline.channel is not None:
        raise ConfigError(f"{name}: expected a stream dectris-v2://, which --channel is for; found another source.")
    if is_folder_pattern(name):
        return FrameFolder(name)
    for point in _find_entry_points():
        if separator and point.name == scheme:
            made: Detector | FrameSource = point.load()(name)
            return made
    return None


def _find_entry_points() -> list[Any]:
    return list(entry_points(group=ENTRY_POINTS))


def _join_positions(detector: Detector, reading: ReadConfig, beamline: BeamlineConfig) -> JoinedSource:
    if beamline.positions_from is None:
        detector.close()
        raise ConfigError(
            f"{detector.name}: expected the positions of the frames, which this source does not know; found none. Name "
            "a CSV file or a ZeroMQ address with --positions-from."
        )
    try:
        positions = open_positions(beamline.positions_from, beamline.columns)
    except ConfigError:
        detector.close()
        raise
    return JoinedSource(
        detector,
        positions,
        extract_read_config(reading),
        beamline.join,
        reading.positions_unit or "m",
        beamline.header_file,
    )


def _refuse_beamline_options(name: str, beamline: BeamlineConfig) -> None:
    if beamline.positions_from is not None:
        raise ConfigError(
            f"{name}: this source has positions of its own; found --positions-from. Leave it out, or name a detector "
            "or a folder of files."
        )


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
