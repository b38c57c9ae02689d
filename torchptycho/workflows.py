"""The verb of a run: train. It writes what it did beside what it made."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from torchptycho.bootstrap import bootstrapped
from torchptycho.config import (
    ReadConfig,
    RunConfig,
    from_dict,
    save_config,
)
from torchptycho.data.dataset import GroupDataset
from torchptycho.data.module import PtychoDataModule
from torchptycho.data.store import Store, prepare
from torchptycho.errors import ConfigError, ScanError, StoreError, TrainingError
from torchptycho.io import read_scan
from torchptycho.losses import Loss
from torchptycho.model import PtychoPINN
from torchptycho.nn import find_generator
from torchptycho.scan import Scan
from torchptycho.training.compiling import compile_generator
from torchptycho.training.history import read_history
from torchptycho.training.loggers import loggers
from torchptycho.training.quiet import check_machine, interruptible, quiet_lightning
from torchptycho.training.rhythm import rhythm
from torchptycho.training.starting import check_resumes, check_starts, take_network
from torchptycho.training.trainer import build_trainer

__all__ = ["TrainResult", "open_scan", "read_history", "train"]

_CONFIG = "config.yaml"
# Refinement of a probe can take long before a store is there.
_PATIENCE_S = 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training leaves.

    Arguments:
        checkpoint: the best module by its monitored metric.
        last: the module at the end, from which training resumes.
        metrics: final values of all logged metrics.
        seconds: wall time of the optimisation.
        rank: which of several processes this is; the first, 0, has written the files.
    """

    checkpoint: Path
    last: Path
    metrics: dict[str, float]
    seconds: float
    rank: int = 0


