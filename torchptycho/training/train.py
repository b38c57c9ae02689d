"""Training of the physics-informed network; configuration, logs and checkpoints are written into one folder."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from torchptycho.analysis.history import read_history
from torchptycho.core.config import ReadConfig, RunConfig, as_config, save_config
from torchptycho.core.errors import ConfigError, TrainingError
from torchptycho.core.inputs import as_path
from torchptycho.core.scan import Scan
from torchptycho.core.text import format_first
from torchptycho.data.datamodule import PtychoDataModule
from torchptycho.data.datasets import GroupDataset
from torchptycho.data.store import Store
from torchptycho.io import read_scan
from torchptycho.io.discovery import Sources, as_sources
from torchptycho.io.storage.outputs import check_output_folder
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.training.checkpointing import BestCheckpoint
from torchptycho.training.compile import compile_generator
from torchptycho.training.distributed import RankCoordinator, wait_for_store
from torchptycho.training.earlier_run import check_earlier_run, remove_earlier_run
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

_log = logging.getLogger(__name__)

_CONFIG_FILE = "config.yaml"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Result of a training.

    Arguments:
        checkpoint: the best module by its monitored metric.
        last: the module at the end, from which training resumes.
        metrics: final values of all logged metrics.
        seconds: wall time of the optimisation.
        start_loss, best_loss: monitored loss of the held-out frames before training and of `checkpoint`; None without
            such frames.
        improved: whether training lowered it; otherwise `checkpoint` holds the weights that it began with.
        rank: number of this process; process 0 has written the files.
    """

    checkpoint: Path
    last: Path
    metrics: dict[str, float]
    seconds: float
    start_loss: float | None = None
    best_loss: float | None = None
    improved: bool = True
    rank: int = 0


