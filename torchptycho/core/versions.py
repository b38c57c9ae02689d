"""Versions of what computes the image, for its provenance."""

from __future__ import annotations

import importlib.metadata

__all__ = ["package_version", "versions"]


def package_version() -> str:
    """Version of this package, as installed."""
    return _version("torchptycho")


def versions() -> dict[str, str]:
    """Versions of this package and of those under it, as installed."""
    return {name: _version(name) for name in ("torchptycho", "torch", "lightning", "tensordict", "numpy")}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
