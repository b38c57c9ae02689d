"""The verbs of a run: read, train, reconstruct. Each writes what it did beside what it made."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import math
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from torchptycho.bars import EpochProgress
from torchptycho.bootstrap import bootstrapped
from torchptycho.checkpoints import load_checkpoint, sha256
from torchptycho.config import (
    PrepareConfig,
    ReadConfig,
    ReconstructConfig,
    RunConfig,
    from_dict,
    reading_of,
    save_config,
    to_dict,
)
from torchptycho.data.module import PtychoDataModule
from torchptycho.data.store import Store, prepare
from torchptycho.errors import ConfigError, ScanError, StoreError
from torchptycho.io import read_scan
from torchptycho.losses import Loss
from torchptycho.model import PtychoPINN
from torchptycho.nn import find_generator
from torchptycho.predict import CanvasWriter
from torchptycho.progress import StepProgress
from torchptycho.reconstruction import Reconstruction
from torchptycho.refinement import refine
from torchptycho.scan import Scan
from torchptycho.strict import Domain
from torchptycho.versions import versions

__all__ = ["TrainResult", "open_scan", "read_history", "reading_for_prediction", "reconstruct", "train"]

_log = logging.getLogger(__name__)

# Dose of a scan relative to the training scan's beyond which its patches are no longer what the network was taught.
_DOSE_TOLERANCE = 1.2
_VALIDATE_EVERY_STEPS = 100
_LOGS = "logs"
_CONFIG = "config.yaml"
# Fields of TrainConfig that say how long and where to compute, not what.
_LENGTH = ("steps", "epochs")
_MACHINE = ("num_workers", "accelerator", "devices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training leaves.

    Arguments:
        checkpoint: the best module by its monitored metric.
        last: the module at the end, from which training resumes.
        metrics: final values of all logged metrics.
        seconds: wall time of the optimisation.
    """

    checkpoint: Path
    last: Path
    metrics: dict[str, float]
    seconds: float