def train(
    source: Store | Sources,
    config: RunConfig | dict[str, Any] | None = None,
    out: str | Path = "runs/train",
    *,
    val_scans: Sources = (),
    start: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train the physics-informed network on scans, without labels.

    Writes into `out`: config.yaml (fully resolved), store/, logs/, checkpoints/best.ckpt and last.ckpt, and images/ on
    request. Started on several processes (by torchrun, srun, or by itself with `devices` above 1), the first
    prepares and writes, and the others wait for it; if it fails, they end with its error.

    Arguments:
        source: a prepared store, or scans, files, folders or patterns to prepare into `out`/store.
        config: None takes the defaults.
        out: folder of the run.
        val_scans: scans for validation only, with all of their frames; for a prepared store, those with which it was
            prepared.
        start: checkpoint or run whose network this one starts from, on these scans.
        resume: continue from checkpoints/last.ckpt of this folder; begin, with a warning, where there is none yet.
        overwrite: replace a run in this folder, once its successor can begin, and a store there of other scans.
        progress: show a progress bar.
        callbacks: more Lightning callbacks.

    Raises:
        TrainingError: a number is not finite, or the network predicts featureless patches; checkpoints are kept.
        TorchptychoError: the scans, the configuration or the folder cannot be used; nothing is written.
    """
    request = _resolve_request(
        source, as_config(RunConfig, config), as_path(out, "out"), val_scans, start, resume=resume, overwrite=overwrite
    )
    config = request.config
    processes = RankCoordinator.from_environment(
        check_devices(config.train.accelerator, config.train.devices, config.train.nodes)
    )
    inputs = processes.rank_zero_first(lambda is_first: _prepare_inputs(request, is_first, progress=progress))
    # Weights are drawn from torch's global generator, and a network may draw from it: seed it, and restore it.
    with torch.random.fork_rng(devices=[]), silence_lightning(), restore_keyboard_interrupt():
        torch.manual_seed(config.train.seed)
        module = _build_module(inputs, config)
        data = _build_data(inputs.store, config, module)
        if processes.rank == 0:
            request.out.mkdir(parents=True, exist_ok=True)
            save_config(config, request.out / _CONFIG_FILE)
        epochs = plan_epochs(config.train, data.batches_per_epoch(_count_ranks(config)))
        module.planned_steps = epochs.total_steps
        trainer = build_trainer(config, module, inputs.store, request.out, epochs, callbacks, progress=progress)
        if config.train.compile:
            _compile_for_batches(module, data, inputs.store, config, trainer.strategy.root_device)
        seconds = _fit(trainer, module, data, inputs, request.last)
    (best,) = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint))
    if not best.has_improved and trainer.global_rank == 0:
        _log.warning(
            "%s: training did not lower the loss of the held-out frames from %.4g; best.ckpt holds the weights that it "
            "began with.",
            request.out,
            best.start_loss,
        )
    return TrainResult(
        checkpoint=request.last.with_name("best.ckpt"),
        last=request.last,
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        seconds=seconds,
        start_loss=best.start_loss,
        best_loss=None if best.start_loss is None or best.best_model_score is None else float(best.best_model_score),
        improved=best.has_improved,
        rank=trainer.global_rank,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Request:
    """The arguments of `train`.

    Arguments:
        source: scans to prepare; None with a store.
        store: a store that is prepared already.
        config: with the store's own sections where there is one.
    """

    source: Sources | None
    store: Store | None
    config: RunConfig
    out: Path
    val_scans: Sources
    start: str | Path | None
    resume: bool
    overwrite: bool

    @property
    def last(self) -> Path:
        return self.out / "checkpoints" / "last.ckpt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inputs:
    """The prepared inputs of training.

    Arguments:
        store: the frames and groups.
        start: module whose network training starts from.
        started_from: its name, for the checkpoint; that of the interrupted run when it is resumed.
        resumed: whether training continues from the last checkpoint.
    """

    store: Store
    start: PtychoPINN | None
    started_from: str | None
    resumed: bool = False


def _resolve_request(
    source: Store | Sources,
    config: RunConfig,
    out: Path,
    val_scans: Sources,
    start: str | Path | None,
    *,
    resume: bool,
    overwrite: bool,
) -> _Request:
    store = open_given_store(source)
    how: dict[str, Any] = {"out": out, "start": start, "resume": resume, "overwrite": overwrite}
    if store is not None:
        if val_scans:
            raise ConfigError(f"val_scans: {store.path} is prepared already. Prepare the scans together.")
        config = apply_store_config(config, store)
        return _Request(source=None, store=store, config=config, val_scans=(), **how)
    assert not isinstance(source, Store)
    return _Request(source=source, store=None, config=config, val_scans=val_scans, **how)


def _prepare_inputs(request: _Request, is_first: bool, *, progress: bool) -> _Inputs:
    """Validate the request against the folder and the start, and prepare the store or wait for it."""
    config, start = request.config, None
    check_output_folder(request.out)
    if is_first:
        inputs = (request.start, *as_sources(request.source or ()), *as_sources(request.val_scans))
        check_earlier_run(request.out, request.last, resume=request.resume, overwrite=request.overwrite, inputs=inputs)
    interrupted = load_interrupted(request.last, config, request.out / _CONFIG_FILE) if request.resume else None
    check_start_options(config, request.start, interrupted)
    if interrupted is None and request.start is not None:
        start = load_start_network(request.start, config)
    # Only to detect missing loggers before anything is written.
    build_loggers(config.log.logger, request.out)
    store = _open_or_prepare_store(request, is_first, start, progress=progress)
    if is_first and request.overwrite:
        remove_earlier_run(request.out)
    if interrupted is not None:
        check_same_scans(request.last, interrupted, store)
        return _Inputs(store=store, start=None, started_from=interrupted.hparams["started_from"], resumed=True)
    return _Inputs(store=store, start=start, started_from=None if request.start is None else str(request.start))


def _open_or_prepare_store(request: _Request, is_first: bool, start: PtychoPINN | None, *, progress: bool) -> Store:
    if request.store is not None:
        return request.store
    path = request.out / "store"
    if is_first:
        assert request.source is not None
        return prepare_run_store(
            request.source,
            request.val_scans,
            request.config,
            path,
            progress=progress,
            start=start,
            overwrite=request.overwrite,
        )
    store = wait_for_store(path)
    apply_store_config(request.config, store)
    return store


def _build_module(inputs: _Inputs, config: RunConfig) -> PtychoPINN:
    module = PtychoPINN.for_store(inputs.store, config, started_from=inputs.started_from)
    if inputs.start is not None:
        copy_network_weights(module, inputs.start)
    return module


def _build_data(store: Store, config: RunConfig, module: PtychoPINN) -> PtychoDataModule:
    return PtychoDataModule(
        store,
        batch_size=config.train.batch_size,
        num_workers=config.train.num_workers,
        seed=config.train.seed,
        with_truth=module.loss.needs_truth,
    )


def _count_ranks(config: RunConfig) -> int:
    return config.train.devices * config.train.nodes


def _compile_for_batches(
    module: PtychoPINN, data: PtychoDataModule, store: Store, config: RunConfig, device: torch.device
) -> None:
    """Compile the generator for the shape of the training batches."""
    groups = GroupDataset(store, "train", with_truth=module.loss.needs_truth)
    ranks = _count_ranks(config)
    groups_per_batch = -(-len(groups) // (data.batches_per_epoch(ranks) * ranks))
    compile_generator(module, groups.__getitems__(range(groups_per_batch)), device)


def _fit(trainer: L.Trainer, module: PtychoPINN, data: PtychoDataModule, inputs: _Inputs, last: Path) -> float:
    """Run the optimisation; return its seconds."""
    begin = time.perf_counter()
    try:
        trainer.fit(module, data, ckpt_path=str(last) if inputs.resumed else None, weights_only=True)
    except TrainingError as error:
        raise _locate_frames(error, inputs.store, last) from error
    return time.perf_counter() - begin


def _locate_frames(error: TrainingError, store: Store, last: Path) -> TrainingError:
    """Return the error with the frames named as their files number them, and with the last good checkpoint."""
    kept = f" {last} is the last good checkpoint." if last.exists() else " No checkpoint was written yet."
    where = ""
    for entry in store.scans:
        frames = [f - entry.first_frame for f in error.frames if 0 <= f - entry.first_frame < entry.n_frames]
        if frames:
            where += f" {entry.source}: frames {format_first(frames, 10)}."
    return TrainingError(f"{error}.{where}{kept}".replace("..", "."), error.frames)


def open_scan(path: str | Path, config: ReadConfig) -> Scan:
    """Open a scan file as the configuration says."""
    return read_scan(path, config)
