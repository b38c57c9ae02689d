"""Versions of what computes the image, for its provenance."""

from __future__ import annotations

import importlib.metadata

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Versions of this package and of those under it, as installed."""
    found = {}
    for name in ("torchptycho", "torch", "lightning", "tensordict", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
