"""The verbs of a run: read, train, reconstruct. Each writes what it did beside what it made."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from torchptycho.absolute import ScaleWriter
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
from torchptycho.data.dataset import GroupDataset
from torchptycho.data.module import PtychoDataModule
from torchptycho.data.store import Store, prepare
from torchptycho.errors import ConfigError, ScanError, StoreError, TrainingError
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
from torchptycho.training.compiling import compile_generator
from torchptycho.training.history import read_history
from torchptycho.training.loggers import loggers
from torchptycho.training.quiet import check_machine, interruptible, quiet_lightning
from torchptycho.training.rhythm import rhythm
from torchptycho.training.starting import check_resumes, check_starts, take_network
from torchptycho.training.trainer import build_trainer
from torchptycho.versions import versions

__all__ = ["TrainResult", "open_scan", "read_history", "reading_for_prediction", "reconstruct", "train"]

_log = logging.getLogger(__name__)

# Dose of a scan relative to the training scan's beyond which its patches are no longer what the network was taught.
_DOSE_TOLERANCE = 1.2
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
    check_machine(accelerator, 1)
    if len(np.unique(scan.scan_id)) > 1:
        _log.warning("%s: holds %d scans; they are placed onto one image.", scan.source, len(np.unique(scan.scan_id)))
    with tempfile.TemporaryDirectory(prefix=".torchptycho-", dir=scratch) as folder:
        store = prepare([scan], _for_prediction(module.config), Path(folder) / "store")
        scaling = store.scans[0].scaling
        trained_scale, trained_masks = module.input_scale.clone(), module.masks.clone()
        try:
            # What this scan's detector did not see has no say, whatever was seen in training.
            module.masks[which] &= store.tensors["masks"][0].to(module.masks.device)
            if config.input_scale == "scan":
                module.input_scale[which] = scaling.input_scale
            else:
                _compare_dose(float(trained_scale[which]), scaling.input_scale, scan.source)
            scale = ScaleWriter() if config.absolute_scale else None
            writer = CanvasWriter(
                store.tensors["positions_px"], config.stitch_weight, which,
                agree_phases=config.agree_phases, scratch=folder,
            )  # fmt: skip
            data = PtychoDataModule(store, predict_batch_size=config.predict_batch_size, training_scan=which)
            with quiet_lightning():
                trainer = L.Trainer(
                    accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False,
                    enable_model_summary=False, enable_progress_bar=False,
                    callbacks=[writer, *([scale] if scale else []), *([StepProgress()] if progress else [])],
                )  # fmt: skip
                trainer.predict(module, data, return_predictions=False)
        finally:
            module.input_scale.copy_(trained_scale)
            module.masks.copy_(trained_masks)
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
    if scale is not None:
        found = scale.statistics.solve()
        provenance["absolute_scale"] = dataclasses.asdict(found)
        factor = np.float32(found.object_factor)
        assert image.spread is not None
        image = dataclasses.replace(
            image, object=image.object * factor, spread=image.spread * factor, provenance=provenance
        )
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
