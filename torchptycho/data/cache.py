"""Whether a store still matches its files and configuration, decided without opening a scan."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchptycho.core.config import RunConfig, to_dict
from torchptycho.core.errors import StoreError
from torchptycho.core.scan import Scan, SourceFile
from torchptycho.core.versions import get_package_version
from torchptycho.io.discovery import Sources, expand_sources
from torchptycho.io.source_files import describe_changes, was_rewritten
from torchptycho.io.storage.file_access import replace_atomically

__all__ = ["StoreRequest", "fingerprint_config", "matches_request", "refuse_differences", "write_request"]

_log = logging.getLogger(__name__)

_REQUEST = "request.json"
_MANIFEST = "store.json"
_MAX_SHOWN_LENGTH = 60


def fingerprint_config(config: RunConfig) -> dict[str, str]:
    """Return the options on which a store depends, as JSON by name."""
    sections = ["prepare", "group"]
    if config.prepare.bootstrap_probe:
        # The probe is then the result of a refinement.
        sections.append("refine")
    parts = {"version": json.dumps(get_package_version())}
    for section in sections:
        for key, value in to_dict(getattr(config, section)).items():
            parts[f"{section}.{key}"] = json.dumps(value)
    return parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """Request for a store: files and options.

    Arguments:
        paths: absolute paths of the given or found files, those of held-out scans last.
        n_trained: number of files of training scans.
        parts: see `fingerprint_config`.
    """

    paths: tuple[str, ...]
    n_trained: int
    parts: Mapping[str, str]

    @classmethod
    def from_sources(cls, scans: Sources, config: RunConfig, val_scans: Sources = ()) -> StoreRequest | None:
        """Build the request for these files, folders or patterns; return None if one of them is a scan in memory.

        Raises:
            TorchptychoError: a folder or a pattern contains no scan.
        """
        trained, validated = (expand_sources(sources, config.prepare) for sources in (scans, val_scans))
        if trained is None or validated is None:
            return None
        paths = tuple(os.path.abspath(path) for path in (*trained, *validated))
        return cls(paths=paths, n_trained=len(trained), parts=fingerprint_config(config))


def write_request(folder: Path, request: StoreRequest, scans: Sequence[Scan]) -> None:
    """Write next to the manifest in `folder` the request of the store and the state of its files."""
    files = {file.path: file for scan in scans for file in scan.files}
    record = {
        "manifest_sha256": _sha256(folder / _MANIFEST),
        "request": dataclasses.asdict(request),
        "files": [dataclasses.asdict(file) for file in files.values()],
    }
    with replace_atomically(folder / _REQUEST) as stream:
        stream.write(json.dumps(record, indent=1).encode())


def matches_request(path: Path, request: StoreRequest | None) -> bool:
    """Return whether the store at `path` was made by the same request, from files that have not changed since.

    False if this cannot be decided: there is no store, or it was made or changed in another way. Only sizes and
    modification times of the files are compared.

    Raises:
        StoreError: it was made by such a request, and options, the version or files have changed; all are named.
    """
    kept = None if request is None else _read_request(path)
    if request is None or kept is None:
        return False
    was, files = kept
    if (was.paths, was.n_trained) != (request.paths, request.n_trained):
        return False
    rewritten = [file for file in files if was_rewritten(file)]
    others = [file for file in files if file not in rewritten]
    refuse_differences(path, was.parts, request.parts, describe_changes(others))
    if rewritten:
        # Written again, or another file of this name; the content decides.
        return False
    _log.info("%s: the store is complete and up to date", path)
    return True


def refuse_differences(path: Path, was: Mapping[str, str], now: Mapping[str, str], files: Sequence[str] = ()) -> None:
    """Refuse a store that is of something else.

    Arguments:
        was, now: the dependencies of the store, by name.
        files: clauses about files that have changed.

    Raises:
        StoreError: naming every part that differs, and both values where they are short.
    """
    # A scan that only one of them has is reported once, not for each of its fields.
    gone, come = (
        sorted(_collect_scan_names(was) - _collect_scan_names(now)),
        sorted(_collect_scan_names(now) - _collect_scan_names(was)),
    )
    differs = [*(f"{scan} then only" for scan in gone), *(f"{scan} now only" for scan in come)]
    differs += [
        _describe_difference(key, was.get(key), now.get(key))
        for key in sorted({*was, *now})
        if was.get(key) != now.get(key) and _parse_scan_name(key) not in (*gone, *come)
    ]
    if differs or files:
        raise StoreError(
            f"{path}: was made from other files or options; differences: {'; '.join([*files, *differs])}. "
            "Choose another folder, or replace this store with --overwrite."
        )


def _parse_scan_name(key: str) -> str | None:
    """Return the scan that a part belongs to; its name ends with a bracket."""
    name, _, _ = key.rpartition(" ")
    return name if name.endswith(")") else None


def _collect_scan_names(parts: Mapping[str, str]) -> set[str]:
    return {name for key in parts if (name := _parse_scan_name(key)) is not None}


def _describe_difference(key: str, was: str | None, now: str | None) -> str:
    shown = [("nothing" if value is None else value) for value in (was, now)]
    if max(map(len, shown)) > _MAX_SHOWN_LENGTH or any(len(value) == 64 for value in shown):
        return key
    return f"{key} ({shown[0]} then, {shown[1]} now)"


def _read_request(path: Path) -> tuple[StoreRequest, list[SourceFile]] | None:
    try:
        record: dict[str, Any] = json.loads((path / _REQUEST).read_text(encoding="utf-8"))
        if record["manifest_sha256"] != _sha256(path / _MANIFEST):
            return None
        request = StoreRequest(**{**record["request"], "paths": tuple(record["request"]["paths"])})
        return request, [SourceFile(**file) for file in record["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        # Missing or of another program: the fingerprint in the manifest decides.
        return None


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
