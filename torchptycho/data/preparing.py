"""From scans to a store, and from one store to the next: prepare, append, drop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torchptycho.config import SUPPORTED_N_PX, GroupConfig, PrepareConfig, ReadConfig, RunConfig, from_dict, to_dict
from torchptycho.data.splits import held_out_scans
from torchptycho.data.store import MANIFEST, SCHEMA, Store
from torchptycho.data.writing import StoredScan, changing, stored_scans, write_scan, write_tables
from torchptycho.errors import ConfigError, ScanError, StoreError
from torchptycho.io import read_probe
from torchptycho.io.checks import network_size_advice
from torchptycho.io.finding import Sources, open_scans
from torchptycho.io.fingerprint import scan_fingerprint
from torchptycho.io.near_field import refuse_near_field
from torchptycho.scan import Scan

__all__ = ["append_scans", "config_of", "drop_scans", "prepare"]

_log = logging.getLogger(__name__)


def prepare(scans: Sources, config: RunConfig, path: str | Path, *, val_scans: Sources = ()) -> Store:
    """Check scans and write them as a store; a store of the same scans and configuration is reopened as it is.

    Uses the sections `prepare` and `group`. Frames are streamed in their own dtype. The store appears under its name
    only when it is complete.

    Arguments:
        scans: at least one, opened or as files, folders or patterns (see `torchptycho.io.finding`), all of one frame
            size and domain. The calibrated probe of amplitudes follows `nphotons` when that differs from the scan's own
            dose.
        path: folder to make.
        val_scans: more scans, of which every frame is held out for validation.

    Raises:
        ConfigError: `domain` is set, and a scan holds something else.
        ScanError: a scan is unusable, or the scans do not fit together.
        GroupingError: the configured groups cannot be formed.
        StoreError: `path` is something else, or a store of other scans or of another configuration.
    """
    path = Path(path)
    trained, validated = open_scans(scans, config.prepare, val_scans)
    if not trained:
        raise StoreError("expected at least one scan; found none.")
    opened = [_with_probe(scan, config) for scan in (*trained, *validated)]
    _check_together(opened, config)
    held_out = held_out_scans(len(trained), len(validated), config.prepare)
    marks = [scan_fingerprint(scan) for scan in opened]
    fingerprint = _fingerprint(
        [(scan.source, mark, held) for scan, mark, held in zip(opened, marks, held_out, strict=True)], config
    )
    if path.exists():
        return _reopen(path, fingerprint)
    for scan in opened:
        refuse_near_field(scan)
    with _folder_for(path):
        # Named by hand rather than by tempfile, so that the umask decides who may read the store.
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        draft.mkdir()
        try:
            stored = [
                write_scan(draft, scan, mark, held_out=held)
                for scan, mark, held in zip(opened, marks, held_out, strict=True)
            ]
            write_tables(draft, stored, config, fingerprint)
            os.replace(draft, path)
        except OSError:
            # Another process was faster; any other failure is its own.
            if not (path / MANIFEST).is_file():
                raise
            return _reopen(path, fingerprint)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return Store.open(path)


def append_scans(store: Store | str | Path, scans: Sources, *, val_scans: Sources = ()) -> Store:
    """Add scans to a store; only their frames are written, and the tables over all scans.

    The store is then what `prepare` would have made of all scans, except that no scan is drawn to be held out. It
    becomes so at once: whoever opens it finds the old or the new one, and an interruption leaves the old one. One
    process at a time changes a store; others wait.

    Arguments:
        store: the store, or its folder.
        scans: as in `prepare`; files are read as the store's configuration says.
        val_scans: more scans, of which every frame is held out for validation.

    Returns:
        The store as it is now. What was opened before stays as it was.

    Raises:
        StoreError: there is no store, or it has one of the scans already.
        TorchptychoError: as `prepare`; the store is what it was.
    """
    path = store.path if isinstance(store, Store) else Path(store)
    with changing(path) as now:
        config = config_of(now)
        trained, validated = open_scans(scans, config.prepare, val_scans)
        if not (trained or validated):
            raise StoreError("expected at least one scan to add; found none.")
        opened = [_with_probe(scan, config) for scan in (*trained, *validated)]
        there = stored_scans(now)
        _check_together([there[0].scan, *opened], config, known=1)
        marks = [scan_fingerprint(scan) for scan in opened]
        known = {entry.fingerprint: entry.source for entry in now.scans}
        for scan, mark in zip(opened, marks, strict=True):
            if mark in known:
                raise StoreError(f"{path}: has {scan.source} already (as {known[mark]}). Leave it out, or drop it.")
            if scan.source in known.values() and Path(scan.source).is_file():
                _log.warning("%s: other frames of %s, or an earlier state of it, are in the store", path, scan.source)
            known[mark] = scan.source
            refuse_near_field(scan)
        added = [
            write_scan(path, scan, mark, held_out=index >= len(trained))
            for index, (scan, mark) in enumerate(zip(opened, marks, strict=True))
        ]
        _rewrite(path, [*there, *added], config)
        return Store.open(path)


def drop_scans(store: Store | str | Path, scans: Sequence[int | str | Path]) -> Store:
    """Take scans out of a store and free their space; no frame is rewritten. As safe as `append_scans`.

    Arguments:
        store: the store, or its folder.
        scans: by number, as `Store.scans` counts them from 0, or by source.

    Raises:
        StoreError: there is no store or no such scan, or no scan to train on would be left.
        GroupingError: the configured groups cannot be formed from the rest; the store is what it was.
    """
    path = store.path if isinstance(store, Store) else Path(store)
    with changing(path) as now:
        gone = {number for asked in scans for number in _numbers(now, asked)}
        left = [one for number, one in enumerate(stored_scans(now)) if number not in gone]
        if all(one.held_out for one in left):
            raise StoreError(f"{path}: expected a scan to train on to be left; found none. Remove the folder.")
        _rewrite(path, left, config_of(now))
        return Store.open(path)


def config_of(store: Store) -> RunConfig:
    """The configuration that a store was prepared with; the other sections are defaults."""
    where = str(store.path)
    return RunConfig(
        prepare=from_dict(PrepareConfig, store.config["prepare"], source=where),
        group=from_dict(GroupConfig, store.config["group"], source=where),
    )


def _rewrite(path: Path, stored: Sequence[StoredScan], config: RunConfig) -> None:
    told = [(one.scan.source, one.fingerprint, one.held_out) for one in stored]
    write_tables(path, stored, config, _fingerprint(told, config))


def _numbers(store: Store, asked: int | str | Path) -> list[int]:
    """Numbers of the scans that are meant."""
    sources = [entry.source for entry in store.scans]
    if isinstance(asked, int):
        found = [asked] if 0 <= asked < len(sources) else []
    else:
        same = {str(asked), str(Path(asked).resolve())}
        found = [number for number, source in enumerate(sources) if same & {source, str(Path(source).resolve())}]
    if not found:
        there = ", ".join(f"{number} ({source})" for number, source in enumerate(sources))
        raise StoreError(f"{store.path}: expected scans of the store, which are {there}; found {asked}.")
    return found


@contextlib.contextmanager
def _folder_for(path: Path) -> Iterator[None]:
    """The folders above `path`; those that had to be made are gone again when the block fails."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _with_probe(scan: Scan, config: RunConfig) -> Scan:
    if config.prepare.probe in (None, scan.reading.probe):
        return scan
    probe = read_probe(config.prepare.probe, scan.n_px)
    return dataclasses.replace(scan, probe=probe, probe_is_calibrated=False)


