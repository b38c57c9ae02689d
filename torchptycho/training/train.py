"""Training of the physics-informed network; configuration, logs and checkpoints are written into one folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from torchptycho.analysis.history import read_history
from torchptycho.core.config import ReadConfig, RunConfig, save_config
from torchptycho.core.errors import ConfigError, TrainingError
from torchptycho.core.scan import Scan
from torchptycho.core.text import format_first
from torchptycho.data.datamodule import PtychoDataModule
from torchptycho.data.datasets import GroupDataset
from torchptycho.data.store import Store
from torchptycho.io import read_scan
from torchptycho.io.discovery import Sources
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.training.compile import compile_generator
from torchptycho.training.distributed import RankCoordinator, wait_for_store
from torchptycho.training.loggers import build_loggers
from torchptycho.training.resume import (
    check_same_scans,
    check_start_options,
    copy_network_weights,
    load_interrupted,
    load_start_network,
)
from torchptycho.training.runtime import check_devices, restore_keyboard_interrupt, silence_lightning
from torchptycho.training.schedule import plan_epochs
from torchptycho.training.setup import apply_store_config, open_given_store, prepare_run_store
from torchptycho.training.trainer import build_trainer

__all__ = ["TrainResult", "apply_store_config", "open_scan", "read_history", "train"]

_CONFIG_FILE = "config.yaml"


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
    source: Store | Sources,
    config: RunConfig | None = None,
    out: str | Path = "runs/train",
    *,
    val_scans: Sources = (),
    start: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train the physics-informed network on scans, without labels.

    Writes into `out`: config.yaml (fully resolved), store/, logs/, checkpoints/best.ckpt and last.ckpt, and images/ on
    request. Started on several processes (by torchrun, srun, or by itself with `devices` above 1), the first
    prepares and writes, and the others wait for it; when it fails they end with its error.

    Arguments:
        source: a prepared store, or scans, files, folders or patterns to prepare into `out`/store.
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
    given = open_given_store(source)
    if given is not None:
        if val_scans:
            raise ConfigError(f"val_scans: {given.path} is prepared already. Prepare the scans together.")
        config = apply_store_config(config, given)
    out, begun, started_from = Path(out), None, None if start is None else str(start)
    last = out / "checkpoints" / "last.ckpt"
    processes = RankCoordinator.from_environment(
        check_devices(config.train.accelerator, config.train.devices, config.train.nodes)
    )

    def ready(first: bool) -> Store:
        nonlocal begun, started_from
        if first and last.exists() and not resume:
            raise ConfigError(
                f"{out}: holds a finished or interrupted run. Continue it with --resume, or choose another --out."
            )
        interrupted = load_interrupted(last, config, out / _CONFIG_FILE) if resume else None
        check_start_options(config, start, interrupted)
        if interrupted is not None:
            started_from = interrupted.hparams["started_from"]
        elif start is not None:
            begun = load_start_network(start, config)
        build_loggers(config.log.logger, out)
        path = out / "store"
        if given is not None:
            store = given
        elif first:
            assert not isinstance(source, Store)
            store = prepare_run_store(source, val_scans, config, path, progress=progress, start=begun)
        else:
            store = wait_for_store(path)
            apply_store_config(config, store)
        if interrupted is not None:
            check_same_scans(last, interrupted, store)
        return store

    store = processes.rank_zero_first(ready)
    first = processes.rank == 0
    # Weights are drawn from torch's global generator, and a network may draw from it: seed it, and give it back.
    with torch.random.fork_rng(devices=[]), silence_lightning(), restore_keyboard_interrupt():
        torch.manual_seed(config.train.seed)
        module = PtychoPINN.for_store(store, config, started_from=started_from)
        if begun is not None:
            copy_network_weights(module, begun)
        data = PtychoDataModule(
            store,
            batch_size=config.train.batch_size,
            num_workers=config.train.num_workers,
            seed=config.train.seed,
            with_truth=module.loss.needs_truth,
        )
        if first:
            out.mkdir(parents=True, exist_ok=True)
            save_config(config, out / _CONFIG_FILE)
        ranks = config.train.devices * config.train.nodes
        beats = plan_epochs(config.train, data.batches_per_epoch(ranks))
        trainer = build_trainer(config, module, store, out, beats, callbacks, progress=progress)
        if config.train.compile:
            groups = GroupDataset(store, "train", with_truth=module.loss.needs_truth)
            some = range(-(-len(groups) // (data.batches_per_epoch(ranks) * ranks)))
            compile_generator(module, groups.__getitems__(some), trainer.strategy.root_device)
        begin = time.perf_counter()
        try:
            trainer.fit(module, data, ckpt_path=str(last) if resume else None, weights_only=True)
        except TrainingError as error:
            raise _locate_frames(error, store, last) from error
    seconds = time.perf_counter() - begin
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return TrainResult(
        checkpoint=last.with_name("best.ckpt"), last=last, metrics=metrics, seconds=seconds, rank=trainer.global_rank
    )


def _locate_frames(error: TrainingError, store: Store, last: Path) -> TrainingError:
    """Return the error with the frames named as their files number them, and with the last good checkpoint."""
    kept = f" {last} is the last good checkpoint." if last.exists() else " No checkpoint was written yet."
    where = ""
    for entry in store.scans:
        own = [f - entry.first_frame for f in error.frames if 0 <= f - entry.first_frame < entry.n_frames]
        if own:
            shown = format_first(own, 10)
            where += f" {entry.source}: frames {shown}."
    return TrainingError(f"{error}.{where}{kept}".replace("..", "."), error.frames)


def open_scan(path: str | Path, config: ReadConfig) -> Scan:
    """Open a scan file as the configuration says."""
    return read_scan(path, config)
