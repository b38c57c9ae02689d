"""A scan that is being recorded: its layout, its frames in chunks, and the protocol of their source."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Shaped
from pydantic import Field, TypeAdapter, ValidationError

from torchptycho.core.config.base import Count, Domain, Positive, validated_dataclass
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry, Particle

__all__ = [
    "Chunk",
    "FrameSource",
    "ScanLayout",
    "StreamHeader",
    "WaitingSource",
    "add_object_pixel",
    "convert_to_pixels",
    "parse_json",
]


@validated_dataclass
class GeometryHeader:
    """The lengths of a `Geometry` as JSON."""

    energy_eV: Positive | None = None
    distance_m: Positive | None = None
    detector_pixel_m: Positive | None = None
    object_pixel_m: Positive | None = None
    particle: Particle = "photon"


@validated_dataclass
class StreamHeader:
    """A `ScanLayout` as JSON: a stream's answer to the request for its scan, and part of a spool's manifest."""

    torchptycho: Literal[1]
    """Version of the format."""
    scan: Annotated[str, Field(min_length=1, max_length=1000)]
    """Identifies this scan among those of the same source."""
    n_px: Annotated[int, Field(ge=2, le=4096, multiple_of=2)]
    """Frame edge N."""
    dtype: Literal["|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4"]
    """NumPy's name for the dtype of the frames."""
    domain: Domain
    """Whether frames are counts or amplitudes."""
    positions_unit: Literal["px", "m"] = "px"
    """Object pixels, or metres; metres require the object pixel or the three other lengths."""
    geometry: GeometryHeader = Field(default_factory=GeometryHeader)
    photons_per_frame: Positive | None = None
    """Photons of a mean frame, for frames of amplitudes."""
    total: Count | None = None
    """Number of frames of the whole scan, if known."""
    mask: Annotated[str, Field(max_length=1 << 22)] | None = None
    """Good pixels (1), row by row, eight to a byte with the first in the highest bit, in base64; None for all."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScanLayout:
    """The properties that all frames of a scan share.

    Arguments:
        scan: identifies it among the scans of the same source.
        n_px: frame edge N.
        dtype: of the frames: integers, or float32.
        domain: whether frames are counts or amplitudes.
        mask: True for good detector pixels.
        geometry: the known lengths.
        photons_per_frame: photons of a mean frame, for frames of amplitudes; None if unknown.
        total: number of frames of the whole scan; None if unknown.
    """

    scan: str
    n_px: int
    dtype: np.dtype[Any]
    domain: Domain
    mask: Bool[np.ndarray, "n n"]
    geometry: Geometry = dataclasses.field(default_factory=Geometry)
    photons_per_frame: float | None = None
    total: int | None = None

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.n_px**2 * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """Convert to the fields of a `StreamHeader`, with positions in pixels."""
        names = [field.name for field in dataclasses.fields(GeometryHeader)]
        geometry = {name: getattr(self.geometry, name) for name in names}
        if self.geometry.particle == "photon":
            # Earlier versions do not know of particles.
            del geometry["particle"]
        mask = None if self.mask.all() else base64.b64encode(np.packbits(self.mask).tobytes()).decode()
        return {
            "torchptycho": 1,
            "scan": self.scan,
            "n_px": self.n_px,
            "dtype": self.dtype.newbyteorder("<").str,
            "domain": self.domain,
            "positions_unit": "px",
            "geometry": geometry,
            "photons_per_frame": self.photons_per_frame,
            "total": self.total,
            "mask": mask,
        }

    @classmethod
    def from_header(cls, header: StreamHeader, source: str) -> ScanLayout:
        """Make the layout that a header describes.

        Raises:
            ScanError: the mask has another size, or masks all pixels.
        """
        n_px = header.n_px
        mask = np.ones((n_px, n_px), bool)
        if header.mask is not None:
            try:
                packed = np.frombuffer(base64.b64decode(header.mask, validate=True), np.uint8)
            except (binascii.Error, ValueError):
                packed = np.zeros(0, np.uint8)
            if len(packed) != -(-(n_px**2) // 8):
                raise ScanError(
                    source,
                    "mask",
                    expected=f"base64 of {-(-(n_px**2) // 8)} bytes, one bit for each pixel",
                    found=f"{len(packed)} bytes",
                    remedy="Pack it with numpy.packbits.",
                )
            mask = np.unpackbits(packed, count=n_px**2).reshape(n_px, n_px).astype(bool)
            if not mask.any():
                raise ScanError(
                    source,
                    "mask",
                    expected="some good pixels (1)",
                    found="none",
                    remedy="Check whether the mask is inverted.",
                )
        return cls(
            scan=header.scan,
            n_px=n_px,
            dtype=np.dtype(header.dtype),
            domain=header.domain,
            mask=mask,
            geometry=Geometry(**dataclasses.asdict(header.geometry)),
            photons_per_frame=header.photons_per_frame,
            total=header.total,
        )

    def find_difference(self, other: ScanLayout) -> tuple[str, str, str] | None:
        """Find the first field in which two scans differ: its name, and its value here and in the other."""
        fields, other_fields = self.to_dict(), other.to_dict()
        for name, value in fields.items():
            if name != "total" and value != other_fields[name]:
                return ("mask", "another one", "one") if name == "mask" else (name, str(value), str(other_fields[name]))
        return None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Consecutive frames.

    Arguments:
        frames: in the dtype and size of the `ScanLayout`.
        positions_px: (y, x) of each in object pixels; may be infinite or NaN. A source whose positions may come later
            than their frames gives those of the next frames that have none so far, however many.
        end: whether these are the last frames of the scan.
        left_out: numbers of frames that are known to be of no use, and the reasons.
    """

    frames: Shaped[np.ndarray, "k n n"]
    positions_px: Float64[np.ndarray, "m 2"]
    end: bool
    left_out: dict[int, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def empty(cls, layout: ScanLayout, *, end: bool = False) -> Chunk:
        """Make a chunk without frames."""
        return cls(frames=np.zeros((0, layout.n_px, layout.n_px), layout.dtype), positions_px=np.zeros((0, 2)), end=end)


@runtime_checkable
class FrameSource(Protocol):
    """A source of frames. All methods are called by one thread and return within a fraction of a second."""

    @property
    def name(self) -> str:
        """The path of the file, or the address."""
        ...

    @property
    def idle_s(self) -> float | None:
        """Default for the seconds without a new frame after which the scan is over; None for never."""
        ...

    def describe(self) -> ScanLayout | None:
        """Return the layout of the scan; None as long as it is not known.

        Raises:
            ScanError: the scan cannot be used.
        """
        ...

    def fetch(self, start: int, at_most: int) -> Chunk:
        """Return the available frames from number `start` on; earlier frames are stored and not requested again.

        A source that cannot keep frames has `keeps_frames = False`: it is read even when many frames wait.

        Raises:
            ScanError: the frames received do not belong to this scan, or are invalid.
        """
        ...

    def explain_wait(self) -> str | None:
        """Explain why no frames come, if the reason is known."""
        ...

    def close(self, received: int) -> None:
        """Release the source; `received` frames are stored."""
        ...


@runtime_checkable
class WaitingSource(Protocol):
    """A source whose frames may wait for positions from elsewhere."""

    def settle(self) -> Chunk:
        """Decide the positions of all frames that wait for one, because no more will come."""
        ...


def parse_json(kind: type, text: bytes | str, source: str, what: str) -> Any:
    """Parse JSON into an object of a `validated_dataclass` or a built-in type.

    Raises:
        ScanError: the text is not JSON, or does not match the type.
    """
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or None
        raise ScanError(
            source,
            key,
            expected=what,
            found=f"{first['msg']} ({str(first['input'])[:80]!r})",
            remedy="The format is described in docs/live.md.",
        ) from None


def add_object_pixel(geometry: Geometry, n_px: int, source: str) -> Geometry:
    """Add the object pixel to the lengths if it follows from the others.

    Raises:
        ScanError: the object pixel that follows is not a number.
    """
    try:
        return geometry.with_object_pixel(n_px)
    except (ValueError, OverflowError, ZeroDivisionError):
        raise ScanError(
            source,
            "geometry",
            expected="lengths of an experiment",
            found=f"{geometry}",
            remedy="Send the energy in eV and lengths in metres.",
        ) from None


def convert_to_pixels(
    positions: Float64[np.ndarray, "k 2"], unit: Literal["px", "m"], geometry: Geometry, n_px: int, source: str
) -> Float64[np.ndarray, "k 2"]:
    """Convert positions from the unit of a header to object pixels.

    Raises:
        ScanError: they are in metres, and the object pixel is unknown or not finite.
    """
    if unit == "px":
        return positions
    pixel_m = add_object_pixel(geometry, n_px, source).object_pixel_m
    if pixel_m is None or not math.isfinite(pixel_m):
        raise ScanError(
            source,
            "geometry",
            expected="object_pixel_m, or energy_eV, distance_m and detector_pixel_m, as positions are in metres",
            found=f"{geometry}",
            remedy="Send them, or positions in object pixels.",
        )
    # A frame whose position overflows to infinity is left out later, with that reason.
    with np.errstate(over="ignore"):
        return positions / pixel_m