def _check_together(scans: Sequence[Scan], config: RunConfig, known: int = 0) -> None:
    """Refuse scans that do not fit the first one or the configuration; the first `known` are in the store."""
    first = scans[0]
    for scan in scans[known:]:
        if config.prepare.domain not in (None, scan.domain):
            raise ConfigError(
                f"domain: expected '{scan.domain}', which the frames of {scan.source} hold; found "
                f"'{config.prepare.domain}'. Leave it out, or read the scan with domain='{config.prepare.domain}'."
            )
        _check_read_so(scan, config)
        advice = network_size_advice(scan.n_px)
        if advice is not None:
            raise ScanError(
                scan.source, "diffraction",
                expected=f"frames of N = {', '.join(map(str, SUPPORTED_N_PX))} px",
                found=f"N = {scan.n_px}",
                remedy=advice,
            )  # fmt: skip
        if (scan.n_px, scan.domain) != (first.n_px, first.domain):
            raise ScanError(
                scan.source, "diffraction",
                expected=f"N = {first.n_px} and {first.domain} as in {first.source}",
                found=f"N = {scan.n_px} and {scan.domain}",
                remedy="Prepare scans of another size or domain into a store of their own.",
            )  # fmt: skip


def _check_read_so(scan: Scan, config: RunConfig) -> None:
    """The options of reading act when a file is opened: a scan that was opened otherwise does not follow them."""
    default = ReadConfig()
    for field in dataclasses.fields(ReadConfig):
        wanted, was = getattr(config.prepare, field.name), getattr(scan.reading, field.name)
        if field.name not in ("domain", "probe") and wanted not in (getattr(default, field.name), was):
            raise ConfigError(
                f"{field.name}: {scan.source} was read with {was!r}; found {wanted!r}. "
                "Give the file, or read it with read_scan(path, config.prepare)."
            )


def _fingerprint(scans: Sequence[tuple[str, str, bool]], config: RunConfig) -> dict[str, str]:
    """What a store of these scans (source, own fingerprint, held out) depends on, in parts that can be named."""
    parts = {"schema": str(SCHEMA)}
    for index, (source, mark, held_out) in enumerate(scans):
        parts[f"{'held-out ' if held_out else ''}scan {index} ({source})"] = mark
    for section in ("prepare", "group"):
        told: dict[str, Any] = to_dict(getattr(config, section))
        for key, value in told.items():
            parts[f"{section}.{key}"] = json.dumps(value)
    return parts


def _reopen(path: Path, fingerprint: dict[str, str]) -> Store:
    store = Store.open(path)
    differs = [
        key for key in fingerprint.keys() | store.fingerprint if fingerprint.get(key) != store.fingerprint.get(key)
    ]
    if differs:
        raise StoreError(
            f"{path}: is a store of something else: {', '.join(sorted(differs))} differ. "
            "Choose another folder, or remove this one."
        )
    _log.info("%s: is complete and up to date", path)
    return store
