"""From scans to a store, and from one store to the next: prepare, append, drop."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchptycho.core.config import (
    SUPPORTED_N_PX,
    GroupConfig,
    PrepareConfig,
    ReadConfig,
    RunConfig,
    as_config,
    from_dict,
)
from torchptycho.core.config.model import advise_network_size
from torchptycho.core.errors import ConfigError, ScanError, StoreError
from torchptycho.core.inputs import as_path
from torchptycho.core.scan import Scan
from torchptycho.data.cache import StoreRequest, fingerprint_config, matches_request, refuse_differences, write_request
from torchptycho.data.content import holds_same_scans
from torchptycho.data.disk import (
    check_space,
    convert_os_errors,
    create_parent_folders,
    estimate_store_bytes,
    sync_directory_entries,
    sync_folder,
)
from torchptycho.data.locking import exclusive_writer, remove_stale_drafts, replace_store, temporary_store
from torchptycho.data.splits import choose_held_out_scans
from torchptycho.data.store import MANIFEST, SCHEMA, Store
from torchptycho.data.writer import StoredScan, load_stored_scans, open_for_update, write_scan, write_tables
from torchptycho.io import read_probe
from torchptycho.io.discovery import Sources, open_scans
from torchptycho.io.fingerprint import fingerprint_fields
from torchptycho.io.near_field import refuse_near_field
from torchptycho.io.source_files import refuse_changes

__all__ = [
    "append_scans",
    "check_compatible",
    "check_existing_store",
    "drop_scans",
    "load_store_config",
    "open_if_unchanged",
    "prepare",
]

_log = logging.getLogger(__name__)


def open_if_unchanged(path: str | Path, request: StoreRequest | None) -> Store | None:
    """Open the store at `path` when it was made by this request, of files that have not changed since; read no frames.

    None when that cannot be decided without opening the scans: `prepare` them then.

    Raises:
        StoreError: it was made by such a request, and an option, the version or a file is another now.
    """
    return Store.open(path) if matches_request(Path(path), request) else None


def prepare(
    scans: Sources,
    config: RunConfig | dict[str, Any] | None,
    path: str | Path,
    *,
    val_scans: Sources = (),
    request: StoreRequest | None = None,
    overwrite: bool = False,
) -> Store:
    """Check scans and write them as a store; an existing store of the same scans and configuration is reused.

    Uses the sections `prepare` and `group`. Frames are streamed in their own dtype. The store appears under its name
    only when it is complete and on disk. Of several processes that prepare one store, one writes it
    and the others wait and use it.

    Arguments:
        scans: at least one, opened or as files, folders or patterns (see `torchptycho.io.discovery`), all of one frame
            size and domain. The calibrated probe of amplitudes follows `nphotons` when that differs from the scan's own
            dose.
        path: folder to create.
        val_scans: more scans, of which every frame is held out for validation.
        request: the files and options that opened scans were read with, for `reopened` to know the store by; of files
            it is known.
        overwrite: replace a store that exists, once the new one is complete; another folder is never replaced.

    Raises:
        ConfigError: `domain` is set, and a scan has another one.
        ScanError: a scan is unusable, or the scans do not fit together.
        GroupingError: the configured groups cannot be formed.
        StoreError: `path` is not a store, or one of other scans or of another configuration; the disk is full, or the
            folder is not writable.
    """
    path, config = as_path(path, "path"), as_config(RunConfig, config)
    if request is None:
        request = StoreRequest.from_sources(scans, config, val_scans)
        store = None if overwrite else open_if_unchanged(path, request)
        if store is not None:
            return store
    trained, validated = open_scans(scans, config.prepare, val_scans)
    if not trained:
        raise StoreError("expected at least one scan; found none.")
    opened = [_replace_probe(scan, config) for scan in (*trained, *validated)]
    check_compatible(opened, config)
    held_out = choose_held_out_scans(len(trained), len(validated), config.prepare)
    marks = [fingerprint_fields(scan) for scan in opened]
    fingerprint = _fingerprint_scans(opened, marks, held_out, config)
    if path.exists() and not overwrite:
        return _reopen(path, fingerprint, opened, request)
    if path.exists() and not (path / MANIFEST).is_file():
        raise StoreError(f"{path}: expected a store to replace; found something else. Choose another folder.")
    for scan in opened:
        with refuse_changes(scan):
            refuse_near_field(scan)
    needed = estimate_store_bytes(opened, config)
    with convert_os_errors(path, needed), create_parent_folders(path), exclusive_writer(path):
        if path.exists() and not overwrite:
            # Another process has prepared the store in the meantime.
            return _reopen(path, fingerprint, opened, request)
        check_space(path, needed)
        with temporary_store(path) as draft:
            stored = [
                write_scan(draft, scan, mark, held_out=held)
                for scan, mark, held in zip(opened, marks, held_out, strict=True)
            ]
            write_tables(draft, stored, config, fingerprint)
            if request is not None:
                write_request(draft, request, opened)
            sync_folder(draft)
            replace_store(draft, path)
            sync_directory_entries(path.parent)
    return Store.open(path)


def append_scans(store: Store | str | Path, scans: Sources, *, val_scans: Sources = ()) -> Store:
    """Add scans to a store; only their frames are written, and the tables over all scans.

    The store is then the one that `prepare` would make of all scans, except that no scan is drawn to be held out. The
    update is atomic: other processes see the old or the new store, and an interruption leaves the old one. One process
    at a time changes a store; others wait.

    Arguments:
        store: the store, or its folder.
        scans: as in `prepare`; files are read with the options of the store's configuration.
        val_scans: more scans, of which every frame is held out for validation.

    Returns:
        The new store. Stores that were opened before are unchanged.

    Raises:
        StoreError: there is no store, or it already contains one of the scans.
        TorchptychoError: as `prepare`; the store is unchanged.
    """
    path = store.path if isinstance(store, Store) else as_path(store, "store", "a Store or its folder")
    with open_for_update(path) as now:
        config = load_store_config(now)
        trained, validated = open_scans(scans, config.prepare, val_scans)
        if not (trained or validated):
            raise StoreError("expected at least one scan to add; found none.")
        opened = [_replace_probe(scan, config) for scan in (*trained, *validated)]
        there = load_stored_scans(now)
        check_compatible([there[0].scan, *opened], config, known=1)
        marks = [fingerprint_fields(scan) for scan in opened]
        known = [(entry.fingerprint, entry.source) for entry in now.scans]
        for scan, mark in zip(opened, marks, strict=True):
            same = [source for other, source in known if other == mark]
            if same:
                raise StoreError(f"{path}: has {scan.source} already (as {same[0]}). Leave it out, or drop it.")
            if Path(scan.source).is_file() and scan.source in [source for _, source in known]:
                _log.warning("%s: other frames of %s, or an earlier state of it, are in the store", path, scan.source)
            known.append((mark, scan.source))
            with refuse_changes(scan):
                refuse_near_field(scan)
        needed = estimate_store_bytes([*(one.scan for one in there), *opened], config) - sum(
            one.scan.frames.shape[0] * one.scan.n_px**2 * one.scan.frames.dtype.itemsize for one in there
        )
        with convert_os_errors(path, needed):
            check_space(path, needed)
            added = [
                write_scan(path, scan, mark, held_out=index >= len(trained))
                for index, (scan, mark) in enumerate(zip(opened, marks, strict=True))
            ]
            _rewrite_tables(now, [*there, *added], config)
        return Store.open(path)


def drop_scans(store: Store | str | Path, scans: Sequence[int | str | Path] | int | str | Path) -> Store:
    """Remove scans from a store and free their space, atomically as in `append_scans`; no frame is rewritten.

    Arguments:
        store: the store, or its folder.
        scans: by number, as `Store.scans` counts them from 0, or by source.

    Raises:
        StoreError: there is no store or no such scan, or no training scan would remain.
        GroupingError: the configured groups cannot be formed from the rest; the store is unchanged.
    """
    path = store.path if isinstance(store, Store) else as_path(store, "store", "a Store or its folder")
    with open_for_update(path) as now:
        wanted = [scans] if isinstance(scans, int | str | Path) else scans
        gone = {number for asked in wanted for number in _find_scan_numbers(now, asked)}
        left = [one for number, one in enumerate(load_stored_scans(now)) if number not in gone]
        if all(one.held_out for one in left):
            raise StoreError(
                f"{path}: expected at least one training scan to remain; found none. To drop all scans, remove the "
                "folder."
            )
        with convert_os_errors(path, 0):
            _rewrite_tables(now, left, load_store_config(now))
        return Store.open(path)


def load_store_config(store: Store) -> RunConfig:
    """Load the configuration that a store was prepared with; the other sections are defaults."""
    where = str(store.path)
    return RunConfig(
        prepare=from_dict(PrepareConfig, store.config["prepare"], source=where),
        group=from_dict(GroupConfig, store.config["group"], source=where),
    )


def _rewrite_tables(now: Store, stored: Sequence[StoredScan], config: RunConfig) -> None:
    stored_parts = [(one.scan.source, one.fingerprint, one.held_out) for one in stored]
    others = {key: part for key, part in now.fingerprint.items() if not key.startswith(("scan ", "held-out scan "))}
    write_tables(now.path, stored, config, _build_fingerprint(stored_parts, others))


def _find_scan_numbers(store: Store, asked: int | str | Path) -> list[int]:
    """Find the numbers of the scans that are meant."""
    sources = [entry.source for entry in store.scans]
    if isinstance(asked, int):
        numbers = [asked] if 0 <= asked < len(sources) else []
    else:
        names = {str(asked), str(Path(asked).resolve())}
        numbers = [number for number, source in enumerate(sources) if names & {source, str(Path(source).resolve())}]
    if not numbers:
        known_scans = ", ".join(f"{number} ({source})" for number, source in enumerate(sources))
        raise StoreError(f"{store.path}: expected scans of the store, which are {known_scans}; found {asked}.")
    return numbers


def _replace_probe(scan: Scan, config: RunConfig) -> Scan:
    if config.prepare.probe in (None, scan.reading.probe):
        return scan
    pixel_m = scan.geometry.with_object_pixel(scan.n_px).object_pixel_m
    probe = read_probe(config.prepare.probe, scan.n_px, pixel_m)
    return dataclasses.replace(scan, probe=probe, probe_is_calibrated=False)


def check_compatible(scans: Sequence[Scan], config: RunConfig, known: int = 0) -> None:
    """Refuse scans that do not fit the first one or the configuration; the first `known` are in the store."""
    first = scans[0]
    for scan in scans[known:]:
        if config.prepare.domain not in (None, scan.domain):
            raise ConfigError(
                f"domain: expected '{scan.domain}', which the frames of {scan.source} hold; found "
                f"'{config.prepare.domain}'. Leave it out, or read the scan with domain='{config.prepare.domain}'."
            )
        _check_read_options(scan, config)
        advice = advise_network_size(scan.n_px)
        if advice is not None:
            raise ScanError(
                scan.source,
                "diffraction",
                expected=f"frames of N = {', '.join(map(str, SUPPORTED_N_PX))} px",
                found=f"N = {scan.n_px}",
                remedy=advice,
            )
        if (scan.n_px, scan.domain) != (first.n_px, first.domain):
            raise ScanError(
                scan.source,
                "diffraction",
                expected=f"N = {first.n_px} and {first.domain} as in {first.source}",
                found=f"N = {scan.n_px} and {scan.domain}",
                remedy="Prepare scans of another size or domain into a store of their own.",
            )


def _check_read_options(scan: Scan, config: RunConfig) -> None:
    """Check that scans were opened with these reading options, which act when a file is opened."""
    default = ReadConfig()
    for field in dataclasses.fields(ReadConfig):
        wanted, was = getattr(config.prepare, field.name), getattr(scan.reading, field.name)
        if field.name not in ("domain", "probe") and wanted not in (getattr(default, field.name), was):
            raise ConfigError(
                f"{field.name}: {scan.source} was read with {was!r}; found {wanted!r}. "
                "Give the file, or read it with read_scan(path, config.prepare)."
            )


def check_existing_store(path: Path, scans: Sequence[Scan], held_out: Sequence[bool], config: RunConfig) -> None:
    """Return what `prepare` reports about an existing folder; it may be a store of exactly this request.

    Raises:
        StoreError: it is something else.
    """
    if path.exists():
        marks = [fingerprint_fields(scan) for scan in scans]
        _check_content(Store.open(path), scans, _fingerprint_scans(scans, marks, held_out, config))


def _check_content(store: Store, scans: Sequence[Scan], fingerprint: dict[str, str]) -> None:
    """Refuse, by StoreError, a store of other scans or options; scans that were moved or copied are the same."""
    if not holds_same_scans(store, scans, fingerprint):
        refuse_differences(store.path, store.fingerprint, fingerprint)


def _fingerprint_scans(
    scans: Sequence[Scan], marks: Sequence[dict[str, str]], held_out: Sequence[bool], config: RunConfig
) -> dict[str, str]:
    return _build_fingerprint(
        [(scan.source, mark, held) for scan, mark, held in zip(scans, marks, held_out, strict=True)],
        {"schema": str(SCHEMA), **fingerprint_config(config)},
    )


def _build_fingerprint(scans: Sequence[tuple[str, dict[str, str], bool]], others: dict[str, str]) -> dict[str, str]:
    """Build the fingerprint of a store of these scans (source, own parts, held out), in parts, so that a difference has
    a name.

    Arguments:
        others: the parts that no scan has.
    """
    parts = dict(others)
    for index, (source, fingerprint, held_out) in enumerate(scans):
        name = f"{'held-out ' if held_out else ''}scan {index} ({source})"
        parts |= {f"{name} {key}": part for key, part in fingerprint.items()}
    return parts


def _reopen(path: Path, fingerprint: dict[str, str], scans: Sequence[Scan], request: StoreRequest | None) -> Store:
    store = Store.open(path)
    _check_content(store, scans, fingerprint)
    if request is not None:
        # The next time no file is read.
        with contextlib.suppress(OSError, ScanError):
            write_request(path, request, scans)
    remove_stale_drafts(path)
    _log.info("%s: the store is complete and up to date", path)
    return store