def train(
    source: Store | Scan | str | Path | Sequence[Scan | str | Path],
    config: RunConfig | None = None,
    out: str | Path = "runs/train",
    *,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train the physics-informed network on scans, without labels.

    Writes into `out`: config.yaml (fully resolved), store/, logs/, checkpoints/best.ckpt and last.ckpt.

    Arguments:
        source: a prepared store, or scans or files to prepare into `out`/store.
        config: everything; None takes the defaults.
        out: folder of the run.
        resume: continue from checkpoints/last.ckpt of this folder.
        progress: show a progress bar.
        callbacks: more Lightning callbacks.

    Raises:
        TorchptychoError: scans, configuration or folder do not allow it; nothing was written then.
    """
    config = config or RunConfig()
    store = source if isinstance(source, Store) else _given_store(source)
    if store is not None:
        config = _as_prepared(config, store)
    out = Path(out)
    last = out / "checkpoints" / "last.ckpt"
    if last.exists() and not resume:
        raise ConfigError(
            f"{out}: holds a finished or interrupted run. Continue it with --resume, or choose another --out."
        )
    if resume:
        _check_resumes(last, config)
    _check_machine(config.train.accelerator, config.train.devices)
    if store is None:
        assert not isinstance(source, Store)
        store = _prepare_for(source, config, out / "store", progress=progress)
    # Weights are drawn from torch's global generator: seed it, and give it back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        module = PtychoPINN.for_store(store, config)
    data = PtychoDataModule(
        store,
        batch_size=config.train.batch_size,
        num_workers=config.train.num_workers,
        seed=config.train.seed,
        with_truth=module.loss.needs_truth,
    )
    out.mkdir(parents=True, exist_ok=True)
    save_config(config, out / _CONFIG)
    # Two, because save_last copies the best, which may be long past.
    keep = [
        ModelCheckpoint(
            dirpath=last.parent,
            filename=name,
            monitor=monitor,
            every_n_epochs=1 if module.has_validation else _rhythm(config, data).validate_every,
            save_on_train_epoch_end=not module.has_validation,
            enable_version_counter=False,
        )
        for name, monitor in (("best", module.monitor), ("last", None))
    ]
    start = time.perf_counter()
    with _quiet_lightning(), _interruptible():
        trainer = _trainer(config, out, data, [*keep, *callbacks], progress=progress)
        trainer.fit(module, data, ckpt_path=str(last) if resume else None, weights_only=True)
    seconds = time.perf_counter() - start
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return TrainResult(checkpoint=last.with_name("best.ckpt"), last=last, metrics=metrics, seconds=seconds)


def open_scan(path: str | Path, config: ReadConfig) -> Scan:
    """A scan file as the configuration says: what replaces or completes it, and what is done to its frames."""
    return read_scan(path, config)


def reading_for_prediction(
    config: PrepareConfig, domain: Domain | None = None, frames: str | None = None
) -> ReadConfig:
    """How a scan is opened for a module that was trained with `config`: as then, but whole, and with any probe.

    The module has its own probe, so that one from the mean pattern does where the file has none.
    """
    guess = dataclasses.replace(reading_of(config), guess_probe=True)
    return dataclasses.replace(guess, domain=domain, frames=frames, probe=None, drop_frames=())


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
    source: Scan | str | Path | Sequence[Scan | str | Path], config: RunConfig, path: Path, *, progress: bool
) -> Store:
    given = [source] if isinstance(source, (Scan, str, Path)) else list(source)
    scans = [item if isinstance(item, Scan) else open_scan(item, config.prepare) for item in given]
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
        if needs_truth and scan.truth is None:
            raise ConfigError(f"realspace_weight, realspace_mae_weight: {scan.source} has no truth to compare with.")
    names = ["bootstrap.npz"] if len(scans) == 1 else [f"bootstrap-{number}.npz" for number in range(len(scans))]
    scans = [
        bootstrapped(scan, config, path.with_name(name), progress=progress)
        for scan, name in zip(scans, names, strict=True)
    ]
    return prepare(scans, config, path)


def _check_resumes(last: Path, config: RunConfig) -> None:
    """Refuse to go on from another configuration; where and (but for cosine) how long to compute may change."""
    if not last.exists():
        raise StoreError(f"{last}: expected a checkpoint to resume from; found none.")
    trained, wanted = to_dict(load_checkpoint(last).config), to_dict(config)
    # The rate of the cosine depends on how long it takes: a longer one would go on from the end of a shorter one.
    free = () if config.train.schedule == "cosine" else _LENGTH
    differs = [
        f"{section}.{key} was {trained[section][key]!r}, is {value!r}"
        for section in ("group", "model", "loss", "train")
        for key, value in wanted[section].items()
        if key not in (*free, *_MACHINE) and trained[section][key] != value
    ]
    if differs:
        raise ConfigError(
            f"{last}: cannot be continued with other options: {'; '.join(differs)}. "
            f"Use --config {last.parents[1] / _CONFIG}."
        )


def _check_machine(accelerator: str, devices: int) -> None:
    try:
        with _quiet_lightning():
            L.Trainer(accelerator=accelerator, devices=devices, logger=False, enable_checkpointing=False)
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"accelerator '{accelerator}', devices {devices}: not on this machine ({reason}).") from None


class _Rhythm(NamedTuple):
    """Optimiser steps per epoch, epochs, and epochs from one validation to the next."""

    steps: int
    epochs: int
    validate_every: int


def _rhythm(config: RunConfig, data: PtychoDataModule) -> _Rhythm:
    """Whole epochs, validations about every 100 steps, the last one at the end."""
    in_epoch = len(data.train_dataloader())
    if config.train.epochs:
        epochs = config.train.epochs
        wanted = max(1, round(_VALIDATE_EVERY_STEPS / in_epoch))
        return _Rhythm(in_epoch, epochs, max(n for n in range(1, min(epochs, wanted) + 1) if epochs % n == 0))
    steps = min(in_epoch, config.train.steps)
    epochs = math.ceil(config.train.steps / steps)
    every = min(epochs, max(1, round(_VALIDATE_EVERY_STEPS / steps)))
    return _Rhythm(steps, math.ceil(epochs / every) * every, every)


def _trainer(
    config: RunConfig, out: Path, data: PtychoDataModule, callbacks: Sequence[Callback], *, progress: bool
) -> L.Trainer:
    rhythm = _rhythm(config, data)
    return L.Trainer(
        accelerator=config.train.accelerator,
        devices=config.train.devices,
        precision=config.train.precision,
        max_epochs=rhythm.epochs,
        limit_train_batches=rhythm.steps,
        check_val_every_n_epoch=rhythm.validate_every,
        gradient_clip_val=config.train.gradient_clip or None,
        logger=CSVLogger(out, name=_LOGS, flush_logs_every_n_steps=100),
        log_every_n_steps=min(10, rhythm.steps),
        callbacks=[*callbacks, LearningRateMonitor("step"), *([StepProgress()] if progress else [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def read_history(run: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Logged metrics of a run by name, as (optimiser step, value); a resumed run has one log after the other."""
    history: dict[str, list[tuple[int, float]]] = {}
    for log in sorted((Path(run) / _LOGS).glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime_ns):
        with log.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        history.setdefault(name, []).append((int(row["step"]), float(value)))
    return history


def reconstruct(
    checkpoint: str | Path | PtychoPINN,
    scan: Scan | str | Path,
    config: ReconstructConfig | None = None,
    *,
    accelerator: str = "auto",
    progress: bool = True,
    scratch: str | Path | None = None,
    refine_epochs: int = 0,
) -> Reconstruction:
    """One forward pass over every frame of a scan, stitched; and refined, when epochs are given for it.

    Arguments:
        checkpoint: a trained module or its file.
        scan: what to reconstruct; it need not be the training scan.
        config: None takes what the module was trained with.
        accelerator: where to compute.
        progress: show a progress bar.
        scratch: folder with room for an uncompressed copy of the frames while it runs; None takes the system's.
        refine_epochs: epochs of `refine` that follow, from this image and with the module's probe, by the section
            `refine` of the module's configuration.

    Raises:
        TorchptychoError: the scan is unusable, or does not fit the module.
    """
    start = time.perf_counter()
    module = checkpoint if isinstance(checkpoint, PtychoPINN) else load_checkpoint(checkpoint)
    config = config or module.config.reconstruct
    scan = scan if isinstance(scan, Scan) else open_scan(scan, reading_for_prediction(module.config.prepare))
    which = config.training_scan
    if which >= len(module.probe):
        raise ConfigError(f"training_scan: expected 0 to {len(module.probe) - 1}; found {which}.")
    _check_fits(module, scan)
    _check_machine(accelerator, 1)
    if len(np.unique(scan.scan_id)) > 1:
        _log.warning("%s: holds %d scans; they are placed onto one image.", scan.source, len(np.unique(scan.scan_id)))
    with tempfile.TemporaryDirectory(prefix=".torchptycho-", dir=scratch) as folder:
        store = prepare([scan], _for_prediction(module.config), Path(folder) / "store")
        scaling = store.scans[0].scaling
        trained_scale = module.input_scale.clone()
        if config.input_scale == "scan":
            module.input_scale[which] = scaling.input_scale
        else:
            _compare_dose(float(trained_scale[which]), scaling.input_scale, scan.source)
        writer = CanvasWriter(store.tensors["positions_px"], config.stitch_weight, which)
        data = PtychoDataModule(store, predict_batch_size=config.predict_batch_size, training_scan=which)
        with _quiet_lightning():
            trainer = L.Trainer(
                accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False,
                enable_model_summary=False, enable_progress_bar=False,
                callbacks=[writer, *([StepProgress()] if progress else [])],
            )  # fmt: skip
            try:
                trainer.predict(module, data, return_predictions=False)
            finally:
                module.input_scale.copy_(trained_scale)
        object_pixel_m = store.scans[0].object_pixel_m
    if writer.n_placed != scan.n_frames:
        raise StoreError(f"{scan.source}: {scan.n_frames} frames, but {writer.n_placed} were placed.")
    provenance: dict[str, Any] = {
        "source": scan.source,
        "frames": scan.n_frames,
        "checkpoint": None if isinstance(checkpoint, PtychoPINN) else str(checkpoint),
        "checkpoint_sha256": None if isinstance(checkpoint, PtychoPINN) else sha256(Path(checkpoint)),
        "config": to_dict(module.config) | {"reconstruct": to_dict(config)},
        "versions": versions(),
        "seconds": round(time.perf_counter() - start, 3),
    }
    image = writer.canvas.finish(object_pixel_m, provenance)
    if not refine_epochs:
        return image
    return _refined(image, module, scan, which, refine_epochs, accelerator, progress, scratch)


def _refined(
    image: Reconstruction,
    module: PtychoPINN,
    scan: Scan,
    training_scan: int,
    epochs: int,
    accelerator: str,
    progress: bool,
    scratch: str | Path | None,
) -> Reconstruction:
    """The network's image, fitted to the counts with the probe of the training scan."""
    settings = dataclasses.replace(module.config.refine, epochs=epochs)
    probe = module.probe[training_scan].detach().cpu().numpy()
    device = {"gpu": "cuda"}.get(accelerator, accelerator)
    with EpochProgress("refining", epochs) if progress else contextlib.nullcontext() as told:
        refined = refine(scan, image, probe=probe, config=settings, device=device, on_epoch=told, scratch=scratch)
    provenance = {**image.provenance, "refinement": refined.provenance}
    provenance["seconds"] = round(image.provenance["seconds"] + refined.provenance["seconds"], 3)
    return dataclasses.replace(refined, provenance=provenance)


def _for_prediction(config: RunConfig) -> RunConfig:
    """Preparation of all frames as they are: the choices of training do not apply."""
    prediction = PrepareConfig(nphotons=config.prepare.nphotons, split_seed=config.prepare.split_seed, val_fraction=0.0)
    whole = dataclasses.replace(
        config.group, n_groups=None, n_subsample=None, oversample=False, bounds=(0.0, 1.0, 0.0, 1.0),
        min_distance_px=0.0, max_distance_px=None, quadrants=False,
    )  # fmt: skip
    return dataclasses.replace(config, prepare=prediction, group=whole)


def _check_fits(module: PtychoPINN, scan: Scan) -> None:
    if (scan.n_px, scan.domain) != (module.n_px, module.domain):
        raise ScanError(
            scan.source, "diffraction",
            expected=f"{module.n_px}x{module.n_px} frames of {module.domain}, as the checkpoint was trained on",
            found=f"{scan.n_px}x{scan.n_px} frames of {scan.domain}",
            remedy="Say what the frames hold with --domain, crop or pad them, or train on a scan of this kind.",
        )  # fmt: skip


def _compare_dose(trained_scale: float, found_scale: float, source: str) -> None:
    ratio = (trained_scale / found_scale) ** 2
    if not 1 / _DOSE_TOLERANCE < ratio < _DOSE_TOLERANCE:
        _log.warning(
            "%s: its frames are %.3g times as bright as those that the network was trained on. "
            "If the beam differs and not the sample, use --input-scale scan.",
            source, ratio,
        )  # fmt: skip


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lightning answers Ctrl+C with sys.exit and leaves the signal ignored; the caller gets its KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advice (number of workers, tips, device list) from the user; its warnings of faults pass."""
    loggers = [
        logging.getLogger(name)
        for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (".*does not have many workers.*", ".*treespec.*", ".*Checkpoint directory.*exists.*",
                            ".*LeafSpec.*", ".*across ranks is zero.*"):  # fmt: skip
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
