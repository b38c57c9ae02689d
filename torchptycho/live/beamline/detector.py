"""What a detector hands over while it records a series: a header, numbered frames, and the end."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Shaped

from torchptycho.core.geometry import Geometry, wavelength_to_energy_eV

__all__ = ["Detector", "DetectorEvent", "DetectorFrame", "DetectorHeader", "SeriesEnd", "make_geometry"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DetectorHeader:
    """The beginning of a series.

    Arguments:
        series: identifies it among those of the same detector.
        total: number of frames of the whole series; None if unknown.
        bad_pixels: True where the detector is not to be trusted; None if it says nothing.
        geometry: the known lengths; the detector pixel is that of the frames.
    """

    series: str
    total: int | None = None
    bad_pixels: Bool[np.ndarray, "h w"] | None = None
    geometry: Geometry = dataclasses.field(default_factory=Geometry)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DetectorFrame:
    """One frame as recorded.

    Arguments:
        number: counted from 0 by the detector.
        time_s: middle of the exposure, in seconds of the detector's clock; None if unknown.
        series: as in the `DetectorHeader`; None where there is one only.
    """

    number: int
    image: Shaped[np.ndarray, "h w"]
    time_s: float | None = None
    series: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeriesEnd:
    """The end of a series: no frame follows.

    Arguments:
        reason: why, where it is not the regular end.
    """

    series: str | None = None
    reason: str | None = None


DetectorEvent = DetectorHeader | DetectorFrame | SeriesEnd


def make_geometry(
    *,
    energy_eV: float | None,
    wavelength_angstrom: float | None,
    distance_m: float | None,
    detector_pixel_m: float | None,
) -> Geometry:
    """Make a geometry of what a detector is set to; 0 and numbers that cannot be stand for unknown."""
    energy_eV, wavelength_angstrom, distance_m, detector_pixel_m = (
        float(value) if value is not None and 0 < value < math.inf else None
        for value in (energy_eV, wavelength_angstrom, distance_m, detector_pixel_m)
    )
    if energy_eV is None and wavelength_angstrom is not None:
        energy_eV = wavelength_to_energy_eV(wavelength_angstrom * 1e-10)
    return Geometry(energy_eV=energy_eV, distance_m=distance_m, detector_pixel_m=detector_pixel_m)


@runtime_checkable
class Detector(Protocol):
    """A detector that records. All methods are called by one thread and return within a fraction of a second."""

    name: str
    """Its address or folder."""
    keeps_frames: bool
    """Whether frames that are not read at once wait until they are, however many."""
    idle_s: float | None
    """Default for the seconds without a new frame after which the scan is over; None for never."""

    def read(self, at_most: int) -> list[DetectorEvent]:
        """Return what has arrived, `at_most` frames of it; nothing after 0.1 s.

        Raises:
            ScanError: what has arrived is no message of such a detector.
        """
        ...

    def explain_wait(self) -> str | None:
        """Explain why nothing comes, if the reason is known."""
        ...

    def close(self) -> Any:
        """Release the connection."""
        ...
