"""Simulated experiments: an object, a probe, a scan and the counts that a detector would record."""

from __future__ import annotations

from torchptycho.data.simulation.objects import make_object
from torchptycho.data.simulation.positions import make_positions
from torchptycho.data.simulation.probes import make_probe
from torchptycho.data.simulation.simulator import simulate

__all__ = ["make_object", "make_positions", "make_probe", "simulate"]
