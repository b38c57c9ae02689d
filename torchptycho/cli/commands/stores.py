"""Commands that make and change a store."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tyro.conf import Positional

from torchptycho.cli.base import Command, WritingCommand
from torchptycho.core.config import GroupConfig, PrepareConfig, RefineConfig, RunConfig, load_config
from torchptycho.core.errors import ConfigError
from torchptycho.io.storage.outputs import check_output_folder
from torchptycho.visualization.tables import make_plan_lines

if TYPE_CHECKING:
    from torchptycho.data.store import Store

__all__ = ["Append", "Drop", "Prepare", "require_scans"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare(WritingCommand):
    """Write scans as a store for training, which `train` does itself.

    torchptycho prepare day1.npz day2.npz --out store --gridsize 2
    torchptycho prepare day1/ 'day2/*.cxi' --val-scans day3.npz --out store
    """

    scans: Positional[tuple[str, ...]]
    """Scan files, folders of them, or patterns."""
    out: Path
    """Folder to create."""
    val_scans: tuple[str, ...] = ()
    """Scans for validation only, with all of their frames."""
    dry_run: bool = False
    """Read and check everything, report what would be written, and write nothing."""
    json: bool = False
    """Print one JSON object instead of a sentence."""
    config: Path | None = None
    """YAML or TOML file with the sections prepare, group, model, loss, train, reconstruct; flags override it."""
    prepare: PrepareConfig = dataclasses.field(default_factory=PrepareConfig)
    group: GroupConfig = dataclasses.field(default_factory=GroupConfig)

    def run(self) -> None:
        require_scans(self.scans)
        check_output_folder(self.out, option="--out")
        from torchptycho.data.cache import StoreRequest
        from torchptycho.data.prepare import open_if_unchanged, prepare
        from torchptycho.training.setup import open_scans_with_probes

        later = load_config(self.config).refine if self.config else RefineConfig()
        config = RunConfig(prepare=self.prepare, group=self.group, refine=later)
        if self.dry_run:
            from torchptycho.training.dry_run import plan_preparation

            with self.show_status("reading"):
                plan = plan_preparation(
                    self.scans, config, self.out, val_scans=self.val_scans, overwrite=self.overwrite
                )
            self.print_result(plan, *make_plan_lines(plan), json=self.json)
            return
        request = StoreRequest.from_sources(self.scans, config, self.val_scans)
        store = None if self.overwrite else open_if_unchanged(self.out, request)
        if store is None:
            keep = _choose_bootstrap_file(self.out)
            trained, validated = open_scans_with_probes(self.scans, self.val_scans, config, keep)
            with self.show_status(f"preparing {sum(scan.n_frames for scan in (*trained, *validated))} frames"):
                store = prepare(
                    trained, config, self.out, val_scans=validated, request=request, overwrite=self.overwrite
                )
        self.print_result(summarize_store(store), describe_store(store), json=self.json)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Append(Command):
    """Add scans to a store, with its options of reading and grouping.

    torchptycho append store day4.npz 'day5/*.npz'
    """

    SCAN_REMEDY: ClassVar = "Scans are read as those of the store; others belong into a store of their own."

    store: Positional[Path]
    """Store to change."""
    scans: Positional[tuple[str, ...]]
    """Scan files, folders of them, or patterns."""
    val_scans: tuple[str, ...] = ()
    """Scans for validation only, with all of their frames."""
    config: Path | None = None
    """YAML or TOML file with the section refine: options for refining probes, if the store has refined ones."""
    json: bool = False
    """Print one JSON object instead of a sentence."""

    def run(self) -> None:
        require_scans((*self.scans, *self.val_scans))
        from torchptycho.data.prepare import append_scans, load_store_config
        from torchptycho.data.store import Store
        from torchptycho.training.setup import open_scans_with_probes

        later = load_config(self.config).refine if self.config else RefineConfig()
        config = dataclasses.replace(load_store_config(Store.open(self.store)), refine=later)
        keep = _choose_bootstrap_file(self.store)
        trained, validated = open_scans_with_probes(self.scans, self.val_scans, config, keep)
        with self.show_status(f"adding {sum(scan.n_frames for scan in (*trained, *validated))} frames"):
            store = append_scans(self.store, trained, val_scans=validated)
        self.print_result(summarize_store(store), describe_store(store), json=self.json)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drop(Command):
    """Remove scans from a store and free their space.

    torchptycho drop store day2.npz
    torchptycho drop store 0 3
    """

    store: Positional[Path]
    """Store to change."""
    scans: Positional[tuple[str, ...]]
    """Scans by number, counted from 0, or by file; without any, the scans of the store are listed."""
    json: bool = False
    """Print one JSON object instead of a sentence."""

    def run(self) -> None:
        from torchptycho.data.prepare import drop_scans
        from torchptycho.data.store import Store

        if not self.scans:
            raise ConfigError(f"expected scans to drop; found none. {list_scans(Store.open(self.store))}")
        store = drop_scans(self.store, [int(scan) if scan.isdecimal() else scan for scan in self.scans])
        self.print_result(summarize_store(store), describe_store(store), json=self.json)


def _choose_bootstrap_file(store: Path) -> Path:
    """Choose the file for the image with which a probe was refined."""
    real = Path(os.path.realpath(store))
    return real.parent / f"{real.name}-bootstrap.npz"


def require_scans(scans: tuple[str, ...]) -> None:
    if not scans:
        raise ConfigError("expected at least one scan file; found none.")


def list_scans(store: Store) -> str:
    """List the scans of a store in one sentence."""
    there = ", ".join(f"{number} ({entry.source})" for number, entry in enumerate(store.scans))
    return f"{store.path} holds {there}."


def summarize_store(store: Store) -> dict[str, Any]:
    """Summarize what a store holds, for scripts."""
    return {
        "out": str(store.path),
        "scans": [entry.source for entry in store.scans],
        "frames": store.n_frames,
        "groups": len(store.groups("train")),
        "held_out": len(store.groups("val")),
        "left_out": sum(len(entry.left_out) for entry in store.scans),
    }


def describe_store(store: Store) -> str:
    """Describe what a store holds, in one sentence."""
    held = summarize_store(store)
    many = f" of {len(store.scans)} scans" if len(store.scans) > 1 else ""
    summary = f"{store.path}: {store.n_frames} frames{many}, {held['groups']} groups for training"
    summary += f", {held['held_out']} held out"
    if held["left_out"]:
        summary += f"; {held['left_out']} frames left out, listed in {store.path / 'store.json'}"
    return summary
