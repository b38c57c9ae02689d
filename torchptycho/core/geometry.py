"""Lengths of the experiment, and how metres become object pixels."""

from __future__ import annotations

import dataclasses

__all__ = ["Geometry", "wavelength_to_energy_eV"]

# Planck's constant times the speed of light (CODATA 2018, exact), in eV m.
_HC_EV_M = 1.239841984332002e-06


def wavelength_to_energy_eV(wavelength_m: float) -> float:
    """Convert a wavelength to a photon energy, E = h c / lambda."""
    return _HC_EV_M / wavelength_m


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """Physical lengths of a far-field experiment; any may be None when only pixels are known.

    Arguments:
        energy_eV: photon energy.
        distance_m: sample to detector.
        detector_pixel_m: edge of a detector pixel.
        object_pixel_m: edge of an object pixel; see `with_object_pixel`.
    """

    energy_eV: float | None = None
    distance_m: float | None = None
    detector_pixel_m: float | None = None
    object_pixel_m: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"Geometry.{field.name}: expected a positive number or None; found {value!r}.")

    @property
    def wavelength_m(self) -> float | None:
        """lambda = h c / E."""
        return None if self.energy_eV is None else _HC_EV_M / self.energy_eV

    def with_object_pixel(self, n_px: int) -> Geometry:
        """Fill in `object_pixel_m` = wavelength * distance / (N * detector pixel), where these are known."""
        if self.object_pixel_m or not (self.wavelength_m and self.distance_m and self.detector_pixel_m):
            return self
        pixel_m = self.wavelength_m * self.distance_m / (n_px * self.detector_pixel_m)
        return dataclasses.replace(self, object_pixel_m=pixel_m)
