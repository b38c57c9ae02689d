"""Training data of a run: a given store, or one made from scans."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torchptycho.core.config import RunConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.scan import Scan
from torchptycho.data.cache import StoreRequest
from torchptycho.data.prepare import load_store_config, open_if_unchanged, prepare
from torchptycho.data.store import MANIFEST, Store
from torchptycho.io.discovery import Sources, as_sources, open_scans
from torchptycho.models.generators import find_generator
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.models.losses import Loss
from torchptycho.training.bootstrap import refine_probe
from torchptycho.training.resume import check_frame_size

__all__ = ["apply_store_config", "open_given_store", "open_scans_with_probes", "prepare_run_store"]


def open_given_store(source: Store | Sources) -> Store | None:
    """Return the store, when the source is a store or the folder of one, else None."""
    if isinstance(source, Store):
        return source
    sources = as_sources(source)
    only = sources[0] if len(sources) == 1 else None
    return Store.open(only) if isinstance(only, (str, Path)) and (Path(only) / MANIFEST).is_file() else None


def apply_store_config(config: RunConfig, store: Store) -> RunConfig:
    """Return the configuration with the store's own sections prepare and group, which are fixed.

    Raises:
        ConfigError: an option of these sections was set to something else.
    """
    decided, default = load_store_config(store), RunConfig()
    for section in ("prepare", "group"):
        wanted, usual, is_so = (getattr(one, section) for one in (config, default, decided))
        for field in dataclasses.fields(wanted):
            value, was = getattr(wanted, field.name), getattr(is_so, field.name)
            if value not in (getattr(usual, field.name), was):
                raise ConfigError(
                    f"{field.name}: {store.path} was prepared with {was!r}; found {value!r}. Prepare another store."
                )
    return dataclasses.replace(config, prepare=decided.prepare, group=decided.group)


def open_scans_with_probes(
    sources: Sources, val_sources: Sources, config: RunConfig, keep: Path, *, progress: bool = True
) -> tuple[list[Scan], list[Scan]]:
    """Open the scans for training and validation; refine their probes if configured.

    Arguments:
        keep: file for the image that is found with a good probe; with several scans each has a number in its name.
    """
    return _refine_probes(open_scans(sources, config.prepare, val_sources), config, keep, progress=progress)


def _refine_probes(
    opened: tuple[list[Scan], list[Scan]], config: RunConfig, keep: Path, *, progress: bool
) -> tuple[list[Scan], list[Scan]]:
    trained, validated = opened
    scans = [*trained, *validated]
    names = [keep.name] if len(scans) == 1 else [f"{keep.stem}-{number}.npz" for number in range(len(scans))]
    good = [
        refine_probe(scan, config, keep.with_name(name), progress=progress)
        for scan, name in zip(scans, names, strict=True)
    ]
    return good[: len(trained)], good[len(trained) :]


def prepare_run_store(
    sources: Sources,
    val_sources: Sources,
    config: RunConfig,
    path: Path,
    *,
    progress: bool,
    start: PtychoPINN | None = None,
    overwrite: bool = False,
) -> Store:
    """Prepare the store of a run, of scans that its network and its loss can use.

    Arguments:
        start: network from which the run starts.
        overwrite: replace a store of other scans.

    Raises:
        TorchptychoError: they cannot, or not together.
    """
    needs_truth = Loss.from_config(config).needs_truth
    sizes = find_generator(config.model.generator).supported_n_px
    request = StoreRequest.from_sources(sources, config, val_sources)
    store = open_if_unchanged(path, request)
    if store is not None and store.n_px in sizes and (store.has_truth or not needs_truth):
        return store
    opened = open_scans(sources, config.prepare, val_sources)
    for scan in (*opened[0], *opened[1]):
        if scan.n_px not in sizes:
            raise ScanError(
                scan.source,
                "diffraction",
                expected=f"frames of N = {', '.join(map(str, sizes))} px for the generator '{config.model.generator}'",
                found=f"N = {scan.n_px}",
                remedy="Crop or pad the frames and the probe about the direct beam, or choose another --generator.",
            )
        if start is not None:
            check_frame_size(start, scan.n_px)
        if needs_truth and scan.truth is None and scan.truth_patches is None:
            raise ConfigError(f"realspace_weight, realspace_mae_weight: {scan.source} has no truth to compare with.")
    trained, validated = _refine_probes(opened, config, path.with_name("bootstrap.npz"), progress=progress)
    return prepare(trained, config, path, val_scans=validated, request=request, overwrite=overwrite)
