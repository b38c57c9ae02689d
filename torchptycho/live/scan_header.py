"""A scan that is being recorded: what it needs beside its frames, and where both come from."""

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
from torchptycho.core.geometry import Geometry

__all__ = ["Chunk", "FrameSource", "ScanLayout", "StreamHeader", "add_object_pixel", "convert_to_pixels", "parse_json"]


@validated_dataclass
class GeometryHeader:
    """As in `Geometry`."""

    energy_eV: Positive | None = None
    distance_m: Positive | None = None
    detector_pixel_m: Positive | None = None
    object_pixel_m: Positive | None = None


@validated_dataclass
class StreamHeader:
    """A `Layout` as JSON: what a stream answers when it is asked for its scan, and what a spool keeps."""

    torchptycho: Literal[1]
    """Version of the format."""
    scan: Annotated[str, Field(min_length=1, max_length=1000)]
    """What tells this scan from the others of the same source."""
    n_px: Annotated[int, Field(ge=2, le=4096, multiple_of=2)]
    """Frame edge N."""
    dtype: Literal["|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4"]
    """Of the frames, as NumPy writes it."""
    domain: Domain
    """What the frames hold."""
    positions_unit: Literal["px", "m"] = "px"
    """Object pixels, or metres, which need the object pixel or the three other lengths."""
    geometry: GeometryHeader = Field(default_factory=GeometryHeader)
    photons_per_frame: Positive | None = None
    """That frames of amplitudes stand for."""
    total: Count | None = None
    """Frames that the scan will have, where that is known."""
    mask: Annotated[str, Field(max_length=1 << 22)] | None = None
    """Good pixels (1), row by row, eight to a byte with the first in the highest bit, in base64; None for all."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScanLayout:
    """What is the same for all frames of a scan.

    Arguments:
        scan: what tells it from other scans of the same source.
        n_px: frame edge N.
        dtype: of the frames: integers, or float32.
        domain: what the frames hold.
        mask: True where the detector pixel can be trusted.
        geometry: lengths, as far as they are known.
        photons_per_frame: that frames of amplitudes stand for; None where nobody says.
        total: frames that there will be; None where nobody knows.
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
        return self.n_px**2 * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """As `Description` has it, with positions in pixels."""
        mask = None if self.mask.all() else base64.b64encode(np.packbits(self.mask).tobytes()).decode()
        return {
            "torchptycho": 1,
            "scan": self.scan,
            "n_px": self.n_px,
            "dtype": self.dtype.newbyteorder("<").str,
            "domain": self.domain,
            "positions_unit": "px",
            "geometry": dataclasses.asdict(self.geometry),
            "photons_per_frame": self.photons_per_frame,
            "total": self.total,
            "mask": mask,
        }

    @classmethod
    def from_header(cls, told: StreamHeader, source: str) -> ScanLayout:
        """What a description says.

        Raises:
            ScanError: its mask is of another size, or masks everything.
        """
        n_px = told.n_px
        mask = np.ones((n_px, n_px), bool)
        if told.mask is not None:
            try:
                packed = np.frombuffer(base64.b64decode(told.mask, validate=True), np.uint8)
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
                    remedy="Perhaps the mask is inverted.",
                )
        return cls(
            scan=told.scan,
            n_px=n_px,
            dtype=np.dtype(told.dtype),
            domain=told.domain,
            mask=mask,
            geometry=Geometry(**dataclasses.asdict(told.geometry)),
            photons_per_frame=told.photons_per_frame,
            total=told.total,
        )

    def find_difference(self, other: ScanLayout) -> tuple[str, str, str] | None:
        """The first thing in which a scan is not this one: its name, what it is here, and what it is there."""
        mine, theirs = self.to_dict(), other.to_dict()
        for name, value in mine.items():
            if name != "total" and value != theirs[name]:
                return ("mask", "another one", "one") if name == "mask" else (name, str(value), str(theirs[name]))
        return None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Frames that follow each other.

    Arguments:
        frames: as `Layout` says.
        positions_px: (y, x) of each in object pixels; not always finite.
        end: no frame comes after these.
    """

    frames: Shaped[np.ndarray, "k n n"]
    positions_px: Float64[np.ndarray, "k 2"]
    end: bool

    @classmethod
    def empty(cls, layout: ScanLayout, *, end: bool = False) -> Chunk:
        return cls(frames=np.zeros((0, layout.n_px, layout.n_px), layout.dtype), positions_px=np.zeros((0, 2)), end=end)


@runtime_checkable
class FrameSource(Protocol):
    """Where frames come from. All of it is called by one thread, and nothing of it waits for longer than a moment."""

    @property
    def name(self) -> str:
        """A file, or an address."""
        ...

    @property
    def idle_s(self) -> float | None:
        """Seconds without a new frame after which its scan is over, unless somebody says otherwise; None for never."""
        ...

    def describe(self) -> ScanLayout | None:
        """What the scan is; None as long as that is not known.

        Raises:
            ScanError: it cannot be used.
        """
        ...

    def fetch(self, start: int, at_most: int) -> Chunk:
        """Frames from number `start` on, those that there are; the frames before it are safe and will not be asked for.

        Raises:
            ScanError: what came is no frames of this scan.
        """
        ...

    def explain_wait(self) -> str | None:
        """Why nothing comes, where that is known."""
        ...

    def close(self, received: int) -> None:
        """Nothing more is wanted; `received` frames are safe."""
        ...


def parse_json(kind: type, text: bytes | str, source: str, what: str) -> Any:
    """JSON as an object of a `strict` class.

    Raises:
        ScanError: it is no JSON, or not of that kind.
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
    """Lengths of a description, with the object pixel where it follows from them.

    Raises:
        ScanError: no number can be what follows.
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
    """Positions of a description's unit in object pixels.

    Raises:
        ScanError: they are in metres, and nobody says how large an object pixel is, or what is said cannot be.
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
    # What becomes infinite is no position, and is told of that frame.
    with np.errstate(over="ignore"):
        return positions / pixel_m
