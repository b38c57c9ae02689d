"""From recorded frames of a detector to frames of the size and orientation that a network expects."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import ArrayFrames
from torchptycho.io.frames.processing import ProcessedFrames
from torchptycho.io.raw_scan import RawScan
from torchptycho.io.scan_builder import build_scan
from torchptycho.io.scan_geometry import convert_positions
from torchptycho.io.storage.file_access import replace_atomically
from torchptycho.live.beamline.detector import DetectorHeader
from torchptycho.live.frame_stacks import replace_stack
from torchptycho.live.scan_header import ScanLayout, add_object_pixel

__all__ = ["FrameProcessor", "load_header", "prepare_reading", "store_header"]


def prepare_reading(reading: ReadConfig, source: str) -> ReadConfig:
    """Return the options that act on single frames of a detector, whose positions come from elsewhere.

    Raises:
        ConfigError: an option needs all frames.
    """
    if reading.beam_center_px == "estimated":
        raise ConfigError(
            f"{source}: beam_center_px: expected a pixel (y, x), because the mean pattern of all frames does not exist "
            "yet; found 'estimated'. Train or reconstruct with the pixel that `inspect` reports."
        )
    if reading.replaces_positions:
        raise ConfigError(
            f"{source}: expected positions from --positions-from; found an option of reading that makes them. Write "
            "them to a CSV file, and leave out positions, raster_step_px and raster_step_m."
        )
    return dataclasses.replace(
        reading,
        find_bad_pixels=False,
        bad_frames="refuse",
        frames=None,
        drop_frames=(),
        scan=None,
        probe=None,
        guess_probe=False,
        probe_defocus_m=0.0,
        aberrations=(),
        mapping=None,
    )


class FrameProcessor:
    """Applies the options of reading to the frames of one series.

    Arguments:
        first: some frames, by which codes of the detector are recognised; at least two.
        header: of the series.
        reading: as `prepare_reading` returns it.
        name: of the source.

    Raises:
        ScanError: the frames, the mask or the lengths cannot be used.
    """

    def __init__(
        self, first: Shaped[np.ndarray, "k h w"], header: DetectorHeader, reading: ReadConfig, name: str
    ) -> None:
        self._name = name
        edge = min(first.shape[1:])
        # Places on a line with overlap: a scan has positions, and those of this one come later.
        places = np.stack([np.zeros(len(first)), np.arange(len(first)) * edge / 8], axis=1)
        self._raw = RawScan(
            path=Path(name),
            format="detector",
            frames=ArrayFrames(first),
            rows=range(len(first)),
            domain="counts",
            positions=places,
            unit="px",
            position_keys=("y", "x"),
            probe=np.ones((1, edge, edge), np.complex64),
            bad_pixels=header.bad_pixels,
            geometry=header.geometry,
        )
        scan = build_scan(self._raw, "it is recorded", reading)
        geometry: Geometry = add_object_pixel(scan.geometry, scan.n_px, name)
        self._scan = dataclasses.replace(scan, geometry=geometry)
        self._shape, self._dtype = first.shape[1:], first.dtype
        self.layout = ScanLayout(
            scan=f"{name} series {header.series}",
            n_px=scan.n_px,
            dtype=np.dtype(scan.frames.dtype).newbyteorder("="),
            domain=scan.domain,
            mask=scan.mask,
            geometry=geometry,
            total=header.total,
        )
        frames = scan.frames
        bad = frames.steps.bad_pixels if isinstance(frames, ProcessedFrames) else ~scan.mask
        self.header = dataclasses.replace(header, bad_pixels=bad)
        """The header with all bad pixels, those that were recognised by their codes included."""

    def process(self, images: list[np.ndarray]) -> Shaped[np.ndarray, "k n n"]:
        """Process frames as recorded.

        Raises:
            ScanError: one has another shape or dtype than the first.
        """
        for image in images:
            if (image.shape, image.dtype) != (self._shape, self._dtype):
                raise ScanError(
                    self._name,
                    "image",
                    expected=f"{self._shape} {self._dtype}, as the first frames",
                    found=f"{image.shape} {image.dtype}",
                    remedy="Record each series with one setting of the detector.",
                )
        if not images:
            return np.zeros((0, self.layout.n_px, self.layout.n_px), self.layout.dtype)
        stack = ArrayFrames(np.stack(images))
        processed = replace_stack(self._scan.frames, stack)[: len(images)]
        return np.ascontiguousarray(processed, self.layout.dtype)

    def convert_positions(self, positions: Float64[np.ndarray, "m 2"], unit: str) -> Float64[np.ndarray, "m 2"]:
        """Convert positions (y, x) from a unit of length, or px, to object pixels of the scan.

        Raises:
            ScanError: no lengths are known for the conversion, or they span more than any scan.
        """
        if not len(positions):
            return np.zeros((0, 2))
        return convert_positions(dataclasses.replace(self._raw, positions=positions, unit=unit), self._scan)


def store_header(header: DetectorHeader, path: Path) -> None:
    """Keep a header on the disk, for a watch that continues in the middle of a series."""
    bad = header.bad_pixels
    content: dict[str, Any] = {
        "series": header.series,
        "total": header.total,
        "geometry": {name: getattr(header.geometry, name) for name in ("energy_eV", "distance_m", "detector_pixel_m")},
        "shape": None if bad is None else bad.shape,
        "bad_pixels": None if bad is None else base64.b64encode(np.packbits(bad).tobytes()).decode(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as file:
        file.write(json.dumps(content).encode())


def load_header(path: Path) -> DetectorHeader | None:
    """Load a header that `store_header` wrote; None if there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
        bad = None
        if content["bad_pixels"] is not None:
            height, width = content["shape"]
            packed = np.frombuffer(base64.b64decode(content["bad_pixels"]), np.uint8)
            bad = np.unpackbits(packed, count=height * width).reshape(height, width).astype(bool)
        return DetectorHeader(
            series=str(content["series"]),
            total=content["total"],
            bad_pixels=bad,
            geometry=Geometry(**content["geometry"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
