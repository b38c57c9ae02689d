"""Lengths of the experiment, and how metres become object pixels."""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["Geometry", "wavelength_to_energy_eV"]

# Planck's constant times the speed of light (CODATA 2018, exact), in eV m.
_HC_EV_M = 1.239841984332002e-06


def wavelength_to_energy_eV(wavelength_m: float) -> float:
    """Convert a wavelength to a photon energy, E = h c / lambda."""
    return _HC_EV_M / wavelength_m


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """Physical lengths of an experiment; any may be None when only pixels are known.

    Arguments:
        energy_eV: photon energy.
        distance_m: sample to detector.
        detector_pixel_m: edge of a detector pixel.
        object_pixel_m: edge of an object pixel; see `with_object_pixel`.
        propagation: "far" for diffraction patterns, "near" for Fresnel images of the sample.
        focus_distance_m: near field in a cone beam: focus to sample, the sample downstream; None for a parallel beam.
    """

    energy_eV: float | None = None
    distance_m: float | None = None
    detector_pixel_m: float | None = None
    object_pixel_m: float | None = None
    propagation: Literal["far", "near"] = "far"
    focus_distance_m: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "propagation" and value is not None and not 0 < value < float("inf"):
                raise ValueError(f"Geometry.{field.name}: expected a positive number or None; found {value!r}.")

    @property
    def wavelength_m(self) -> float | None:
        """lambda = h c / E."""
        return None if self.energy_eV is None else _HC_EV_M / self.energy_eV

    @property
    def magnification(self) -> float | None:
        """Magnification of the sample on the detector of a cone beam, M = (z1 + z2) / z1; 1 for a parallel beam."""
        if self.focus_distance_m is None:
            return 1.0
        return None if self.distance_m is None else 1 + self.distance_m / self.focus_distance_m

    @property
    def effective_distance_m(self) -> float | None:
        """Distance over which a parallel beam makes the same near-field image, z2 / M: the Fresnel scaling theorem."""
        if self.distance_m is None or self.magnification is None:
            return None
        return self.distance_m / self.magnification

    @property
    def fresnel_number(self) -> float | None:
        """Fresnel number of an object pixel in the near field, p^2 / (lambda z)."""
        pixel_m = self.with_object_pixel(1).object_pixel_m if self.propagation == "near" else None
        if pixel_m is None or self.wavelength_m is None or self.effective_distance_m is None:
            return None
        return pixel_m**2 / (self.wavelength_m * self.effective_distance_m)

    def with_object_pixel(self, n_px: int) -> Geometry:
        """Fill in `object_pixel_m` where the lengths are known: wavelength * distance / (N * detector pixel) in the far
        field, detector pixel / magnification in the near field."""
        if self.object_pixel_m:
            return self
        if self.propagation == "near":
            if self.detector_pixel_m is None or self.magnification is None:
                return self
            return dataclasses.replace(self, object_pixel_m=self.detector_pixel_m / self.magnification)
        if not (self.wavelength_m and self.distance_m and self.detector_pixel_m):
            return self
        pixel_m = self.wavelength_m * self.distance_m / (n_px * self.detector_pixel_m)
        return dataclasses.replace(self, object_pixel_m=pixel_m)
