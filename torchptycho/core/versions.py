"""Versions of the software that computes an image, for its provenance."""

from __future__ import annotations

import functools
import importlib.metadata

__all__ = ["collect_versions", "get_package_version"]


def get_package_version() -> str:
    """Return the version of this package, as installed."""
    return _find_version("torchptycho")


def collect_versions() -> dict[str, str]:
    """Collect the installed versions of this package and of its dependencies."""
    return {name: _find_version(name) for name in ("torchptycho", "torch", "lightning", "tensordict", "numpy")}


@functools.cache
def _find_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