def train(
    source: Store | Scan | str | Path | Sequence[Scan | str | Path],
    config: RunConfig | None = None,
    out: str | Path = "runs/train",
    *,
    val_scans: Sequence[Scan | str | Path] = (),
    start: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train the physics-informed network on scans, without labels.

    Writes into `out`: config.yaml (fully resolved), store/, logs/, checkpoints/best.ckpt and last.ckpt, and images/ on
    request. Started on several processes (by torchrun, srun, or by itself with `devices` above 1), the first
    prepares and writes, and the others wait for it.

    Arguments:
        source: a prepared store, or scans or files to prepare into `out`/store.
        config: everything; None takes the defaults.
        out: folder of the run.
        val_scans: scans that are not trained on and that validation looks at as a whole; with a prepared store, those
            that it was prepared with.
        start: checkpoint or run whose network this one goes on from, on these scans.
        resume: continue from checkpoints/last.ckpt of this folder.
        progress: show a progress bar.
        callbacks: more Lightning callbacks.

    Raises:
        TrainingError: a number was not finite, or the network shows nothing; checkpoints until then are kept.
        TorchptychoError: scans, configuration or folder do not allow it; nothing was written then.
    """
    config = config or RunConfig()
    store = source if isinstance(source, Store) else _given_store(source)
    if store is not None:
        if val_scans:
            raise ConfigError(f"val_scans: {store.path} is prepared already. Prepare the scans together.")
        config = _as_prepared(config, store)
    out = Path(out)
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    last = out / "checkpoints" / "last.ckpt"
    if first and last.exists() and not resume:
        raise ConfigError(
            f"{out}: holds a finished or interrupted run. Continue it with --resume, or choose another --out."
        )
    begun, started_from = None, None if start is None else str(start)
    if resume:
        started_from = check_resumes(last, config, out / _CONFIG).hparams["started_from"]
    elif start is not None:
        begun = check_starts(start, config)
    check_machine(config.train.accelerator, config.train.devices, config.train.nodes)
    loggers(config.log.logger, out)
    if store is None:
        assert not isinstance(source, Store)
        store = (
            _prepare_for(source, val_scans, config, out / "store", progress=progress)
            if first
            else _prepared_by_another(out / "store", config)
        )
    # Weights are drawn from torch's global generator, and a network may draw from it: seed it, and give it back.
    with torch.random.fork_rng(devices=[]), quiet_lightning(), interruptible():
        torch.manual_seed(config.train.seed)
        module = PtychoPINN.for_store(store, config, started_from=started_from)
        if begun is not None:
            take_network(module, begun)
        data = PtychoDataModule(
            store,
            batch_size=config.train.batch_size,
            num_workers=config.train.num_workers,
            seed=config.train.seed,
            with_truth=module.loss.needs_truth,
        )
        if first:
            out.mkdir(parents=True, exist_ok=True)
            save_config(config, out / _CONFIG)
        beats = rhythm(config.train, data.batches_per_epoch(config.train.devices * config.train.nodes))
        trainer = build_trainer(config, module, store, out, beats, callbacks, progress=progress)
        if config.train.compile:
            groups = GroupDataset(store, "train", with_truth=module.loss.needs_truth)
            some = range(min(len(groups), max(1, config.train.batch_size // store.gridsize**2)))
            compile_generator(module, groups.__getitems__(some), trainer.strategy.root_device)
        begin = time.perf_counter()
        try:
            trainer.fit(module, data, ckpt_path=str(last) if resume else None, weights_only=True)
        except TrainingError as error:
            raise _located(error, store, last) from error
    seconds = time.perf_counter() - begin
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return TrainResult(
        checkpoint=last.with_name("best.ckpt"), last=last, metrics=metrics, seconds=seconds, rank=trainer.global_rank
    )


def _located(error: TrainingError, store: Store, last: Path) -> TrainingError:
    """The error with the frames named as their files number them, and what is left."""
    kept = f" {last} is the last good checkpoint." if last.exists() else " No checkpoint was written yet."
    where = ""
    for entry in store.scans:
        own = [f - entry.first_frame for f in error.frames if 0 <= f - entry.first_frame < entry.n_frames]
        if own:
            shown = ", ".join(map(str, own[:10])) + (", ..." if len(own) > 10 else "")
            where += f" {entry.source}: frames {shown}."
    return TrainingError(f"{error}.{where}{kept}".replace("..", "."), error.frames)


def open_scan(path: str | Path, config: ReadConfig) -> Scan:
    """A scan file as the configuration says: what replaces or completes it, and what is done to its frames."""
    return read_scan(path, config)


def _given_store(source: Scan | str | Path | Sequence[Scan | str | Path]) -> Store | None:
    given = [source] if isinstance(source, (Scan, str, Path)) else list(source)
    only = given[0] if len(given) == 1 else None
    return Store.open(only) if isinstance(only, (str, Path)) and Path(only).is_dir() else None


def _as_prepared(config: RunConfig, store: Store) -> RunConfig:
    """The configuration with the store's own sections prepare and group, which are decided.

    Raises:
        ConfigError: an option of these sections was set to something else.
    """
    decided, default = {}, RunConfig()
    for section in ("prepare", "group"):
        wanted, usual = getattr(config, section), getattr(default, section)
        decided[section] = from_dict(type(wanted), store.config[section], source=str(store.path))
        for field in dataclasses.fields(wanted):
            value, was = getattr(wanted, field.name), getattr(decided[section], field.name)
            if value not in (getattr(usual, field.name), was):
                raise ConfigError(
                    f"{field.name}: {store.path} was prepared with {was!r}; found {value!r}. Prepare another store."
                )
    return dataclasses.replace(config, **decided)


def _prepare_for(
    source: Scan | str | Path | Sequence[Scan | str | Path],
    val_scans: Sequence[Scan | str | Path],
    config: RunConfig,
    path: Path,
    *,
    progress: bool,
) -> Store:
    given = [source] if isinstance(source, (Scan, str, Path)) else list(source)
    everything = [*given, *val_scans]
    scans = [item if isinstance(item, Scan) else open_scan(item, config.prepare) for item in everything]
    needs_truth = Loss(config.loss).needs_truth
    sizes = find_generator(config.model.generator).supported_n_px
    for scan in scans:
        if scan.n_px not in sizes:
            raise ScanError(
                scan.source, "diffraction",
                expected=f"frames of N = {', '.join(map(str, sizes))} px for the generator '{config.model.generator}'",
                found=f"N = {scan.n_px}",
                remedy="Crop or pad the frames and the probe about the beam centre, or choose another --generator.",
            )  # fmt: skip
        if needs_truth and scan.truth is None and scan.truth_patches is None:
            raise ConfigError(f"realspace_weight, realspace_mae_weight: {scan.source} has no truth to compare with.")
    names = ["bootstrap.npz"] if len(scans) == 1 else [f"bootstrap-{number}.npz" for number in range(len(scans))]
    scans = [
        bootstrapped(scan, config, path.with_name(name), progress=progress)
        for scan, name in zip(scans, names, strict=True)
    ]
    return prepare(scans[: len(given)], config, path, val_scans=scans[len(given) :])


def _prepared_by_another(path: Path, config: RunConfig) -> Store:
    """The store that the first process makes, as soon as it is there.

    Raises:
        StoreError: it is another's, or does not come within an hour.
    """
    begin = time.monotonic()
    while not path.exists():
        if time.monotonic() - begin > _PATIENCE_S:
            raise StoreError(f"{path}: expected the first process to prepare it; it is not there after an hour.")
        time.sleep(0.2)
    store = Store.open(path)
    _as_prepared(config, store)
    return store
