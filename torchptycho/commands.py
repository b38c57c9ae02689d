"""The commands of the command line: what each is told, and the calls that it makes."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from torchptycho.command import Command
from torchptycho.config import (
    ExperimentConfig,
    GroupConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    PrepareConfig,
    ReadConfig,
    ReconstructConfig,
    RefineConfig,
    RunConfig,
    SimulateConfig,
    TrainConfig,
    from_dict,
    load_config,
    to_dict,
)
from torchptycho.errors import ConfigError, ScanError, TorchptychoError
from torchptycho.file_commands import Convert, Inspect
from torchptycho.tables import json_text, metrics_table

if TYPE_CHECKING:
    from torchptycho.network import PtychoNetwork

__all__ = ["COMMANDS", "Command"]

# The package's heavy half (torch, lightning, matplotlib) is imported inside `run`: help and errors come at once.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulate(Command):
    """Simulate an experiment and write it as a scan file with its truth.

    torchptycho simulate scan.npz --object-kind siemens_star --photons-per-frame 1e5
    """

    out: Positional[Path]
    """Scan file to write (NPZ)."""
    simulation: SimulateConfig = dataclasses.field(default_factory=SimulateConfig)

    def run(self) -> None:
        from torchptycho.io import write_scan
        from torchptycho.simulation import simulate

        with self.working("simulating"):
            scan = simulate(self.simulation)
            write_scan(scan, self.out)
        self.console.print(f"{self.out}: {scan!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare(Command):
    """Check scans and write them as a store that training reads; `train` does this by itself.

    torchptycho prepare day1.npz day2.npz --out store --gridsize 2
    """

    scans: Positional[tuple[Path, ...]]
    """Scan files."""
    out: Path
    """Folder to make."""
    config: Path | None = None
    """YAML or TOML file with the sections prepare, group, model, loss, train, reconstruct; flags override it."""
    prepare: PrepareConfig = dataclasses.field(default_factory=PrepareConfig)
    group: GroupConfig = dataclasses.field(default_factory=GroupConfig)

    def run(self) -> None:
        _require_scans(self.scans)
        from torchptycho.bootstrap import bootstrapped
        from torchptycho.data.store import prepare
        from torchptycho.workflows import open_scan

        later = load_config(self.config).refine if self.config else RefineConfig()
        config = RunConfig(prepare=self.prepare, group=self.group, refine=later)
        scans = [
            bootstrapped(open_scan(path, self.prepare), config, self.out.with_name(f"{self.out.name}-{number}.npz"))
            for number, path in enumerate(self.scans)
        ]
        with self.working(f"preparing {sum(scan.n_frames for scan in scans)} frames"):
            store = prepare(scans, config, self.out)
        train, val = (len(store.groups(split)) for split in ("train", "val"))
        left_out = sum(len(entry.left_out) for entry in store.scans)
        self.console.print(
            f"{self.out}: {store.n_frames} frames, {train} groups for training, {val} held out"
            + (f"; {left_out} frames left out, listed in {self.out / 'store.json'}" if left_out else "")
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train the physics-informed network on scans, without labels.

    torchptycho train scan.npz --out run
    torchptycho train scan.npz --out run --probe refined.npz --steps 2000
    torchptycho train new.npz --out tuned --from run --freeze-encoder --learning-rate-factor 0.2
    torchptycho train day1.npz day2.npz --val-scans day3.npz --out run
    """

    scans: Positional[tuple[Path, ...]]
    """Scan files, or one prepared store."""
    out: Path
    """Folder of the run: configuration, store, checkpoints, metrics."""
    val_scans: tuple[Path, ...] = ()
    """Scan files that are not trained on; validation looks at every frame of them."""
    start: Annotated[Path | None, arg(name="from")] = None
    """Checkpoint or folder of a run whose network is trained further, on these scans."""
    resume: bool = False
    """Continue the run in this folder from its last checkpoint."""
    config: Path | None = None
    """YAML or TOML file with the sections prepare, group, model, experiment, loss, train, log, reconstruct; flags
    override it."""
    prepare: PrepareConfig = dataclasses.field(default_factory=PrepareConfig)
    group: GroupConfig = dataclasses.field(default_factory=GroupConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    experiment: ExperimentConfig = dataclasses.field(default_factory=ExperimentConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    def run(self) -> None:
        _require_scans((*self.scans, *self.val_scans))
        from torchptycho.plot import plot_history
        from torchptycho.workflows import read_history, train

        later = load_config(self.config) if self.config else RunConfig()
        config = dataclasses.replace(
            later, prepare=self.prepare, group=self.group, model=self.model, experiment=self.experiment,
            loss=self.loss, train=self.train, log=self.log,
        )  # fmt: skip
        result = train(self.scans, config, self.out, val_scans=self.val_scans, start=self.start, resume=self.resume)
        if result.rank:
            return
        plot_history(read_history(self.out), self.out / "history.png")
        self.console.print(
            f"{result.checkpoint}: trained in {result.seconds:.0f} s, "
            + ", ".join(
                f"{name} {value:.4g}"
                for name, value in sorted(result.metrics.items())
                if name in ("train/loss", "val/loss")
            )
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruct(Command):
    """Reconstruct scans with a trained network and stitch an image of each.

    torchptycho reconstruct run scan.npz --out image.npz
    torchptycho reconstruct run night/*.npz --out images
    """

    checkpoint: Positional[Path]
    """Checkpoint, or the folder of a run (its best checkpoint)."""
    scans: Positional[tuple[Path, ...]]
    """Scan files."""
    out: Path | None = None
    """Image file to write (NPZ), by default reconstruction.npz; a PNG of the same name is drawn beside it. With several
    scans a folder, by default reconstructions, in which images have the names of their scans."""
    accelerator: str = "auto"
    """Where to compute: auto, cpu, gpu."""
    devices: int = 1
    """Processes that share the frames of a scan, each with a GPU or a part of the CPU."""
    domain: Literal["counts", "amplitude"] | None = None
    """What the frames hold, when the file does not say."""
    frames: str | None = None
    """Frames to use, as start:stop."""
    stitch_weight: Literal["probe", "central"] | None = None
    """How overlapping patches are averaged: by |P|^2, or evenly over the central half; None as trained."""
    agree_phases: bool | None = None
    """Turn each group's patches by the phase with which they agree with their neighbours; None as trained."""
    input_scale: Literal["training", "scan"] | None = None
    """Scale the network's input as in training, or anew from this scan (when its dose differs); None as trained."""
    training_scan: int | None = None
    """Which training scan's probe and scale to use, when there were several; None as trained."""
    predict_batch_size: int | Literal["auto"] | None = None
    """Frames per forward pass; auto: what a CPU is fastest with, and what a GPU has memory for. None as trained."""
    predict_precision: Literal["32-true", "bf16-mixed"] | None = None
    """Arithmetic of the network; None as trained."""
    predict_compile: bool | None = None
    """Compile the network with torch.compile, which pays with many scans; None as trained."""
    predict_passes: int | None = None
    """Times that each frame is predicted, each time in a group with other neighbours; None as trained."""
    absolute_scale: bool | None = None
    """Scale the object so that it and a constant background fit the counts of the whole scan best; None as trained."""
    refine: int = 0
    """Epochs of refinement after it, with the options that the network was trained with in the section refine."""

    def run(self) -> None:
        _require_scans(self.scans)
        images = self._images()
        if self.refine < 0:
            raise ConfigError(f"--refine: expected a number of epochs, 0 for none; found {self.refine}.")
        from torchptycho.checkpoints import find_checkpoint, load_network

        network = load_network(find_checkpoint(self.checkpoint))
        trained = to_dict(network.config.reconstruct)
        asked = {name: getattr(self, name) for name in trained if getattr(self, name) is not None}
        config = from_dict(ReconstructConfig, trained | asked, source="reconstruct")
        # Drawing takes as long to import as a small scan to predict, and the second core is idle at first.
        threading.Thread(target=importlib.import_module, args=("torchptycho.plot",), daemon=True).start()
        failed = []
        for scan, image in images.items():
            try:
                self._reconstruct(network, config, scan, image)
            except TorchptychoError as error:
                if len(images) == 1:
                    raise
                failed.append(scan)
                sys.stderr.write(f"torchptycho: {' '.join(str(error).split())}\n")
        if failed:
            raise ScanError(
                ", ".join(map(str, failed)), None, expected=f"{len(images)} scans that can be reconstructed",
                found=f"{len(failed)} that cannot, as told above", remedy="The images of the others are written.",
            )  # fmt: skip

    def _images(self) -> dict[Path, Path]:
        """The image of each scan."""
        if len(self.scans) == 1:
            out = self.out or Path("reconstruction.npz")
            _require_new_npz(out, self.scans[0])
            return {self.scans[0]: out}
        folder = self.out or Path("reconstructions")
        if folder.suffix.lower() == ".npz" or folder.is_file():
            raise ConfigError(f"--out: expected a folder for the images of {len(self.scans)} scans; found {folder}.")
        images = {scan: folder / f"{scan.stem}.npz" for scan in self.scans}
        for scan, image in images.items():
            _require_new_npz(image, scan)
        if len(set(images.values())) < len(self.scans):
            raise ConfigError(
                "expected scans of different names, after which their images are named; found some twice."
            )
        return images

    def _reconstruct(self, network: PtychoNetwork, config: ReconstructConfig, path: Path, out: Path) -> None:
        from torchptycho.io import read_scan, write_reconstruction
        from torchptycho.reconstructing import reading_for_prediction, reconstruct

        scan = read_scan(path, reading_for_prediction(network.config.prepare, self.domain, self.frames))
        # Beside the image where its folder is there already: nothing is to be left after a bad file.
        room = out.parent if out.parent.is_dir() else None
        image = reconstruct(
            network, scan, config, accelerator=self.accelerator, devices=self.devices, scratch=room,
            refine_epochs=self.refine,
        )  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        write_reconstruction(image, out)
        from torchptycho.plot import plot_reconstruction

        picture = plot_reconstruction(image, out.with_suffix(".png"))
        self.console.print(
            f"{out}, {picture}: {image.object.shape[0]}x{image.object.shape[1]} px from {scan.n_frames} frames "
            f"in {image.provenance['seconds']:.1f} s"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Refining(Command):
    """What the commands that refine a scan are told."""

    scan: Positional[Path]
    """Scan file."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda."""
    config: Path | None = None
    """YAML or TOML file with the sections prepare and refine; flags override it."""
    reading: ReadConfig = dataclasses.field(default_factory=ReadConfig)
    refine: RefineConfig = dataclasses.field(default_factory=RefineConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refine(_Refining):
    """Fit the image to the counts, from nothing or from an earlier image; no training is needed.

    torchptycho refine scan.npz --out refined.npz
    torchptycho refine scan.npz --start image.npz --out refined.npz --position-update frames
    """

    start: Path | None = None
    """Image to begin with, as `reconstruct` or `refine` wrote it; None begins with nothing."""
    out: Path = Path("refined.npz")
    """Image file to write (NPZ), with the refined probe and positions; a PNG of the same name is drawn beside it."""
    resume: bool = False
    """Go on from where an earlier refinement into this file ended, up to the epochs asked for."""

    def run(self) -> None:
        _require_new_npz(self.out, self.scan)
        from torchptycho.bars import EpochProgress
        from torchptycho.io import read_reconstruction, read_scan, write_reconstruction
        from torchptycho.plot import plot_reconstruction
        from torchptycho.refinement import refine

        scan = read_scan(self.scan, self.reading)
        start = None if self.start is None else read_reconstruction(self.start)
        if start is not None and self.reading.probe is not None:
            start = dataclasses.replace(start, probe=None)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with EpochProgress("refining", self.refine.epochs) as told:
            image = refine(
                scan, start, config=self.refine, device=self.device, resume=self.resume, on_epoch=told,
                state_file=self.out.with_suffix(".state.npz"), scratch=self.out.parent,
            )  # fmt: skip
        write_reconstruction(image, self.out)
        picture = plot_reconstruction(image, self.out.with_suffix(".png"))
        misfit = image.history["misfit"]
        fit = f"misfit {misfit[-1]:.4g} (1 is the photon noise) " if misfit else ""
        self.console.print(
            f"{self.out}, {picture}: {image.object.shape[0]}x{image.object.shape[1]} px, "
            f"{fit}after {len(misfit)} epochs in {image.provenance['seconds']:.1f} s"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolution(_Refining):
    """Tell how fine an image the data allow, without a truth: refine two halves of the frames and correlate them.

    torchptycho resolution scan.npz --plot frc.png
    """

    plot: Path | None = None
    """Draw the ring correlation into this PNG."""
    json: bool = False
    """Print JSON instead of a sentence."""

    def run(self) -> None:
        from torchptycho.halves import resolution
        from torchptycho.io import read_scan

        scan = read_scan(self.scan, self.reading)
        with self.working("refining two halves of the frames"):
            found = resolution(scan, config=self.refine, device=self.device)
        if self.plot:
            from torchptycho.plot import plot_frc

            plot_frc(found.metrics, self.plot, halves=True)
        if self.json:
            told = {"half_period_px": found.half_period_px, "half_period_m": found.half_period_m}
            self.console.print_json(json_text(told | {"metrics": found.metrics.to_dict()}))
            return
        metres = "" if found.half_period_m is None else f" ({found.half_period_m * 1e9:.3g} nm)"
        self.console.print(
            f"{self.scan}: half period {found.half_period_px:.3g} px{metres} at the 1/2-bit threshold, from two halves "
            f"of {scan.n_frames} frames"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Compare a reconstruction with a true or reference object.

    torchptycho evaluate image.npz scan.npz
    """

    reconstruction: Positional[Path]
    """Image file written by `reconstruct`."""
    truth: Positional[Path]
    """Scan with `objectGuess`, or any image file with `object`."""
    min_coverage: float = 0.1
    """Look only where at least this part of the largest weight met."""
    plot: Path | None = None
    """Draw both and their errors into this PNG."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        import numpy as np

        from torchptycho.evaluation import evaluate
        from torchptycho.io import read_reconstruction

        image, truth = read_reconstruction(self.reconstruction), read_reconstruction(self.truth)
        # Where a reference is not valid itself there is nothing to compare with.
        known = np.where(truth.valid, truth.object, np.nan).astype(np.complex64)
        metrics = evaluate(image, known, truth_origin_px=truth.origin_px, min_coverage=self.min_coverage)
        if self.plot:
            from torchptycho.plot import plot_reconstruction

            plot_reconstruction(image, self.plot, truth=known, truth_origin_px=truth.origin_px, metrics=metrics)
        if self.json:
            self.console.print_json(json_text(metrics.to_dict()))
        else:
            self.console.print(metrics_table(metrics))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Go the whole way on a simulated experiment: simulate, inspect, train, reconstruct, evaluate, draw.

    torchptycho demo --out demo
    """

    out: Path = Path("demo")
    """Folder for everything that it makes."""
    steps: int = 200
    """Optimiser steps of the training."""
    simulation: SimulateConfig = dataclasses.field(default_factory=SimulateConfig)

    def run(self) -> None:
        from torchptycho.demo import demo

        demo(self.out, self.simulation, steps=self.steps, console=self.console)


def _require_new_npz(out: Path, scan: Path) -> None:
    if out.suffix.lower() != ".npz" or out.resolve() == scan.resolve():
        raise ConfigError(f"--out: expected a new file whose name ends in .npz; found {out}.")


def _require_scans(scans: tuple[Path, ...]) -> None:
    if not scans:
        raise ConfigError("expected at least one scan file; found none.")


COMMANDS: dict[str, type[Command]] = {
    "inspect": Inspect,
    "convert": Convert,
    "simulate": Simulate,
    "prepare": Prepare,
    "train": Train,
    "reconstruct": Reconstruct,
    "refine": Refine,
    "evaluate": Evaluate,
    "resolution": Resolution,
    "demo": Demo,
}
