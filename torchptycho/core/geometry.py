"""Lengths of the experiment, and how metres become object pixels."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

__all__ = ["Geometry", "Particle", "energy_to_wavelength_m", "wavelength_to_energy_eV"]

Particle = Literal["photon", "electron"]

# CODATA 2018: Planck's constant times the speed of light (exact) in eV m, and the rest energy of an electron in eV.
_HC_EV_M = 1.239841984332002e-06
_ELECTRON_REST_EV = 510998.95


def energy_to_wavelength_m(energy_eV: float, particle: Particle = "photon") -> float:
    """Convert an energy to a wavelength: h c / E of photons, h c / sqrt(E (E + 2 m c^2)) of electrons.

    Arguments:
        energy_eV: photon energy, or kinetic energy of an electron.
    """
    if particle == "photon":
        return _HC_EV_M / energy_eV
    return _HC_EV_M / math.sqrt(energy_eV * (energy_eV + 2 * _ELECTRON_REST_EV))


def wavelength_to_energy_eV(wavelength_m: float, particle: Particle = "photon") -> float:
    """Convert a wavelength to a photon energy, or to the kinetic energy of an electron."""
    momentum_eV = _HC_EV_M / wavelength_m
    if particle == "photon":
        return momentum_eV
    # sqrt(p^2 + m^2) - m, without the cancellation of slow electrons.
    return momentum_eV**2 / (math.hypot(momentum_eV, _ELECTRON_REST_EV) + _ELECTRON_REST_EV)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Geometry:
    """Physical lengths of an experiment; any may be None when only pixels are known.

    Arguments:
        energy_eV: photon energy, or kinetic energy of electrons.
        distance_m: sample to detector.
        detector_pixel_m: edge of a detector pixel.
        object_pixel_m: edge of an object pixel; see `with_object_pixel`.
        propagation: "far" for diffraction patterns, "near" for Fresnel images of the sample.
        focus_distance_m: near field in a cone beam: focus to sample, the sample downstream; None for a parallel beam.
        particle: what is diffracted.
    """

    energy_eV: float | None = None
    distance_m: float | None = None
    detector_pixel_m: float | None = None
    object_pixel_m: float | None = None
    propagation: Literal["far", "near"] = "far"
    focus_distance_m: float | None = None
    particle: Particle = "photon"

    def __post_init__(self) -> None:
        for name, value in self.lengths.items():
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"Geometry.{name}: expected a positive number or None; found {value!r}.")

    def __repr__(self) -> str:
        # Fingerprints of stores hold it: what is as ever is not said.
        default = {"propagation": "far", "focus_distance_m": None, "particle": "photon"}
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parts = [f"{name}={value!r}" for name, value in shown.items() if default.get(name, ...) != value]
        return f"Geometry({', '.join(parts)})"

    @property
    def lengths(self) -> dict[str, float | None]:
        """Return the numbers by name."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("particle", "propagation")]
        return {name: getattr(self, name) for name in names}

    @property
    def wavelength_m(self) -> float | None:
        """Compute the wavelength that belongs to the energy."""
        return None if self.energy_eV is None else energy_to_wavelength_m(self.energy_eV, self.particle)

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
