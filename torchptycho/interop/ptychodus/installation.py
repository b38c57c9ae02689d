"""The plugin file that lists the reconstructors in an installed Ptychodus: `enable`, `disable`, `read_status`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from importlib.util import find_spec
from pathlib import Path

from torchptycho.core.errors import ConfigError

__all__ = ["PluginStatus", "disable", "enable", "read_status"]

_SUPPORTED = "1.7"
_FILE = "torchptycho_reconstructors.py"
_MARK = "# Written by `torchptycho ptychodus enable`; `torchptycho ptychodus disable` removes it."
_CONTENT = f'''"""Lists the reconstructors of torchptycho in Ptychodus."""
{_MARK}

from torchptycho.interop.ptychodus.plugin import register_plugins

__all__ = ["register_plugins"]
'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class PluginStatus:
    """Whether the reconstructors are enabled in the installed Ptychodus.

    Arguments:
        version: of the installed Ptychodus.
        file: path of the plugin file, which may not exist.
        enabled: whether the plugin file exists.
        other_package: location of an installed `ptycho_torch`, whose reconstructors Ptychodus lists in the same place.
    """

    version: str
    file: Path
    enabled: bool
    other_package: str | None

    def __str__(self) -> str:
        state = "enabled" if self.enabled else "not enabled"
        text = f"{state} in Ptychodus {self.version} ({self.file})"
        if self.other_package is not None:
            text += f"; ptycho_torch is installed ({self.other_package}) and is listed instead"
        return text


def read_status() -> PluginStatus:
    """Read whether the reconstructors are enabled, without importing Ptychodus.

    Raises:
        ConfigError: Ptychodus is not installed.
    """
    spec = find_spec("ptychodus")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"Ptychodus: expected it in this Python ({sys.executable}); found none. "
            "Install it with pip install 'torchptycho[ptychodus]'."
        )
    try:
        version = importlib.metadata.version("ptychodus")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    file = Path(spec.submodule_search_locations[0]) / "plugins" / _FILE
    other = find_spec("ptycho_torch")
    other_package = (
        None if other is None else str(other.origin or next(iter(other.submodule_search_locations or ["?"])))
    )
    return PluginStatus(version=version, file=file, enabled=_is_own_plugin(file), other_package=other_package)


def enable() -> PluginStatus:
    """Write the plugin file, or overwrite an earlier one.

    Raises:
        ConfigError: Ptychodus is not installed, has another version or is not writable; a package `ptycho_torch` is
            installed, whose reconstructors would conflict with these; or a foreign file has the plugin's name.
    """
    now = read_status()
    if now.version.split(".")[:2] != _SUPPORTED.split("."):
        raise ConfigError(
            f"Ptychodus: expected version {_SUPPORTED}; found {now.version}. "
            f"Install it with pip install 'torchptycho[ptychodus]'."
        )
    if now.other_package is not None:
        raise ConfigError(
            f"ptycho_torch: expected none, because Ptychodus lists it in the same place; found {now.other_package}. "
            "Uninstall it, or continue to use it."
        )
    _refuse_foreign(now.file)
    try:
        now.file.write_text(_CONTENT, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{now.file}: cannot be written ({error.strerror}). Run this as the user who installed Ptychodus."
        ) from None
    return dataclasses.replace(now, enabled=True)


def disable() -> PluginStatus:
    """Remove the plugin file, if it exists.

    Raises:
        ConfigError: Ptychodus is not installed, the file cannot be removed, or torchptycho did not write it.
    """
    now = read_status()
    _refuse_foreign(now.file)
    try:
        now.file.unlink(missing_ok=True)
        for compiled in now.file.parent.glob(f"__pycache__/{now.file.stem}.*.pyc"):
            compiled.unlink()
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: cannot be removed ({error.strerror}). Run this as the user who installed Ptychodus."
        ) from None
    return dataclasses.replace(now, enabled=False)


def _is_own_plugin(file: Path) -> bool:
    return file.is_file() and _MARK in file.read_text(encoding="utf-8", errors="replace")


def _refuse_foreign(file: Path) -> None:
    if file.exists() and not _is_own_plugin(file):
        raise ConfigError(f"{file}: expected no file, or one that torchptycho wrote; found another. Move it away.")
