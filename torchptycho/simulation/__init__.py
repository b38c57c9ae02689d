"""Simulated experiments: an object, a beam, a scan and the counts that a detector would record."""

from __future__ import annotations

from torchptycho.simulation.objects import make_object
from torchptycho.simulation.positions import make_positions
from torchptycho.simulation.probes import make_probe
from torchptycho.simulation.simulate import simulate

__all__ = ["make_object", "make_positions", "make_probe", "simulate"]
